"""Allocation strategies: in which order an environment tries what it may buy, and what is bought then."""

from __future__ import annotations

import msgspec
import pytest

from airflow_eksbatch.core.engine.effects import LaunchNode
from airflow_eksbatch.core.engine.facts import OfferingsListed
from airflow_eksbatch.core.model.allocation import tiers_of
from airflow_eksbatch.core.model.compute_environment import Market
from airflow_eksbatch.core.model.node import Offering
from airflow_eksbatch.core.planner.planning import make_plan
from tests.build import NOW, a_job, a_world, an_environment, an_offering
from tests.core.stage import Stage


def spot(instance_type: str, part: float, zone: str = "us-east-1a") -> Offering:
    """A Spot pool that costs this part of the On-Demand price."""
    return msgspec.structs.replace(
        an_offering(instance_type, market=Market.SPOT, price=part * 0.2),
        zone=zone,
        on_demand_usd_hour=0.2,
    )


def scored(offering: Offering, zone: str, score: int) -> Offering:
    """The same pool in a zone that has this placement score; 0 if nobody said."""
    return msgspec.structs.replace(offering, zone=zone, zone_score=score)


def on_demand(instance_type: str, price: float, vcpus: int = 4) -> Offering:
    return an_offering(instance_type, price=price, vcpus=vcpus)


def tiers(strategy: str, listed: tuple[str, ...], *offerings: Offering) -> list[list[str]]:
    environment = an_environment(allocation_strategy=strategy, instance_types=listed)
    return [[o.instance_type for o in tier] for tier in tiers_of(environment, offerings)]


DEEP, MIDDLE, SHALLOW, EMPTY = (
    spot("m5.xlarge", 0.3),
    spot("c5.xlarge", 0.5),
    spot("r5.xlarge", 0.7),
    spot("m6i.xlarge", 0.95),
)
C5_DEEP = spot("c5.xlarge", 0.3)
M5, C5, R5 = on_demand("m5.xlarge", 0.19), on_demand("c5.xlarge", 0.17), on_demand("r5.large", 0.12)


@pytest.mark.parametrize(
    ("strategy", "listed", "offerings", "expected"),
    [
        # By price alone: one tier.
        ("BEST_FIT_PROGRESSIVE", ("m5", "c5"), (M5, C5), [["m5.xlarge", "c5.xlarge"]]),
        ("BEST_FIT_PROGRESSIVE", ("optimal",), (DEEP, EMPTY), [["m5.xlarge", "m6i.xlarge"]]),
        ("BEST_FIT_PROGRESSIVE", ("m5",), (), []),
        # By the list, whatever it costs.
        ("BEST_FIT_PROGRESSIVE_ORDERED", ("m5", "c5"), (C5, M5), [["m5.xlarge"], ["c5.xlarge"]]),
        ("BEST_FIT_PROGRESSIVE_ORDERED", ("c5", "m5"), (C5, M5), [["c5.xlarge"], ["m5.xlarge"]]),
        # A type that is named leaves its family for a place of its own.
        (
            "BEST_FIT_PROGRESSIVE_ORDERED",
            ("r5", "c5", "r5.large"),
            (R5, C5, on_demand("r5.xlarge", 0.25)),
            [["r5.xlarge"], ["c5.xlarge"], ["r5.large"]],
        ),
        (
            "BEST_FIT_PROGRESSIVE_ORDERED",
            ("optimal", "r5"),
            (R5, M5),
            [["m5.xlarge"], ["r5.large"]],
        ),
        # By depth.
        (
            "SPOT_CAPACITY_OPTIMIZED",
            ("optimal",),
            (EMPTY, MIDDLE, DEEP, SHALLOW),
            [["m5.xlarge"], ["c5.xlarge"], ["r5.xlarge"], ["m6i.xlarge"]],
        ),
        # Price and depth together: what is next to empty comes last, the rest by price.
        (
            "SPOT_PRICE_CAPACITY_OPTIMIZED",
            ("optimal",),
            (EMPTY, MIDDLE, DEEP, SHALLOW),
            [["c5.xlarge", "m5.xlarge", "r5.xlarge"], ["m6i.xlarge"]],
        ),
        # Depth first; among equally deep ones the list.
        (
            "SPOT_CAPACITY_OPTIMIZED_PRIORITIZED",
            ("r5", "c5", "m5"),
            (spot("m5.xlarge", 0.30), spot("c5.xlarge", 0.31), SHALLOW),
            [["c5.xlarge"], ["m5.xlarge"], ["r5.xlarge"]],
        ),
    ],
)
def test_a_strategy_orders_what_may_be_bought(
    strategy: str,
    listed: tuple[str, ...],
    offerings: tuple[Offering, ...],
    expected: list[list[str]],
) -> None:
    assert tiers(strategy, listed, *offerings) == expected


# Three points or more behind the best zone are a step, five or more are two.
@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ((9, 9, 9), [["m5.xlarge", "c5.xlarge", "r5.xlarge"]]),
        ((9, 7, 9), [["m5.xlarge", "c5.xlarge", "r5.xlarge"]]),
        ((9, 6, 5), [["m5.xlarge"], ["c5.xlarge", "r5.xlarge"]]),
        ((9, 6, 4), [["m5.xlarge"], ["c5.xlarge"], ["r5.xlarge"]]),
        ((1, 10, 7), [["c5.xlarge"], ["r5.xlarge"], ["m5.xlarge"]]),
        # Low everywhere says nothing of which to choose.
        ((3, 2, 1), [["m5.xlarge", "c5.xlarge", "r5.xlarge"]]),
        # Of a zone that was not scored nothing is known.
        ((9, 0, 2), [["m5.xlarge", "c5.xlarge"], ["r5.xlarge"]]),
        ((0, 0, 0), [["m5.xlarge", "c5.xlarge", "r5.xlarge"]]),
    ],
)
def test_zones_are_told_apart_by_their_scores(
    scores: tuple[int, int, int], expected: list[list[str]]
) -> None:
    pools = (spot("m5.xlarge", 0.3), spot("c5.xlarge", 0.3), spot("r5.xlarge", 0.3))
    sold = [scored(p, z, s) for p, z, s in zip(pools, "abc", scores, strict=True)]
    assert tiers("SPOT_CAPACITY_OPTIMIZED", ("optimal",), *sold) == expected


@pytest.mark.parametrize(
    ("strategy", "good", "bad", "expected"),
    [
        # The worse of both signs counts.
        (
            "SPOT_CAPACITY_OPTIMIZED",
            (DEEP, SHALLOW, EMPTY),
            (C5_DEEP,),
            [["m5.xlarge"], ["r5.xlarge", "c5.xlarge"], ["m6i.xlarge"]],
        ),
        (
            "SPOT_CAPACITY_OPTIMIZED_PRIORITIZED",
            (DEEP, SHALLOW, EMPTY),
            (C5_DEEP,),
            [["m5.xlarge"], ["c5.xlarge"], ["r5.xlarge"], ["m6i.xlarge"]],
        ),
        # Price and depth together: a zone far behind is as good as empty.
        (
            "SPOT_PRICE_CAPACITY_OPTIMIZED",
            (DEEP, SHALLOW, EMPTY),
            (C5_DEEP,),
            [["m5.xlarge", "r5.xlarge"], ["m6i.xlarge", "c5.xlarge"]],
        ),
        # By price or by the list alone: whatever the zone's score.
        (
            "BEST_FIT_PROGRESSIVE",
            (DEEP,),
            (C5_DEEP,),
            [["m5.xlarge", "c5.xlarge"]],
        ),
        (
            "BEST_FIT_PROGRESSIVE_ORDERED",
            (DEEP,),
            (C5_DEEP,),
            [["c5.xlarge"], ["m5.xlarge"]],
        ),
    ],
)
def test_a_pool_in_a_zone_far_behind_is_shallow_whatever_it_costs(
    strategy: str,
    good: tuple[Offering, ...],
    bad: tuple[Offering, ...],
    expected: list[list[str]],
) -> None:
    sold = [scored(o, "us-east-1a", 9) for o in good] + [scored(o, "us-east-1b", 3) for o in bad]
    assert tiers(strategy, ("c5", "m5", "r5", "m6i"), *sold) == expected


def test_with_prices_a_zone_that_is_only_a_little_behind_is_no_worse() -> None:
    sold = scored(DEEP, "us-east-1a", 9), scored(C5_DEEP, "us-east-1b", 5)
    expected = [["m5.xlarge", "c5.xlarge"]]
    assert tiers("SPOT_PRICE_CAPACITY_OPTIMIZED", ("optimal",), *sold) == expected


def test_once_the_best_zone_is_left_alone_the_others_are_measured_by_each_other() -> None:
    sold = scored(DEEP, "us-east-1b", 4), scored(MIDDLE, "us-east-1c", 3)
    expected = [["m5.xlarge"], ["c5.xlarge"]]
    assert tiers("SPOT_CAPACITY_OPTIMIZED", ("optimal",), *sold) == expected
    with_best = scored(SHALLOW, "us-east-1a", 10)
    expected = [["m5.xlarge", "c5.xlarge", "r5.xlarge"]]
    assert tiers("SPOT_CAPACITY_OPTIMIZED", ("optimal",), *sold, with_best) == expected


def test_every_offering_is_in_one_tier() -> None:
    for strategy in (
        "BEST_FIT_PROGRESSIVE",
        "BEST_FIT_PROGRESSIVE_ORDERED",
        "SPOT_CAPACITY_OPTIMIZED",
        "SPOT_PRICE_CAPACITY_OPTIMIZED",
        "SPOT_CAPACITY_OPTIMIZED_PRIORITIZED",
    ):
        found = tiers(strategy, ("m5", "c5"), DEEP, MIDDLE, SHALLOW, EMPTY)
        assert sorted(name for tier in found for name in tier) == [
            "c5.xlarge",
            "m5.xlarge",
            "m6i.xlarge",
            "r5.xlarge",
        ]


def planned(strategy: str, listed: tuple[str, ...], vcpus: int, *offerings: Offering) -> list[str]:
    environment = an_environment(allocation_strategy=strategy, instance_types=listed)
    world = a_world(environment, a_job(vcpus=vcpus), offerings=offerings)
    return [launch.offering.instance_type for launch in make_plan(world, NOW, 60).launches]


def test_a_change_of_scores_is_no_change_of_what_is_on_its_way() -> None:
    """
    1. A node is bought for a job at today's score of its zone.
    2. The zone's score changes before it has joined: nothing more is bought, and the next job is bought for as before.
    """
    environment = an_environment(allocation_strategy="SPOT_CAPACITY_OPTIMIZED")
    before, after = scored(DEEP, "us-east-1a", 9), scored(DEEP, "us-east-1a", 2)
    stage = Stage(a_world(environment, offerings=(before,)))
    stage.submit("first", vcpus=3)
    assert [effect.offering.zone_score for effect in stage.of(LaunchNode)] == [9]
    stage.step(OfferingsListed(compute_environment="ce", offerings=(after,)))
    assert stage.of(LaunchNode) == []
    stage.submit("second", vcpus=3)
    assert [effect.offering.zone_score for effect in stage.of(LaunchNode)] == [2]


def test_the_first_on_the_list_is_bought_although_another_is_cheaper() -> None:
    assert planned("BEST_FIT_PROGRESSIVE_ORDERED", ("m5", "c5"), 3, C5, M5) == ["m5.xlarge"]
    assert planned("BEST_FIT_PROGRESSIVE", ("m5", "c5"), 3, C5, M5) == ["c5.xlarge"]


def test_types_that_are_too_small_for_the_job_are_passed_over() -> None:
    large = on_demand("c5.4xlarge", 0.68, vcpus=16)
    assert planned("BEST_FIT_PROGRESSIVE_ORDERED", ("m5", "c5"), 12, M5, large) == ["c5.4xlarge"]


def test_the_deeper_pool_is_bought_although_another_is_cheaper() -> None:
    cheap_and_shallow = msgspec.structs.replace(spot("c5.xlarge", 0.7), price_usd_hour=0.05)
    cheap_and_shallow = msgspec.structs.replace(cheap_and_shallow, on_demand_usd_hour=0.06)
    listed = ("m5", "c5")
    assert planned("SPOT_CAPACITY_OPTIMIZED", listed, 3, cheap_and_shallow, DEEP) == ["m5.xlarge"]
