"""What Spot does to nodes and their jobs: recommendations, notices, replacements in time."""

from __future__ import annotations

import msgspec
import pytest

from airflow_eksbatch.core.engine.effects import DeletePod, LaunchNode, TerminateNode
from airflow_eksbatch.core.engine.facts import (
    InstanceLaunched,
    InstancesListed,
    NodeClosed,
    PodEnded,
    RebalanceRecommended,
    SpotInterrupted,
)
from airflow_eksbatch.core.engine.step import derive_effects
from airflow_eksbatch.core.model import limits
from airflow_eksbatch.core.model.compute_environment import Market
from airflow_eksbatch.core.model.node import REBALANCE, SPOT_NOTICE, Node, NodeId
from airflow_eksbatch.core.model.retry import AttemptEnd, Cause
from tests.build import a_node, a_world, an_environment, an_offering
from tests.core.stage import Stage

HOME = NodeId("home")
SPOT = an_offering(market=Market.SPOT, price=0.06)
OTHER = an_offering("c5.xlarge", market=Market.SPOT, price=0.08)


def running(*jobs: str, vcpus: float = 4, others: int = 0, idle_s: float = 60.0) -> Stage:
    """These run on the node `home`; `others` are empty nodes beside it."""
    world = a_world(an_environment(market=Market.SPOT), offerings=(SPOT, OTHER))
    stage = Stage(world.with_(a_node(HOME, offering=SPOT)), idle_s=idle_s)
    for job in jobs:
        stage.submit(job, vcpus=vcpus / len(jobs))
    stage.run()
    world.with_(*(a_node(f"other-{n}", offering=SPOT) for n in range(others)))
    return stage


def notice(stage: Stage, *, given_s_ago: float = 0) -> None:
    at = stage.now - int(given_s_ago * 1000)
    stage.step(SpotInterrupted(node_id=HOME, at=at))


def ended(stage: Stage) -> list[str]:
    return [effect.pod for effect in stage.of(DeletePod)]


# ---- a recommendation


def test_a_recommendation_ends_nothing_and_lets_nothing_begin() -> None:
    """What waits is bought for elsewhere; what runs goes on, and its node goes when it is empty."""
    stage = running("a", vcpus=2)
    stage.step(RebalanceRecommended(node_id=HOME, at=stage.now))
    stage.submit("b", vcpus=1)
    assert stage.world.nodes[HOME].closed == REBALANCE
    assert (stage.status("a"), ended(stage)) == ("RUNNING", [])
    assert [effect.offering for effect in stage.of(LaunchNode)] == [OTHER]
    stage.wait(3_600)
    assert (stage.status("a"), ended(stage)) == ("RUNNING", [])
    stage.end("a")
    assert stage.status("a") == "SUCCEEDED"
    assert HOME in [effect.node_id for effect in stage.of(TerminateNode)]


def test_nothing_is_bought_for_what_may_run_to_its_end() -> None:
    stage = running("a")
    stage.step(RebalanceRecommended(node_id=HOME, at=stage.now))
    assert stage.of(LaunchNode) == []


def test_a_notice_after_a_recommendation_counts() -> None:
    stage = running("a")
    stage.step(RebalanceRecommended(node_id=HOME, at=stage.now))
    notice(stage)
    assert stage.world.nodes[HOME].closed == SPOT_NOTICE
    stage.step(RebalanceRecommended(node_id=HOME, at=stage.now))
    assert stage.world.nodes[HOME].closed == SPOT_NOTICE


@pytest.mark.parametrize("reason", ["cordoned", None])
def test_a_cluster_does_not_open_again_what_is_leaving(reason: str | None) -> None:
    stage = running("a")
    stage.step(RebalanceRecommended(node_id=HOME, at=stage.now))
    stage.step(NodeClosed(node_id=HOME, reason=reason, at=stage.now))
    assert stage.world.nodes[HOME].closed == REBALANCE


def on_its_way(stage: Stage) -> Node:
    """An instance that was launched, and has not joined."""
    (effect,) = stage.of(LaunchNode)
    stage.step(InstanceLaunched(node_id=effect.node_id, instance_id="i-1", at=stage.now))
    return stage.world.nodes[effect.node_id]


@pytest.mark.parametrize("launched", [True, False])
def test_what_has_not_joined_is_ended_at_once_and_bought_elsewhere(launched: bool) -> None:
    stage = Stage(a_world(an_environment(market=Market.SPOT), offerings=(SPOT, OTHER)))
    stage.submit("a", vcpus=4)
    (effect,) = stage.of(LaunchNode)
    if launched:
        on_its_way(stage)
    stage.step(RebalanceRecommended(node_id=effect.node_id, at=stage.now))
    assert [e.node_id for e in stage.of(TerminateNode)] == [effect.node_id]
    assert [e.offering for e in stage.of(LaunchNode)] == [OTHER]
    assert not stage.world.never_joined, "it could not show whether it would have joined"


def test_a_recommendation_for_what_is_ending_already_changes_nothing() -> None:
    stage = running("a")
    stage.end("a")
    stage.wait(60)
    (effect,) = stage.of(TerminateNode)
    stage.step(RebalanceRecommended(node_id=effect.node_id, at=stage.now))
    assert stage.world.nodes[HOME].closed is None
    assert stage.world.refused_until == {}


def closed_on_its_way(why: str) -> tuple[Stage, Node]:
    stage = Stage(a_world(an_environment(market=Market.SPOT), offerings=(SPOT, OTHER)))
    stage.submit("a", vcpus=4)
    node = on_its_way(stage)
    stage.world.close_node(node, why)
    return stage, node


@pytest.mark.parametrize("why", [SPOT_NOTICE, REBALANCE])
def test_a_closed_node_that_never_joins_is_ended_when_its_time_is_over(why: str) -> None:
    """As an earlier release left them, or as EC2 tells of a reclaim that does not come."""
    stage, node = closed_on_its_way(why)
    stage.wait(limits.NODE_JOIN_S_MAX)
    assert node.node_id in [effect.node_id for effect in stage.of(TerminateNode)]
    assert not stage.world.never_joined


@pytest.mark.parametrize("why", [SPOT_NOTICE, REBALANCE])
def test_no_deletion_waits_for_a_closed_node_that_never_joins(why: str) -> None:
    stage, node = closed_on_its_way(why)
    environment = stage.world.compute_environments["ce"]
    stage.world.put_compute_environment(msgspec.structs.replace(environment, status="DELETING"))
    stage.step()
    assert node.node_id in [effect.node_id for effect in stage.of(TerminateNode)]


def test_a_reclaimed_instance_that_is_missed_on_the_list_is_no_failure_to_join() -> None:
    stage = Stage(a_world(an_environment(market=Market.SPOT), offerings=(SPOT, OTHER)))
    stage.submit("a", vcpus=4)
    node = on_its_way(stage)
    stage.step(SpotInterrupted(node_id=node.node_id, at=stage.now))
    stage.wait(130)
    stage.step(InstancesListed(compute_environment="ce", instances={}, at=stage.now))
    assert node.node_id not in stage.world.nodes
    assert not stage.world.never_joined


def test_a_reclaim_without_a_notice_rests_the_pool_as_well() -> None:
    """Notices are read only where a queue is named, and may be lost."""
    stage = running("a")
    stage.lose(HOME)
    assert [effect.offering for effect in stage.of(LaunchNode)] == [OTHER]


# ---- a notice


def test_a_replacement_is_bought_at_the_notice_and_kept_until_it_is_needed() -> None:
    """Also where empty nodes are given back at once."""
    stage = running("a", idle_s=0)
    notice(stage)
    (bought,) = stage.of(LaunchNode)
    assert bought.offering == OTHER
    stage.wait(1)
    assert stage.of(LaunchNode) == []
    stage.join()
    stage.wait(20)
    assert stage.of(TerminateNode) == stage.of(LaunchNode) == []
    stage.lose(HOME)
    assert stage.live("a").node_id == bought.node_id
    assert stage.of(LaunchNode) == []


def test_a_replacement_that_nobody_needs_any_more_is_given_back() -> None:
    stage = running("a", idle_s=0)
    notice(stage)
    stage.join()
    stage.end("a")
    assert {effect.node_id for effect in stage.of(TerminateNode)} == set(stage.world.nodes)


def test_nothing_is_bought_where_there_is_room_and_that_room_is_kept() -> None:
    stage = running("a", others=2, idle_s=0)
    notice(stage)
    assert stage.of(LaunchNode) == []
    assert len(stage.of(TerminateNode)) == 1
    assert len(stage.world.nodes) == 3


def test_what_will_not_run_again_is_not_replaced() -> None:
    stage = running("a")
    stage.terminate("a")
    notice(stage)
    assert stage.of(LaunchNode) == []


def test_sigterm_comes_after_half_of_the_notice_and_costs_no_attempt() -> None:
    stage = running("a")
    notice(stage)
    stage.wait(limits.SPOT_STOP_S - 1)
    assert ended(stage) == []
    stage.wait(1)
    assert ended(stage) == ["a-0-1"]
    assert limits.SPOT_STOP_S + limits.GRACE_S < 120
    stage.end("a", exit_code=143)
    end = stage.attempts["a-0-1"].end
    assert end is not None
    assert (end.cause, end.exit_code) == (Cause.PLATFORM, 143)
    assert end.status_reason == "Host EC2 (instance i-home) terminated."
    assert not stage.attempts["a-0-1"].charged
    assert HOME in [effect.node_id for effect in stage.of(TerminateNode)]
    stage.lose(HOME, reclaimed=False)
    assert stage.world.totals.reclaims == 1


@pytest.mark.parametrize(
    ("exit_code", "before_s", "meant"),
    [(0, 5, "SUCCEEDED"), (0, 0.5, "RUNNABLE"), (143, 5, "RUNNABLE")],
)
def test_a_success_before_our_sigterm_is_not_run_again(
    exit_code: int, before_s: float, meant: str
) -> None:
    """Another end before it may be the machine's doing."""
    stage = running("a")
    notice(stage)
    stage.wait(limits.SPOT_STOP_S)
    pod, at = stage.live("a").pod_name, stage.now - int(before_s * 1000)
    end = AttemptEnd(cause=Cause.EXITED, exit_code=exit_code)
    stage.wait(1, PodEnded(pod=pod, at=at, end=end))
    assert stage.status("a") == meant


def test_what_has_not_begun_yet_does_not_begin_there() -> None:
    stage = running("a", vcpus=2)
    stage.submit("b", vcpus=1)
    assert stage.status("b") == "STARTING"
    notice(stage)
    assert ended(stage) == ["b-0-1"]


@pytest.mark.parametrize(("given_s_ago", "left_s"), [(0, 75), (45, 30), (75, 0), (3_600, 0)])
def test_a_notice_that_was_read_late_counts_from_when_it_was_given(
    given_s_ago: float, left_s: float
) -> None:
    stage = running("a")
    notice(stage, given_s_ago=given_s_ago)
    if left_s:
        stage.wait(left_s - 1)
        assert ended(stage) == []
        stage.wait(1)
    assert ended(stage) == ["a-0-1"]


def test_a_crash_within_the_notice_ends_its_pods_at_once() -> None:
    """Nobody knows any more how much of it is left."""
    stage = running("a")
    notice(stage)
    stage.world.deadlines.clear()
    derive_effects(stage.world, stage.now, stage.settings)
    stage.step()
    assert ended(stage) == ["a-0-1"]
