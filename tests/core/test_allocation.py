"""Allocation strategies: in which order an environment tries what it may buy, and what is bought then."""

from __future__ import annotations

import msgspec
import pytest

from airflow_eksbatch.core.model.allocation import tiers_of
from airflow_eksbatch.core.model.compute_environment import Market
from airflow_eksbatch.core.model.node import Offering
from airflow_eksbatch.core.planner.planning import make_plan
from tests.build import NOW, a_job, a_world, an_environment, an_offering


def spot(instance_type: str, part: float, zone: str = "us-east-1a") -> Offering:
    """A Spot pool that costs this part of the On-Demand price."""
    return msgspec.structs.replace(
        an_offering(instance_type, market=Market.SPOT, price=part * 0.2),
        zone=zone,
        on_demand_usd_hour=0.2,
    )


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
