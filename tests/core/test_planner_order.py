"""Whose turn it is: queue priority, share, job priority, age; and nobody waits for ever."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_eksbatch.core.engine.effects import LaunchNode, TerminateNode
from airflow_eksbatch.core.engine.facts import InstanceGone
from airflow_eksbatch.core.model import limits
from airflow_eksbatch.core.model.job import JobId
from airflow_eksbatch.core.model.node import NodeId, NodeStatus, Offering
from airflow_eksbatch.core.model.retry import RetryStrategy
from airflow_eksbatch.core.planner.check import check_plan
from airflow_eksbatch.core.planner.plan import Plan
from airflow_eksbatch.core.planner.planning import make_plan
from airflow_eksbatch.core.world.job_class import LineWalk
from tests.build import (
    NOW,
    BuiltWorld,
    a_job,
    a_node,
    a_policy,
    a_queue,
    a_world,
    an_environment,
    an_offering,
)
from tests.core.stage import Stage


def plan_of(world: BuiltWorld, now: int = NOW) -> Plan:
    plan = make_plan(world, now, 60)
    check_plan(world, plan, now)
    return plan


def placed(world: BuiltWorld, now: int = NOW) -> list[float]:
    """vCPUs of what is placed, in the plan's order: tests give jobs different sizes to tell them apart."""
    return [
        p.job_class.shape.cpu_m / 1000
        for p in plan_of(world, now).placements
        for _ in range(p.count)
    ]


def one_place(stage: Stage, *names: str) -> list[str]:
    """In which order these jobs get a place where there is one at a time."""
    order: list[str] = []
    while stage.world.jobs:
        order += [job for job in names if job in stage.world.jobs and stage.job(job).running]
        stage.run()
        stage.end_all()
    return order


# ---- queues


def test_the_queue_of_higher_priority_is_served_first() -> None:
    stage = Stage(a_world(a_node("n1"), a_queue("urgent", priority=10), offerings=()))
    stage.submit("block", vcpus=4)
    stage.submit("low", vcpus=4)
    stage.submit("high", vcpus=4, queue="urgent")
    assert one_place(stage, "block", "low", "high") == ["block", "high", "low"]


def test_a_lower_queue_takes_what_a_higher_one_cannot_use() -> None:
    world = a_world(a_node("n1"), a_queue("urgent", priority=10), offerings=())
    world.with_(a_job(vcpus=8, queue="urgent"), a_job(vcpus=2))
    assert placed(world) == [2]


def test_queues_of_equal_priority_take_turns_by_name() -> None:
    world = a_world(a_node("n1"), a_queue("a"), a_queue("b"), offerings=())
    world.with_(a_job(vcpus=3, queue="b"), a_job(vcpus=4, queue="a"))
    assert placed(world) == [4]


def test_a_disabled_queue_still_serves_what_is_in_it() -> None:
    world = a_world(a_node("n1"), a_queue(state="DISABLED"), a_job())
    assert placed(world) == [1]


# ---- inside a queue


def test_a_fifo_queue_goes_by_age_alone() -> None:
    world = a_world(a_node("n1"), offerings=())
    world.with_(a_job(vcpus=3, priority=0), a_job(vcpus=4, priority=99))
    assert placed(world) == [3]


def test_in_a_share_priority_goes_before_age() -> None:
    world = a_world(a_policy(), a_queue(policy="fair"), a_node("n1"), offerings=())
    world.with_(a_job(vcpus=3, priority=0, share="a"), a_job(vcpus=4, priority=99, share="a"))
    assert placed(world) == [4]


def test_priority_of_one_share_does_not_count_in_another() -> None:
    world = a_world(a_policy(a=0.5, b=1.0), a_queue(policy="fair"), a_node("n1"), offerings=())
    world.with_running(a_job("r", share="b"), "n1")
    world.with_(a_job(vcpus=3, share="a"), a_job(vcpus=2, priority=99, share="b"))
    assert placed(world) == [3]


def test_jobs_of_different_sizes_go_by_age_exactly() -> None:
    node = a_node("n1", offering=an_offering(vcpus=100, memory_mib=1_000_000, pods=1_000))
    world = a_world(node, offerings=())
    sizes = [1, 2, 1, 3, 2, 2, 1, 5, 3]
    world.with_(*(a_job(vcpus=size) for size in sizes))
    assert placed(world) == sizes


def test_smaller_jobs_fill_the_room_that_an_older_large_one_cannot_use() -> None:
    world = a_world(a_node("n1"), offerings=())
    world.with_running(a_job("r", vcpus=2), "n1")
    world.with_(a_job(vcpus=4), a_job(vcpus=1, size=2))
    assert placed(world) == [1, 1]


def test_a_retry_goes_before_what_came_after_it() -> None:
    stage = Stage(a_world(a_node("n1"), offerings=()))
    stage.submit("a", vcpus=4, retry=RetryStrategy(attempts=2))
    stage.submit("b", vcpus=4)
    stage.run()
    stage.end("a", exit_code=1)
    assert one_place(stage, "a", "b") == ["a", "b"]


# ---- nobody waits for ever


def test_a_large_job_that_waited_long_gets_a_node_for_itself() -> None:
    """
    1. small jobs keep the node half full: the large one does not fit
    2. after RESERVE_AFTER_S nothing new is placed there, although it would fit
    3. when the last small one ends, the large one starts
    """
    stage = Stage(a_world(a_node("n1"), offerings=()))
    stage.submit("s0", vcpus=2)
    stage.submit("large", vcpus=4)
    stage.submit("s1", vcpus=2)
    stage.run()
    assert stage.job("s1").running
    stage.end("s0")
    stage.submit("s2", vcpus=2)
    assert stage.job("s2").running
    stage.run()
    stage.wait(limits.RESERVE_AFTER_S)
    stage.submit("s3", vcpus=1)
    stage.end("s1")
    assert not stage.job("s3").running
    stage.end("s2")
    assert stage.job("large").running


def test_a_node_is_held_even_when_this_plan_has_used_it_already() -> None:
    world = a_world(a_node("n1"), a_queue("urgent", priority=9), offerings=())
    world.with_running(a_job("r", vcpus=1), "n1")
    world.with_(a_job("u", vcpus=1, queue="urgent"), a_job("large", vcpus=4), a_job("s", vcpus=0.5))
    assert placed(world) == [1, 0.5]
    assert placed(world, NOW + limits.RESERVE_AFTER_S * 1000) == [1]


def test_one_large_job_holds_one_node_and_no_more() -> None:
    world = a_world(a_node("n1"), a_node("n2"), offerings=())
    world.with_running(a_job("r", vcpus=2, size=2), "n1", 1).with_running(
        world.jobs[JobId("r")], "n2"
    )
    world.with_(a_job("large", vcpus=4), a_job("s", vcpus=2, size=5))
    plan = plan_of(world, NOW + limits.RESERVE_AFTER_S * 1000)
    assert [(p.node_id, p.count) for p in plan.placements] == [("n1", 1)]


def test_a_job_that_fits_no_node_holds_none() -> None:
    world = a_world(a_node("n1"), offerings=())
    world.with_(a_job("huge", vcpus=400), a_job("s"))
    assert placed(world, NOW + limits.RESERVE_AFTER_S * 1000) == [1]


# ---- nobody waits for ever, though all nodes are too small

LARGE = an_offering("m5.4xlarge", vcpus=16, memory_mib=65_536)
WITH_GPU = an_offering("g5.xlarge", gpu=1)


def four_small_nodes(*sold: Offering, min_vcpus: int = 0, **wide: Any) -> Stage:
    """They use up the maximum, and are full of work of one vCPU each; after the wide job comes ever more of it."""
    environment = an_environment(max_vcpus=16, min_vcpus=min_vcpus, idle_s=1e6)
    nodes = [a_node(f"n{n}") for n in range(4)]
    stage = Stage(a_world(environment, *nodes, offerings=(an_offering(), *sold)))
    stage.submit("first", size=16)
    stage.submit("wide", **wide)
    stage.submit("stream", size=1_000)
    stage.run()
    return stage


def some_end(stage: Stage) -> None:
    """A minute later one of the stream ends on each node, and the cloud does what it is asked for."""
    over = {a.node_id: a for a in stage.world.attempts.values() if a.job_id != "wide"}
    stage.wait(60, *(stage.ended(a.job_id, a.index) for a in over.values()))
    ending = [n.node_id for n in stage.world.nodes.values() if n.status is NodeStatus.TERMINATING]
    stage.step(*(InstanceGone(node_id=n, at=stage.now, reason="ended") for n in ending))
    stage.join()
    stage.run()


@pytest.mark.parametrize(
    ("sold", "wide"), [(LARGE, {"vcpus": 12}), (WITH_GPU, {"gpu": 1})], ids=["wide", "gpu"]
)
def test_the_emptiest_node_goes_for_a_larger_one(sold: Offering, wide: dict[str, int]) -> None:
    stage = four_small_nodes(sold, **wide)
    minutes = 0
    while not stage.job("wide").running:
        some_end(stage)
        minutes += 1
        assert minutes < 20
    assert minutes * 60 >= limits.RESERVE_AFTER_S
    assert stage.world.nodes[stage.live("wide").node_id].offering == sold
    assert len(stage.world.nodes) == 4
    stage.end("wide")
    assert len(stage.world.attempts) >= 16


def test_a_node_that_its_minimum_needs_goes_only_for_one_that_makes_up_for_it() -> None:
    stage = four_small_nodes(LARGE, min_vcpus=16, vcpus=12)
    minutes = 0
    while not stage.job("wide").running:
        some_end(stage)
        minutes += 1
        assert minutes < 20
    kinds = [node.offering.vcpus for node in stage.world.nodes.values()]
    assert sorted(kinds) == [4, 4, 4, 16], "one has gone, and no small one came in its place"


def test_no_node_goes_for_what_cannot_be_had() -> None:
    stage = four_small_nodes(LARGE, vcpus=12)
    stage.world.refused_until[LARGE.pool] = stage.now + 3_600_000
    for _ in range(10):
        some_end(stage)
        assert len(stage.world.attempts) == 16


def test_no_second_node_goes_while_one_ends_or_a_larger_one_comes() -> None:
    stage = four_small_nodes(LARGE, vcpus=12, size=2)
    stage.wait(limits.RESERVE_AFTER_S)
    on_n0 = [a.index for a in stage.world.attempts.values() if a.node_id == "n0"]
    stage.step(*(stage.ended("first", index) for index in on_n0))
    assert [effect.node_id for effect in stage.of(TerminateNode)] == ["n0"]
    end_and_go_on(stage)
    stage.step(InstanceGone(node_id=NodeId("n0"), at=stage.now, reason="ended"))
    assert [effect.offering for effect in stage.of(LaunchNode)] == [LARGE]
    end_and_go_on(stage)


def end_and_go_on(stage: Stage) -> None:
    stage.end("first", next(iter(stage.job("first").running)))
    assert len(stage.world.attempts) == 12


# ---- environments in order


def test_environments_are_filled_in_the_order_of_the_queue() -> None:
    world = a_world(an_environment("second"), a_queue("queue", "ce", "second"))
    world.with_(a_node("b", environment="second"), a_node("a"), a_job(size=5))
    plan = plan_of(world)
    assert [(p.node_id, p.count) for p in plan.placements] == [("a", 4), ("b", 1)]


def test_nothing_new_is_placed_in_a_disabled_environment() -> None:
    world = a_world(an_environment(state="DISABLED"), a_node("n1"), a_job())
    assert placed(world) == []


# ---- lines


def test_a_walk_sees_the_age_of_whoever_is_next() -> None:
    world = a_world(a_job("a"), a_job("gone"), a_job("b", size=3), a_job("c"))
    gone = world.jobs[JobId("gone")]
    world.drop_runnable(gone, gone.runnable)
    (line,) = world.lines.values()
    seqs = {job.job_id: job.spec.seq for job in world.jobs.values()}
    walk = LineWalk(line, world.jobs)
    seen = []
    while (seq := walk.seq()) is not None:
        seen.append(seq)
        walk.advance(1)
    assert seen == [seqs[JobId(name)] for name in ("a", "b", "b", "b", "c")]
    assert line.count == 5


def test_a_line_that_empties_leaves_the_world() -> None:
    stage = Stage(a_world(a_node("n1")))
    stage.submit("a")
    assert stage.world.lines == {}


def test_the_same_world_gives_the_same_plan() -> None:
    def make() -> Plan:
        world = a_world(*(a_node(f"n{n}") for n in range(5)))
        return plan_of(world.with_(*(a_job(f"j{n}", vcpus=n % 3 + 1) for n in range(30))))

    assert make() == make()
