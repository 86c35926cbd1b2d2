"""Facts for everybody who watches: each watch has a feed of its own, and is told what comes while it is open."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

from airflow_eksbatch.core.engine.facts import Fact


class Feeds:
    def __init__(self) -> None:
        self._open: set[asyncio.Queue[Fact]] = set()

    def tell(self, facts: list[Fact]) -> None:
        for feed in self._open:
            for fact in facts:
                feed.put_nowait(fact)

    @contextlib.contextmanager
    def open(self) -> Iterator[asyncio.Queue[Fact]]:
        feed: asyncio.Queue[Fact] = asyncio.Queue()
        self._open.add(feed)
        try:
            yield feed
        finally:
            self._open.discard(feed)


async def next_facts(feed: asyncio.Queue[Fact], within_s: float | None = None) -> list[Fact]:
    """All that was told meanwhile, at least one fact; empty if there is none within so many seconds.

    Not wait_for: before Python 3.12 it swallows a cancellation now and then.
    """
    facts: list[Fact] = []
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            facts.append(await feed.get())
    while not feed.empty():
        facts.append(feed.get_nowait())
    return facts
