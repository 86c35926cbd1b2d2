"""Catalogue of instance types, zones and prices: what `instanceTypes` means."""

from __future__ import annotations

import csv
import functools
import hashlib
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import Protocol

import msgspec

from airflow_eksbatch.core.model.compute_environment import ComputeEnvironment, Market
from airflow_eksbatch.core.model.node import Offering, estimate_allocatable
from airflow_eksbatch.core.model.resources import Resources

# What AWS Batch calls its bundles; since 2025-11 `optimal` means the same as `default_x86_64`.
DEFAULT_X86_64 = ("m6i", "c6i", "r6i", "c7i")
DEFAULT_ARM64 = ("m6g", "c6g", "r6g", "c7g")
BUNDLES: dict[str, tuple[str, ...]] = {
    "optimal": DEFAULT_X86_64,
    "default_x86_64": DEFAULT_X86_64,
    "default_arm64": DEFAULT_ARM64,
}
# Graviton machines keep this much back before the hypervisor's share (Karpenter's figure).
ARM64_KEPT_MIB = 64
# Spot prices are simulated: a quarter to a bit under a half of On-Demand. The fraction is drawn
# from the names of type and zone, so it differs by pool and never moves.
SPOT_FRACTION_LEAST = 0.25
SPOT_FRACTION_MOST = 0.45


class InstanceType(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the shipped table."""

    instance_type: str
    architecture: str
    vcpus: int
    memory_mib: int
    gpu: int
    max_pods: int
    zones: str
    """Letters of the zones that offer it."""
    price_usd_hour: float
    """On-Demand, Linux, us-east-1."""
    usage_classes: tuple[str, ...] = ("on-demand", "spot")
    """How EC2 sells it; the table has none that is not sold both ways."""

    @property
    def family(self) -> str:
        return self.instance_type.partition(".")[0]

    @property
    def is_metal(self) -> bool:
        return ".metal" in self.instance_type

    @property
    def allocatable(self) -> Resources:
        """What pods can use of its node, before one was seen."""
        kept_mib = ARM64_KEPT_MIB if self.architecture == "arm64" else 0
        return estimate_allocatable(self.vcpus, self.memory_mib - kept_mib, self.gpu, self.max_pods)


@functools.cache
def shipped_types() -> dict[str, InstanceType]:
    """The shipped table by name; sizes of a family stand in ascending order."""
    text = (
        resources.files("airflow_eksbatch.cloud")
        .joinpath("ec2_types.csv")
        .read_text(encoding="utf-8")
    )
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    rows = msgspec.convert(list(csv.DictReader(lines)), list[InstanceType], strict=False)
    return {row.instance_type: row for row in rows}


def resolve_types(names: Sequence[str], types: dict[str, InstanceType]) -> tuple[InstanceType, ...]:
    """Types, families, bundles -> types, in the order given, once each. Raises ValueError."""
    if not names:
        raise ValueError("instanceTypes is empty; name types, families or `optimal`.")
    families: dict[str, list[InstanceType]] = {}
    for row in types.values():
        if row.is_metal:
            continue  # Only where it is named: no family has it (AWS Batch).
        families.setdefault(row.family, []).append(row)
    found: dict[str, InstanceType] = {}
    for name in names:
        # Not every region has every family of a bundle.
        rows = [
            row
            for part in BUNDLES.get(name, (name,))
            for row in ([types[part]] if part in types else families.get(part, ()))
        ]
        if not rows:
            raise ValueError(_unknown(name, types, families))
        found.update((row.instance_type, row) for row in rows)
    architectures = sorted({row.architecture for row in found.values()})
    if len(architectures) > 1:
        raise ValueError(
            f"instanceTypes mixes {' and '.join(architectures)}; use one compute environment "
            f"for each architecture."
        )
    return tuple(found.values())


def _unknown(name: str, types: dict[str, InstanceType], families: Iterable[str]) -> str:
    family = name.partition(".")[0]
    sizes = [row.instance_type for row in types.values() if row.family == family]
    if sizes:
        return f"instanceTypes: there is no {name}; sizes of {family} are {', '.join(sizes)}."
    near = sorted(f for f in families if f[:1] == name[:1])[:12]
    near = near or sorted({*DEFAULT_X86_64, *DEFAULT_ARM64}.intersection(families))
    known = ", ".join([*near, "optimal"])
    return f"instanceTypes: {name!r} is no instance type or family known here; known are {known}."


def offerings_of(
    types: Iterable[InstanceType], *, zones: str, market: Market, region: str
) -> tuple[Offering, ...]:
    """Every type in every zone (letters) that has it, with its price on that market."""
    return tuple(
        offering_of(row, f"{region}{letter}", market)
        for row in types
        for letter in row.zones
        if letter in zones
    )


def offering_of(
    row: InstanceType, zone: str, market: Market, spot_price: float | None = None
) -> Offering:
    """A type in a zone; without its Spot price (clouds that are simulated have none) that is simulated, too."""
    price = row.price_usd_hour
    if market is Market.SPOT and spot_price is not None:
        price = spot_price
    elif market is Market.SPOT:
        price = round(price * spot_fraction(row.instance_type, zone), 5)
    return Offering(
        instance_type=row.instance_type,
        zone=zone,
        market=market,
        vcpus=row.vcpus,
        memory_mib=row.memory_mib,
        gpu=row.gpu,
        architecture=row.architecture,
        allocatable=row.allocatable,
        price_usd_hour=price,
        on_demand_usd_hour=row.price_usd_hour,
    )


def spot_fraction(instance_type: str, zone: str) -> float:
    """What Spot costs of On-Demand in this pool; the same on every machine and at every start."""
    drawn = int.from_bytes(hashlib.sha256(f"{instance_type}/{zone}".encode()).digest()[:4])
    span = SPOT_FRACTION_MOST - SPOT_FRACTION_LEAST
    return SPOT_FRACTION_LEAST + span * drawn / 2**32


class Catalogue(Protocol):
    """What a simulated cloud sells."""

    def offerings(self, environment: ComputeEnvironment) -> tuple[Offering, ...]:
        """What this environment may buy. Raises ValueError with a sentence."""
        ...


class SimulatedCatalogue(msgspec.Struct, frozen=True, kw_only=True):
    """The shipped table in some zones of one region; prices are those of us-east-1 everywhere."""

    region: str = "us-east-1"
    zones: str = "abc"

    def offerings(self, environment: ComputeEnvironment) -> tuple[Offering, ...]:
        """A subnet named like a zone (us-east-1a) stands for that zone, any other name for all."""
        named = {subnet for subnet in environment.subnets if self._zone_of(subnet)}
        zones = "".join(self._zone_of(subnet) for subnet in sorted(named)) or self.zones
        found = offerings_of(
            resolve_types(environment.instance_types, shipped_types()),
            zones=zones,
            market=environment.market,
            region=self.region,
        )
        if not found:
            wanted = ", ".join(environment.instance_types)
            raise ValueError(
                f"No zone among {', '.join(self.region + z for z in zones)} has {wanted}."
            )
        return found

    def _zone_of(self, subnet: str) -> str:
        letter = subnet.removeprefix(self.region)
        return letter if len(letter) == 1 and letter in "abcdef" else ""
