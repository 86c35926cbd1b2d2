"""What no purchase can cost less than, by linear programs that HiGHS solves: judges of the planner, not part of it."""

from __future__ import annotations

import highspy

from airflow_eksbatch.core.model.node import Offering
from airflow_eksbatch.core.model.resources import Resources
from airflow_eksbatch.core.planner.mix.cheapest import not_outdone

Shapes = dict[Resources, int]
INFINITY = highspy.kHighsInf
ROUNDS_MAX = 25
GAP = 0.002


def a_model() -> highspy.Highs:
    model = highspy.Highs()
    model.silent()
    return model


def jobs_in_pieces(sold: list[Offering], wanted: Shapes) -> float:
    """USD an hour: least price of machines and jobs, both in pieces, so that each machine's resources suffice."""
    kinds = not_outdone(sold)
    model = a_model()
    for offering in kinds:
        model.addCol(offering.price_usd_hour, 0, INFINITY, 0, [], [])
    served: dict[Resources, list[int]] = {shape: [] for shape in wanted}
    columns = len(kinds)
    rows: list[tuple[list[int], list[float]]] = []
    for machine, offering in enumerate(kinds):
        room = offering.allocatable
        pieces = [shape for shape in wanted if shape.fits(room)]
        numbers = list(range(columns, columns + len(pieces)))
        for number, shape in zip(numbers, pieces, strict=True):
            model.addCol(0, 0, INFINITY, 0, [], [])
            served[shape].append(number)
        columns += len(pieces)
        for have, uses in measures(room, pieces):
            rows.append(([machine, *numbers], [float(have), *(-float(use) for use in uses)]))
    for index, values in rows:
        model.addRow(0, INFINITY, len(index), index, values)
    for shape, count in wanted.items():
        model.addRow(count, INFINITY, len(served[shape]), served[shape], [1.0] * len(served[shape]))
    model.run()
    return float(model.getInfo().objective_function_value)


def whole_jobs(sold: list[Offering], wanted: Shapes) -> float:
    """USD an hour: machines in pieces, jobs whole. Any worths bound the price from below once divided by the most that a
    machine can hold of them for its price (Farley 1990); columns that an exact knapsack finds make the worths better."""
    kinds, shapes = not_outdone(sold), list(wanted)
    model = a_model()
    for count in wanted.values():
        model.addRow(count, INFINITY, 0, [], [])
    for row, shape in enumerate(shapes):
        for offering in kinds:
            held = min(wanted[shape], shape.count_in(offering.allocatable))
            if held:
                model.addCol(offering.price_usd_hour, 0, INFINITY, 1, [row], [float(held)])
    best, steady = 0.0, [0.0] * len(shapes)
    for number in range(ROUNDS_MAX):
        model.run()
        price = model.getInfo().objective_function_value
        worths = list(model.getSolution().row_dual)
        asked = [(a + b) / 2 for a, b in zip(worths, steady, strict=True)] if number else worths
        excess = 1e-9
        for offering in kinds:
            most, load = fullest(offering, wanted, asked)
            excess = max(excess, most / offering.price_usd_hour)
            if load:
                counts = [float(count) for count in load.values()]
                model.addCol(offering.price_usd_hour, 0, INFINITY, len(load), list(load), counts)
        bound = sum(w * count for w, count in zip(asked, wanted.values(), strict=True)) / excess
        if bound > best:
            best, steady = bound, [w / excess for w in asked]
        if price <= best * (1 + GAP):
            break
    return best


def fullest(
    offering: Offering, wanted: Shapes, worths: list[float]
) -> tuple[float, dict[int, int]]:
    """An upper bound of what a machine can hold, in worth, and a load that comes near it."""
    room = offering.allocatable
    items = [
        (row, shape)
        for row, shape in enumerate(wanted)
        if shape.fits(room) and worths[row] > 0 and wanted[shape]
    ]
    if not items:
        return 0.0, {}
    model = a_model()
    for row, shape in items:
        model.addCol(-worths[row], 0, min(wanted[shape], shape.count_in(room)), 0, [], [])
    numbers = list(range(len(items)))
    for number in numbers:
        model.changeColIntegrality(number, highspy.HighsVarType.kInteger)
    for have, uses in measures(room, [shape for _, shape in items]):
        model.addRow(-INFINITY, have, len(items), numbers, [float(use) for use in uses])
    model.setOptionValue("mip_rel_gap", GAP / 4)
    model.run()
    taken = model.getSolution().col_value
    load = {row: round(n) for (row, _), n in zip(items, taken, strict=True) if n > 0.5}
    return -float(model.getInfo().mip_dual_bound), load


def measures(room: Resources, shapes: list[Resources]) -> list[tuple[int, list[int]]]:
    """What there is of each resource, and how much each shape takes of it."""
    return [
        (room.cpu_m, [shape.cpu_m for shape in shapes]),
        (room.memory_mib, [shape.memory_mib for shape in shapes]),
        (room.pods, [shape.pods for shape in shapes]),
    ]
