"""How many writes are under way at once: more while it goes well, fewer when the API server says so."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from airflow_eksbatch.cluster.kube.write_limit import FIRST, LEAST, MOST, SLOW_S, WriteLimit


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def limit(clock: Clock) -> WriteLimit:
    return WriteLimit(clock)


def test_quick_answers_let_one_more_in_for_every_round(limit: WriteLimit, clock: Clock) -> None:
    for _ in range(int(FIRST)):
        limit.answered(clock.now)
    assert FIRST + 0.9 < limit.allowed < FIRST + 1.1
    for _ in range(100_000):
        limit.answered(clock.now)
    assert limit.allowed == MOST


def test_a_storm_of_refusals_counts_once(limit: WriteLimit, clock: Clock) -> None:
    began = clock.now
    clock.now += 0.1
    for _ in range(50):
        limit.refused(began, 0.0)
    assert limit.allowed == FIRST * 0.7
    limit.refused(clock.now, 0.0)
    assert limit.allowed == FIRST * 0.7 * 0.7


def test_slow_answers_are_a_sign_too(limit: WriteLimit, clock: Clock) -> None:
    clock.now += 0.1
    limit.answered(clock.now - 0.1)
    before = limit.allowed
    clock.now += SLOW_S
    limit.answered(clock.now - SLOW_S)
    assert limit.allowed < before


def test_an_api_server_that_is_far_away_is_not_a_slow_one(limit: WriteLimit, clock: Clock) -> None:
    """1. seconds for each way: no cut; 2. many times that: a cut; 3. it comes near: seconds are slow again."""
    clock.now += 2.0
    for _ in range(100):
        limit.answered(clock.now - 2.0)
    allowed = limit.allowed
    assert allowed > FIRST
    clock.now += 10.0
    limit.answered(clock.now - 10.0)
    assert limit.allowed == allowed * 0.7
    clock.now += 0.01
    limit.answered(clock.now - 0.01)
    allowed = limit.allowed
    clock.now += 2.0
    limit.answered(clock.now - 2.0)
    assert limit.allowed == allowed * 0.7


def test_one_write_always_gets_through(limit: WriteLimit, clock: Clock) -> None:
    for _ in range(100):
        limit.refused(clock.now, 0.0)
        clock.now += 1
    assert limit.allowed == LEAST

    async def one() -> None:
        async with limit.slot():
            pass

    asyncio.run(asyncio.wait_for(one(), 60))


def test_no_more_than_allowed_are_under_way_and_all_get_their_turn(limit: WriteLimit) -> None:
    peak = under_way = done = 0

    async def write() -> None:
        nonlocal peak, under_way, done
        async with limit.slot():
            under_way += 1
            peak = max(peak, under_way)
            await asyncio.sleep(0)
            under_way -= 1
            done += 1

    async def all_of_them() -> None:
        await asyncio.gather(*(write() for _ in range(200)))

    asyncio.run(asyncio.wait_for(all_of_them(), 60))
    assert (peak, done) == (int(FIRST), 200)


def test_whoever_gives_up_waiting_takes_no_slot_with_him(limit: WriteLimit) -> None:
    async def scenario() -> None:
        async with AsyncExitStack() as stack:
            for _ in range(int(FIRST)):
                await stack.enter_async_context(limit.slot())
            waiting = [asyncio.create_task(limit.slot().__aenter__()) for _ in range(3)]
            await asyncio.sleep(0)
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
        async with AsyncExitStack() as stack:
            for _ in range(int(FIRST)):
                await stack.enter_async_context(limit.slot())

    asyncio.run(asyncio.wait_for(scenario(), 60))
