"""What live nodes have for pods takes the place of estimates: in what is bought, what is on its way, and what is explained."""

from __future__ import annotations

import msgspec
import pytest

from airflow_eksbatch.core.engine.effects import LaunchNode
from airflow_eksbatch.core.engine.facts import (
    ComputeEnvironmentPut,
    InstanceGone,
    InstanceLaunched,
    NodeReady,
    OfferingsListed,
)
from airflow_eksbatch.core.engine.step import derive_effects
from airflow_eksbatch.core.model import limits
from airflow_eksbatch.core.model.node import Node, NodeStatus, Offering
from airflow_eksbatch.core.model.resources import Resources
from airflow_eksbatch.core.planner.explain import explain
from tests.build import a_node, a_world, an_offering
from tests.core.stage import Stage

SMALL = an_offering("m5.xlarge", vcpus=4, memory_mib=16_384, pods=58, price=0.2)
LARGE = an_offering("m5.2xlarge", vcpus=8, memory_mib=32_768, pods=58, price=0.4)
WITH_GPU = an_offering("g4dn.xlarge", vcpus=4, gpu=1, price=0.53)
DAEMONS = Resources(cpu_m=100, memory_mib=256, pods=3)


def types_asked(stage: Stage) -> list[str]:
    return [effect.offering.instance_type for effect in stage.of(LaunchNode)]


def reported(stage: Stage, node: Node, room: Resources) -> NodeReady:
    return NodeReady(node_id=node.node_id, node_name="ip", allocatable=room, at=stage.now)


def really(offering: Offering) -> Resources:
    return offering.allocatable.minus(DAEMONS)


def join(stage: Stage, node: Node, room: Resources) -> None:
    stage.step(
        InstanceLaunched(node_id=node.node_id, instance_id="i", at=stage.now),
        reported(stage, node, room),
    )


def the_node(stage: Stage) -> Node:
    (node,) = [n for n in stage.world.nodes.values() if n.status is NodeStatus.REQUESTED]
    return node


def end_all(stage: Stage) -> None:
    """Every instance that is to end has ended."""
    stage.step(
        *(
            InstanceGone(node_id=node.node_id, at=stage.now, reason="terminated")
            for node in stage.world.nodes.values()
            if node.status is NodeStatus.TERMINATING
        )
    )


def joined_with_less(*offerings: Offering, **job: int) -> Stage:
    """A job that fits the first offering as it was estimated, and not the node that came of it."""
    stage = Stage(a_world(offerings=offerings))
    stage.submit("a", **{"vcpus": 4, **job})
    node = the_node(stage)
    join(stage, node, really(node.offering))
    return stage


def test_a_job_that_fits_no_real_node_costs_one_machine_and_not_one_after_another() -> None:
    stage = joined_with_less(SMALL)
    assert types_asked(stage) == []
    assert stage.status("a") == "RUNNABLE"
    for _ in range(10):
        stage.wait(60)
        assert types_asked(stage) == []
        end_all(stage)
    assert stage.world.nodes == {}
    why = " ".join(explain(stage.world, stage.job("a"), stage.now))
    assert (
        "m5.xlarge, has 3.9 vCPUs, 16128 MiB for jobs. Instances of type m5.xlarge offer 3.9 vCPUs, 16128 MiB to jobs, "
        "less than it wants"
    ) in why
    assert "NVIDIA" not in why


def test_a_type_that_really_holds_it_is_bought_instead() -> None:
    stage = joined_with_less(SMALL, LARGE)
    assert types_asked(stage) == ["m5.2xlarge"]


def test_machines_are_ordered_as_they_were_listed() -> None:
    """What a node may hold at most is told to it at boot: from what is left beside DaemonSets it would shrink each time."""
    stage = joined_with_less(SMALL)
    stage.submit("b", vcpus=3, size=2)
    (effect,) = stage.of(LaunchNode)
    assert effect.offering == SMALL
    assert stage.world.nodes[effect.node_id].allocatable == really(SMALL)


def test_nodes_on_their_way_are_counted_with_what_theirs_really_have() -> None:
    """Three were bought for three; when the first shows that none will do, larger ones are bought for all at once."""
    stage = Stage(a_world(offerings=(SMALL, LARGE)))
    stage.submit("a", vcpus=4, size=3)
    assert types_asked(stage) == ["m5.xlarge"] * 3
    first = stage.of(LaunchNode)[0].node_id
    join(stage, stage.world.nodes[first], really(SMALL))
    assert types_asked(stage) == ["m5.2xlarge"] * 2


def test_a_load_that_fits_in_part_still_counts_in_part() -> None:
    stage = Stage(a_world(offerings=(SMALL,)))
    stage.submit("a", vcpus=1, size=8)
    first, _ = (effect.node_id for effect in stage.of(LaunchNode))
    join(stage, stage.world.nodes[first], really(SMALL))
    assert len(stage.job("a").running) == 3
    assert types_asked(stage) == ["m5.xlarge"], "three more have their place on the second node"


def test_news_of_prices_does_not_bring_the_estimate_back() -> None:
    stage = joined_with_less(SMALL)
    dearer = msgspec.structs.replace(SMALL, price_usd_hour=0.3)
    stage.wait(600, OfferingsListed(compute_environment="ce", offerings=(dearer,)))
    assert types_asked(stage) == []


# ---- GPUs


def test_a_gpu_machine_without_its_device_plugin_is_bought_once_and_the_reason_asks_for_it() -> (
    None
):
    stage = Stage(a_world(offerings=(WITH_GPU,)))
    stage.submit("a", vcpus=1, gpu=1)
    join(stage, the_node(stage), msgspec.structs.replace(WITH_GPU.allocatable, gpu=0))
    for _ in range(5):
        stage.wait(60)
        assert types_asked(stage) == []
    why = " ".join(explain(stage.world, stage.job("a"), stage.now))
    assert (
        "Instances of type g4dn.xlarge offer 4 vCPUs, 16384 MiB to jobs, less than it wants" in why
    )
    assert "Is the NVIDIA device plugin installed?" in why


OTHER_GPU = an_offering("g5.xlarge", vcpus=4, gpu=1, price=1.0)


def test_without_a_device_plugin_no_other_gpu_machine_is_tried_type_by_type() -> None:
    stage = Stage(a_world(offerings=(WITH_GPU, OTHER_GPU, SMALL)))
    stage.submit("a", vcpus=1, gpu=1)
    (node,) = (stage.world.nodes[effect.node_id] for effect in stage.of(LaunchNode))
    join(stage, node, msgspec.structs.replace(WITH_GPU.allocatable, gpu=0))
    for _ in range(5):
        stage.wait(60)
        assert types_asked(stage) == []
    stage.submit("b", vcpus=4)
    assert types_asked(stage) == ["m5.xlarge"]


def test_when_one_shows_its_gpus_the_others_are_believed_again() -> None:
    stage = Stage(a_world(offerings=(WITH_GPU, OTHER_GPU)))
    stage.submit("a", vcpus=1, gpu=1)
    (node,) = (stage.world.nodes[effect.node_id] for effect in stage.of(LaunchNode))
    join(stage, node, msgspec.structs.replace(WITH_GPU.allocatable, gpu=0))
    assert [offering.allocatable.gpu for offering in stage.world.offerings["ce"]] == [0, 0]
    stage.step(reported(stage, node, WITH_GPU.allocatable))
    assert stage.world.offerings["ce"] == (WITH_GPU, OTHER_GPU)


def test_gpus_that_show_a_moment_later_count_at_once_for_all() -> None:
    stage = Stage(a_world(offerings=(WITH_GPU,)))
    stage.submit("a", vcpus=1, gpu=1, size=2)
    first, second = (stage.world.nodes[effect.node_id] for effect in stage.of(LaunchNode))
    join(stage, first, msgspec.structs.replace(WITH_GPU.allocatable, gpu=0))
    assert types_asked(stage) == []
    assert stage.world.offerings["ce"][0].promised == WITH_GPU.allocatable
    stage.step(reported(stage, first, WITH_GPU.allocatable))
    assert (stage.live("a").node_id, types_asked(stage)) == (first.node_id, [])
    assert second.allocatable == WITH_GPU.allocatable
    assert stage.world.offerings["ce"] == (WITH_GPU,)


# ---- for how long


def test_what_grows_on_a_node_that_is_there_counts_and_what_shrinks_does_not() -> None:
    """A DaemonSet that is taken away gives its room back everywhere; a stranger's pod takes room of one node only."""
    stage = joined_with_less(SMALL)
    (node,) = stage.world.nodes.values()
    half = msgspec.structs.replace(really(SMALL), cpu_m=2_000)
    stage.step(reported(stage, node, half))
    assert stage.world.offerings["ce"][0].allocatable == really(SMALL)
    stage.step(reported(stage, node, SMALL.allocatable))
    assert stage.status("a") == "STARTING"
    assert stage.world.offerings["ce"] == (SMALL,)


def test_the_last_one_to_join_speaks_for_those_to_come() -> None:
    stage = joined_with_less(SMALL)
    stage.submit("b", vcpus=3, size=2)
    node = the_node(stage)
    join(stage, node, SMALL.allocatable)
    assert stage.world.offerings["ce"] == (SMALL,)


def test_without_a_node_to_ask_it_is_tried_again_after_a_while_ever_more_rarely() -> None:
    stage = joined_with_less(SMALL)
    begun = stage.now
    stage.wait(60)
    end_all(stage)
    for hours in (1, 2, 4):
        stage.now = begun
        stage.wait(hours * limits.MEASURED_S - 1)
        assert types_asked(stage) == []
        stage.wait(1)
        assert types_asked(stage) == ["m5.xlarge"]
        node, begun = the_node(stage), stage.now
        join(stage, node, really(SMALL))
        assert types_asked(stage) == []
        stage.wait(60)
        end_all(stage)


def test_as_long_as_a_node_is_there_it_is_not_doubted() -> None:
    stage = joined_with_less(SMALL)
    stage.submit("b", vcpus=3)
    stage.run()
    for _ in range(3):
        stage.wait(limits.MEASURED_S)
        assert types_asked(stage) == []


def test_who_updates_the_environment_has_it_tried_again_at_once() -> None:
    stage = joined_with_less(SMALL)
    environment = stage.world.compute_environments["ce"]
    stage.give(ComputeEnvironmentPut(compute_environment=environment, create=False))
    assert types_asked(stage) == ["m5.xlarge"]


@pytest.mark.parametrize("there", [True, False])
def test_a_restart_knows_it_of_the_nodes_that_are_there(there: bool) -> None:
    """Of others it costs one machine to learn it again."""
    nodes = [a_node("n1", offering=SMALL, allocatable=really(SMALL))] if there else []
    stage = Stage(a_world(*nodes, offerings=()))
    del stage.world.offerings["ce"]
    derive_effects(stage.world, stage.now, stage.settings)
    stage.step()
    assert "ce" not in stage.world.offerings, "what may be bought is not known yet"
    stage.step(OfferingsListed(compute_environment="ce", offerings=(SMALL,)))
    stage.submit("a", vcpus=4)
    assert types_asked(stage) == ([] if there else ["m5.xlarge"])
