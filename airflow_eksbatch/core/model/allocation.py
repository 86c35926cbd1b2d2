"""Allocation strategies: which offerings an environment tries first, and which only when those are refused or too small.

A strategy makes tiers of what may be bought. The planner serves what it can from the first tier, at the least price, then
turns to the next; a pool that was refused is in no tier for a while, so each strategy overflows in its own order.

EC2 tells nobody how deep one Spot pool is: its placement scores are for a zone and a target capacity of three types or more
(DECISIONS, 25). What it tells is the price, which follows demand slowly; so the part of the On-Demand price that Spot costs
stands for depth here, in steps wide enough that small moves of it change nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from airflow_eksbatch.core.model.compute_environment import ComputeEnvironment
from airflow_eksbatch.core.model.node import Offering

# What AWS Batch calls its choices of families.
BUNDLES = ("optimal", "default_x86_64", "default_arm64")
# Upper ends, as parts of the On-Demand price. Past the last one Spot saves too little for what it may cost in reclaims.
DEPTH_STEPS = (0.4, 0.6, 0.8)
# Price and depth together: all but the pools that are next to empty count alike, and the price decides.
SHALLOW_FROM = 0.8


def tiers_of(
    environment: ComputeEnvironment, offerings: Sequence[Offering]
) -> list[list[Offering]]:
    """Offerings in the order of the environment's strategy; those of a tier count alike but for their price."""
    match environment.allocation_strategy:
        case "BEST_FIT_PROGRESSIVE_ORDERED":
            keys: Iterable[tuple[int, int]] = ((0, place_of(environment, o)) for o in offerings)
        case "SPOT_CAPACITY_OPTIMIZED":
            keys = ((depth_step(o), 0) for o in offerings)
        case "SPOT_CAPACITY_OPTIMIZED_PRIORITIZED":
            keys = ((depth_step(o), place_of(environment, o)) for o in offerings)
        case "SPOT_PRICE_CAPACITY_OPTIMIZED":
            keys = ((int(part_of_on_demand(o) > SHALLOW_FROM), 0) for o in offerings)
        case _:
            return [list(offerings)] if offerings else []
    tiers: dict[tuple[int, int], list[Offering]] = {}
    for key, offering in zip(keys, offerings, strict=True):
        tiers.setdefault(key, []).append(offering)
    return [tiers[key] for key in sorted(tiers)]


def place_of(environment: ComputeEnvironment, offering: Offering) -> int:
    """Its place on the list of instance types; what is named has its own place, not its family's or its bundle's."""
    listed = environment.instance_types
    family = offering.instance_type.partition(".")[0]
    for name in (offering.instance_type, family, *BUNDLES):
        if name in listed:
            return listed.index(name)
    return len(listed)


def depth_step(offering: Offering) -> int:
    """0 for the deepest pools."""
    part = part_of_on_demand(offering)
    return sum(part > step for step in DEPTH_STEPS)


def part_of_on_demand(offering: Offering) -> float:
    if not offering.on_demand_usd_hour:
        return 0.0
    return offering.price_usd_hour / offering.on_demand_usd_hour
