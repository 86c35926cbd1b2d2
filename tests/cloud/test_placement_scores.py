"""Spot placement scores: what is asked of EC2, how often, and that Spot is bought by them, and without them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from airflow_eksbatch.cloud.aws.catalogue import TYPES_KEPT_S
from airflow_eksbatch.cloud.aws.placement_scores import (
    SCORES_KEPT_S,
    STRATEGIES,
    PlacementScores,
)
from airflow_eksbatch.cloud.ec2 import Ec2Cloud
from airflow_eksbatch.core.engine.effects import LaunchNode
from airflow_eksbatch.core.model.compute_environment import ComputeEnvironment, Market
from airflow_eksbatch.core.model.job import MultiNode
from airflow_eksbatch.core.model.node import Offering
from tests.build import a_world
from tests.cloud.account import ZONES, Account
from tests.cloud.door import REGION, Door, Form, listed
from tests.cloud.watching import Hands, asynchronous
from tests.core.stage import Stage

DEEP, SHALLOW = ZONES
TYPES = ("m5.large", "m5.xlarge", "c5.large")


def spot(
    account: Account,
    name: str = "ce",
    *,
    strategy: str = "SPOT_CAPACITY_OPTIMIZED",
    max_vcpus: int = 64,
    **resources: Any,
) -> ComputeEnvironment:
    """Of three types in two zones, which all cost the same part of their On-Demand price."""
    resources = {"instanceTypes": list(TYPES), **resources}
    made = account.environment(name, market=Market.SPOT, **resources)
    return msgspec.structs.replace(made, allocation_strategy=strategy, max_vcpus=max_vcpus)


def even(door: Door) -> None:
    for instance_type, zone in door.spot_prices:
        door.spot_prices[instance_type, zone] = round(door.prices[instance_type] * 0.3, 5)


def questions(door: Door) -> list[Form]:
    return [form for action, form in door.requests if action == "GetSpotPlacementScores"]


def scores_of(offerings: tuple[Offering, ...]) -> dict[str, int]:
    """By zone; every offering of a zone has the same."""
    assert len({(o.zone, o.zone_score) for o in offerings}) == len({o.zone for o in offerings})
    return {offering.zone: offering.zone_score for offering in offerings}


# ---- what is asked


@pytest.mark.parametrize("strategy", STRATEGIES)
@asynchronous
async def test_zones_are_scored_for_all_that_the_environment_may_buy(
    account: Account, door: Door, strategy: str
) -> None:
    door.scores.by_zone = {DEEP: 9, SHALLOW: 3, "us-east-1c": 7}
    environment = spot(account, strategy=strategy, max_vcpus=256)
    offerings = await account.cloud().offerings(environment)
    assert scores_of(offerings) == {DEEP: 9, SHALLOW: 3}
    (asked,) = questions(door)
    assert listed(asked, "InstanceType") == sorted(TYPES)
    assert listed(asked, "RegionName") == [REGION]
    assert (asked["TargetCapacity"], asked["TargetCapacityUnitType"]) == ("256", "vcpu")
    assert asked["SingleAvailabilityZone"] == "true"
    assert account.troubles == []


@asynchronous
async def test_all_pages_of_scores_are_read(account: Account, door: Door) -> None:
    door.scores.by_zone = {DEEP: 5, SHALLOW: 1}
    door.scores.a_page = 2
    assert scores_of(await account.cloud().offerings(spot(account))) == {DEEP: 5, SHALLOW: 1}
    assert len(questions(door)) == 3


@pytest.mark.parametrize(
    "what",
    [
        {"strategy": "BEST_FIT_PROGRESSIVE"},
        {"instanceTypes": ["m5.large", "m5.xlarge"]},
        {"max_vcpus": 0},
    ],
    ids=["by price", "two types", "nothing may be bought"],
)
@asynchronous
async def test_where_scores_would_say_nothing_they_are_not_asked_for(
    account: Account, door: Door, what: dict[str, Any]
) -> None:
    offerings = await account.cloud().offerings(spot(account, **what))
    assert set(scores_of(offerings).values()) == {0}
    assert questions(door) == account.troubles == []


@asynchronous
async def test_of_one_zone_no_score_is_asked_for(account: Account, door: Door) -> None:
    one = spot(account, subnets=[account.subnets[DEEP]])
    assert scores_of(await account.cloud().offerings(one)) == {DEEP: 0}
    assert questions(door) == []


@asynchronous
async def test_on_demand_has_no_scores(account: Account, door: Door) -> None:
    on_demand = account.environment(instanceTypes=list(TYPES))
    assert set(scores_of(await account.cloud().offerings(on_demand)).values()) == {0}
    assert questions(door) == []


# ---- how often


@asynchronous
async def test_scores_are_asked_for_once_an_hour(account: Account, door: Door) -> None:
    clock = Hands()
    cloud, environment = account.cloud(clock=clock), spot(account)
    door.scores.by_zone = {SHALLOW: 3}
    for _ in range(3):
        assert scores_of(await cloud.offerings(environment)) == {DEEP: 10, SHALLOW: 3}
    assert len(questions(door)) == 1
    door.scores.by_zone = {DEEP: 2}
    clock.now += SCORES_KEPT_S - 1
    assert scores_of(await cloud.offerings(environment)) == {DEEP: 10, SHALLOW: 3}
    clock.now += 1
    assert scores_of(await cloud.offerings(environment)) == {DEEP: 2, SHALLOW: 10}
    assert len(questions(door)) == 2


@asynchronous
async def test_the_question_stays_the_same_whatever_the_prices_are(
    account: Account, door: Door
) -> None:
    """
    1. What is too dear for the bid, or is not sold for a while, is still named.
    2. Another order of the types, and another service, ask the same.
    """
    clock = Hands()
    cloud = account.cloud(clock=clock)
    environment = spot(account, instanceTypes=[*TYPES, "g4dn.xlarge"], bidPercentage=50)
    await cloud.offerings(environment)
    door.spot_prices["m5.large", DEEP] = door.spot_prices["m5.large", SHALLOW] = 0.09
    del door.spot_prices["g4dn.xlarge", DEEP], door.spot_prices["g4dn.xlarge", SHALLOW]
    clock.now += SCORES_KEPT_S
    offerings = await cloud.offerings(environment)
    assert {o.instance_type for o in offerings} == {"m5.xlarge", "c5.large"}
    clock.now += TYPES_KEPT_S
    turned = ["g4dn.xlarge", *reversed(TYPES)]
    await account.cloud().offerings(spot(account, instanceTypes=turned))
    assert len(questions(door)) == 3
    assert len(door.scores.asked) == 1


@asynchronous
async def test_environments_alike_ask_one_question(account: Account, door: Door) -> None:
    cloud = account.cloud()
    names = ("one", "two", "three")
    await asyncio.gather(*(cloud.offerings(spot(account, name)) for name in names))
    assert len(questions(door)) == 1
    scores = PlacementScores(cloud._aws, Hands())
    sold = await cloud.offerings(spot(account))
    await scores.by_zone(spot(account), TYPES, sold)
    await scores.by_zone(spot(account), TYPES[::-1], sold)
    assert len(questions(door)) == 2
    assert len(door.scores.asked) == 1
    await cloud.offerings(spot(account, "larger", max_vcpus=128))
    assert len(door.scores.asked) == 2


# ---- without an answer


def no_right(door: Door) -> None:
    door.refuse("GetSpotPlacementScores", "UnauthorizedOperation", status=403)


def too_much(door: Door) -> None:
    door.scores.capacity_most = 32


def too_many(door: Door) -> None:
    door.scores.configurations_most = 0


def not_now(door: Door) -> None:
    door.refuse("GetSpotPlacementScores", "AuthFailure", status=401)


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (no_right, "UnauthorizedOperation"),
        (too_much, "TargetCapacityLimitExceeded"),
        (too_many, "MaxConfigLimitExceeded"),
        (not_now, "AuthFailure"),
    ],
)
@asynchronous
async def test_after_a_no_nothing_is_asked_for_an_hour_and_all_else_goes_on(
    account: Account, door: Door, spoil: Callable[[Door], None], code: str
) -> None:
    clock = Hands()
    cloud, environment = account.cloud(clock=clock), spot(account)
    spoil(door)
    for _ in range(3):
        offerings = await cloud.offerings(environment)
        assert scores_of(offerings) == {DEEP: 0, SHALLOW: 0}
    assert len(questions(door)) == 1
    ((what, reason, times),) = account.troubles
    assert (what, times) == ("placement scores", 1)
    assert reason.startswith(f"ce: {code}: ")
    assert len(await bought(cloud, account, environment)) == 1

    door.faults.clear()
    door.scores.capacity_most = door.scores.configurations_most = 10_000
    clock.now += SCORES_KEPT_S
    assert scores_of(await cloud.offerings(environment)) == {DEEP: 10, SHALLOW: 10}
    assert len(account.troubles) == 1


@asynchronous
async def test_what_was_told_an_hour_ago_does_not_outlive_a_no(
    account: Account, door: Door
) -> None:
    clock = Hands()
    cloud, environment = account.cloud(clock=clock), spot(account)
    assert scores_of(await cloud.offerings(environment)) == {DEEP: 10, SHALLOW: 10}
    no_right(door)
    clock.now += SCORES_KEPT_S
    assert scores_of(await cloud.offerings(environment)) == {DEEP: 0, SHALLOW: 0}


@asynchronous
async def test_buying_does_not_wait_for_an_answer_that_does_not_come(
    account: Account, door: Door
) -> None:
    released, cloud, environment = threading.Event(), account.cloud(), spot(account)
    sold = await cloud.offerings(environment)
    door.refuse("GetSpotPlacementScores", "Late", when=lambda form: released.wait(60))
    try:
        scores = PlacementScores(cloud._aws, Hands(), answer_s=0.2)
        assert await scores.by_zone(environment, TYPES, sold) == {}
        assert await scores.by_zone(environment, TYPES, sold) == {}
    finally:
        released.set()
    assert [(what, reason.partition(".")[0]) for what, reason, _ in account.troubles] == [
        ("placement scores", "ce: No answer within 0")
    ]


# ---- what is bought


async def bought(
    cloud: Ec2Cloud, account: Account, environment: ComputeEnvironment, **job: Any
) -> list[str]:
    """Zones of the machines that one job gets; what is refused is planned anew, as long as something is asked for."""
    offerings = await cloud.offerings(environment)
    stage = Stage(a_world(offerings=offerings).with_(environment))
    stage.submit(**job)
    while asked := stage.of(LaunchNode):
        stage.step(*await cloud.launch(asked))
    return [made["Placement"]["AvailabilityZone"] for made in account.instances()]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("deep", ZONES)
@asynchronous
async def test_spot_is_bought_in_the_zone_that_has_more_of_it(
    account: Account, door: Door, strategy: str, deep: str
) -> None:
    even(door)
    (shallow,) = set(ZONES) - {deep}
    door.scores.by_zone = {deep: 9, shallow: 2}
    environment = spot(account, strategy=strategy)
    zones = await bought(account.cloud(), account, environment, vcpus=1.5, array_size=6)
    assert len(zones) > 1
    assert set(zones) == {deep}


@asynchronous
async def test_without_scores_both_zones_are_bought_from(account: Account, door: Door) -> None:
    even(door)
    no_right(door)
    zones = await bought(account.cloud(), account, spot(account), vcpus=1.5, array_size=6)
    assert set(zones) == set(ZONES)


@asynchronous
async def test_the_other_zone_is_bought_from_when_the_better_one_is_refused(
    account: Account, door: Door
) -> None:
    even(door)
    door.scores.by_zone = {SHALLOW: 2}
    deep = account.subnets[DEEP]
    door.refuse(
        "RunInstances",
        "InsufficientInstanceCapacity",
        status=500,
        when=lambda form: deep in form.values(),
    )
    assert await bought(account.cloud(), account, spot(account), vcpus=1.5) == [SHALLOW]
    runs = [form for action, form in door.requests if action == "RunInstances"]
    assert deep in runs[0].values(), "asked first where the score is better"


@pytest.mark.parametrize("deep", ZONES)
@asynchronous
async def test_all_nodes_of_one_job_are_bought_in_the_better_zone(
    account: Account, door: Door, deep: str
) -> None:
    even(door)
    (shallow,) = set(ZONES) - {deep}
    door.scores.by_zone = {shallow: 2}
    nodes = MultiNode(nodes=4, pods=((0, b"{}"),))
    zones = await bought(account.cloud(), account, spot(account), multi_node=nodes)
    assert zones == [deep] * 4
