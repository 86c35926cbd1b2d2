"""Equal machines are asked for together: one request, the same one each time, and each still its own node."""

from __future__ import annotations

from airflow_eksbatch.core.engine.effects import CreatePod, LaunchNode
from airflow_eksbatch.core.engine.facts import (
    InstanceLaunched,
    JobSubmitted,
    LaunchAlone,
    NodeClosed,
    NodeLost,
    NodeReady,
    NodesListed,
)
from airflow_eksbatch.core.model import limits
from airflow_eksbatch.core.model.node import Node, NodeId, NodeStatus
from tests.build import a_spec, a_world, an_offering
from tests.core.multi_node import nodes
from tests.core.stage import Stage, loaded

MOST = limits.LAUNCH_TOGETHER_MAX
OFFERINGS = (an_offering("small.large", vcpus=2, memory_mib=8_192, price=0.1),)


def asked_for(jobs: int) -> tuple[Stage, list[LaunchNode]]:
    """So many jobs that each take a machine, and what is asked for."""
    stage = Stage(a_world(offerings=OFFERINGS))
    stage.submit("wide", vcpus=2, memory_mib=1_024, size=jobs)
    return stage, stage.of(LaunchNode)


def node_of(stage: Stage, effect: LaunchNode) -> Node:
    return stage.world.nodes[effect.node_id]


def launched(effect: LaunchNode, instance_id: str, stage: Stage) -> InstanceLaunched:
    return InstanceLaunched(node_id=effect.node_id, instance_id=instance_id, at=stage.now)


def ready(effect: LaunchNode, known_as: str, stage: Stage) -> NodeReady:
    return NodeReady(
        node_id=NodeId(known_as),
        node_name=f"ip-{known_as}",
        allocatable=effect.offering.allocatable,
        at=stage.now,
    )


def test_equal_machines_are_asked_for_in_lots_and_one_alone_is_not_in_one() -> None:
    _, effects = asked_for(2 * MOST + 1)
    ids = [effect.node_id for effect in effects]
    lots = [tuple(ids[:MOST]), tuple(ids[MOST : 2 * MOST])]
    assert [effect.together for effect in effects] == [lots[0]] * MOST + [lots[1]] * MOST + [()]


def test_a_lot_that_is_asked_for_again_is_the_same_lot() -> None:
    """Also by a service that starts anew, when some of it have their instances."""
    stage, effects = asked_for(3)
    stage.step(launched(effects[1], "i-1", stage))
    again = loaded(stage).of(LaunchNode)
    assert [(e.node_id, e.together) for e in again] == [
        (e.node_id, effects[0].together) for e in (effects[0], effects[2])
    ]


def test_what_was_not_made_with_the_others_is_asked_for_alone_from_then_on() -> None:
    stage, effects = asked_for(3)
    stage.step(LaunchAlone(node_id=effects[2].node_id))
    (alone,) = stage.of(LaunchNode)
    assert (alone.node_id, alone.together) == (effects[2].node_id, ())
    again = loaded(stage).of(LaunchNode)
    assert [e.together for e in again if e.node_id == alone.node_id] == [()]


def test_those_of_a_multi_node_job_are_a_lot_of_their_own_and_made_all_or_none() -> None:
    """Also when they are asked for again."""
    stage = Stage(a_world(offerings=OFFERINGS))
    plain = a_spec("plain", vcpus=2, memory_mib=1_024, size=2)
    mpi = a_spec("mpi", vcpus=2, memory_mib=1_024, multi_node=nodes(3))
    stage.step(JobSubmitted(spec=plain), JobSubmitted(spec=mpi))
    for asked in (stage.of(LaunchNode), loaded(stage).of(LaunchNode)):
        lots = {effect.together: effect.all_or_none for effect in asked}
        kept = [bool(stage.world.nodes[ids[0]].reserved_for) for ids in lots]
        assert sorted(map(len, lots)) == [2, 3]
        assert list(lots.values()) == kept


def test_a_machine_that_knows_no_node_id_is_the_node_of_its_instance() -> None:
    """1. two of one lot are launched; 2. one joins under its instance's id; 3. its pod goes there; 4. it is lost."""
    stage, effects = asked_for(2)
    stage.step(launched(effects[0], "i-0", stage), launched(effects[1], "i-1", stage))
    stage.step(ready(effects[1], "i-1", stage))
    assert node_of(stage, effects[1]).status is NodeStatus.READY
    assert node_of(stage, effects[0]).status is NodeStatus.LAUNCHED
    (pod,) = stage.of(CreatePod)
    assert (pod.node_id, pod.node_name) == ("i-1", "ip-i-1")
    stage.now += 1000
    stage.step(
        NodesListed(compute_environment="ce", nodes=frozenset({NodeId("i-1")}), at=stage.now)
    )
    assert node_of(stage, effects[1]).status is NodeStatus.READY
    stage.step(NodeLost(node_id=NodeId("i-1"), at=stage.now, reason="the node was deleted"))
    assert node_of(stage, effects[1]).status is NodeStatus.TERMINATING


def test_a_machine_may_be_faster_than_the_answer_to_its_launch() -> None:
    stage, effects = asked_for(2)
    early = ready(effects[0], "i-0", stage)
    closed = [
        NodeClosed(node_id=NodeId("i-0"), reason=reason, at=stage.now)
        for reason in (None, "cordoned")
    ]
    stage.step(early, *closed)
    assert node_of(stage, effects[0]).status is NodeStatus.REQUESTED
    stage.step(launched(effects[0], "i-0", stage))
    node = node_of(stage, effects[0])
    assert (node.ready_at, node.closed) == (early.at, "cordoned")


def test_news_of_machines_that_have_gone_is_not_kept() -> None:
    stage, effects = asked_for(2)
    stage.step(ready(effects[0], "i-0", stage))
    stage.step(NodeLost(node_id=NodeId("i-0"), at=stage.now, reason="the node was deleted"))
    stage.step(launched(effects[0], "i-0", stage))
    assert node_of(stage, effects[0]).status is NodeStatus.LAUNCHED


def test_another_service_still_knows_machines_by_their_instances() -> None:
    stage, effects = asked_for(2)
    stage.step(launched(effects[0], "i-0", stage), ready(effects[0], "i-0", stage))
    again = loaded(stage)
    again.step(NodeLost(node_id=NodeId("i-0"), at=again.now, reason="the node was deleted"))
    assert node_of(again, effects[0]).status is NodeStatus.TERMINATING
