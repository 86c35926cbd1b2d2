"""An update of how machines are made reaches those that are there, and no job is ended for it."""

from __future__ import annotations

from airflow_eksbatch.core.engine.effects import CheckEnvironment
from airflow_eksbatch.core.engine.facts import ComputeEnvironmentPut, EnvironmentChecked, NodeClosed
from airflow_eksbatch.core.model.node import OUTDATED, NodeId, NodeStatus
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
