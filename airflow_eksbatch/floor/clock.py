"""The clock, how long to wait before another try, and waiting for an event for so long."""

from __future__ import annotations

import asyncio
import time

import msgspec


def now_ms() -> int:
    """Epoch milliseconds, as in all facts."""
    return time.time_ns() // 1_000_000


class Backoff(msgspec.Struct, frozen=True, kw_only=True):
    """How long to wait before trying again: one policy for everything that can be down."""

    first_s: float = 0.2
    factor: float = 2.0
    most_s: float = 15.0

    def after(self, failures: int) -> float:
        return min(self.most_s, self.first_s * self.factor ** min(failures - 1, 16))


async def within(seconds: float | None, event: asyncio.Event) -> bool:
    """Whether it is set before so many seconds have passed; None waits for ever.

    Not wait_for: before Python 3.12 it swallows a cancellation now and then.
    """
    if event.is_set():
        return True
    try:
        async with asyncio.timeout(seconds):
            return await event.wait()
    except TimeoutError:
        return False
