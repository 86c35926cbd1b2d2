"""Loads: what one machine of an offering takes, and the one that is worth most.

A knapsack with several measures. Shapes go in by worth for size, where size weighs cpu against memory; the weight at which
both run out together is found by halving. Then one shape after another is taken back and the room filled again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from airflow_eksbatch.core.model.node import Offering
from airflow_eksbatch.core.model.resources import Resources

# How often the weight of cpu against memory is halved.
WEIGHTS_TRIED = 7
# What a pod slot and a GPU weigh against cpu and memory: few loads end for want of them.
OTHERS_WEIGH = 0.1
# Times to go through a load for something better.
SWEEPS_MAX = 3
# Below this part of the price, not worth going through.
HOPELESS = 0.8
# From this part of its price on a load is kept: worths move, and it may be among the best of the next round.
WORTH_KEEPING = 0.9

PRICE_LEAST = 1e-9

Item = tuple[int, int, int, int, int, int]
"""Row of a shape; its cpu, memory, gpu and pods; how many are wanted."""


class MachineLoad(msgspec.Struct, frozen=True, kw_only=True):
    """What one machine of an offering takes."""

    offering: Offering
    counts: tuple[tuple[int, int], ...]
    """Row of a shape, how many of it."""

    @property
    def price(self) -> float:
        return price_of(self.offering)

    def worth(self, worths: Sequence[float]) -> float:
        return sum(worths[row] * count for row, count in self.counts)


class Stall:
    """One offering and all that fits on it."""

    def __init__(
        self, offering: Offering, shapes: Sequence[Resources], counts: Sequence[int]
    ) -> None:
        self.offering = offering
        self._room = room = offering.allocatable
        self._items: list[Item] = [
            (row, shape.cpu_m, shape.memory_mib, shape.gpu, shape.pods, counts[row])
            for row, shape in enumerate(shapes)
            if shape.fits(room)
        ]
        self._parts = [
            (
                part(cpu_m, room.cpu_m),
                part(memory_mib, room.memory_mib),
                OTHERS_WEIGH * (part(gpu, room.gpu) + part(pods, room.pods)) + 1e-9,
            )
            for _, cpu_m, memory_mib, gpu, pods, _ in self._items
        ]

    def load_of(self, row: int) -> MachineLoad | None:
        """As many of one shape as it holds."""
        counts, _ = self._fill([item for item in self._items if item[0] == row])
        return MachineLoad(offering=self.offering, counts=tuple(counts.items())) if counts else None

    def best_load(self, worths: Sequence[float]) -> MachineLoad | None:
        """The load worth most, if that is near its price."""
        price = price_of(self.offering)
        order, counts = self._first_try(worths)
        if worth_of(counts, worths) < HOPELESS * price:
            return None
        for _ in range(SWEEPS_MAX):
            better = self._best_change(order, counts, worths)
            if better is None:
                break
            counts = better
        if worth_of(counts, worths) < WORTH_KEEPING * price:
            return None
        return MachineLoad(offering=self.offering, counts=tuple(counts.items()))

    def _first_try(self, worths: Sequence[float]) -> tuple[list[Item], dict[int, int]]:
        """The order in which shapes go in, and what goes in."""
        best_order: list[Item] = []
        best: dict[int, int] = {}
        most = 0.0
        rows = [
            (worths[item[0]], *parts, item)
            for item, parts in zip(self._items, self._parts, strict=True)
            if worths[item[0]] > 0
        ]
        low, high = 0.0, 1.0
        for _ in range(WEIGHTS_TRIED if rows else 0):
            weight = (low + high) / 2
            rest = 1 - weight
            ranked = sorted(
                [
                    (worth / (weight * cpu + rest * memory + others), item)
                    for worth, cpu, memory, others, item in rows
                ],
                reverse=True,
            )
            # No load is worth more than the best shape would be that could be cut to fill the machine.
            if ranked[0][0] * (1 + 2 * OTHERS_WEIGH) < HOPELESS * price_of(self.offering):
                break
            order = [item for _, item in ranked]
            counts, more_cpu_left = self._fill(order)
            if (worth := worth_of(counts, worths)) > most:
                most, best, best_order = worth, counts, order
            low, high = (low, weight) if more_cpu_left else (weight, high)
        return best_order, best

    def _best_change(
        self, order: list[Item], counts: dict[int, int], worths: Sequence[float]
    ) -> dict[int, int] | None:
        """One less of a shape, or none of it, and the room filled again in the same order."""
        most, best = worth_of(counts, worths) * (1 + 1e-9), None
        for row, count in counts.items():
            for fewer in {count - 1, 0}:
                changed, _ = self._fill(
                    [(*item[:5], fewer) if item[0] == row else item for item in order]
                )
                if (worth := worth_of(changed, worths)) > most:
                    most, best = worth, changed
        return best

    def _fill(self, items: Iterable[Item]) -> tuple[dict[int, int], bool]:
        """As many of each as still fit, in this order; and whether cpu is left over rather than memory."""
        room = self._room
        cpu_left, memory_left, gpu_left, pods_left = (
            room.cpu_m,
            room.memory_mib,
            room.gpu,
            room.pods,
        )
        counts: dict[int, int] = {}
        for row, cpu_m, memory_mib, gpu, pods, count in items:
            if cpu_m > cpu_left or memory_mib > memory_left or gpu > gpu_left:
                continue
            if cpu_m:
                count = min(count, cpu_left // cpu_m)
            if memory_mib:
                count = min(count, memory_left // memory_mib)
            if gpu:
                count = min(count, gpu_left // gpu)
            if pods:
                count = min(count, pods_left // pods)
            if count:
                counts[row] = count
                cpu_left -= cpu_m * count
                memory_left -= memory_mib * count
                gpu_left -= gpu * count
                pods_left -= pods * count
        return counts, part(cpu_left, room.cpu_m) > part(memory_left, room.memory_mib)


def price_of(offering: Offering) -> float:
    """What costs nothing costs next to nothing, so that worths can be compared with it."""
    return max(offering.price_usd_hour, PRICE_LEAST)


def part(amount: int, whole: int) -> float:
    return amount / whole if whole else 0.0


def worth_of(counts: dict[int, int], worths: Sequence[float]) -> float:
    return sum(worths[row] * count for row, count in counts.items())
