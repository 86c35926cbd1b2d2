"""The one thread that talks to the store: commits go before other questions."""

from __future__ import annotations

import asyncio
import itertools
import queue
import threading
from collections.abc import Callable
from typing import TypeVar

from airflow_eksbatch.store.port import Store

T = TypeVar("T")

_COMMIT, _QUESTION, _END = 0, 1, 2


class StoreThread:
    """Calls of the store block; here they wait without holding up the event loop."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._numbers = itertools.count()
        self._waiting: queue.PriorityQueue[tuple[int, int, Callable[[], None]]] = (
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
        self._waiting.put((_END, next(self._numbers), _stop))
        await asyncio.to_thread(self._thread.join)

    async def _call(self, rank: int, act: Callable[[Store], T]) -> T:
        loop = asyncio.get_running_loop()
        reply: asyncio.Future[T] = loop.create_future()

        def run() -> None:
            try:
                result = act(self._store)
            except Exception as error:  # Raised again where the caller waits
                _give(loop, _fail, reply, error)
            else:
                _give(loop, _settle, reply, result)

        self._waiting.put((rank, next(self._numbers), run))
        return await reply

    def _run(self) -> None:
        try:
            while True:
                self._waiting.get()[2]()
        except _Stopped:
            return


class _Stopped(Exception):
    """The thread's own end."""


def _stop() -> None:
    raise _Stopped


def _give(
    loop: asyncio.AbstractEventLoop,
    give: Callable[..., None],
    reply: object,
    what: object,
) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(give, reply, what)


def _settle(reply: asyncio.Future[T], result: T) -> None:
    if not reply.done():
        reply.set_result(result)


def _fail(reply: asyncio.Future[T], error: Exception) -> None:
    if not reply.done():
        reply.set_exception(error)
