"""jobStateTimeLimitActions: what is stuck for too long is cancelled, and what only waits is not."""

from __future__ import annotations

import pytest

from airflow_eksbatch.core.engine.facts import InstanceLaunched, LaunchRefused, QueuePut
from airflow_eksbatch.core.engine.step import derive_effects
from airflow_eksbatch.core.model.job import Dependency, DependencyType
from airflow_eksbatch.core.model.job_queue import TimeLimit
from airflow_eksbatch.core.model.node import NodeId, NodeStatus
from airflow_eksbatch.core.planner.explain_room import NO_CAPACITY, TOO_LARGE
from tests.build import NOW, a_node, a_queue, a_world, an_amount, an_offering
from tests.core.stage import Stage

ONLY = an_offering()
NEVER = NOW + 10**9
CANCELED = f"Canceled by JobStateTimeLimit action due to reason: {NO_CAPACITY}"


def a_stage(*limits: TimeLimit, refused_until: int = NEVER) -> Stage:
    """One pool, which has nothing; the queue was given these limits just now."""
    stage = Stage(a_world(offerings=(ONLY,)))
    refuse(stage, refused_until)
    stage.give(QueuePut(queue=a_queue(time_limits=limits), create=False))
    return stage


def refuse(stage: Stage, until: int) -> None:
    stage.world.refused_until[ONLY.pool], stage.world.refused_times[ONLY.pool] = until, 1


def a_limit(reason: str = NO_CAPACITY, minutes: int = 10) -> TimeLimit:
    return TimeLimit(reason=reason, max_time_s=60 * minutes)


def after_minutes(stage: Stage, number: int) -> None:
    for _ in range(number):
        stage.wait(60)


def test_a_job_that_is_stuck_for_so_long_is_cancelled() -> None:
    """A younger one has its own time, and dependents end as with any other failure."""
    stage = a_stage(a_limit())
    stage.submit("old")
    after_minutes(stage, 5)
    stage.submit("young")
    after_minutes(stage, 5)
    assert (stage.status("old"), stage.status("young")) == ("RUNNABLE", "RUNNABLE")
    after_minutes(stage, 1)
    assert (stage.status("old"), stage.status("young")) == ("FAILED", "RUNNABLE")
    assert (stage.jobs["old"].status_reason, stage.jobs["old"].cancelled) == (CANCELED, True)
    after_minutes(stage, 5)
    assert stage.jobs["young"].status_reason == CANCELED


@pytest.mark.parametrize("limits", [(), (a_limit(TOO_LARGE),), (a_limit(minutes=60),)])
def test_without_a_limit_for_the_reason_or_before_its_time_a_job_waits_on(
    limits: tuple[TimeLimit, ...],
) -> None:
    stage = a_stage(*limits)
    stage.submit("a")
    after_minutes(stage, 30)
    assert stage.status("a") == "RUNNABLE"


def test_a_pool_that_is_asked_again_in_vain_does_not_begin_the_time_anew() -> None:
    stage = a_stage(a_limit(), refused_until=NOW + 150_000)
    stage.submit("a")
    after_minutes(stage, 3)
    (node,) = stage.world.nodes.values()
    assert node.status is NodeStatus.REQUESTED, "it is being asked"
    code = "InsufficientInstanceCapacity"
    stage.step(LaunchRefused(node_id=node.node_id, at=stage.now, code=code, message="none"))
    refuse(stage, NEVER)
    after_minutes(stage, 8)
    assert stage.jobs["a"].status_reason == CANCELED


def test_an_instance_that_was_granted_begins_it_anew() -> None:
    stage = a_stage(a_limit(), refused_until=NOW + 150_000)
    stage.submit("a")
    after_minutes(stage, 3)
    (node,) = stage.world.nodes.values()
    stage.step(InstanceLaunched(node_id=node.node_id, instance_id="i-1", at=stage.now))
    after_minutes(stage, 1)
    assert stage.world.trials.stuck == {}
    refuse(stage, NEVER)
    stage.lose(node.node_id)
    after_minutes(stage, 10)
    assert stage.status("a") == "RUNNABLE"
    after_minutes(stage, 2)
    assert stage.jobs["a"].status_reason == CANCELED


def test_one_that_lost_its_node_has_the_whole_time_from_then_on() -> None:
    """The others of its class have been stuck for long, and it ran for hours."""
    stage = a_stage(a_limit())
    stage.world.add_node(a_node("n1"))
    stage.submit("lost", vcpus=4)
    stage.run()
    after_minutes(stage, 120)
    stage.world.close_node(stage.world.nodes[NodeId("n1")], "cordoned")
    stage.submit("stuck", vcpus=4)
    after_minutes(stage, 9)
    stage.lose("n1")
    after_minutes(stage, 9)
    assert (stage.status("lost"), stage.status("stuck")) == ("RUNNABLE", "FAILED")
    assert stage.job("lost").runnable_at == NOW, "what waits are counted from stays"
    after_minutes(stage, 2)
    assert stage.jobs["lost"].status_reason == CANCELED


def test_what_becomes_runnable_later_in_an_array_has_the_whole_time_too() -> None:
    stage = a_stage(a_limit())
    stage.world.add_node(a_node("n1"))
    stage.submit("a", size=2, vcpus=4, depends_on=(Dependency(type=DependencyType.SEQUENTIAL),))
    stage.run()
    stage.world.close_node(stage.world.nodes[NodeId("n1")], "cordoned")
    stage.submit("stuck", vcpus=4)
    after_minutes(stage, 9)
    stage.end("a", 0)
    after_minutes(stage, 9)
    assert (stage.job("a").runnable, stage.status("stuck")) == (((1, 2),), "FAILED")
    after_minutes(stage, 2)
    assert stage.jobs["a"].failed == ((1, 2),)


def test_of_an_array_what_waits_is_cancelled_and_what_runs_goes_on() -> None:
    stage = a_stage(a_limit())
    stage.world.add_node(a_node("n1", allocatable=an_amount(1)))
    stage.submit("a", size=3, vcpus=1)
    stage.run()
    stage.world.close_node(stage.world.nodes[stage.live("a").node_id], "cordoned")
    after_minutes(stage, 12)
    job = stage.job("a")
    assert (job.failed, list(job.running), job.stop_reason) == (((1, 3),), [0], CANCELED)


def test_a_queue_is_looked_at_once_a_minute_however_often_it_is_updated_and_after_a_restart() -> (
    None
):
    stage = a_stage(a_limit())
    for minutes in (10, 20, 30):
        queue = a_queue(time_limits=(a_limit(minutes=minutes),))
        stage.give(QueuePut(queue=queue, create=False))
    after_minutes(stage, 3)
    looks = [at for at, kind, _ in stage.world.deadlines if kind == "stuck"]
    assert looks == [stage.now + 60_000]
    stage.world.deadlines.clear()
    stage.world.trials.stuck_look_at.clear()
    derive_effects(stage.world, stage.now, stage.settings)
    assert "stuck" in [kind for _, kind, _ in stage.world.deadlines]
    stage.give(QueuePut(queue=a_queue(), create=False))
    after_minutes(stage, 2)
    assert "stuck" not in [kind for _, kind, _ in stage.world.deadlines]
