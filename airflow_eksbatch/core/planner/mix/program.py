"""A linear program: the least price of machines, each with a load, so that every shape is served.

The simplex method with the inverse of its basis kept, a column at a time: of all loads there could be, only those that
somebody found are in it. A row is a shape; so is a worth: what serving one more of it costs in the present mix.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from airflow_eksbatch.core.planner.mix.loads import MachineLoad

# What is nearer to zero than this is zero.
TINY = 1e-9
# A load comes in if it is worth so much more than its price.
GAIN_LEAST = 5e-4
# Pivots for each row and call: enough in all that was measured, and an end in any case.
PIVOTS_A_ROW_MAX = 4


class Program:
    """Begins with one load for each shape, of that shape alone, in the order of rows."""

    def __init__(self, loads: Sequence[MachineLoad], wanted: Sequence[int]) -> None:
        held = [load.counts[0][1] for load in loads]
        self._basis: list[MachineLoad | None] = list(loads)
        """One column a row; None is room for more of a shape than is wanted."""
        self._inverse = [
            [1 / number if row == column else 0.0 for column in range(len(held))]
            for row, number in enumerate(held)
        ]
        self._machines = [count / number for count, number in zip(wanted, held, strict=True)]
        self.worths = [load.price / number for load, number in zip(loads, held, strict=True)]

    def price(self) -> float:
        return sum(load.price * machines for load, machines in self.mix())

    def mix(self) -> Iterator[tuple[MachineLoad, float]]:
        """How many machines of each load."""
        for load, machines in zip(self._basis, self._machines, strict=True):
            if load is not None and machines > TINY:
                yield load, machines

    def improve(self, loads: Sequence[MachineLoad]) -> None:
        """Let in whichever makes the mix cheaper, the most for its price first, until none does."""
        for _ in range(PIVOTS_A_ROW_MAX * len(self.worths)):
            row = min(range(len(self.worths)), key=self.worths.__getitem__)
            if self.worths[row] < -TINY:
                self._enter(None, ((row, -1),), 0.0)
                continue
            gain, load = self._best(loads)
            if gain < 1 + GAIN_LEAST:
                return
            self._enter(load, load.counts, load.price)

    def _best(self, loads: Sequence[MachineLoad]) -> tuple[float, MachineLoad]:
        worths = self.worths
        gains = [
            sum([worths[row] * count for row, count in load.counts]) / load.price for load in loads
        ]
        gain = max(gains)
        return gain, loads[gains.index(gain)]

    def _enter(
        self, load: MachineLoad | None, counts: Sequence[tuple[int, int]], price: float
    ) -> None:
        """One pivot: this column comes in, and the one goes that would be the first to fall below zero."""
        moves = [sum([line[row] * count for row, count in counts]) for line in self._inverse]
        steps = [(self._machines[row] / move, row) for row, move in enumerate(moves) if move > TINY]
        if not steps:
            return
        step, leaving = min(steps)
        gain = sum(self.worths[row] * count for row, count in counts) - price
        pivot = [value / moves[leaving] for value in self._inverse[leaving]]
        for row, move in enumerate(moves):
            if row != leaving and abs(move) > TINY:
                line = self._inverse[row]
                self._inverse[row] = [a - move * b for a, b in zip(line, pivot, strict=True)]
                self._machines[row] = max(0.0, self._machines[row] - move * step)
        self._inverse[leaving], self._machines[leaving] = pivot, step
        self._basis[leaving] = load
        self.worths = [a - gain * b for a, b in zip(self.worths, pivot, strict=True)]
