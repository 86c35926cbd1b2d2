"""The youth of a node, step by step; and what an environment comes to of which no node ever joins."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from airflow_eksbatch.core.engine.effects import CheckEnvironment, LaunchNode, TerminateNode
from airflow_eksbatch.core.engine.facts import (
    ComputeEnvironmentPut,
    EnvironmentChecked,
    Fact,
    InstanceGone,
    InstanceLaunched,
    InstancesListed,
    LaunchRefused,
    NodeClosed,
    NodeLost,
)
from airflow_eksbatch.core.engine.setbacks import NONE_JOINED
from airflow_eksbatch.core.engine.step import derive_effects
from airflow_eksbatch.core.model import limits
from airflow_eksbatch.core.model.node import Node, NodeStatus
from airflow_eksbatch.core.planner.explain import explain
from tests.build import a_node, a_world, an_environment, an_offering
from tests.core.stage import Stage

KINDS = tuple(an_offering(f"m{number}.xlarge", price=number / 100) for number in range(1, 10))


def waiting(*nouns: Node, size: int | None = None) -> Stage:
    stage = Stage(a_world(*nouns, offerings=KINDS))
    stage.submit("a", vcpus=4, size=size)
    return stage


def launched(stage: Stage) -> list[Node]:
    """What was asked for is there."""
    nodes = [n for n in stage.world.nodes.values() if n.status is NodeStatus.REQUESTED]
    stage.step(
        *(InstanceLaunched(node_id=n.node_id, instance_id="i-1", at=stage.now) for n in nodes)
    )
    return nodes


def end(stage: Stage, nodes: list[Node]) -> None:
    stage.step(*(InstanceGone(node_id=n.node_id, at=stage.now, reason="terminated") for n in nodes))


def fail_once(stage: Stage) -> list[Node]:
    """What was asked for is launched, does not join, and is ended."""
    nodes = launched(stage)
    stage.wait(limits.NODE_JOIN_S_MAX)
    end(stage, nodes)
    return nodes


def invalid() -> Stage:
    """None has joined."""
    stage = waiting()
    for _ in range(limits.NEVER_JOINED_MAX):
        fail_once(stage)
    return stage


def environment_of(stage: Stage) -> tuple[str, str]:
    environment = stage.world.compute_environments["ce"]
    return environment.status, environment.status_reason


def why(stage: Stage, job_id: str) -> str:
    return " ".join(explain(stage.world, stage.job(job_id), stage.now))


def healthy(stage: Stage) -> None:
    stage.step(EnvironmentChecked(name="ce", status="VALID", status_reason="Healthy"))


# ---- one node


def test_a_node_that_joins_gets_time_to_become_ready_and_no_more() -> None:
    """Joined at the last moment, it is ended ten minutes later, and the reason says what it lacked."""
    stage = waiting()
    (node,) = launched(stage)
    stage.wait(limits.NODE_JOIN_S_MAX - 1)
    lack = "the node is not ready: cni plugin not initialized"
    stage.step(NodeClosed(node_id=node.node_id, reason=lack, at=stage.now))
    stage.wait(limits.NODE_READY_S_MAX - 1)
    assert stage.of(TerminateNode) == []
    stage.wait(1)
    assert [effect.node_id for effect in stage.of(TerminateNode)] == [node.node_id]
    assert node.reason == f"joined, and was not ready within 600 s: {lack}"
    assert node.offering.pool in stage.world.refused_until
    assert [effect.offering.instance_type for effect in stage.of(LaunchNode)] == ["m2.xlarge"]


def test_a_node_that_became_ready_in_time_is_not_judged_by_its_youth() -> None:
    stage = waiting()
    (node,) = launched(stage)
    stage.step(NodeClosed(node_id=node.node_id, reason="not ready", at=stage.now))
    stage.wait(60, stage.ready(node))
    stage.wait(limits.NODE_JOIN_S_MAX + limits.NODE_READY_S_MAX)
    assert node.status is NodeStatus.READY


def test_a_crash_gives_nobody_a_second_youth() -> None:
    stage = waiting()
    (node,) = launched(stage)
    stage.wait(limits.NODE_JOIN_S_MAX - 10)
    stage.world.deadlines.clear()
    derive_effects(stage.world, stage.now, stage.settings)
    stage.wait(10)
    assert [effect.node_id for effect in stage.of(TerminateNode)] == [node.node_id]


# ---- all of them


@pytest.mark.parametrize(
    "news",
    [
        lambda stage, node: None,
        lambda stage, node: NodeClosed(node_id=node.node_id, reason="not ready", at=stage.now),
        lambda stage, node: NodeLost(node_id=node.node_id, reason="unreachable", at=stage.now),
        lambda stage, node: InstanceGone(
            node_id=node.node_id, at=stage.now, reason="Client.InternalError: no access to the key"
        ),
        lambda stage, node: InstancesListed(
            compute_environment="ce", instances={}, at=stage.now + 1
        ),
    ],
    ids=["silent", "not ready", "lost", "ended by itself", "missing"],
)
def test_an_environment_whose_nodes_never_join_becomes_invalid_and_says_why(
    news: Callable[[Stage, Node], Fact | None],
) -> None:
    stage, node = waiting(), a_node()
    for _ in range(limits.NEVER_JOINED_MAX):
        assert environment_of(stage)[0] == "VALID"
        (node,) = launched(stage)
        fact = news(stage, node)
        if fact is not None:
            stage.step(fact)
        if node.status is NodeStatus.LAUNCHED and node.node_id in stage.world.nodes:
            stage.wait(limits.NODE_JOIN_S_MAX)
        if node.node_id in stage.world.nodes:
            end(stage, [node])
    status, reason = environment_of(stage)
    assert status == "INVALID"
    assert reason.startswith(NONE_JOINED)
    assert f"i-1 ({node.offering.instance_type} in us-east-1a)" in reason
    assert len(reason) <= limits.REASON_LENGTH_MAX
    assert stage.world.nodes == {}
    assert stage.of(LaunchNode) == []
    assert stage.status("a") == "RUNNABLE"


def test_it_is_scaled_down_and_what_was_on_its_way_is_ended() -> None:
    """A hundred fail together, and those that were asked for a moment later have no better chances."""
    stage = waiting(size=5)
    first = launched(stage)
    stage.wait(60)
    stage.submit("b", vcpus=4)
    (late,) = launched(stage)
    stage.wait(limits.NODE_JOIN_S_MAX - 60)
    assert environment_of(stage)[0] == "INVALID"
    assert {n.status for n in (*first, late)} == {NodeStatus.TERMINATING}
    assert late.reason == "none of its compute environment's nodes joined"


@pytest.mark.parametrize("joins", [True, False])
def test_one_that_joins_speaks_for_all(joins: bool) -> None:
    """Either in between, or long ago and still there: then it is the machines and not the environment."""
    stage = waiting(*([] if joins else [a_node("old", allocatable=KINDS[0].allocatable)]))
    if not joins:
        stage.submit("b", vcpus=4)
    for number in range(limits.NEVER_JOINED_MAX + 1):
        if joins and number == 1:
            stage.submit("c", vcpus=4)
            good, *_ = launched(stage)
            stage.step(stage.ready(good))
            stage.run()
            stage.end_all()
            stage.submit("d", vcpus=4)
            continue
        fail_once(stage)
    assert environment_of(stage)[0] == "VALID"


def test_jobs_go_to_the_next_environment_meanwhile() -> None:
    stage = invalid()
    spare = an_environment("spare")
    stage.world.put_compute_environment(spare)
    stage.world.offerings["spare"] = KINDS
    queue = msgspec.structs.replace(
        stage.world.queues["queue"], compute_environments=("ce", "spare")
    )
    stage.world.put_queue(queue)
    stage.wait(limits.REFUSAL_S)
    assert [effect.compute_environment for effect in stage.of(LaunchNode)] == ["spare"]


# ---- and again


def test_one_instance_is_tried_again_after_a_while_and_if_it_joins_all_is_well() -> None:
    stage = invalid()
    stage.submit("b", vcpus=4, size=8)
    stage.wait(limits.NONE_JOINED_S - 1)
    assert stage.of(CheckEnvironment) == stage.of(LaunchNode) == []
    stage.wait(1)
    assert [effect.name for effect in stage.of(CheckEnvironment)] == ["ce"]
    healthy(stage)
    (node,) = launched(stage)
    stage.step()
    assert stage.of(LaunchNode) == []
    trial = "ce is on trial, since its last 3 instances did not join: one is launched"
    assert trial in why(stage, "b")
    stage.step(stage.ready(node))
    assert len(stage.of(LaunchNode)) == 8


def test_a_trial_that_fails_is_the_last_for_a_while() -> None:
    stage = invalid()
    for _ in range(3):
        stage.wait(limits.NONE_JOINED_S)
        healthy(stage)
        assert len(fail_once(stage)) == 1
        assert environment_of(stage)[0] == "INVALID"
        assert stage.of(LaunchNode) == []


def test_who_updates_it_has_it_tried_at_once() -> None:
    stage = invalid()
    environment = stage.world.compute_environments["ce"]
    stage.give(ComputeEnvironmentPut(compute_environment=environment, create=False))
    assert [effect.name for effect in stage.of(CheckEnvironment)] == ["ce"]
    healthy(stage)
    assert len(stage.of(LaunchNode)) == 1


def test_a_crash_makes_nobody_buy_more_than_one() -> None:
    stage = invalid()
    stage.submit("b", vcpus=4, size=8)
    stage.world.never_joined.clear()
    derive_effects(stage.world, stage.now, stage.settings)
    healthy(stage)
    assert len(stage.of(LaunchNode)) == 1


# ---- whatever else makes it INVALID


def found_wanting(stage: Stage, reason: str = "CLIENT_ERROR - no rights") -> None:
    stage.step(EnvironmentChecked(name="ce", status="INVALID", status_reason=reason))


def test_what_a_check_found_wanting_is_looked_into_again_ever_more_rarely_and_buys_nothing() -> (
    None
):
    """A role that is not known everywhere yet, an upgrade: nobody has to come back for what passes. A look costs nothing."""
    stage = Stage(a_world(offerings=KINDS))
    found_wanting(stage)
    stage.submit("b", vcpus=4, size=8)
    assert "no rights It is looked into again in 2 min." in why(stage, "b")
    for rest_s in (120, 240, 480, 960, 1_800, 1_800):
        stage.wait(rest_s - 1)
        assert stage.of(CheckEnvironment) == []
        stage.wait(1)
        assert [effect.name for effect in stage.of(CheckEnvironment)] == ["ce"]
        found_wanting(stage)
        assert stage.of(LaunchNode) == []
    healthy(stage)
    assert len(stage.of(LaunchNode)) == 8
    stage.wait(3_600)
    assert stage.of(CheckEnvironment) == []


def test_a_launch_that_was_refused_for_good_is_asked_for_again_after_a_look() -> None:
    """And as long as none is granted, the looks become rarer, though each finds all well."""
    stage = waiting()
    for rest_s in (120, 240, 480):
        (effect,) = stage.of(LaunchNode)
        no = LaunchRefused(
            node_id=effect.node_id,
            code="UnauthorizedOperation",
            message="No.",
            at=stage.now,
            for_good=True,
        )
        stage.step(no)
        assert environment_of(stage) == ("INVALID", "CLIENT_ERROR - UnauthorizedOperation: No.")
        stage.wait(rest_s - 1)
        assert stage.of(CheckEnvironment) == []
        stage.wait(1)
        healthy(stage)
    launched(stage)
    assert stage.world.trials.invalid_times == {}


def test_a_trial_that_fails_for_another_reason_keeps_its_later_ones() -> None:
    stage = invalid()
    stage.submit("b", vcpus=4, size=8)
    stage.wait(limits.NONE_JOINED_S)
    found_wanting(stage)
    stage.wait(limits.INVALID_S_MAX)
    assert [effect.name for effect in stage.of(CheckEnvironment)] == ["ce"]
    healthy(stage)
    assert len(stage.of(LaunchNode)) == 1, "none has joined yet"


def test_several_looks_at_once_do_not_become_several_rows_of_them() -> None:
    stage = waiting()
    for _ in range(3):
        found_wanting(stage)
    looks = 0
    for _ in range(480):
        stage.wait(1)
        looks += len(stage.of(CheckEnvironment))
    assert looks == 1


def test_a_restart_looks_into_all_and_goes_on_from_there() -> None:
    stage = waiting()
    found_wanting(stage)
    stage.world.trials.check_at.clear()
    stage.world.deadlines.clear()
    effects = derive_effects(stage.world, stage.now, stage.settings)
    assert CheckEnvironment(compute_environment="ce") in effects
    found_wanting(stage)
    stage.wait(limits.INVALID_S_MAX)
    assert [effect.name for effect in stage.of(CheckEnvironment)] == ["ce"]
