"""What EC2 sells, asked of EC2: types, zones and prices, and what is done where an answer cannot be had."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from airflow_eksbatch.cloud.aws.catalogue import (
    PRICES_AGAIN_S,
    SPOT_KEPT_S,
    TYPES_KEPT_S,
    Ec2Catalogue,
    currency_of,
    max_pods_of,
    price_from,
)
from airflow_eksbatch.cloud.aws.client import Aws, AwsSettings
from airflow_eksbatch.cloud.offerings import resolve_types, shipped_types
from airflow_eksbatch.core.model.compute_environment import ComputeEnvironment, Market
from airflow_eksbatch.core.model.node import Offering
from tests.build import an_environment
from tests.cloud.account import PRICES, ZONES
from tests.cloud.door import REGION, Door
from tests.cloud.watching import Hands, asynchronous


def catalogue(door: Door, clock: Hands | None = None) -> Ec2Catalogue:
    aws = Aws(AwsSettings(region=REGION, endpoint=door.url), door.session)
    return Ec2Catalogue(aws, clock or Hands())


def environment(*types: str, market: Market = Market.ON_DEMAND) -> ComputeEnvironment:
    return an_environment(instance_types=types, market=market)


async def sold(door: Door, *types: str, market: Market = Market.ON_DEMAND) -> tuple[Offering, ...]:
    return await catalogue(door).offerings(environment(*types, market=market), ZONES, None)


def cards(*interfaces: int) -> dict[str, Any]:
    """The first is the default one."""
    found = [
        {"NetworkCardIndex": number, "MaximumNetworkInterfaces": count}
        for number, count in enumerate(interfaces)
    ]
    return {"NetworkCards": found, "DefaultNetworkCardIndex": 0}


@asynchronous
async def test_a_type_is_what_ec2_says_it_is(door: Door) -> None:
    door.prices.update(PRICES)
    first, second = await sold(door, "g4dn.12xlarge")
    assert (first.zone, second.zone) == ZONES
    assert (first.vcpus, first.memory_mib, first.gpu) == (48, 196_608, 4)
    assert first.architecture == "x86_64"
    assert first.allocatable.pods == 234
    (arm, _) = await sold(door, "m6g.large")
    assert arm.architecture == "arm64"


@pytest.mark.parametrize(
    ("network", "pods"),
    [
        # Of the VPC CNI's own list: m5.large, c6in.32xlarge, p5.48xlarge.
        ({"MaximumNetworkInterfaces": 3, "Ipv4AddressesPerInterface": 10}, 29),
        ({**cards(8, 8), "MaximumNetworkInterfaces": 16, "Ipv4AddressesPerInterface": 50}, 394),
        (
            {
                **cards(2, *[2] * 31),
                "MaximumNetworkInterfaces": 64,
                "Ipv4AddressesPerInterface": 50,
            },
            100,
        ),
        ({}, 110),
    ],
)
def test_pods_have_their_addresses_from_the_default_network_card(
    network: dict[str, Any], pods: int
) -> None:
    assert max_pods_of(network) == pods


@asynchronous
async def test_of_a_bundle_there_is_what_the_region_has(door: Door) -> None:
    """Regions have not all of its families; a family that is named must be there."""
    types = await catalogue(door).types()
    some = {name: row for name, row in types.items() if row.family == "m6g"}
    assert {row.family for row in resolve_types(["default_arm64"], some)} == {"m6g"}
    with pytest.raises(ValueError, match="'c6g' is no instance type or family"):
        resolve_types(["default_arm64", "c6g"], some)
    with pytest.raises(ValueError, match="'default_arm64' is no instance type or family"):
        resolve_types(["default_arm64"], {})


@asynchronous
async def test_a_family_is_all_its_sizes_but_bare_metal(door: Door) -> None:
    types = {offering.instance_type for offering in await sold(door, "m5")}
    assert types == {"m5.large", "m5.xlarge", "m5.2xlarge"}
    assert {o.instance_type for o in await sold(door, "m5.metal")} == {"m5.metal"}


@asynchronous
async def test_the_price_is_that_of_the_price_list(door: Door) -> None:
    door.prices["m5.large"] = 0.123
    assert {o.price_usd_hour for o in await sold(door, "m5.large")} == {0.123}


@pytest.mark.parametrize("code", ["AccessDeniedException", "InternalError"])
@asynchronous
async def test_without_the_price_list_the_shipped_prices_count(door: Door, code: str) -> None:
    door.refuse("GetProducts", code, status=400 if code.startswith("Access") else 500)
    shipped = shipped_types()["m5.large"].price_usd_hour
    assert {o.price_usd_hour for o in await sold(door, "m5.large")} == {shipped}


@asynchronous
async def test_a_price_list_that_does_not_answer_holds_nothing_up_for_long(door: Door) -> None:
    """As in a private network, from which no way leads to the few regions that have it."""
    door.silent.add("GetProducts")
    aws = Aws(AwsSettings(region=REGION, endpoint=door.url), door.session)
    quick = Ec2Catalogue(aws, Hands(), page_s=0.05)
    offered = await quick.offerings(environment("m5.large"), ZONES, None)
    assert {o.price_usd_hour for o in offered} == {shipped_types()["m5.large"].price_usd_hour}


@asynchronous
async def test_a_price_list_that_cannot_be_read_is_told_once_and_soon_asked_again(
    door: Door,
) -> None:
    """
    1. It cannot be read: the shipped prices count, and it is said.
    2. Minutes later, not a day later, it is asked again, and its prices count.
    3. It cannot be read again: what was read last counts.
    """
    clock, told = Hands(), list[tuple[str, int]]()
    asked = catalogue(door, clock)
    asked.aws.troubles.tell = lambda what, reason, times: told.append((what, times))
    on_demand, shipped = environment("m5.large"), shipped_types()["m5.large"].price_usd_hour
    door.prices["m5.large"] = 0.123
    door.refuse("GetProducts", "AccessDeniedException", times=1)

    async def price() -> float:
        return (await asked.offerings(on_demand, ZONES, None))[0].price_usd_hour

    assert (await price(), await price()) == (shipped, shipped)
    assert told == [("price list", 1)]
    clock.now += PRICES_AGAIN_S
    assert await price() == 0.123
    door.refuse("GetProducts", "AccessDeniedException")
    clock.now += TYPES_KEPT_S - PRICES_AGAIN_S
    assert await price() == 0.123, "kept for a day"
    clock.now += PRICES_AGAIN_S
    assert await price() == 0.123
    clock.now += PRICES_AGAIN_S
    assert await price() == 0.123
    assert told == [("price list", 1), ("price list", 1), ("price list", 2)]


@asynchronous
async def test_a_price_list_that_names_no_price_of_the_region_is_told(door: Door) -> None:
    told: list[str] = []
    asked = catalogue(door)
    asked.aws.troubles.tell = lambda what, reason, times: told.append(reason)
    await asked.offerings(environment("m5.large"), ZONES, None)
    assert told == [
        "It names no price of us-east-1. On-Demand prices are those of us-east-1 until it can be read"
    ]


def test_prices_of_china_are_read_in_its_currency() -> None:
    told = {
        "product": {"attributes": {"instanceType": "m5.large"}},
        "terms": {"OnDemand": {"T": {"priceDimensions": {"D": {"pricePerUnit": {"CNY": "0.9"}}}}}},
    }
    assert price_from(json.dumps(told), currency_of("cn-north-1")) == ("m5.large", 0.9)
    assert price_from(json.dumps(told), currency_of("eu-central-1")) is None


@asynchronous
async def test_spot_costs_what_it_costs_in_each_zone(door: Door) -> None:
    door.prices.update(PRICES)
    door.spot_prices["m5.large", "us-east-1a"] = 0.05
    door.spot_prices["m5.large", "us-east-1b"] = 0.06
    here, there = await sold(door, "m5.large", market=Market.SPOT)
    assert (here.price_usd_hour, here.on_demand_usd_hour) == (0.05, 0.096)
    assert (there.price_usd_hour, there.on_demand_usd_hour) == (0.06, 0.096)


@asynchronous
async def test_where_ec2_names_no_spot_price_there_is_no_spot(door: Door) -> None:
    door.prices.update(PRICES)
    door.spot_prices["m5.large", "us-east-1a"] = 0.05
    offerings = await sold(door, "m5.large", "m5.xlarge", market=Market.SPOT)
    assert [offering.pool for offering in offerings] == ["m5.large/us-east-1a/SPOT"]
    with pytest.raises(ValueError, match=r"sells m5\.xlarge on Spot"):
        await sold(door, "m5.xlarge", market=Market.SPOT)


@pytest.mark.parametrize(
    ("market", "classes", "is_sold"),
    [
        (Market.SPOT, ["on-demand"], False),
        (Market.SPOT, ["on-demand", "spot"], True),
        (Market.ON_DEMAND, ["capacity-block"], False),
    ],
)
@asynchronous
async def test_a_type_is_offered_only_as_ec2_sells_it(
    door: Door, market: Market, classes: list[str], is_sold: bool
) -> None:
    door.prices.update(PRICES)
    door.spot_prices["m5.large", "us-east-1a"] = 0.05
    door.usage_classes["m5.large"] = classes
    if is_sold:
        assert await sold(door, "m5.large", market=market)
    else:
        with pytest.raises(ValueError, match="No zone"):
            await sold(door, "m5.large", market=market)


@asynchronous
async def test_what_costs_more_than_the_bid_is_not_offered(door: Door) -> None:
    door.prices.update(PRICES)
    door.spot_prices["m5.large", "us-east-1a"] = 0.03
    door.spot_prices["m5.large", "us-east-1b"] = 0.06
    spot = environment("m5.large", market=Market.SPOT)
    offerings = await catalogue(door).offerings(spot, ZONES, 50)
    assert [offering.zone for offering in offerings] == ["us-east-1a"]


@asynchronous
async def test_answers_are_kept_for_a_while(door: Door) -> None:
    clock = Hands()
    kept = catalogue(door, clock)
    spot = environment("m5.large", market=Market.SPOT)
    door.spot_prices["m5.large", "us-east-1a"] = 0.05
    for _ in range(3):
        await kept.offerings(spot, ZONES, None)
    assert (door.asked["DescribeInstanceTypes"], door.asked["DescribeSpotPriceHistory"]) == (1, 1)
    clock.now += SPOT_KEPT_S
    await kept.offerings(spot, ZONES, None)
    assert (door.asked["DescribeInstanceTypes"], door.asked["DescribeSpotPriceHistory"]) == (1, 2)
    clock.now += TYPES_KEPT_S
    await kept.offerings(spot, ZONES, None)
    assert door.asked["DescribeInstanceTypes"] == 2


@asynchronous
async def test_a_zone_that_has_none_of_it_is_said(door: Door) -> None:
    one = msgspec.structs.replace(environment("m5.large"), name="one")
    with pytest.raises(ValueError, match=r"No zone among us-east-1x has m5\.large"):
        await catalogue(door).offerings(one, ["us-east-1x"], None)


def test_a_family_that_is_nothing_like_any_is_told_with_some_that_there_are() -> None:
    with pytest.raises(ValueError, match=r"known are c6g, .*m6i, .*optimal\."):
        resolve_types(["zz.large"], shipped_types())
    with pytest.raises(ValueError, match=r"known are m5, .*optimal\."):
        resolve_types(["m1.large"], shipped_types())
