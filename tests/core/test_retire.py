"""What is given back: empty nodes after their grace, down to the minimum, never one with work."""

from __future__ import annotations

import pytest

from airflow_eksbatch.core.engine.effects import TerminateNode
from airflow_eksbatch.core.engine.facts import NodeClosed, PodRefused, SpotInterrupted
from airflow_eksbatch.core.model.node import NodeId, NodeStatus
from tests.build import NOW, a_node, a_world, an_environment
from tests.core.stage import Stage


def ended(stage: Stage) -> list[str]:
    return sorted(effect.node_id for effect in stage.of(TerminateNode))


def test_an_empty_node_goes_when_its_grace_is_over() -> None:
    stage = Stage(a_world(a_node("n1")), idle_s=60)
    outcome = stage.wait(59)
    assert ended(stage) == []
    stage.wait(1)
    assert ended(stage) == ["n1"]
    assert stage.world.nodes[NodeId("n1")].reason == "idle for 60 s"
    assert outcome.plan.retirements == []


def test_the_environment_may_set_its_own_grace() -> None:
    stage = Stage(a_world(an_environment(idle_s=5), a_node("n1")), idle_s=600)
    stage.wait(5)
    assert ended(stage) == ["n1"]


def test_the_grace_begins_when_the_last_job_ends() -> None:
    stage = Stage(a_world(a_node("n1")), idle_s=60)
    stage.submit("a")
    stage.run()
    stage.wait(500)
    outcome = stage.step(stage.ended("a"))
    assert outcome.wake_at == stage.now + 60_000
    stage.wait(59)
    assert ended(stage) == []
    stage.wait(1)
    assert ended(stage) == ["n1"]


def test_work_that_comes_in_the_last_moment_keeps_the_node() -> None:
    stage = Stage(a_world(a_node("n1")), idle_s=60)
    stage.now += 60_000
    stage.submit("a")
    assert ended(stage) == []
    assert stage.live("a").node_id == "n1"


def test_a_node_that_never_got_work_goes_too() -> None:
    stage = Stage(a_world(), idle_s=60)
    stage.submit("a")
    (node_id,) = stage.join()
    stage.terminate("a")
    stage.run()
    stage.end("a", exit_code=143)
    stage.wait(60)
    assert ended(stage) == [node_id]


def test_the_minimum_stays_also_while_others_are_on_their_way_out() -> None:
    """
    1. three idle nodes, minimum one: two go
    2. while they shut down the third stays, beat after beat
    """
    stage = Stage(a_world(an_environment(min_vcpus=4), *(a_node(f"n{n}") for n in "123")))
    stage.wait(60)
    assert len(ended(stage)) == 2
    stage.wait(10)
    assert ended(stage) == []
    for node in list(stage.world.nodes.values()):
        if node.status is NodeStatus.TERMINATING:
            stage.lose(node.node_id, reclaimed=False)
    stage.wait(1_000)
    assert len(stage.world.nodes) == 1
    assert stage.world.totals.instances == {}


def test_a_node_larger_than_what_is_spare_stays() -> None:
    stage = Stage(a_world(an_environment(min_vcpus=5), a_node("n1"), a_node("n2")))
    stage.wait(60)
    assert ended(stage) == []


def test_a_closed_empty_node_goes_at_once_and_before_an_open_one() -> None:
    stage = Stage(a_world(an_environment(min_vcpus=4), a_node("open"), a_node("shut")))
    stage.now += 60_000
    stage.step(NodeClosed(node_id=NodeId("shut"), reason="cordoned", at=NOW))
    assert ended(stage) == ["shut"]
    stage.wait(10)
    assert ended(stage) == []


def test_an_empty_node_with_a_spot_notice_goes_at_once() -> None:
    stage = Stage(a_world(a_node("n1")))
    stage.step(SpotInterrupted(node_id=NodeId("n1"), at=NOW))
    assert ended(stage) == ["n1"]


def test_a_node_that_rests_after_turning_a_pod_away_has_its_grace() -> None:
    stage = Stage(a_world(a_node("n1"), offerings=()), idle_s=60)
    stage.submit("a")
    stage.step(PodRefused(pod=stage.live("a").pod_name, at=NOW, reason="OutOfcpu"))
    assert ended(stage) == []
    stage.terminate("a")
    stage.wait(60)
    assert ended(stage) == ["n1"]


def test_unmanaged_nodes_belong_to_others() -> None:
    stage = Stage(a_world(an_environment(managed=False), a_node("n1")))
    stage.wait(10_000)
    assert ended(stage) == []


@pytest.mark.parametrize("status", [NodeStatus.REQUESTED, NodeStatus.LAUNCHED, NodeStatus.READY])
def test_an_environment_that_is_being_deleted_gives_everything_back(status: NodeStatus) -> None:
    environment = an_environment(state="DISABLED", status="DELETING", min_vcpus=4)
    stage = Stage(a_world(environment, a_node("n1", status=status)))
    stage.step()
    assert ended(stage) == ["n1"]


def test_with_no_jobs_there_are_no_nodes_in_the_end() -> None:
    stage = Stage(a_world())
    stage.submit("a", size=40)
    stage.join()
    stage.run()
    stage.end_all()
    stage.wait(60)
    for node_id in ended(stage):
        stage.lose(node_id, reclaimed=False)
    stage.wait(600)
    assert stage.world.nodes == {}
    assert stage.world.vcpus["ce"] == 0
    assert stage.effects == []
