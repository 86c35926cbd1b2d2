"""What the API may ask of the service: offer facts, read the committed world, ask the store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from airflow_eksbatch.api.port import ApiSettings
from airflow_eksbatch.cluster.port import Cluster
from airflow_eksbatch.core.engine.facts import Fact
from airflow_eksbatch.core.model.errors import Rejected
from airflow_eksbatch.core.model.job import Attempt
from airflow_eksbatch.core.world.world import World
from airflow_eksbatch.service.broadcast import Broadcast
from airflow_eksbatch.service.inbox import Inbox, unavailable
from airflow_eksbatch.service.loop import Loop
from airflow_eksbatch.service.store_thread import StoreThread
from airflow_eksbatch.store.port import Store, StoreError, Unstorable

T = TypeVar("T")
CloudControl = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


class ServiceDesk:
    """The `Desk` of api/port.py. Whatever cannot be served now is a ServerException, which clients repeat."""

    # A caller is not kept waiting longer than HTTP clients wait by default.
    SETTLE_S = 30.0

    def __init__(
        self,
        settings: ApiSettings,
        *,
        loop: Loop,
        inbox: Inbox,
        store: StoreThread,
        broadcast: Broadcast,
        cluster: Cluster,
        control: CloudControl | None,
        metrics_text: Callable[[], bytes],
        tell_changed: Callable[[str, str | None, str | None], None],
        tell_denied: Callable[[str, str | None, str], None],
    ) -> None:
        self.settings = settings
        self._loop = loop
        self._inbox = inbox
        self._store = store
        self._broadcast = broadcast
        self._cluster = cluster
        self._control = control
        self.metrics_text = metrics_text
        self.tell_changed = tell_changed
        self.tell_denied = tell_denied

    @property
    def world(self) -> World:
        if self._loop.world is None:
            raise self._not_now()
        return self._loop.world

    @property
    def trouble(self) -> str | None:
        return self._loop.trouble

    async def offer(self, fact: Fact) -> object:
        if self._loop.world is None:
            raise self._not_now()
        return await self._inbox.offer(fact)

    async def settled(self) -> None:
        if self._loop.world is None:
            raise self._not_now()
        if self._loop.is_settled:
            return
        try:
            async with asyncio.timeout(self.SETTLE_S):
                await self._loop.settled()
        except TimeoutError:
            raise self._not_now() from None

    async def ask(self, question: Callable[[Store], T]) -> T:
        try:
            return await self._store.ask(question)
        except Unstorable as error:
            raise Rejected(f"The database cannot look for that: {error}") from error
        except StoreError as error:
            raise unavailable(f"The database cannot be read now: {error}") from error

    async def read_log(self, attempt: Attempt, offset: int, limit: int) -> tuple[bytes, int] | None:
        try:
            return await self._cluster.read_log(attempt.pod_name, offset, limit)
        except OSError as error:
            raise unavailable(f"The output cannot be read now: {error}") from error

    def subscribe(self, cursor: int) -> AsyncIterator[dict[str, Any]]:
        if self._loop.world is None:
            raise self._not_now()
        return self._broadcast.subscribe(cursor)

    async def control_cloud(self, request: dict[str, Any]) -> dict[str, Any]:
        if self._control is None:
            raise Rejected("Only the embedded cloud can be told what to do.")
        return await self._control(request)

    def _not_now(self) -> Rejected:
        return unavailable(f"The service is not ready: {self._loop.trouble or 'starting'}.")
