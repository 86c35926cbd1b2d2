"""The inbox: bounded for callers, open for clusters and clouds, and never silent."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from airflow_eksbatch.core.engine.facts import ClockTicked, Fact, NodeLost, PodRunning, PodSeen
from airflow_eksbatch.core.model.errors import Rejected
from airflow_eksbatch.core.model.job import PodName
from airflow_eksbatch.core.model.node import NodeId
from airflow_eksbatch.service.inbox import Inbox


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(10):
            await scenario()

    asyncio.run(bounded())


def lost(name: str) -> Fact:
    return NodeLost(node_id=NodeId(name), at=0, reason="")


async def settle() -> None:
    """Let every task that can run do so."""
    for _ in range(5):
        await asyncio.sleep(0)


def test_a_caller_waits_for_its_own_answer() -> None:
    async def scenario() -> None:
        inbox = Inbox(10)
        first = asyncio.create_task(inbox.offer(ClockTicked()))
        second = asyncio.create_task(inbox.offer(ClockTicked()))
        await settle()
        letters = inbox.drain(10)
        letters[1].answer("second")
        letters[0].answer("first")
        assert (await first, await second) == ("first", "second")

    run(scenario)


def test_a_refusal_is_raised_where_the_caller_waits() -> None:
    async def scenario() -> None:
        inbox = Inbox(10)
        caller = asyncio.create_task(inbox.offer(ClockTicked()))
        await settle()
        inbox.drain(10)[0].answer(Rejected("no such queue"))
        with pytest.raises(Rejected, match="no such queue"):
            await caller

    run(scenario)


def test_beyond_the_bound_callers_are_told_to_slow_down_and_clusters_are_not() -> None:
    async def scenario() -> None:
        inbox = Inbox(2)
        callers = [asyncio.create_task(inbox.offer(ClockTicked())) for _ in range(2)]
        await settle()
        with pytest.raises(Rejected) as refused:
            await inbox.offer(ClockTicked())
        assert refused.value.code == "TooManyRequestsException"
        inbox.tell([lost("a"), lost("b"), lost("c")])
        assert len(inbox.drain(10)) == 5
        assert not inbox.is_full
        for caller in callers:
            caller.cancel()

    run(scenario)


def test_a_cluster_that_tells_a_lot_leaves_room_for_callers() -> None:
    async def scenario() -> None:
        inbox = Inbox(100)
        inbox.tell(lost(str(number)) for number in range(1_000))
        callers = [asyncio.create_task(inbox.offer(ClockTicked())) for _ in range(50)]
        await settle()
        batch = [letter.fact for letter in inbox.drain(100)]
        assert sum(isinstance(fact, ClockTicked) for fact in batch) == 25
        for caller in callers:
            caller.cancel()

    run(scenario)


def test_facts_of_a_beat_that_was_not_kept_come_first_in_the_next() -> None:
    async def scenario() -> None:
        inbox = Inbox(10)
        inbox.tell([lost("a"), lost("b"), lost("c")])
        inbox.give_back(inbox.drain(2))
        assert [letter.fact for letter in inbox.drain(10)] == [lost("a"), lost("b"), lost("c")]

    run(scenario)


def test_a_closed_inbox_refuses_callers_and_still_answers_those_it_took() -> None:
    async def scenario() -> None:
        inbox = Inbox(10)
        caller = asyncio.create_task(inbox.offer(ClockTicked()))
        await settle()
        inbox.close("The service is stopping.")
        with pytest.raises(Rejected) as refused:
            await inbox.offer(ClockTicked())
        assert refused.value.code == "ServerException"
        inbox.drain(10)[0].answer("kept")
        assert await caller == "kept"

    run(scenario)


def test_mere_progress_of_pods_lets_the_loop_wait_and_what_matters_wakes_it() -> None:
    async def scenario() -> None:
        inbox = Inbox(10)
        waiting = asyncio.create_task(inbox.wait(60))
        inbox.tell([])
        inbox.tell([PodSeen(pod=PodName("a"), at=0), PodRunning(pod=PodName("a"), at=0)])
        await settle()
        assert not waiting.done()
        inbox.tell([PodSeen(pod=PodName("b"), at=0), lost("a")])
        await waiting
        assert len(inbox.drain(10)) == 4

    run(scenario)


def test_progress_alone_is_heard_a_little_later() -> None:
    async def scenario() -> None:
        inbox = Inbox(10)
        inbox.tell([PodSeen(pod=PodName("a"), at=0)])
        await inbox.wait(60)
        assert len(inbox.drain(10)) == 1
        waiting = asyncio.create_task(inbox.wait(60))
        await settle()
        assert not waiting.done(), "what was drained does not wake the loop again"
        waiting.cancel()

    run(scenario)


def test_waiting_ends_with_a_fact_and_with_time() -> None:
    async def scenario() -> None:
        inbox = Inbox(10)
        await inbox.wait(0)
        waiting = asyncio.create_task(inbox.wait(60))
        await settle()
        assert not waiting.done()
        inbox.tell([lost("a")])
        await waiting
        inbox.drain(10)
        waiting = asyncio.create_task(inbox.wait(60))
        await settle()
        assert not waiting.done(), "a drained inbox does not keep the loop awake"
        waiting.cancel()

    run(scenario)
