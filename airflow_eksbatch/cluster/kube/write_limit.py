"""One limit for all writes to an API server: more while it answers quickly, less when it is slow or says so.

Additive increase, multiplicative decrease, as in TCP: more writers than the API server can serve make it slower, not faster.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

FIRST, LEAST, MOST = 16.0, 1.0, 256.0
# A write that takes this long has waited for others, an idle API server needs some milliseconds; but one that is far
# away always takes long: this many times as long as a write that was almost alone.
SLOW_S, SLOW_TIMES = 1.0, 4.0
ALMOST_ALONE, LATELY_S = 4, 10.0
DECREASE = 0.7


class Distance:
    """How long a write takes at least: the shortest of late."""

    def __init__(self) -> None:
        self._since = -math.inf
        self._now_s = self._before_s = math.inf

    @property
    def shortest_s(self) -> float:
        """0 while nothing is known."""
        shortest_s = min(self._now_s, self._before_s)
        return shortest_s if shortest_s < math.inf else 0.0

    def put(self, took_s: float, now: float) -> None:
        if now - self._since >= LATELY_S:
            self._since, self._before_s, self._now_s = now, self._now_s, math.inf
        self._now_s = min(self._now_s, took_s)


class WriteLimit:
    """How many writes may be under way; `allowed` is what it has learnt."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.allowed = FIRST
        self._under_way = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._cut_at = 0.0
        self._paused_until = 0.0
        self._distance = Distance()

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[float]:
        """Room for one write; gives the time at which it began."""
        await self._enter()
        try:
            pause_s = self._paused_until - self._clock()
            if pause_s > 0:
                await asyncio.sleep(pause_s)
            yield self._clock()
        finally:
            self._under_way -= 1
            self._let_in()

    def answered(self, began: float) -> None:
        """The write was served; slow service is a sign of too many."""
        took_s = self._clock() - began
        if self._under_way <= ALMOST_ALONE:
            self._distance.put(took_s, self._clock())
        if took_s >= max(SLOW_S, SLOW_TIMES * self._distance.shortest_s):
            self._cut(began)
        else:
            self.allowed = min(MOST, self.allowed + 1 / self.allowed)
            self._let_in()

    def refused(self, began: float, retry_after_s: float) -> None:
        """Too many requests: everybody waits as long as the server says."""
        self._cut(began)
        self._paused_until = max(self._paused_until, self._clock() + retry_after_s)

    def _cut(self, began: float) -> None:
        """Once for all writes that were under way together: they tell the same story."""
        if began >= self._cut_at:
            self.allowed = max(LEAST, self.allowed * DECREASE)
            self._cut_at = self._clock()

    async def _enter(self) -> None:
        if self._under_way < int(self.allowed) and not self._waiting:
            self._under_way += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._under_way -= 1
                self._let_in()
            raise

    def _let_in(self) -> None:
        while self._waiting and self._under_way < int(self.allowed):
            turn = self._waiting.popleft()
            if not turn.done():
                self._under_way += 1
                turn.set_result(None)
