"""Allocation strategies: which offerings an environment tries first, and which only when those are refused or too small.

A strategy makes tiers of what may be bought. The planner serves what it can from the first tier, at the least price, then
turns to the next; a pool that was refused is in no tier for a while, so each strategy overflows in its own order.

EC2 tells nobody how deep one Spot pool is. There are two signs of it, and the worse one counts (DECISIONS, 25). The price
is of the pool and follows demand slowly: the part of the On-Demand price that Spot costs, in steps wide enough that small
moves of it change nothing. The placement score is of the pool's zone and of the moment: how much worse it is than that of
the best zone there is. Where nobody scored the zones, the price is the only sign.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from airflow_eksbatch.core.model.compute_environment import ComputeEnvironment
from airflow_eksbatch.core.model.node import Offering

# What AWS Batch calls its choices of families.
BUNDLES = ("optimal", "default_x86_64", "default_arm64")
# Upper ends, as parts of the On-Demand price. Past the last one Spot saves too little for what it may cost in reclaims.
DEPTH_STEPS = (0.4, 0.6, 0.8)
# How many points a zone's placement score may be below the best one's, for no step and for one; then it is two, and its pools
# come after all but those that save next to nothing. Points between zones, not points alone: the scores are for all that the
# environment may ever want, so a large one has low scores in every zone, and those must not hide what prices tell. Two
# points come and go within hours.
SCORE_STEPS = (2, 4)
# Price and depth together: all but the pools that are next to empty count alike, and the price decides.
SHALLOW_FROM = 0.8


def tiers_of(
    environment: ComputeEnvironment, offerings: Sequence[Offering]
) -> list[list[Offering]]:
    """Offerings in the order of the environment's strategy; those of a tier count alike but for their price."""
    best = max((offering.zone_score for offering in offerings), default=0)
    match environment.allocation_strategy:
        case "BEST_FIT_PROGRESSIVE_ORDERED":
            keys: Iterable[tuple[int, int]] = ((0, place_of(environment, o)) for o in offerings)
        case "SPOT_CAPACITY_OPTIMIZED":
            keys = ((depth_step(o, best), 0) for o in offerings)
        case "SPOT_CAPACITY_OPTIMIZED_PRIORITIZED":
            keys = ((depth_step(o, best), place_of(environment, o)) for o in offerings)
        case "SPOT_PRICE_CAPACITY_OPTIMIZED":
            keys = ((int(is_shallow(o, best)), 0) for o in offerings)
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


def depth_step(offering: Offering, best_score: int) -> int:
    """0 for the deepest pools: the worse of two signs."""
    part = part_of_on_demand(offering)
    return max(sum(part > step for step in DEPTH_STEPS), score_step(offering, best_score))


def is_shallow(offering: Offering, best_score: int) -> bool:
    zone_is_shallow = score_step(offering, best_score) == len(SCORE_STEPS)
    return zone_is_shallow or part_of_on_demand(offering) > SHALLOW_FROM


def score_step(offering: Offering, best_score: int) -> int:
    """0 for zones that are about as good as the best, and for those that nobody scored."""
    if not offering.zone_score:
        return 0
    return sum(best_score - offering.zone_score > step for step in SCORE_STEPS)


def part_of_on_demand(offering: Offering) -> float:
    if not offering.on_demand_usd_hour:
        return 0.0
    return offering.price_usd_hour / offering.on_demand_usd_hour
