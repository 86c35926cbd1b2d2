"""Watches of cluster and cloud -> facts, for ever; a watch that breaks is begun again after a while."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable

from airflow_eksbatch.core.engine.facts import Fact
from airflow_eksbatch.floor.clock import Backoff
from airflow_eksbatch.service.telemetry import Telemetry

Watch = Callable[[], AsyncIterator[list[Fact]]]


class Watchers:
    """One task for each watch. Adapters begin every watch with a full look, so a gap heals itself."""

    def __init__(
        self,
        watches: dict[str, Watch],
        *,
        tell: Callable[[Iterable[Fact]], None],
        telemetry: Telemetry,
        backoff: Backoff,
    ) -> None:
        self._watches = watches
        self._tell = tell
        self._telemetry = telemetry
        self._backoff = backoff
        self._tasks: list[asyncio.Task[None]] = []

    def open(self) -> None:
        self._tasks = [
            asyncio.create_task(self._keep(name, watch), name=f"watch-{name}")
            for name, watch in self._watches.items()
        ]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _keep(self, name: str, watch: Watch) -> None:
        failures = 0
        while True:
            try:
                async for facts in watch():
                    failures = 0
                    self._tell(facts)
                trouble = "it ended"
            except Exception as error:  # The next watch looks at everything
                trouble = f"{type(error).__name__}: {error}"
            failures += 1
            self._telemetry.watch_broke(name, trouble, failures)
            await asyncio.sleep(self._backoff.after(failures))
