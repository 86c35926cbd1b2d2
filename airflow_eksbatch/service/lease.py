"""One beating service per database: take the lease, keep it, and stop when it is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from airflow_eksbatch.service.store_thread import StoreThread
from airflow_eksbatch.service.telemetry import Telemetry
from airflow_eksbatch.store.port import Store, StoreError

LOST = "Another service took the lease of this database while this one could not renew it."


class LeaseLost(Exception):
    """Another service beats on this database now."""


# Loading keeps the store's thread busy, so nothing can be renewed meanwhile: a million live jobs take 15 s.
LOAD_S = 120


class Lease:
    """A third of the lease's length is the time between renewals, so two may fail."""

    def __init__(
        self,
        owner: str,
        seconds: int,
        *,
        store: StoreThread,
        clock: Callable[[], int],
        telemetry: Telemetry,
    ) -> None:
        self._owner = owner
        self._seconds = seconds
        self._store = store
        self._clock = clock
        self._telemetry = telemetry

    async def acquire(self) -> None:
        """Wait until this service is the one that beats."""
        waited = False
        while not await self.renew():
            if not waited:
                self._telemetry.standing_by()
            waited = True
            await asyncio.sleep(self._seconds / 3)

    async def keep(self) -> None:
        """Renew for ever; raises LeaseLost. A store that cannot be reached keeps others out, too."""
        while True:
            await asyncio.sleep(self._seconds / 3)
            try:
                if not await self.renew():
                    raise LeaseLost(LOST)
            except StoreError as error:
                self._telemetry.store_failed("lease", str(error))

    async def renew(self) -> bool:
        """Take or keep the lease for its whole length from now."""
        return await self._store.commit(self._take(self._seconds)) is not None

    async def hold(self) -> None:
        """Keep it through a load; raises LeaseLost."""
        if await self._store.commit(self._take(max(LOAD_S, self._seconds))) is None:
            raise LeaseLost(LOST)

    async def release(self) -> None:
        """Let a standby begin at once."""
        try:
            await self._store.commit(self._take(0))
        except StoreError as error:
            self._telemetry.store_failed("lease", str(error))

    def _take(self, seconds: int) -> Callable[[Store], int | None]:
        return lambda store: store.take_lease(self._owner, self._clock(), seconds)
