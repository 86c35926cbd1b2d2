"""Bounded queue of facts: callers wait for their commit, and are told to slow down when it is full."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable

from airflow_eksbatch.core.engine.facts import Fact, PodRunning, PodSeen
from airflow_eksbatch.core.model.errors import Rejected
from airflow_eksbatch.floor.clock import within

# Progress that nothing hangs on but what people see, and when other nodes of a multi-node job begin: alone it waits so long
# for a beat, and a burst of it shares one.
PROGRESS = (PodSeen, PodRunning)
PROGRESS_S = 0.1


class Letter:
    """A fact and who waits for its answer; facts of clusters and clouds have nobody waiting."""

    __slots__ = ("fact", "reply")

    def __init__(self, fact: Fact, reply: asyncio.Future[object] | None = None) -> None:
        self.fact = fact
        self.reply = reply

    def answer(self, answer: object) -> None:
        """Give the answer; a Rejected is raised where the caller waits. Callers who left are no trouble."""
        if self.reply is None or self.reply.done():
            return
        if isinstance(answer, Exception):
            self.reply.set_exception(answer)
        else:
            self.reply.set_result(answer)


def unavailable(reason: str) -> Rejected:
    """A refusal that AWS clients repeat by themselves (ServerException is a 500)."""
    return Rejected(f"{reason} Try again.", code="ServerException")


class Inbox:
    """What the outside tells waits here for the next beat.

    Callers' facts are bounded. What clusters and clouds tell is bounded by what we asked of them, and is never refused.
    """

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._told: deque[Letter] = deque()
        self._offered: deque[Letter] = deque()
        self._woken = asyncio.Event()
        self._later: asyncio.TimerHandle | None = None
        self._closed: str | None = None

    def __len__(self) -> int:
        return len(self._told) + len(self._offered)

    @property
    def is_full(self) -> bool:
        return len(self._offered) >= self._bound

    async def offer(self, fact: Fact) -> object:
        """A caller's fact: returns its answer after the commit, raises Rejected."""
        if self._closed is not None:
            raise unavailable(self._closed)
        if self.is_full:
            raise Rejected(
                f"{self._bound} requests wait already. Slow down and try again.",
                code="TooManyRequestsException",
            )
        reply = asyncio.get_running_loop().create_future()
        self._offered.append(Letter(fact, reply))
        self._woken.set()
        return await reply

    def tell(self, facts: Iterable[Fact]) -> None:
        """What a cluster, a cloud or the service itself has seen."""
        letters = [Letter(fact) for fact in facts]
        self._told.extend(letters)
        if any(not isinstance(letter.fact, PROGRESS) for letter in letters):
            self._woken.set()
        elif letters:
            self._wake_later()

    def _wake_later(self) -> None:
        if self._later is None and not self._woken.is_set():
            loop = asyncio.get_running_loop()
            self._later = loop.call_later(PROGRESS_S, self._woken.set)

    def give_back(self, letters: Iterable[Letter]) -> None:
        """Facts of a beat that was not kept: they come first in the next one."""
        self._told.extendleft(reversed([letter for letter in letters if letter.reply is None]))

    def drain(self, limit: int) -> list[Letter]:
        """The next batch, oldest first; callers keep a quarter of it even when a cluster tells a lot."""
        told = min(len(self._told), max(limit - len(self._offered), limit * 3 // 4))
        batch = [self._told.popleft() for _ in range(told)]
        offered = min(len(self._offered), limit - told)
        batch.extend(self._offered.popleft() for _ in range(offered))
        if not self:
            self._woken.clear()
            if self._later is not None:
                self._later.cancel()
                self._later = None
        return batch

    def wake(self) -> None:
        """Let the loop look, whether or not there is a fact."""
        self._woken.set()

    async def wait(self, timeout_s: float) -> None:
        """Until there is a fact, or that long."""
        await within(timeout_s, self._woken)

    def close(self, reason: str) -> None:
        """Refuse callers from now on; what was accepted is still answered."""
        self._closed = reason
        self._woken.set()

    def refuse_waiting(self, reason: str) -> None:
        """Nobody will read these any more: tell their callers."""
        while self._offered:
            self._offered.popleft().answer(unavailable(reason))
