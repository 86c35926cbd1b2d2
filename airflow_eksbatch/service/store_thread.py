"""The one thread that talks to the store: commits go before other questions."""

from __future__ import annotations

import asyncio
import itertools
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from airflow_eksbatch.store.port import Store

T = TypeVar("T")

_COMMIT, _QUESTION, _END = 0, 1, 2


class StoreThread:
    """Calls of the store block; here they wait without holding up the event loop."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._numbers = itertools.count()
        self._waiting: queue.PriorityQueue[tuple[int, int, Callable[[], None] | None]] = (
            queue.PriorityQueue()
        )
        self._thread = threading.Thread(target=self._run, name="store", daemon=True)
        self._thread.start()

    async def commit(self, act: Callable[[Store], T]) -> T:
        """Run before every question that waits."""
        return await self._call(_COMMIT, act)

    async def ask(self, question: Callable[[Store], T]) -> T:
        """Run a question on the store's thread."""
        return await self._call(_QUESTION, question)

    async def close(self) -> None:
        """Answer what was asked, close the store, end the thread."""
        await self._call(_END, lambda store: store.close())
        self._waiting.put((_END, next(self._numbers), None))
        await asyncio.to_thread(self._thread.join)

    async def _call(self, rank: int, act: Callable[[Store], T]) -> T:
        told: Future[T] = Future()
        told.set_running_or_notify_cancel()  # Whoever does not wait any more cannot take it back

        def run() -> None:
            try:
                told.set_result(act(self._store))
            except Exception as error:  # Raised again where the caller waits
                told.set_exception(error)

        self._waiting.put((rank, next(self._numbers), run))
        return await asyncio.wrap_future(told)

    def _run(self) -> None:
        while (act := self._waiting.get()[2]) is not None:
            act()
