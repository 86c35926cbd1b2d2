"""What EC2 sells in this region, asked of EC2 itself: types, zones, prices; each answer is kept for a while."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec

from airflow_eksbatch.cloud.aws import Aws, AwsRefusal
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
# Spot prices move over hours.
SPOT_KEPT_S = 600.0
# EC2 takes so many names in one request.
NAMES_MAX = 100
# A type without a known price: about what its parts cost elsewhere (us-east-1, general purpose).
USD_VCPU_HOUR, USD_GIB_HOUR, USD_GPU_HOUR = 0.04, 0.005, 0.75
MAX_PODS_UNKNOWN = 110
LINUX_SPOT = "Linux/UNIX"


class Kept(msgspec.Struct):
    """An answer, and until when it counts."""

    answer: Any
    until: float


class Ec2Catalogue:
    def __init__(self, aws: Aws, clock: Callable[[], float] = time.monotonic) -> None:
        self._aws = aws
        self._clock = clock
        self._kept: dict[object, Kept] = {}
        self._asking = asyncio.Lock()

    async def types(self) -> dict[str, InstanceType]:
        """Every type of the region by name, at its On-Demand price."""
        return await self._keep("types", TYPES_KEPT_S, self._ask_types)

    async def offerings(
        self, environment: ComputeEnvironment, zones: Sequence[str], bid_percentage: int | None
    ) -> tuple[Offering, ...]:
        """What this environment may buy in these zones. Raises ValueError with a sentence."""
        rows = resolve_types(environment.instance_types, await self.types())
        sold = await self._keep(
            ("zones", *zones), TYPES_KEPT_S, lambda: self._ask_zones(sorted(zones))
        )
        prices: dict[tuple[str, str], float] = {}
        if environment.market is Market.SPOT:
            names = tuple(sorted(row.instance_type for row in rows))
            prices = await self._keep(
                ("spot", names), SPOT_KEPT_S, lambda: self._ask_spot_prices(names)
            )
        found = [
            offering_of(row, zone, environment.market, prices.get((row.instance_type, zone)))
            for row in rows
            for zone in zones
            if (row.instance_type, zone) in sold
        ]
        wanted = ", ".join(environment.instance_types)
        if not found:
            raise ValueError(f"No zone among {', '.join(zones)} has {wanted}.")
        cheap = [
            offering
            for offering in found
            if bid_percentage is None
            or offering.price_usd_hour <= offering.on_demand_usd_hour * bid_percentage / 100
        ]
        # All too dear today: EC2 will say so (SpotMaxPriceTooLow), and prices move.
        return tuple(cheap or found)

    async def _keep(self, key: object, seconds: float, ask: Callable[[], Awaitable[T]]) -> T:
        """One question at a time, so that many environments ask once."""
        async with self._asking:
            kept = self._kept.get(key)
            if kept is None or kept.until <= self._clock():
                kept = self._kept[key] = Kept(await ask(), self._clock() + seconds)
            return kept.answer

    async def _ask_types(self) -> dict[str, InstanceType]:
        found = [
            told
            async for page in self._aws.pages("ec2", "describe_instance_types")
            for told in page["InstanceTypes"]
        ]
        prices = await self._ask_prices()
        rows = [row for told in found if (row := row_from(told, prices)) is not None]
        rows.sort(key=lambda row: (row.family, row.vcpus, row.memory_mib, row.instance_type))
        return {row.instance_type: row for row in rows}

    async def _ask_prices(self) -> dict[str, float]:
        """On-Demand prices of the region; those of the shipped table where the price list cannot be read."""
        prices = {name: row.price_usd_hour for name, row in shipped_types().items()}
        wanted = {
            "regionCode": self._aws.region,
            "operatingSystem": "Linux",
            "preInstalledSw": "NA",
            "tenancy": "Shared",
            "capacitystatus": "Used",
        }
        filters = [{"Type": "TERM_MATCH", "Field": k, "Value": v} for k, v in wanted.items()]
        try:
            async for page in self._aws.pages(
                "pricing", "get_products", ServiceCode="AmazonEC2", Filters=filters
            ):
                prices.update(filter(None, map(price_from, page["PriceList"])))
        except (AwsRefusal, CloudDown):
            # No right to read it, or no way to its region: choosing by the shipped prices is nearly as good.
            pass
        return prices

    async def _ask_zones(self, zones: Sequence[str]) -> frozenset[tuple[str, str]]:
        pages = self._aws.pages(
            "ec2",
            "describe_instance_type_offerings",
            LocationType="availability-zone",
            Filters=[{"Name": "location", "Values": list(zones)}],
        )
        return frozenset(
            [
                (told["InstanceType"], told["Location"])
                async for page in pages
                for told in page["InstanceTypeOfferings"]
            ]
        )

    async def _ask_spot_prices(self, names: Sequence[str]) -> dict[tuple[str, str], float]:
        """The latest price of each type in each zone."""
        prices: dict[tuple[str, str], float] = {}
        for start in range(0, len(names), NAMES_MAX):
            pages = self._aws.pages(
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
        return prices


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
    )


def max_pods_of(network: dict[str, Any]) -> int:
    """As many pods as the VPC CNI has addresses for, and the two of the host's network."""
    interfaces = network.get("MaximumNetworkInterfaces")
    addresses = network.get("Ipv4AddressesPerInterface")
    if not interfaces or not addresses:
        return MAX_PODS_UNKNOWN
    return interfaces * (addresses - 1) + 2


def price_from(product: str) -> tuple[str, float] | None:
    """Instance type and US dollars an hour, of one product of the price list."""
    told = json.loads(product)
    name = told.get("product", {}).get("attributes", {}).get("instanceType")
    for term in told.get("terms", {}).get("OnDemand", {}).values():
        for dimension in term.get("priceDimensions", {}).values():
            price = float(dimension.get("pricePerUnit", {}).get("USD", 0))
            if name and price > 0:
                return name, price
    return None
