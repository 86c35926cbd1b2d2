"""Exact amounts of what a pod asks for, a node has, and either costs: whole numbers, so sums never drift."""

from __future__ import annotations

import msgspec

from airflow_eksbatch.core.model.compute_environment import Market


class Resources(msgspec.Struct, frozen=True, order=True, kw_only=True):
    """cpu in millicores, memory in MiB, whole GPUs, pod slots. All are needed to fit."""

    cpu_m: int = 0
    memory_mib: int = 0
    gpu: int = 0
    pods: int = 0

    def plus(self, other: Resources) -> Resources:
        return Resources(
            cpu_m=self.cpu_m + other.cpu_m,
            memory_mib=self.memory_mib + other.memory_mib,
            gpu=self.gpu + other.gpu,
            pods=self.pods + other.pods,
        )

    def minus(self, other: Resources) -> Resources:
        return self.plus(other.times(-1))

    def times(self, factor: int) -> Resources:
        return Resources(
            cpu_m=self.cpu_m * factor,
            memory_mib=self.memory_mib * factor,
            gpu=self.gpu * factor,
            pods=self.pods * factor,
        )

    def fits(self, room: Resources) -> bool:
        """Whether this much fits into that room."""
        return (
            self.cpu_m <= room.cpu_m
            and self.memory_mib <= room.memory_mib
            and self.gpu <= room.gpu
            and self.pods <= room.pods
        )

    def count_in(self, room: Resources) -> int:
        """How many times this much fits into that room; 0 if not once."""
        if not self.fits(room):
            return 0
        fits = room.pods // self.pods if self.pods else 1 << 30
        if self.cpu_m:
            fits = min(fits, room.cpu_m // self.cpu_m)
        if self.memory_mib:
            fits = min(fits, room.memory_mib // self.memory_mib)
        if self.gpu:
            fits = min(fits, room.gpu // self.gpu)
        return fits


NOTHING = Resources()


class Cost(msgspec.Struct, frozen=True, array_like=True):
    """What something cost, and the part of instances that it paid for."""

    nano_usd: int = 0
    instance_ms: int = 0
    """Half an instance for two milliseconds is one."""
    vcpu_ms: int = 0

    def plus(self, other: Cost) -> Cost:
        return Cost(
            self.nano_usd + other.nano_usd,
            self.instance_ms + other.instance_ms,
            self.vcpu_ms + other.vcpu_ms,
        )

    def minus(self, other: Cost) -> Cost:
        return Cost(
            self.nano_usd - other.nano_usd,
            self.instance_ms - other.instance_ms,
            self.vcpu_ms - other.vcpu_ms,
        )


FREE = Cost()


class Bill(msgspec.Struct, frozen=True, array_like=True):
    """A cost with On-Demand and Spot apart."""

    on_demand: Cost = FREE
    spot: Cost = FREE

    @property
    def total(self) -> Cost:
        return self.on_demand.plus(self.spot)

    def plus(self, market: Market, cost: Cost) -> Bill:
        if market is Market.SPOT:
            return Bill(self.on_demand, self.spot.plus(cost))
        return Bill(self.on_demand.plus(cost), self.spot)


NO_BILL = Bill()
