"""The life of a node: bought, joined, reclaimed, lost, late, never there; and what that means for its jobs."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from airflow_eksbatch.core.engine.effects import (
    CreatePod,
    LaunchNode,
    TerminateNode,
    TerminateStray,
)
from airflow_eksbatch.core.engine.facts import (
    InstanceGone,
    InstanceLaunched,
    InstancesListed,
    NodeClosed,
    NodeFound,
    NodeLost,
    NodeReady,
    NodesListed,
    SpotInterrupted,
)
from airflow_eksbatch.core.model import limits
from airflow_eksbatch.core.model.compute_environment import Market
from airflow_eksbatch.core.model.job import JobStatus
from airflow_eksbatch.core.model.node import SPOT_NOTICE, NodeId, NodeStatus
from airflow_eksbatch.core.model.retry import RetryAction, RetryStrategy
from tests.build import NOW, a_node, a_queue, a_world, an_amount, an_environment, an_offering
from tests.core.stage import Stage, rule

SPOT = an_offering(market=Market.SPOT, price=0.06)


def on_spot(*nodes: str) -> Stage:
    world = a_world(an_environment(market=Market.SPOT), offerings=(SPOT,))
    return Stage(world.with_(*(a_node(name, offering=SPOT) for name in nodes)))


def first_node(stage: Stage) -> NodeId:
    return next(iter(stage.world.nodes))


# ---- joining


def test_an_instance_is_asked_for_once_and_again_only_when_nobody_answers() -> None:
    stage = Stage(a_world())
    stage.submit("a")
    assert len(stage.of(LaunchNode)) == 1
    stage.wait(limits.LAUNCH_ANSWER_S_MAX - 1)
    assert stage.of(LaunchNode) == []
    stage.wait(1)
    assert [effect.node_id for effect in stage.of(LaunchNode)] == [first_node(stage)]
    assert len(stage.world.nodes) == 1


@pytest.mark.parametrize("launched_first", [True, False])
def test_news_of_launch_and_join_may_come_in_any_order(launched_first: bool) -> None:
    stage = Stage(a_world())
    stage.submit("a")
    node = stage.world.nodes[first_node(stage)]
    launched = InstanceLaunched(node_id=node.node_id, instance_id="i-1", at=NOW)
    news = [launched, stage.ready(node)]
    for fact in news if launched_first else reversed(news):
        stage.step(fact)
    assert (node.status, node.instance_id) == (NodeStatus.READY, "i-1")
    assert stage.world.totals.instances == {"ce": 1}
    assert stage.status("a") == "STARTING"


def test_a_node_that_never_joins_is_ended_and_its_pool_left_alone() -> None:
    stage = Stage(a_world(offerings=(SPOT,)))
    stage.submit("a")
    node_id = first_node(stage)
    stage.step(InstanceLaunched(node_id=node_id, instance_id="i-1", at=NOW))
    stage.wait(limits.NODE_JOIN_S_MAX)
    assert [effect.node_id for effect in stage.of(TerminateNode)] == [node_id]
    assert SPOT.pool in stage.world.refused_until


def test_a_node_that_joins_too_late_gets_no_work() -> None:
    stage = Stage(a_world())
    stage.submit("a")
    node = stage.world.nodes[first_node(stage)]
    stage.step(InstanceLaunched(node_id=node.node_id, instance_id="i-1", at=NOW))
    stage.wait(limits.NODE_JOIN_S_MAX)
    stage.step(stage.ready(node))
    assert node.status is NodeStatus.TERMINATING
    assert not stage.world.pods_by_node.get(node.node_id)


def test_what_a_node_really_has_replaces_the_estimate() -> None:
    stage = Stage(a_world())
    stage.submit("a", size=4)
    node = stage.world.nodes[first_node(stage)]
    less = msgspec.structs.replace(node.offering.allocatable, cpu_m=3_500)
    stage.step(
        NodeReady(node_id=node.node_id, node_name="ip", allocatable=less, at=NOW),
    )
    assert len(stage.job("a").running) == 3
    stage.step(
        NodeReady(
            node_id=node.node_id, node_name="ip", allocatable=an_amount(4, 16_384, pods=9), at=NOW
        ),
    )
    assert len(stage.job("a").running) == 4


# ---- leaving


def test_a_reclaimed_spot_node_costs_its_jobs_no_attempt() -> None:
    """
    1. notice: no new work, what runs goes on
    2. the instance is gone: its jobs run again elsewhere, their only attempt untouched
    """
    stage = on_spot("n1", "n2")
    stage.submit("a", vcpus=4)
    stage.run()
    home = stage.live("a").node_id
    stage.step(SpotInterrupted(node_id=home, at=NOW))
    assert stage.status("a") == "RUNNING"
    stage.lose(home)
    again = stage.live("a")
    assert (again.number, again.charged_before) == (2, 0)
    assert again.node_id != home
    assert stage.attempts["a-0-1"].end is not None
    assert stage.attempts["a-0-1"].end.status_reason == f"Host EC2 (instance i-{home}) terminated."
    assert not stage.attempts["a-0-1"].charged
    totals = stage.world.totals
    assert (totals.reclaims, totals.free_retries, totals.retries) == (1, 1, 1)
    told = [(event.status, event.attempt, event.attempts) for event in stage.events]
    assert told[-2:] == [("RUNNABLE", 1, 0), ("STARTING", 2, 1)]


def test_a_node_with_a_spot_notice_gets_no_new_work_and_its_pool_is_left_alone() -> None:
    stage = on_spot("n1")
    stage.step(SpotInterrupted(node_id=NodeId("n1"), at=NOW))
    stage.submit("a")
    assert stage.status("a") == "RUNNABLE"
    assert stage.of(LaunchNode) == []
    stage.wait(limits.REFUSAL_S)
    assert len(stage.of(LaunchNode)) == 1


def test_a_job_that_finishes_within_the_notice_has_succeeded() -> None:
    stage = on_spot("n1")
    stage.submit("a")
    stage.run()
    stage.step(SpotInterrupted(node_id=NodeId("n1"), at=NOW))
    stage.end("a")
    stage.lose("n1")
    assert stage.status("a") == "SUCCEEDED"


def test_nothing_of_a_lost_node_runs_again_before_its_instance_has_certainly_ended() -> None:
    stage = Stage(a_world(a_node("n1"), a_node("n2")))
    stage.submit("a")
    stage.run()
    home = stage.live("a").node_id
    stage.step(NodeLost(node_id=home, at=NOW, reason="unreachable"))
    assert [effect.node_id for effect in stage.of(TerminateNode)] == [home]
    assert stage.live("a").number == 1
    stage.lose(home, reclaimed=False)
    assert stage.live("a").number == 2
    assert stage.world.totals.reclaims == 0


def test_jobs_of_a_lost_unmanaged_node_run_again_at_once() -> None:
    stage = Stage(a_world(an_environment(managed=False), a_node("n1"), a_node("n2")))
    stage.submit("a")
    stage.run()
    home = stage.live("a").node_id
    stage.step(NodeLost(node_id=home, at=NOW, reason="left"))
    assert stage.live("a").number == 2
    assert home not in stage.world.nodes


def test_a_cordoned_node_keeps_its_jobs_and_opens_again() -> None:
    stage = Stage(a_world(a_node("n1"), offerings=()))
    stage.submit("a")
    stage.run()
    stage.step(NodeClosed(node_id=NodeId("n1"), reason="cordoned", at=NOW))
    stage.submit("b")
    assert stage.status("b") == "RUNNABLE"
    stage.step(NodeClosed(node_id=NodeId("n1"), reason=None, at=NOW))
    assert stage.status("b") == "STARTING"
    assert stage.live("a").number == 1


def test_a_request_to_end_an_instance_is_repeated_until_it_is_gone() -> None:
    stage = Stage(a_world(a_node("n1")))
    stage.wait(60)
    assert len(stage.of(TerminateNode)) == 1
    stage.wait(limits.LAUNCH_ANSWER_S_MAX)
    assert len(stage.of(TerminateNode)) == 1
    stage.lose("n1", reclaimed=False)
    stage.wait(limits.LAUNCH_ANSWER_S_MAX)
    assert stage.effects == []


# ---- full looks heal lost news


def test_a_full_look_finds_launched_ended_and_stray_instances() -> None:
    stage = Stage(a_world(a_node("n1"), a_node("asked", status=NodeStatus.REQUESTED)))
    stage.wait(10)
    listed = {"asked": "i-asked", "stranger": "i-stranger"}
    stage.step(InstancesListed(compute_environment="ce", instances=listed, at=stage.now))
    assert [effect.instance_id for effect in stage.of(TerminateStray)] == ["i-stranger"]
    assert set(stage.world.nodes) == {"asked"}
    assert stage.world.nodes[NodeId("asked")].status is NodeStatus.LAUNCHED


def test_a_full_look_does_not_judge_what_is_younger_or_elsewhere() -> None:
    world = a_world(an_environment("far"), a_queue("queue", "ce", "far"))
    stage = Stage(world.with_(a_node("n1"), a_node("there", environment="far")))
    stage.step(InstancesListed(compute_environment="ce", instances={}, at=NOW))
    assert set(stage.world.nodes) == {"n1", "there"}


def test_news_of_nodes_that_nobody_knows_is_ignored() -> None:
    stage = Stage(a_world())
    nobody = NodeId("nobody")
    stage.step(
        InstanceLaunched(node_id=nobody, instance_id="i-1", at=NOW),
        NodeReady(node_id=nobody, node_name="x", allocatable=an_amount(), at=NOW),
        SpotInterrupted(node_id=nobody, at=NOW),
        NodeLost(node_id=nobody, at=NOW, reason="gone"),
        InstanceGone(node_id=nobody, at=NOW, reason="gone"),
        NodeClosed(node_id=nobody, reason="x", at=NOW),
    )
    assert stage.world.nodes == {}
    assert stage.effects == []


def test_an_instance_that_answers_after_it_was_given_up_is_ended() -> None:
    stage = Stage(a_world(an_environment(state="DISABLED", status="DELETING")))
    stage.world.add_node(a_node("n1", status=NodeStatus.REQUESTED))
    stage.step()
    stage.step(InstanceLaunched(node_id=NodeId("n1"), instance_id="i-1", at=NOW))
    assert [effect.instance_id for effect in stage.of(TerminateNode)] == ["i-1"]


def test_the_peak_counts_instances_that_were_launched_not_those_asked_for() -> None:
    stage = Stage(a_world(a_node("n1")))
    stage.submit("a", vcpus=4, size=9)
    assert len(stage.world.nodes) > 1
    assert stage.world.totals.peak_instances == 1
    joined = stage.join()
    assert stage.world.totals.peak_instances == 1 + len(joined)
    stage.lose("n1")
    assert stage.world.instances == len(joined)


def test_what_a_node_cost_is_in_the_totals_when_it_is_gone() -> None:
    stage = Stage(a_world(a_node("n1", offering=an_offering(price=0.36))))
    stage.now += 100_000
    stage.lose("n1", reclaimed=False)
    assert stage.world.totals.instance_ms == {"ce": 100_000}
    assert stage.world.totals.nano_usd == {"ce": 10_000_000}


def test_attempts_on_a_reclaimed_node_fail_only_when_a_rule_says_so() -> None:
    leave = RetryStrategy(
        attempts=3, evaluate_on_exit=(rule(RetryAction.EXIT, status_reason="Host EC2*"),)
    )
    stage = on_spot("n1", "n2")
    stage.submit("a", retry=leave)
    stage.run()
    stage.lose(stage.live("a").node_id)
    assert stage.status("a") is JobStatus.FAILED


# ---- nodes that others own


def on_found(node_id: str = "uid-1", **fields: Any) -> tuple[Stage, NodeFound]:
    """An unmanaged environment with one job waiting, and the news of its first node."""
    stage = Stage(a_world(an_environment(managed=False, max_vcpus=0), offerings=()))
    offering = an_offering("on-premises", price=0.0)
    found = NodeFound(
        node_id=NodeId(node_id),
        compute_environment="ce",
        node_name="rack-1",
        offering=offering,
        allocatable=fields.pop("allocatable", offering.allocatable),
        at=NOW,
        **fields,
    )
    return stage, found


def test_a_node_that_others_gave_our_label_runs_jobs_and_is_never_given_back() -> None:
    stage, found = on_found()
    stage.submit("a")
    assert stage.of(LaunchNode) == []
    stage.step(found)
    assert [effect.node_name for effect in stage.of(CreatePod)] == ["rack-1"]
    stage.run()
    stage.end("a")
    assert stage.status("a") is JobStatus.SUCCEEDED
    stage.wait(86_400)
    assert stage.of(TerminateNode) == []
    assert list(stage.world.nodes) == ["uid-1"]


def test_a_found_node_is_found_once_and_corrected_later() -> None:
    stage, found = on_found()
    stage.step(found, found)
    assert len(stage.world.nodes) == 1
    less = an_amount(2, 4096, pods=5)
    stage.step(msgspec.structs.replace(found, allocatable=less))
    assert stage.world.nodes[found.node_id].allocatable == less


def test_a_found_node_that_is_lost_leaves_and_its_jobs_run_elsewhere_for_free() -> None:
    stage, found = on_found()
    stage.submit("a")
    stage.step(found)
    stage.run()
    stage.step(NodeLost(node_id=found.node_id, at=stage.now, reason="unreachable"))
    assert stage.of(TerminateNode) == []
    assert list(stage.world.nodes) == []
    assert stage.status("a") is JobStatus.RUNNABLE
    assert stage.jobs["a"].tries[0].charged == 0


def test_nodes_that_left_unseen_are_lost_at_the_next_full_look() -> None:
    """1. a node is ready; 2. an old look says nothing; 3. a younger one without it does."""
    stage, found = on_found()
    stage.submit("a")
    stage.step(found)
    listed = NodesListed(compute_environment="ce", nodes=frozenset(), at=NOW)
    stage.step(listed)
    assert list(stage.world.nodes) == ["uid-1"]
    there = frozenset({found.node_id})
    stage.wait(30, NodesListed(compute_environment="ce", nodes=there, at=NOW + 30_000))
    assert list(stage.world.nodes) == ["uid-1"]
    stage.step(msgspec.structs.replace(listed, at=stage.now))
    assert list(stage.world.nodes) == []
    assert stage.status("a") is JobStatus.RUNNABLE


def test_a_managed_node_that_left_the_cluster_is_ended_by_its_cloud() -> None:
    stage = Stage(a_world(a_node("n1")))
    stage.wait(1, NodesListed(compute_environment="ce", nodes=frozenset(), at=NOW + 1000))
    assert [effect.node_id for effect in stage.of(TerminateNode)] == ["n1"]


def test_no_cloud_knows_found_nodes_and_none_may_call_them_gone() -> None:
    stage, found = on_found()
    stage.step(found)
    stage.wait(60, InstancesListed(compute_environment="ce", instances={}, at=stage.now + 60_000))
    assert list(stage.world.nodes) == ["uid-1"]


def test_nodes_are_found_for_unmanaged_environments_only() -> None:
    stage = Stage(a_world())
    _, found = on_found()
    stage.step(found, msgspec.structs.replace(found, compute_environment="unknown"))
    assert list(stage.world.nodes) == []


def test_an_unmanaged_environment_lets_its_nodes_go_when_it_is_deleted() -> None:
    """1. it has a node with a job; 2. it is deleted; 3. it is gone when the job has ended."""
    stage, found = on_found()
    stage.submit("a")
    stage.step(found)
    stage.run()
    environment = stage.world.compute_environments["ce"]
    stage.world.put_compute_environment(msgspec.structs.replace(environment, status="DELETING"))
    stage.step()
    assert list(stage.world.nodes) == ["uid-1"]
    stage.end("a")
    assert list(stage.world.nodes) == []
    assert "ce" not in stage.world.compute_environments


def test_a_node_that_is_not_ready_yet_still_counts_as_coming() -> None:
    stage = Stage(a_world())
    stage.submit("a")
    node = stage.world.nodes[first_node(stage)]
    stage.step(NodeClosed(node_id=node.node_id, reason="the node is not ready", at=NOW))
    assert stage.of(LaunchNode) == []
    assert node.is_coming


def test_a_node_that_recovers_after_a_spot_notice_stays_closed() -> None:
    stage = on_spot("n1")
    stage.step(SpotInterrupted(node_id=NodeId("n1"), at=NOW))
    stage.step(NodeClosed(node_id=NodeId("n1"), reason="not ready", at=NOW))
    stage.step(NodeClosed(node_id=NodeId("n1"), reason=None, at=NOW))
    assert stage.world.nodes[NodeId("n1")].closed == SPOT_NOTICE
