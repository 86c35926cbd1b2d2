"""A watch read in the background, and tests on loops of their own."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from airflow_eksbatch.cloud.ec2 import Ec2Cloud
from airflow_eksbatch.core.engine.facts import Fact

T = TypeVar("T", bound=Fact)
WAIT_S = 60.0


def asynchronous(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test on a loop of its own, and not for ever."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(asyncio.wait_for(test(*args, **kwargs), 240))

    return run


class Hands:
    """A clock that is put forward by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Watch:
    """What a cloud has told since the watch began."""

    def __init__(self) -> None:
        self.facts: list[Fact] = []
        self.news = asyncio.Event()

    def take(self, facts: list[Fact]) -> None:
        self.facts += facts
        self.news.set()

    async def until(self, kind: type[T], holds: Callable[[T], bool] = lambda fact: True) -> T:
        """The first fact of a kind for which this holds; waits for it."""
        async with asyncio.timeout(WAIT_S):
            while True:
                for fact in self.facts:
                    if isinstance(fact, kind) and holds(fact):
                        return fact
                self.news.clear()
                await self.news.wait()

    async def next(self, kind: type[T], holds: Callable[[T], bool] = lambda fact: True) -> T:
        """The same, of what is told from now on."""
        self.facts.clear()
        return await self.until(kind, holds)

    def all(self, kind: type[T]) -> list[T]:
        return [fact for fact in self.facts if isinstance(fact, kind)]


@asynccontextmanager
async def watching(cloud: Ec2Cloud) -> AsyncIterator[Watch]:
    watch = Watch()

    async def read() -> None:
        async for facts in cloud.watch():
            watch.take(facts)

    reader = asyncio.create_task(read())
    try:
        yield watch
        if reader.done():
            reader.result()
    finally:
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
