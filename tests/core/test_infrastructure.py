"""An update of how machines are made reaches those that are there, and no job is ended for it."""

from __future__ import annotations

from typing import Literal

import msgspec
import pytest

from airflow_eksbatch.core.engine.effects import CheckEnvironment
from airflow_eksbatch.core.engine.facts import (
    ComputeEnvironmentPut,
    EnvironmentChecked,
    NodeClosed,
    OfferingsListed,
    TagsChanged,
)
from airflow_eksbatch.core.model.compute_environment import ComputeEnvironment
from airflow_eksbatch.core.model.node import OUTDATED, NodeId, NodeStatus
from airflow_eksbatch.core.world.world import World
from tests.build import a_node, a_world, an_environment
from tests.core.stage import Stage


def test_an_update_of_infrastructure_replaces_nodes_when_their_jobs_have_ended() -> None:
    """1 one works, one is idle, one comes 2 the update 3 nothing new goes to the first, and it goes after its job."""
    stage = Stage(
        a_world(a_node("works"), a_node("idle"), a_node("comes", status=NodeStatus.LAUNCHED))
    )
    stage.submit("a", vcpus=4)
    stage.run()
    busy = stage.live("a").node_id
    changed = stage.world.compute_environments["ce"]
    stage.give(
        ComputeEnvironmentPut(compute_environment=changed, create=False, replaces_nodes=True)
    )
    nodes = stage.world.nodes
    assert {n for n in nodes if nodes[n].status is NodeStatus.TERMINATING} == {*nodes} - {busy}
    assert nodes[busy].closed == OUTDATED
    stage.step(NodeClosed(node_id=busy, reason=None, at=stage.now))
    assert nodes[busy].closed == OUTDATED, "what its cluster says of it does not bring it back"
    assert [effect.name for effect in stage.of(CheckEnvironment)] == []
    stage.step(EnvironmentChecked(name="ce", status="VALID", status_reason="Healthy"))
    stage.submit("b")
    assert stage.status("b") == "RUNNABLE", "it waits for a node of the new kind"
    stage.end("a")
    assert stage.status("a") == "SUCCEEDED"
    assert nodes[busy].status is NodeStatus.TERMINATING


def test_an_update_of_infrastructure_leaves_nodes_of_others_alone() -> None:
    stage = Stage(a_world(an_environment(managed=False), a_node("n1")))
    changed = stage.world.compute_environments["ce"]
    stage.give(
        ComputeEnvironmentPut(compute_environment=changed, create=False, replaces_nodes=True)
    )
    assert stage.world.nodes[NodeId("n1")].is_open


def checked(
    environment: ComputeEnvironment, status: Literal["VALID", "INVALID"] = "VALID"
) -> EnvironmentChecked:
    """As whoever looks tells it, with what was looked at."""
    return EnvironmentChecked(
        name=environment.name, status=status, status_reason="as found", made_from=environment
    )


def update(stage: Stage, *, replaces_nodes: bool = False, **changes: object) -> ComputeEnvironment:
    """As the API updates: what is there, changed. Answers what is there then."""
    there = stage.world.compute_environments["ce"]
    changed = msgspec.structs.replace(there, **changes)
    put = ComputeEnvironmentPut(
        compute_environment=changed, create=False, seen=there, replaces_nodes=replaces_nodes
    )
    stage.give(put)
    return stage.world.compute_environments["ce"]


@pytest.mark.parametrize("found", ["VALID", "INVALID"])
def test_a_check_from_before_an_update_says_nothing_of_what_is_there_after_it(
    found: Literal["VALID", "INVALID"],
) -> None:
    """Also if nothing of it changed but the wish for the newest image."""
    stage = Stage(a_world())
    before = stage.world.compute_environments["ce"]
    after = update(stage, replaces_nodes=True)
    assert len(stage.of(CheckEnvironment)) == 1
    sold = stage.world.offerings["ce"]
    listed = OfferingsListed(compute_environment="ce", offerings=sold[:1], made_from=before)
    stage.submit("a")
    stage.step(listed, checked(before, found))
    assert stage.world.compute_environments["ce"].status == "UPDATING"
    assert stage.world.nodes == {}, "it would be of the old kind"
    assert stage.world.offerings["ce"] == sold
    stage.step(msgspec.structs.replace(listed, made_from=after), checked(after))
    assert stage.world.offerings["ce"] == sold[:1]
    assert len(stage.world.nodes) == 1


def test_a_check_of_a_new_environment_does_not_count_after_it_was_changed() -> None:
    stage = Stage(World())
    stage.give(ComputeEnvironmentPut(compute_environment=an_environment(), create=True))
    first = stage.world.compute_environments["ce"]
    second = update(stage, instance_types=("c5",))
    stage.step(checked(first))
    assert stage.world.compute_environments["ce"].status == "UPDATING"
    stage.step(checked(second))
    assert stage.world.compute_environments["ce"].status == "VALID"


def test_a_check_counts_though_its_environment_was_resized_or_tagged_meanwhile() -> None:
    """None of this asks for a check of its own, so there would be no other."""
    stage = Stage(a_world())
    before = stage.world.compute_environments["ce"]
    update(stage, max_vcpus=8, min_vcpus=0, idle_s=5.0, wire=b'{"a": 1}')
    stage.give(TagsChanged(kind="compute-environment", name="ce", added={"team": "a"}))
    stage.step(checked(before, "INVALID"))
    assert stage.world.compute_environments["ce"].status == "INVALID"


def test_a_check_of_one_that_was_deleted_says_nothing_of_another_by_its_name() -> None:
    stage = Stage(a_world())
    before = stage.world.compute_environments["ce"]
    other = msgspec.structs.replace(before, uuid="other", status="CREATING")
    stage.world.put_compute_environment(other)
    stage.step(checked(before))
    assert stage.world.compute_environments["ce"].status == "CREATING"
