"""Exact amounts of what a pod asks for and a node has: whole numbers, so sums never drift."""

from __future__ import annotations

import msgspec


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
