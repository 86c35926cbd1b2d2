"""Who leads, while it loads: nobody takes its place as long as it lives, and no later than at other times when it dies."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from airflow_eksbatch.core.world.changes import Changes
from airflow_eksbatch.service.lease import Lease, LeaseLost
from airflow_eksbatch.service.store_thread import StoreThread
from airflow_eksbatch.service.telemetry import Telemetry
from airflow_eksbatch.store.port import Fenced, Store
from tests.build import a_queue
from tests.contracts.databases import Database

WAIT_S = 60.0


class Service:
    """What a service has to do with the lease."""

    def __init__(self, database: Database, owner: str, seconds: int) -> None:
        self.store = StoreThread(database.open())
        self.lease = Lease(
            owner,
            seconds,
            store=self.store,
            make_store=database.store,
            clock=lambda: int(time.time() * 1000),
            telemetry=Telemetry(),
        )

    async def write(self) -> None:
        await self.store.commit(lambda store: store.commit(Changes(queues=[a_queue()])))


@asynccontextmanager
async def two_services(database: Database, seconds: int) -> AsyncIterator[tuple[Service, Service]]:
    one, two = Service(database, "one", seconds), Service(database, "two", seconds)
    try:
        async with asyncio.timeout(WAIT_S):
            yield one, two
    finally:
        await one.store.close()
        await two.store.close()


def test_who_dies_while_it_loads_is_replaced_as_quickly_as_any_other(database: Database) -> None:
    """1. a service begins to load; 2. the length of a lease passes by; 3. another leads, and the first knows."""

    async def load(one: Service, two: Service) -> None:
        async with one.lease.hold():
            assert not await two.lease.renew()
            database.run("UPDATE eksbatch_leases SET until = until - 61000")
            assert await two.lease.renew()

    async def scenario() -> None:
        async with two_services(database, 60) as (one, two):
            with pytest.raises(LeaseLost):
                await load(one, two)
            assert not one.lease.is_sure()
            with pytest.raises(Fenced):
                await one.write()

    asyncio.run(scenario())


def test_a_load_that_takes_longer_than_a_lease_keeps_it(database: Database) -> None:
    """1. a load keeps the store's thread busy; 2. the lease is renewed all the same; 3. what is loaded is written to."""
    looker = database.open()

    def until() -> int:
        return looker.look().leads_until

    async def scenario() -> None:
        async with two_services(database, 9) as (one, two):
            is_loaded = threading.Event()

            def load(store: Store) -> bool:
                return is_loaded.wait(WAIT_S)

            async with one.lease.hold():
                loading = asyncio.create_task(one.store.ask(load))
                first = until()
                while until() < first + 4_500:
                    assert not await two.lease.renew()
                    await asyncio.sleep(0.01)
                assert one.lease.is_sure()
                is_loaded.set()
                assert await loading
            await one.write()

    asyncio.run(scenario())
