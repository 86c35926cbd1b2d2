"""The cheapest mix of machines for many jobs at once: the cutting-stock problem, by column generation.

In turns, the program says what each shape is worth in the best mix so far, and every offering says which load it could take
that is worth most at that. When no load is worth more than its price, no mix is cheaper. Numbers of machines come in
fractions; provision.py buys the whole ones, and for the rest by the worths that come with them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from airflow_eksbatch.core.model.node import Offering
from airflow_eksbatch.core.model.resources import Resources
from airflow_eksbatch.core.planner.mix.loads import MachineLoad, Stall
from airflow_eksbatch.core.planner.mix.program import Program

# 50 shapes need about 40 rounds to be within 1 % of the least price.
ROUNDS_MAX = 60
# Nearer to the least price than this is near enough.
GAP = 0.003
# Worths swing from round to round; asked is for loads in the middle between them and the best seen so far (Wentges 1997).
FOLLOW = 0.5


class Mix(msgspec.Struct, frozen=True, kw_only=True):
    """`parts` are offering, load of one machine, and how many such machines."""

    parts: Sequence[tuple[Offering, dict[Resources, int], float]]
    worths: dict[Resources, float]
    """US dollars an hour that one more of a shape costs in this mix."""


def cheapest_mix(
    offerings: Iterable[Offering], wanted: dict[Resources, int], guess: dict[Resources, float]
) -> Mix:
    """Serves all that is wanted, each of which must fit some offering; `guess` is about what each is worth."""
    shapes, counts = list(wanted), list(wanted.values())
    market = [Stall(offering, shapes, counts) for offering in not_outdone(offerings)]
    program = Program([cheapest_alone(market, row) for row in range(len(shapes))], counts)
    steady, least = [guess[shape] for shape in shapes], 0.0
    found: dict[MachineLoad, None] = {}
    asked = steady
    for _ in range(ROUNDS_MAX):
        loads = [load for stall in market if (load := stall.best_load(asked)) is not None]
        # Worths that no load exceeds are a lower bound of any mix; these exceed by so much.
        excess = max((x.worth(asked) / x.price for x in loads), default=1.0)
        bound = sum(w * count for w, count in zip(asked, counts, strict=True)) / excess
        if bound > least:
            least, steady = bound, [w / excess for w in asked]
        found.update(dict.fromkeys(loads))
        if found:
            program.improve(list(found))
        if program.price() <= least * (1 + GAP):
            break
        asked = [
            FOLLOW * w + (1 - FOLLOW) * old for w, old in zip(program.worths, steady, strict=True)
        ]
    return Mix(
        parts=[
            (load.offering, {shapes[row]: count for row, count in load.counts}, machines)
            for load, machines in program.mix()
        ],
        worths=dict(zip(shapes, program.worths, strict=True)),
    )


def not_outdone(offerings: Iterable[Offering]) -> list[Offering]:
    """Those than which none has as much for as little."""
    kept: list[Offering] = []
    for offering in sorted(offerings, key=lambda o: (o.price_usd_hour, -o.vcpus, o.pool)):
        if not any(offering.allocatable.fits(other.allocatable) for other in kept):
            kept.append(offering)
    return kept


def cheapest_alone(market: Iterable[Stall], row: int) -> MachineLoad:
    """The machine on which one shape costs least if it has it for itself; the smaller of equals."""
    loads = [load for stall in market if (load := stall.load_of(row)) is not None]
    return min(loads, key=lambda x: (x.price / x.counts[0][1], x.offering.vcpus))
