"""What EC2 sells, asked of EC2: types, zones and prices, and what is done where an answer cannot be had."""

from __future__ import annotations

import msgspec
import pytest

from airflow_eksbatch.cloud.aws import Aws, AwsSettings
from airflow_eksbatch.cloud.catalogue import SPOT_KEPT_S, TYPES_KEPT_S, Ec2Catalogue
from airflow_eksbatch.cloud.offerings import shipped_types
from airflow_eksbatch.core.model.compute_environment import ComputeEnvironment, Market
from airflow_eksbatch.core.model.node import Offering
from tests.build import an_environment
from tests.cloud.account import PRICES, ZONES
from tests.cloud.door import REGION, Door
from tests.cloud.watching import asynchronous


class Hands:
    """A clock that is put forward by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def catalogue(door: Door, clock: Hands | None = None) -> Ec2Catalogue:
    aws = Aws(AwsSettings(region=REGION, endpoint=door.url), door.session)
    return Ec2Catalogue(aws, clock or Hands())


def environment(*types: str, market: Market = Market.ON_DEMAND) -> ComputeEnvironment:
    return an_environment(instance_types=types, market=market)


async def sold(door: Door, *types: str, market: Market = Market.ON_DEMAND) -> tuple[Offering, ...]:
    return await catalogue(door).offerings(environment(*types, market=market), ZONES, None)


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
async def test_spot_costs_what_it_costs_in_each_zone(door: Door) -> None:
    door.prices.update(PRICES)
    door.spot_prices["m5.large", "us-east-1a"] = 0.05
    here, there = await sold(door, "m5.large", market=Market.SPOT)
    assert (here.price_usd_hour, here.on_demand_usd_hour) == (0.05, 0.096)
    assert 0 < there.price_usd_hour < 0.096, "a zone without a price gets a likely one"


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
