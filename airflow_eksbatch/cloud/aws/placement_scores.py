"""Spot placement scores: how likely EC2 thinks it that a zone has all the Spot capacity that a compute environment may want.

EC2 answers an account only so many different questions a day (people count ten), so an environment has one that stays the
same: all types it names, and its maxvCpus. Without an answer everything goes on by prices.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import msgspec

from airflow_eksbatch.cloud.aws.client import Aws, AwsRefusal
from airflow_eksbatch.cloud.port import CloudDown
from airflow_eksbatch.core.model.compute_environment import ComputeEnvironment
from airflow_eksbatch.core.model.node import Offering

# Capacity moves within hours. A no is kept as long: those we know of (no right, too much capacity, too many questions) end
# by a person's hand or within a day.
SCORES_KEPT_S = 3600.0
# What may be bought is not held up for longer: it can be bought without scores.
ANSWER_S = 10.0
# For fewer types EC2 scores are always low, says its documentation.
TYPES_LEAST = 3
# With one zone there is nothing to choose.
ZONES_LEAST = 2
# Those that go by capacity.
STRATEGIES = (
    "SPOT_CAPACITY_OPTIMIZED",
    "SPOT_CAPACITY_OPTIMIZED_PRIORITIZED",
    "SPOT_PRICE_CAPACITY_OPTIMIZED",
)
TROUBLE = "placement scores"


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of EC2, and in which subnets' zones the answer is of use."""

    instance_types: tuple[str, ...]
    vcpus: int
    subnets: tuple[str, ...]


class Scores(msgspec.Struct, frozen=True):
    """1 to 10 by zone, and until when they count; none after a no."""

    by_zone: dict[str, int]
    until: float


class PlacementScores:
    def __init__(self, aws: Aws, clock: Callable[[], float], answer_s: float = ANSWER_S) -> None:
        self._aws = aws
        self._clock = clock
        self._answer_s = answer_s
        self._kept: dict[Question, Scores] = {}
        self._asking: defaultdict[Question, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def by_zone(
        self, environment: ComputeEnvironment, names: Sequence[str], sold: Sequence[Offering]
    ) -> Mapping[str, int]:
        """1 to 10 for each zone of which EC2 tells; never raises for what AWS does, since nothing depends on it.

        `names` are all types of the environment that EC2 sells on Spot, `sold` what of them may be bought now.
        """
        if not is_worth_asking(environment, sold):
            return {}
        question = Question(
            instance_types=tuple(sorted(names)),
            vcpus=environment.max_vcpus,
            subnets=tuple(sorted(set(environment.subnets))),
        )
        # One at a time, so that environments alike ask once; others need not wait.
        async with self._asking[question]:
            kept = self._kept.get(question)
            if kept is None or kept.until <= self._clock():
                told = await self._told(question, environment.name)
                kept = self._kept[question] = Scores(told, self._clock() + SCORES_KEPT_S)
        return kept.by_zone

    async def _told(self, question: Question, environment: str) -> dict[str, int]:
        try:
            async with asyncio.timeout(self._answer_s):
                told = await self._ask(question)
        except (AwsRefusal, CloudDown, TimeoutError) as error:
            trouble = str(error) or f"No answer within {self._answer_s:g} s"
            self._aws.troubles.note(
                TROUBLE, f"{trouble}. Prices alone say where Spot is deep", of=environment
            )
            return {}
        self._aws.troubles.over(TROUBLE, of=environment)
        return told

    async def _ask(self, question: Question) -> dict[str, int]:
        """EC2 names zones by their ids here, which mean the same zone in every account; names do not."""
        told = await self._aws.call("ec2", "describe_subnets", SubnetIds=list(question.subnets))
        zones = {s["AvailabilityZoneId"]: s["AvailabilityZone"] for s in told["Subnets"]}
        pages = self._aws.pages(
            "ec2",
            "get_spot_placement_scores",
            InstanceTypes=list(question.instance_types),
            TargetCapacity=question.vcpus,
            TargetCapacityUnitType="vcpu",
            SingleAvailabilityZone=True,
            RegionNames=[self._aws.region],
        )
        scores = {
            told["AvailabilityZoneId"]: told["Score"]
            async for page in pages
            for told in page["SpotPlacementScores"]
        }
        return {zones[zone_id]: score for zone_id, score in scores.items() if zone_id in zones}


def is_worth_asking(environment: ComputeEnvironment, sold: Sequence[Offering]) -> bool:
    return (
        environment.allocation_strategy in STRATEGIES
        and environment.max_vcpus > 0
        and len({offering.instance_type for offering in sold}) >= TYPES_LEAST
        and len({offering.zone for offering in sold}) >= ZONES_LEAST
    )
