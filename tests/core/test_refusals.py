"""What follows a cloud's no: where it holds, for how long, and what is bought instead."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_eksbatch.core.engine.effects import LaunchNode, TerminateNode
from airflow_eksbatch.core.engine.facts import InstanceLaunched, LaunchRefused
from airflow_eksbatch.core.engine.step import derive_effects
from airflow_eksbatch.core.model import limits
from airflow_eksbatch.core.model.compute_environment import Market
from airflow_eksbatch.core.model.node import Offering
from tests.build import a_node, a_queue, a_world, an_environment, an_offering
from tests.core.stage import Stage

HOUR_S = 3_600


def no(effect: LaunchNode, at: int, **how: Any) -> LaunchRefused:
    return LaunchRefused(
        node_id=effect.node_id, code="InsufficientInstanceCapacity", message="No.", at=at, **how
    )


def types_asked(stage: Stage) -> list[str]:
    return [effect.offering.instance_type for effect in stage.of(LaunchNode)]


def refused(stage: Stage, **how: Any) -> list[str]:
    """Refuse what was just asked for; what is asked for instead."""
    stage.step(*(no(effect, stage.now, **how) for effect in stage.of(LaunchNode)))
    return types_asked(stage)


# ---- for how long


def test_a_pool_rests_twice_as_long_each_time_it_is_refused_again() -> None:
    stage = Stage(a_world(offerings=(an_offering(),)))
    stage.submit("a")
    for rest_s in (180, 360, 720, 1_440, 1_800, 1_800):
        assert refused(stage) == []
        stage.wait(rest_s - 1)
        assert types_asked(stage) == []
        stage.wait(1)
        assert types_asked(stage) == ["m5.xlarge"]


def test_refusals_that_were_on_their_way_count_once() -> None:
    stage = Stage(a_world(offerings=(an_offering(),)))
    stage.submit("a", vcpus=4, size=5)
    assert len(stage.of(LaunchNode)) == 5
    assert refused(stage) == []
    assert stage.world.refused_times == {"m5.xlarge/us-east-1a/EC2": 1}


def test_a_grant_ends_the_row_and_one_from_before_the_no_does_not() -> None:
    stage = Stage(a_world(offerings=(an_offering(),)))
    stage.submit("a", vcpus=4, size=2)
    first, second = stage.of(LaunchNode)
    stage.step(no(first, stage.now))
    early = InstanceLaunched(node_id=second.node_id, instance_id="i", at=stage.now)
    stage.step(early)
    assert types_asked(stage) == []
    stage.wait(limits.REFUSAL_S)
    (third,) = stage.of(LaunchNode)
    stage.wait(1, InstanceLaunched(node_id=third.node_id, instance_id="i", at=stage.now))
    assert stage.world.refused_until == stage.world.refused_times == {}


def test_a_refusal_of_long_ago_is_not_in_the_same_row() -> None:
    stage = Stage(a_world(offerings=(an_offering(),)))
    stage.submit("a")
    refused(stage)
    stage.terminate("a")
    stage.wait(HOUR_S)
    stage.submit("b")
    refused(stage)
    assert stage.world.refused_times == {"m5.xlarge/us-east-1a/EC2": 1}


# ---- where


@pytest.mark.parametrize(
    ("instance_type", "quota"),
    [
        ("m5.large", "standard"),
        ("c6gn.16xlarge", "standard"),
        ("im4gn.large", "standard"),
        ("t3.micro", "standard"),
        ("g4dn.xlarge", "g"),
        ("gr6.4xlarge", "g"),
        ("vt1.3xlarge", "g"),
        ("p4d.24xlarge", "p"),
        ("inf2.xlarge", "inf"),
        ("trn1.2xlarge", "trn"),
        ("dl1.24xlarge", "dl"),
        ("hpc7a.96xlarge", "hpc"),
        ("x2iedn.xlarge", "x"),
        ("u-6tb1.metal", "u"),
        ("f1.2xlarge", "f"),
    ],
)
def test_ec2_counts_classes_of_types_together(instance_type: str, quota: str) -> None:
    assert an_offering(instance_type).quota == f"{quota}/EC2"
    assert an_offering(instance_type, market=Market.SPOT).quota == f"{quota}/SPOT"


STANDARD = (
    an_offering("c5.xlarge", price=0.17),
    an_offering("m5.xlarge", price=0.19),
    an_offering("m5.2xlarge", vcpus=8, memory_mib=32_768, zone="us-east-1b"),
)
WITH_GPU = an_offering("g4dn.xlarge", gpu=1, price=0.53)


def test_a_quota_that_is_used_up_is_not_tried_type_by_type() -> None:
    """None of the others is smaller than the one that did not fit."""
    stage = Stage(a_world(offerings=(*STANDARD, WITH_GPU)))
    stage.submit("a", vcpus=4)
    assert types_asked(stage) == ["c5.xlarge"]
    assert refused(stage, quota=True) == ["g4dn.xlarge"]
    assert refused(stage, quota=True) == []
    stage.wait(limits.REFUSAL_S)
    assert types_asked(stage) == ["c5.xlarge"]


SIZES_OF_C5 = tuple(
    an_offering(f"c5.{name}", vcpus=vcpus, memory_mib=vcpus * 4_096, price=vcpus * per_vcpu)
    for name, vcpus, per_vcpu in (
        ("large", 2, 0.055), ("xlarge", 4, 0.05), ("2xlarge", 8, 0.045), ("4xlarge", 16, 0.04)
    )
)  # fmt: skip


def test_smaller_machines_that_fit_into_what_is_left_of_a_quota_are_bought() -> None:
    """EC2 says VcpuLimitExceeded of this machine; 6 vCPUs may be left, and half of the work need not wait for hours."""
    stage = Stage(a_world(offerings=SIZES_OF_C5))
    stage.submit("a", vcpus=2, size=8)
    assert types_asked(stage) == ["c5.4xlarge"]
    assert refused(stage, quota=True) == ["c5.2xlarge"] * 2
    assert refused(stage, quota=True) == ["c5.xlarge"] * 4
    first, *others = stage.of(LaunchNode)
    stage.step(
        InstanceLaunched(node_id=first.node_id, instance_id="i", at=stage.now),
        *(no(effect, stage.now, quota=True) for effect in others),
    )
    assert types_asked(stage) == ["c5.large"] * 6
    assert refused(stage, quota=True) == []


def test_the_grant_of_a_smaller_machine_does_not_end_the_row_of_a_quota() -> None:
    stage = Stage(a_world(offerings=SIZES_OF_C5))
    stage.submit("a", vcpus=2, size=8)
    refused(stage, quota=True)
    small, _ = stage.of(LaunchNode)
    stage.wait(limits.REFUSAL_S + 1)
    stage.step(InstanceLaunched(node_id=small.node_id, instance_id="i", at=stage.now))
    assert stage.world.refused_times == {"standard/EC2": 1}
    stage.submit("b", vcpus=16)
    (large,) = stage.of(LaunchNode)
    stage.step(InstanceLaunched(node_id=large.node_id, instance_id="i", at=stage.now))
    assert stage.world.refused_times == stage.world.refused_vcpus == {}


def test_a_quota_of_spot_is_not_that_of_on_demand() -> None:
    spot = an_offering("c5.xlarge", market=Market.SPOT, price=0.05)
    environment, queue = an_environment("spot", market=Market.SPOT), a_queue("queue", "spot", "ce")
    world = a_world(environment, queue, offerings=STANDARD)
    stage = Stage(world.with_offerings("spot", spot))
    stage.submit("a", vcpus=4)
    assert [effect.compute_environment for effect in stage.of(LaunchNode)] == ["spot"]
    refused(stage, quota=True)
    assert [effect.compute_environment for effect in stage.of(LaunchNode)] == ["ce"]


# ---- past the maximum

SIZES = {"m5.xlarge": 4, "m5.8xlarge": 32, "m5.16xlarge": 64, "m5.metal": 128}


def sizes(*refused_types: str) -> tuple[Offering, ...]:
    return tuple(
        an_offering(name, vcpus=vcpus, memory_mib=vcpus * 4_096, pods=234)
        for name, vcpus in SIZES.items()
        if name not in refused_types
    )


@pytest.mark.parametrize(
    ("left", "vcpus", "rest", "bought"),
    [
        (32, 4, (), ["m5.xlarge"]),
        (2, 4, (), ["m5.xlarge"]),  # None stays within: the least past it
        (32, 40, (), ["m5.16xlarge"]),
        (32, 4, ("m5.xlarge", "m5.8xlarge"), []),  # It waits for those, not for 128 vCPUs
        (32, 40, ("m5.16xlarge",), ["m5.metal"]),
        (0, 4, (), []),
    ],
)
def test_the_maximum_is_passed_only_for_what_nothing_within_it_could_hold(
    left: int, vcpus: int, rest: tuple[str, ...], bought: list[str]
) -> None:
    full = an_offering("m5.8xlarge", vcpus=32, memory_mib=1)
    world = a_world(an_environment(max_vcpus=32 + left), a_node("n", offering=full))
    stage = Stage(world.with_offerings("ce", *sizes()))
    for offering in sizes():
        if offering.instance_type in rest:
            world.refused_until[offering.pool] = stage.now + 60_000
            world.refused_times[offering.pool] = 1
    stage.submit("a", vcpus=vcpus)
    assert types_asked(stage) == bought


# ---- no answer at all


def test_a_launch_that_is_never_answered_is_given_up_and_bought_elsewhere() -> None:
    """EC2 says "later" again and again; the request may have arrived, so whatever came of it is ended."""
    stage = Stage(a_world(offerings=STANDARD))
    stage.submit("a", vcpus=4)
    (first,) = stage.of(LaunchNode)
    for wait_s in (120, 120):
        stage.wait(wait_s)
        assert [effect.node_id for effect in stage.of(LaunchNode)] == [first.node_id]
    stage.wait(limits.LAUNCH_S_MAX - 241)
    assert stage.of(TerminateNode) == []
    stage.wait(1)
    assert [effect.node_id for effect in stage.of(TerminateNode)] == [first.node_id]
    assert types_asked(stage) == ["m5.xlarge"]
    late = InstanceLaunched(node_id=first.node_id, instance_id="i-1", at=stage.now)
    stage.step(late)
    assert [effect.instance_id for effect in stage.of(TerminateNode)] == ["i-1"]


def test_the_next_environment_is_tried_when_one_answers_no_launch() -> None:
    queue = a_queue("queue", "ce", "spare")
    world = a_world(an_environment("spare"), queue, offerings=STANDARD[:1])
    stage = Stage(world.with_offerings("spare", WITH_GPU))
    stage.submit("a", vcpus=4)
    stage.wait(limits.LAUNCH_S_MAX)
    assert [effect.compute_environment for effect in stage.of(LaunchNode)] == ["spare"]


def test_who_waits_in_a_burst_for_its_turn_is_not_given_up() -> None:
    """EC2 takes two a second: of a thousand, some are asked for when others run already."""
    stage = Stage(a_world(an_environment(max_vcpus=400), offerings=STANDARD[:1]))
    stage.submit("a", vcpus=4, size=50)
    asked = [effect.node_id for effect in stage.of(LaunchNode)]
    for number in range(2):
        launched = InstanceLaunched(node_id=asked[number], instance_id=f"i-{number}", at=stage.now)
        stage.wait(limits.LAUNCH_S_MAX - 1, launched)
        assert stage.of(TerminateNode) == []
    stage.wait(limits.LAUNCH_S_MAX)
    assert len(stage.of(TerminateNode)) == 48


def test_one_that_others_overtake_is_given_up_while_they_are_answered() -> None:
    stage = Stage(a_world(an_environment(max_vcpus=400), offerings=STANDARD[:1]))
    stage.submit("a", vcpus=4, size=50)
    first, *others = (effect.node_id for effect in stage.of(LaunchNode))
    for number, node_id in enumerate(others[:6]):
        launched = InstanceLaunched(node_id=node_id, instance_id=f"i-{number}", at=stage.now)
        stage.wait(69, launched)
        assert stage.of(TerminateNode) == []
    stage.wait(24)
    assert [effect.node_id for effect in stage.of(TerminateNode)] == [first]
    assert first not in stage.world.trials.overtaken_at


def test_a_restart_asks_once_more_before_it_gives_a_launch_up() -> None:
    stage = Stage(a_world(offerings=STANDARD))
    stage.submit("a", vcpus=4)
    (first,) = stage.of(LaunchNode)
    stage.now += 2 * HOUR_S * 1000
    stage.world.deadlines.clear()
    assert first in derive_effects(stage.world, stage.now, stage.settings)
    stage.wait(limits.LAUNCH_ANSWER_S_MAX - 1)
    assert stage.of(TerminateNode) == []
    stage.wait(1)
    assert [effect.node_id for effect in stage.of(TerminateNode)] == [first.node_id]
