"""What is bought: by price and fit, environment by environment, around refusals, between minimum and maximum."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_eksbatch.core.engine.effects import LaunchNode
from airflow_eksbatch.core.engine.facts import InstanceLaunched, LaunchRefused, OfferingsListed
from airflow_eksbatch.core.model import limits
from airflow_eksbatch.core.model.compute_environment import Market
from airflow_eksbatch.core.model.node import NodeId, NodeStatus
from airflow_eksbatch.core.planner import provision
from airflow_eksbatch.core.planner.check import check_plan
from airflow_eksbatch.core.planner.planning import make_plan
from tests.build import (
    M5,
    NOW,
    BuiltWorld,
    a_job,
    a_node,
    a_policy,
    a_queue,
    a_world,
    an_environment,
    an_offering,
)
from tests.core.stage import Stage

CHEAP = an_offering("c5.xlarge", memory_mib=8_192, price=0.17)
PLAIN = an_offering("m5.xlarge", memory_mib=16_384, price=0.192)
BIG_MEMORY = an_offering("r5.xlarge", memory_mib=32_768, price=0.252)
GPU = an_offering("g4dn.xlarge", gpu=1, memory_mib=16_384, price=0.526)


def bought(world: BuiltWorld, now: int = NOW) -> Counter[str]:
    """Instances by environment and type."""
    plan = make_plan(world, now, 60)
    check_plan(world, plan, now)
    counts: Counter[str] = Counter()
    for launch in plan.launches:
        counts[f"{launch.compute_environment}/{launch.offering.instance_type}"] += launch.count
    return counts


def vcpus_bought(world: BuiltWorld) -> int:
    return sum(x.count * x.offering.vcpus for x in make_plan(world, NOW, 60).launches)


# ---- price and fit


@pytest.mark.parametrize(
    ("job", "instance_type"),
    [
        ({"vcpus": 4, "memory_mib": 4_096}, "c5.xlarge"),
        ({"vcpus": 4, "memory_mib": 12_000}, "m5.xlarge"),
        ({"vcpus": 4, "memory_mib": 30_000}, "r5.xlarge"),
        ({"vcpus": 1, "gpu": 1}, "g4dn.xlarge"),
    ],
)
def test_the_cheapest_type_that_holds_the_job_is_bought(
    job: dict[str, Any], instance_type: str
) -> None:
    world = a_world(a_job(**job), offerings=(GPU, BIG_MEMORY, PLAIN, CHEAP))
    assert bought(world) == {f"ce/{instance_type}": 1}


def test_one_small_job_does_not_get_a_large_machine() -> None:
    assert bought(a_world(a_job(vcpus=1))) == {"ce/m5.large": 1}


def test_many_jobs_get_as_many_machines_as_they_fill() -> None:
    world = a_world(a_job(vcpus=1, size=24), offerings=(an_offering(),))
    assert bought(world) == {"ce/m5.xlarge": 6}


def test_jobs_that_share_a_machine_well_share_one() -> None:
    thin, fat = a_job(vcpus=3, memory_mib=1_024), a_job(vcpus=1, memory_mib=14_000)
    assert bought(a_world(thin, fat, offerings=(PLAIN,))) == {"ce/m5.xlarge": 1}


def test_nothing_is_bought_for_what_fits_on_ready_or_coming_nodes() -> None:
    coming = a_node("n2", status=NodeStatus.REQUESTED)
    assert bought(a_world(a_node("n1"), coming, a_job(size=8))) == {}
    assert bought(a_world(a_node("n1"), coming, a_job(size=9))) == {"ce/m5.large": 1}


def test_nothing_is_bought_when_nothing_waits() -> None:
    assert bought(a_world()) == {}


def test_a_job_that_no_type_can_hold_buys_nothing_and_stops_nobody() -> None:
    world = a_world(a_job("huge", vcpus=400), a_job(vcpus=2))
    assert bought(world) == {"ce/m5.large": 1}


def test_many_different_jobs_that_nobody_sells_room_for_stop_nobody() -> None:
    impossible = [a_job(vcpus=100 + number, gpu=1) for number in range(80)]
    assert bought(a_world(*impossible, a_job(vcpus=2))) == {"ce/m5.large": 1}


def test_a_job_that_nobody_sells_room_for_does_not_use_up_what_a_fair_queue_may_take() -> None:
    world = a_world(
        an_environment(max_vcpus=2),
        a_policy("fair", reservation=40, today=1.0),
        a_queue("fair", policy="fair"),
        a_job("huge", queue="fair", share="today", priority=1, memory_mib=70_000),
        a_job(queue="fair", share="today", vcpus=0.25),
    )
    assert bought(world) == {"ce/m5.large": 1}


def test_equal_offerings_are_spread_over_their_zones() -> None:
    zones = [an_offering(zone=f"us-east-1{z}") for z in "abc"]
    world = a_world(a_job(vcpus=4, size=6), offerings=zones)
    plan = make_plan(world, NOW, 60)
    assert sorted((x.offering.zone, x.count) for x in plan.launches) == [
        ("us-east-1a", 2),
        ("us-east-1b", 2),
        ("us-east-1c", 2),
    ]


def test_the_cheaper_zone_is_preferred_to_an_even_spread() -> None:
    zones = [an_offering(zone="a", price=0.1), an_offering(zone="b", price=0.2)]
    plan = make_plan(a_world(a_job(vcpus=4, size=4), offerings=zones), NOW, 60)
    assert {x.offering.zone for x in plan.launches} == {"a"}


# ---- a mix for many


def join_one(stage: Stage, node_id: NodeId) -> None:
    node = stage.world.nodes[node_id]
    launched = InstanceLaunched(node_id=node_id, instance_id=f"i-{node_id}", at=stage.now)
    stage.step(launched, stage.ready(node))


THIN: dict[str, Any] = {"vcpus": 4, "memory_mib": 8_192}
FAT: dict[str, Any] = {"vcpus": 2, "memory_mib": 16_384}
LARGE = (
    an_offering("c5.4xlarge", vcpus=16, memory_mib=32_768, price=0.68),
    an_offering("m5.4xlarge", vcpus=16, memory_mib=65_536, price=0.768),
    an_offering("r5.4xlarge", vcpus=16, memory_mib=131_072, price=1.008),
)


def test_a_mixed_queue_gets_a_mixed_fleet() -> None:
    world = a_world(
        an_environment(max_vcpus=1_000),
        a_job(**THIN, size=40),
        a_job(**FAT, size=40),
        offerings=LARGE,
    )
    assert bought(world) == {"ce/c5.4xlarge": 10, "ce/r5.4xlarge": 5}


def test_up_to_the_maximum_each_kind_gets_its_part() -> None:
    world = a_world(
        an_environment(max_vcpus=48),
        a_job(**THIN, size=400),
        a_job(**FAT, size=400),
        offerings=LARGE,
    )
    assert bought(world) == {"ce/c5.4xlarge": 2, "ce/r5.4xlarge": 1}


def test_kinds_that_complete_each_other_stay_together_when_machines_join_one_by_one() -> None:
    """1. Eight thin and eight fat jobs fill four machines, two and two. 2. The first machine joins: the thin ones have the
    first turn, and four would fit; two of them and two fat ones start. 3. Nothing more is bought until all run."""
    stage = Stage(a_world(an_environment(max_vcpus=1_000), offerings=(LARGE[1],)))
    stage.submit("thin", vcpus=7, memory_mib=4_096, size=8)
    stage.submit("fat", vcpus=1, memory_mib=28_672, size=8)
    nodes = list(stage.world.nodes)
    assert len(nodes) == 4
    for number, node_id in enumerate(nodes, 1):
        join_one(stage, node_id)
        running = Counter(attempt.job_id for attempt in stage.world.attempts.values())
        assert running == {"thin": 2 * number, "fat": 2 * number}
    assert list(stage.world.nodes) == nodes


def test_room_that_was_bought_for_jobs_that_are_gone_goes_to_others() -> None:
    stage = Stage(a_world(an_environment(max_vcpus=1_000), offerings=(LARGE[1],)))
    stage.submit("first", vcpus=7, memory_mib=4_096, size=8)
    assert len(stage.world.nodes) == 4
    stage.cancel("first")
    stage.submit("second", vcpus=1, memory_mib=1_024, size=64)
    assert len(stage.world.nodes) == 4
    stage.join()
    assert len(stage.world.attempts) == 64


# ---- minimum and maximum


def test_never_begun_beyond_the_maximum() -> None:
    world = a_world(an_environment(max_vcpus=10), a_job(size=100), offerings=(an_offering(),))
    assert bought(world) == {"ce/m5.xlarge": 3}


def test_the_last_instance_passes_the_maximum_only_when_nothing_smaller_holds_the_job() -> None:
    world = a_world(an_environment(max_vcpus=10), a_job(vcpus=2, size=50))
    assert vcpus_bought(world) == 10
    world = a_world(an_environment(max_vcpus=10), a_job(vcpus=8, size=50))
    assert vcpus_bought(world) == 16


def test_what_is_there_and_what_is_going_count_against_the_maximum() -> None:
    going = a_node("n2", status=NodeStatus.TERMINATING)
    world = a_world(an_environment(max_vcpus=8), a_node("n1"), going, a_job(size=50))
    assert bought(world) == {}


def test_the_minimum_is_kept_without_jobs_by_the_lowest_price() -> None:
    world = a_world(an_environment(min_vcpus=8), offerings=(BIG_MEMORY, PLAIN))
    assert bought(world) == {"ce/m5.xlarge": 2}


def test_a_minimum_that_is_there_buys_nothing() -> None:
    world = a_world(an_environment(min_vcpus=4), a_node("n1"))
    assert bought(world) == {}


@pytest.mark.parametrize(
    "switch", [{"state": "DISABLED"}, {"status": "INVALID"}, {"managed": False}]
)
def test_only_valid_enabled_managed_environments_grow(switch: dict[str, Any]) -> None:
    world = a_world(an_environment(min_vcpus=8, **switch), a_job(size=9))
    assert bought(world) == {}


def test_a_beat_asks_for_a_bounded_number_of_instances() -> None:
    world = a_world(an_environment(max_vcpus=10**6), a_job(vcpus=4, size=10_000))
    plan = make_plan(world, NOW, 60)
    assert sum(launch.count for launch in plan.launches) <= limits.LAUNCHES_PER_BEAT_MAX


# ---- overflow


def two_environments(*nouns: Any, first: int = 8) -> BuiltWorld:
    spot = an_offering("m5.xlarge", market=Market.SPOT, price=0.06)
    world = a_world(
        an_environment(max_vcpus=first),
        an_environment("spot", market=Market.SPOT, max_vcpus=64),
        a_queue("queue", "ce", "spot"),
        *nouns,  # type: ignore[arg-type]
        offerings=(an_offering(),),
    )
    return world.with_offerings("spot", spot)


def test_the_second_environment_is_used_when_the_first_is_full() -> None:
    assert bought(two_environments(a_job(size=20))) == {"ce/m5.xlarge": 2, "spot/m5.xlarge": 3}


def test_the_second_environment_is_left_alone_while_the_first_has_room() -> None:
    assert bought(two_environments(a_job(size=8))) == {"ce/m5.xlarge": 2}


def test_overflow_is_counted() -> None:
    stage = Stage(two_environments())
    stage.submit("a", size=20)
    assert stage.world.totals.overflows == 3


def test_a_disabled_first_environment_is_passed_over() -> None:
    world = two_environments(a_job(size=8)).with_(an_environment(state="DISABLED"))
    assert bought(world) == {"spot/m5.xlarge": 2}


def test_nodes_on_their_way_in_a_disabled_environment_serve_nobody() -> None:
    coming = a_node("n1", status=NodeStatus.LAUNCHED)
    world = two_environments(a_job(size=4), coming).with_(an_environment(state="DISABLED"))
    assert bought(world) == {"spot/m5.xlarge": 1}


def test_queues_that_share_an_environment_share_its_maximum() -> None:
    world = a_world(
        an_environment(max_vcpus=8),
        a_queue("urgent", priority=9),
        a_job(vcpus=4, queue="urgent"),
        a_job(vcpus=4, size=9),
        offerings=(an_offering(),),
    )
    assert bought(world) == {"ce/m5.xlarge": 2}


# ---- refusals


def refuse(stage: Stage, **how: object) -> None:
    """The cloud says no to everything that the last step asked for."""
    stage.step(
        *(
            LaunchRefused(
                **{
                    "node_id": effect.node_id,
                    "code": "InsufficientInstanceCapacity",
                    "message": "no capacity",
                    "at": stage.now,
                    **how,
                }
            )
            for effect in stage.of(LaunchNode)
        )
    )


def types_asked(stage: Stage) -> list[str]:
    return [effect.offering.instance_type for effect in stage.of(LaunchNode)]


def test_a_refused_pool_is_replaced_by_the_next_best_in_the_same_beat() -> None:
    stage = Stage(a_world(offerings=(CHEAP, PLAIN, BIG_MEMORY)))
    stage.submit("a", vcpus=4)
    assert types_asked(stage) == ["c5.xlarge"]
    refuse(stage)
    assert types_asked(stage) == ["m5.xlarge"]
    refuse(stage)
    assert types_asked(stage) == ["r5.xlarge"]
    assert stage.world.totals.refused == 2
    assert len(stage.world.nodes) == 1


def test_a_refused_environment_overflows_into_the_next() -> None:
    stage = Stage(two_environments())
    stage.submit("a", vcpus=4)
    refuse(stage)
    assert [effect.compute_environment for effect in stage.of(LaunchNode)] == ["spot"]


def test_a_refusal_is_remembered_for_a_while_and_then_forgotten() -> None:
    stage = Stage(a_world(offerings=(PLAIN,)))
    stage.submit("a")
    refuse(stage)
    assert types_asked(stage) == []
    outcome = stage.wait(limits.REFUSAL_S - 1)
    assert types_asked(stage) == []
    assert outcome.wake_at == NOW + limits.REFUSAL_S * 1000
    stage.wait(1)
    assert types_asked(stage) == ["m5.xlarge"]
    stage.now += 1
    stage.join()
    assert stage.world.refused_until == stage.world.refused_times == {}


def test_a_refusal_that_only_a_person_can_mend_makes_the_environment_invalid() -> None:
    stage = Stage(a_world())
    stage.submit("a")
    refuse(stage, code="UnauthorizedOperation", message="no rights", for_good=True)
    environment = stage.world.compute_environments["ce"]
    assert environment.status == "INVALID"
    assert environment.status_reason == "CLIENT_ERROR - UnauthorizedOperation: no rights"
    assert types_asked(stage) == []


def test_a_refusal_of_a_node_that_was_launched_means_nothing() -> None:
    stage = Stage(a_world())
    stage.submit("a")
    (node_id,) = stage.join()
    stage.step(LaunchRefused(node_id=node_id, code="x", message="late", at=NOW))
    assert node_id in stage.world.nodes
    assert stage.world.refused_until == {}


def test_offerings_that_arrive_later_are_bought_then() -> None:
    stage = Stage(a_world(offerings=()))
    stage.submit("a")
    assert types_asked(stage) == []
    stage.step(OfferingsListed(compute_environment="ce", offerings=M5))
    assert types_asked(stage) == ["m5.large"]


# ---- always


@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([0.25, 1, 2, 3, 6]),
            st.sampled_from([512, 4_096, 12_000]),
            st.integers(1, 30),
        ),
        max_size=6,
    ),
    st.integers(0, 40),
)
def test_bought_room_is_enough_or_the_environment_is_full(
    jobs: list[tuple[float, int, int]], max_vcpus: int
) -> None:
    """Play it on: whatever was asked joins, until all run or the maximum is reached."""
    stage = Stage(a_world(an_environment(max_vcpus=max_vcpus)))
    for vcpus, memory_mib, size in jobs:
        stage.submit(vcpus=vcpus, memory_mib=memory_mib, size=max(2, size))
    for _ in range(10):
        if not stage.join():
            break
    waiting = stage.world.lines
    assert not waiting or stage.world.vcpus["ce"] >= max_vcpus
    assert stage.world.vcpus["ce"] <= max_vcpus + 7


mixed_jobs = st.lists(
    st.tuples(
        st.sampled_from([0.25, 0.5, 1, 2, 4, 7, 13]),
        st.sampled_from([512, 2_048, 6_000, 15_000, 40_000]),
        st.integers(2, 60),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=40, derandomize=True, deadline=None)
@given(mixed_jobs)
def test_nothing_more_is_bought_while_machines_join_in_any_order(
    jobs: list[tuple[float, int, int]],
) -> None:
    """What was bought at first is enough, down to the last job, though each machine fills on its own."""
    world = a_world(an_environment(max_vcpus=10**6), offerings=LARGE)
    for number, (vcpus, memory_mib, size) in enumerate(jobs):
        world.with_(a_job(f"j{number}", vcpus=vcpus, memory_mib=memory_mib, size=size))
    stage = Stage(world)
    stage.step()
    nodes = list(stage.world.nodes)
    for node_id in nodes[::2] + nodes[1::2]:
        join_one(stage, node_id)
    assert list(stage.world.nodes) == nodes
    assert not stage.world.lines


def price_bought(jobs: list[tuple[float, int, int]]) -> float:
    world = a_world(an_environment(max_vcpus=10**6), offerings=(*M5, *LARGE))
    for vcpus, memory_mib, size in jobs:
        world.with_(a_job(vcpus=vcpus, memory_mib=memory_mib, size=size))
    launches = make_plan(world, NOW, 60).launches
    return sum(launch.count * launch.offering.price_usd_hour for launch in launches)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(mixed_jobs)
def test_a_mix_costs_at_most_a_machine_more_than_load_by_load(
    jobs: list[tuple[float, int, int]],
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(provision, "VCPUS_A_SHAPE_LEAST", 10**9)
        load_by_load = price_bought(jobs)
    assert price_bought(jobs) <= load_by_load + max(o.price_usd_hour for o in LARGE)
