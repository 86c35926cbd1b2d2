"""One beating service per database: it keeps the lease; the others look whether they may take it."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Callable

from airflow_eksbatch.service.front import Standby, secret_of
from airflow_eksbatch.service.store_thread import StoreThread
from airflow_eksbatch.service.telemetry import Telemetry
from airflow_eksbatch.store.port import Store, StoreError

LOST = "Another service took the lease of this database while this one could not renew it."


class LeaseLost(Exception):
    """Another service beats on this database now."""


# A million live jobs are loaded in 15 s; one that takes longer than this hangs, and a standby may do better.
LOAD_S_MAX = 120
# How often a standby looks at the lease, at least.
LOOK_S = 1.0
# Goes on while a process is stopped; on Linux also while its machine sleeps.
CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Lease:
    """A third of the lease's length is the time between renewals, so two may fail."""

    def __init__(
        self,
        owner: str,
        seconds: int,
        *,
        store: StoreThread,
        make_store: Callable[[], Store],
        clock: Callable[[], int],
        telemetry: Telemetry,
    ) -> None:
        self._owner = owner
        self._seconds = seconds
        self._store = store
        self._make_store = make_store
        self._clock = clock
        self._telemetry = telemetry
        self._sure_until = 0.0
        self.standby = Standby()
        """Serves while somebody else beats."""
        self.secret = secret_of(owner)

    def is_sure(self) -> bool:
        """Whether nobody else can have it. The store fences commits; whatever acts on the outside asks here first,
        because a service that was stopped for a while does not know that it was.
        """
        return time.clock_gettime(CLOCK) < self._sure_until

    async def acquire(self) -> None:
        """Wait until this service is the one that beats; the standby is told who does meanwhile."""
        if await self.renew():
            return
        is_ours = await self._try()
        if not is_ours:
            self._telemetry.standing_by(self.standby.name)
        while not is_ours:
            await asyncio.sleep(min(LOOK_S, self._seconds / 3))
            is_ours = await self._try()

    async def _try(self) -> bool:
        """Whether it could be taken. Who stands by waits for a database that is down, too."""
        try:
            self.standby.follow(await self._store.ask(lambda store: store.lease_owner()))
            return await self.renew()
        except StoreError as error:
            self._telemetry.store_failed("lease", str(error))
            return False

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
        return await self._take(self._seconds, self._store)

    @contextlib.asynccontextmanager
    async def hold(self) -> AsyncIterator[None]:
        """Keep it through a load, which keeps the store's thread busy; raises LeaseLost.

        It is renewed no further ahead than at other times: a standby must not wait for one that died while it loaded.
        """
        if not await self.renew():
            raise LeaseLost(LOST)
        renewing = asyncio.create_task(self._renew_beside(), name="lease beside a load")
        try:
            yield
        finally:
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)
        if not await self.renew():
            raise LeaseLost(LOST)

    async def _renew_beside(self) -> None:
        """Through a connection of its own, for as long as a load may take."""
        pause_s = self._seconds / 3
        # Most loads end before this does.
        await asyncio.sleep(pause_s)
        beside = StoreThread(self._make_store())
        try:
            for _ in range(math.ceil(LOAD_S_MAX / pause_s)):
                try:
                    if not await self._take(self._seconds, beside):
                        return
                except StoreError as error:
                    self._telemetry.store_failed("lease", str(error))
                await asyncio.sleep(pause_s)
        finally:
            await beside.close()

    async def release(self) -> None:
        """Let a standby begin at once."""
        self._sure_until = 0.0
        try:
            await self._take(0, self._store)
        except StoreError as error:
            self._telemetry.store_failed("lease", str(error))

    async def _take(self, seconds: int, thread: StoreThread) -> bool:
        """By the database's clock, where it has one of its own: those of replicas differ."""

        def take(store: Store) -> int | None:
            now = store.now()
            return store.take_lease(self._owner, self._clock() if now is None else now, seconds)

        began = time.clock_gettime(CLOCK)
        is_ours = await thread.commit(take) is not None
        # One that waited behind a load is overtaken by those beside it.
        self._sure_until = max(self._sure_until, began + seconds) if is_ours else 0.0
        return is_ours
