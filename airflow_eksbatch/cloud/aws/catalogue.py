"""What EC2 sells in this region, asked of EC2 itself: types, zones, prices, scores; each answer is kept for a while."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec

from airflow_eksbatch.cloud.aws.client import Aws, AwsRefusal
from airflow_eksbatch.cloud.aws.placement_scores import PlacementScores
from airflow_eksbatch.cloud.offerings import (
    InstanceType,
    offering_of,
    resolve_types,
    shipped_types,
)
from airflow_eksbatch.cloud.port import CloudDown
from airflow_eksbatch.core.model.compute_environment import ComputeEnvironment, Market
from airflow_eksbatch.core.model.node import Offering

T = TypeVar("T")

# New types come a few times a year, On-Demand prices change less often.
TYPES_KEPT_S = 24 * 3600.0
# How long to do without, when the price list could not be read.
PRICES_AGAIN_S = 600.0
# Nobody waits longer for a page of it: private networks often have no way to the few regions that tell prices.
PAGE_S = 10.0
# Spot prices move over hours; kept for less than the time after which they are told again, so that what is told is new.
SPOT_KEPT_S = 300.0
# EC2 takes so many names in one request.
NAMES_MAX = 100
# A type without a known price: about what its parts cost elsewhere (us-east-1, general purpose).
USD_VCPU_HOUR, USD_GIB_HOUR, USD_GPU_HOUR = 0.04, 0.005, 0.75
MAX_PODS_UNKNOWN = 110
LINUX_SPOT = "Linux/UNIX"
TROUBLE = "price list"
# As EC2 calls them.
USAGE_CLASSES = {Market.ON_DEMAND: "on-demand", Market.SPOT: "spot"}


class Kept(msgspec.Struct):
    """An answer, and until when it counts."""

    answer: Any
    until: float


class Ec2Catalogue:
    def __init__(
        self, aws: Aws, clock: Callable[[], float] = time.monotonic, page_s: float = PAGE_S
    ) -> None:
        self.aws = aws
        self._clock = clock
        self._page_s = page_s
        self._kept: dict[object, Kept] = {}
        self._asking = asyncio.Lock()
        self._prices: dict[str, float] = {}
        self._scores = PlacementScores(aws, clock)

    async def types(self) -> dict[str, InstanceType]:
        """Every type of the region by name, at its On-Demand price."""
        rows = await self._keep("types", self._ask_types)
        prices = await self._keep("prices", self._ask_prices)
        return {
            name: msgspec.structs.replace(row, price_usd_hour=prices.get(name, row.price_usd_hour))
            for name, row in rows.items()
        }

    async def offerings(
        self, environment: ComputeEnvironment, zones: Sequence[str], bid_percentage: int | None
    ) -> tuple[Offering, ...]:
        """What this environment may buy in these zones now. Raises ValueError with a sentence."""
        return within_bid(await self.sold(environment, zones), bid_percentage)

    async def sold(
        self, environment: ComputeEnvironment, zones: Sequence[str]
    ) -> tuple[Offering, ...]:
        """What EC2 sells of its types in these zones, at any price. Raises ValueError with a sentence."""
        market, wanted = environment.market, ", ".join(environment.instance_types)
        rows = [
            row
            for row in resolve_types(environment.instance_types, await self.types())
            if USAGE_CLASSES[market] in row.usage_classes
        ]
        there = await self._keep(("zones", *zones), lambda: self._ask_zones(sorted(zones)))
        pools = [
            (row, zone) for row in rows for zone in zones if (row.instance_type, zone) in there
        ]
        if not pools:
            raise ValueError(f"No zone among {', '.join(zones)} has {wanted}.")
        if market is not Market.SPOT:
            return tuple(offering_of(row, zone, market) for row, zone in pools)
        names = tuple(sorted(row.instance_type for row in rows))
        prices = await self._keep(("spot", names), lambda: self._ask_spot_prices(names))
        # Where EC2 names no price there is no Spot market.
        sold = tuple(
            offering_of(row, zone, market, price)
            for row, zone in pools
            if (price := prices.get((row.instance_type, zone))) is not None
        )
        if not sold:
            raise ValueError(f"No zone among {', '.join(zones)} sells {wanted} on Spot.")
        scores = await self._scores.by_zone(environment, names, sold)
        return tuple(
            msgspec.structs.replace(offering, zone_score=scores.get(offering.zone, 0))
            for offering in sold
        )

    async def _keep(self, key: object, ask: Callable[[], Awaitable[tuple[T, float]]]) -> T:
        """One question at a time, so that many environments ask once; an answer says how many seconds it counts."""
        async with self._asking:
            kept = self._kept.get(key)
            if kept is None or kept.until <= self._clock():
                answer, seconds = await ask()
                kept = self._kept[key] = Kept(answer, self._clock() + seconds)
            return kept.answer

    async def _ask_types(self) -> tuple[dict[str, InstanceType], float]:
        found = [
            told
            async for page in self.aws.pages("ec2", "describe_instance_types")
            for told in page["InstanceTypes"]
        ]
        shipped = {name: row.price_usd_hour for name, row in shipped_types().items()}
        rows = [row for told in found if (row := row_from(told, shipped)) is not None]
        rows.sort(key=lambda row: (row.family, row.vcpus, row.memory_mib, row.instance_type))
        return {row.instance_type: row for row in rows}, TYPES_KEPT_S

    async def _ask_prices(self) -> tuple[dict[str, float], float]:
        """On-Demand prices of the region. While they cannot be had: those that were read last, or none."""
        wanted = {
            "regionCode": self.aws.region,
            "operatingSystem": "Linux",
            "preInstalledSw": "NA",
            "tenancy": "Shared",
            "capacitystatus": "Used",
        }
        filters = [{"Type": "TERM_MATCH", "Field": k, "Value": v} for k, v in wanted.items()]
        currency, prices, trouble = currency_of(self.aws.region), dict[str, float](), ""
        pages = self.aws.pages("pricing", "get_products", ServiceCode="AmazonEC2", Filters=filters)
        try:
            while True:
                async with asyncio.timeout(self._page_s):
                    page = await anext(pages, None)
                if page is None:
                    break
                prices.update(filter(None, (price_from(p, currency) for p in page["PriceList"])))
        except (AwsRefusal, CloudDown, TimeoutError) as error:
            # No right to read it, or no way to its region: choosing by about the right prices is nearly as good.
            trouble = str(error) or f"No answer within {self._page_s:g} s"
        self._prices = {**self._prices, **prices}
        if not trouble and not prices:
            trouble = f"It names no price of {self.aws.region}"
        if not trouble:
            self.aws.troubles.over(TROUBLE)
            return prices, TYPES_KEPT_S
        instead = "the last that were read" if self._prices else "those of us-east-1"
        self.aws.troubles.note(
            TROUBLE, f"{trouble}. On-Demand prices are {instead} until it can be read"
        )
        return self._prices, PRICES_AGAIN_S

    async def _ask_zones(self, zones: Sequence[str]) -> tuple[frozenset[tuple[str, str]], float]:
        pages = self.aws.pages(
            "ec2",
            "describe_instance_type_offerings",
            LocationType="availability-zone",
            Filters=[{"Name": "location", "Values": list(zones)}],
        )
        found = [
            (told["InstanceType"], told["Location"])
            async for page in pages
            for told in page["InstanceTypeOfferings"]
        ]
        return frozenset(found), TYPES_KEPT_S

    async def _ask_spot_prices(
        self, names: Sequence[str]
    ) -> tuple[dict[tuple[str, str], float], float]:
        """The latest price of each type in each zone."""
        prices: dict[tuple[str, str], float] = {}
        for start in range(0, len(names), NAMES_MAX):
            pages = self.aws.pages(
                "ec2",
                "describe_spot_price_history",
                InstanceTypes=list(names[start : start + NAMES_MAX]),
                ProductDescriptions=[LINUX_SPOT],
                StartTime=datetime.now(UTC),
            )
            async for page in pages:
                for told in page["SpotPriceHistory"]:
                    pool = (told["InstanceType"], told["AvailabilityZone"])
                    prices.setdefault(pool, float(told["SpotPrice"]))
        return prices, SPOT_KEPT_S


def within_bid(sold: Sequence[Offering], bid_percentage: int | None) -> tuple[Offering, ...]:
    """What does not cost more than this part of its On-Demand price."""
    cheap = [
        offering
        for offering in sold
        if bid_percentage is None
        or offering.price_usd_hour <= offering.on_demand_usd_hour * bid_percentage / 100
    ]
    # All too dear today: EC2 will say so (SpotMaxPriceTooLow), and prices move.
    return tuple(cheap or sold)


def currency_of(region: str) -> str:
    """In which AWS names the prices of a region: price list, Spot and MaxPrice alike."""
    return "CNY" if region.startswith("cn-") else "USD"


def row_from(told: dict[str, Any], prices: dict[str, float]) -> InstanceType | None:
    """A row of DescribeInstanceTypes; None for what no EKS image runs on."""
    architectures = told.get("ProcessorInfo", {}).get("SupportedArchitectures", [])
    architecture = next((a for a in ("x86_64", "arm64") if a in architectures), None)
    if architecture is None:
        return None
    name = told["InstanceType"]
    vcpus, memory_mib = told["VCpuInfo"]["DefaultVCpus"], told["MemoryInfo"]["SizeInMiB"]
    gpu = sum(
        gpus["Count"]
        for gpus in told.get("GpuInfo", {}).get("Gpus", [])
        if gpus.get("Manufacturer", "").upper() == "NVIDIA"
    )
    guessed: float = vcpus * USD_VCPU_HOUR + memory_mib / 1024 * USD_GIB_HOUR + gpu * USD_GPU_HOUR
    return InstanceType(
        instance_type=name,
        architecture=architecture,
        vcpus=vcpus,
        memory_mib=memory_mib,
        gpu=gpu,
        max_pods=max_pods_of(told.get("NetworkInfo", {})),
        zones="",
        price_usd_hour=prices.get(name, round(guessed, 5)),
        usage_classes=tuple(told.get("SupportedUsageClasses", USAGE_CLASSES.values())),
    )


def max_pods_of(network: dict[str, Any]) -> int:
    """As many pods as the VPC CNI has addresses for, and the two of the host's network.

    Of several network cards it uses the default one alone (amazon-vpc-cni-k8s, misc/eni-max-pods.txt).
    """
    default = network.get("DefaultNetworkCardIndex", 0)
    cards = {card["NetworkCardIndex"]: card for card in network.get("NetworkCards", ())}
    interfaces = cards.get(default, network).get("MaximumNetworkInterfaces")
    addresses = network.get("Ipv4AddressesPerInterface")
    if not interfaces or not addresses:
        return MAX_PODS_UNKNOWN
    return interfaces * (addresses - 1) + 2


def price_from(product: str, currency: str) -> tuple[str, float] | None:
    """Instance type and price an hour, of one product of the price list."""
    told = json.loads(product)
    name = told.get("product", {}).get("attributes", {}).get("instanceType")
    for term in told.get("terms", {}).get("OnDemand", {}).values():
        for dimension in term.get("priceDimensions", {}).values():
            price = float(dimension.get("pricePerUnit", {}).get(currency, 0))
            if name and price > 0:
                return name, price
    return None
