"""Provision: what is left becomes launches, environment by environment, up to the maximum.

Greedy over offerings: fill one empty node of each with what is left, largest first, and buy the one whose content costs least
for its worth, as many times as that content repeats. Cost follows shapes and offerings, not jobs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from airflow_eksbatch.core.model import limits
from airflow_eksbatch.core.model.allocation import tiers_of
from airflow_eksbatch.core.model.compute_environment import ComputeEnvironment
from airflow_eksbatch.core.model.node import Offering
from airflow_eksbatch.core.model.resources import Resources
from airflow_eksbatch.core.planner.fit import Demand, floors_of_coming_nodes
from airflow_eksbatch.core.planner.order import queues_in_order
from airflow_eksbatch.core.planner.pack import Floor
from airflow_eksbatch.core.planner.plan import Launch
from airflow_eksbatch.core.world.world import World

Shapes = dict[Resources, int]

# What a resource is worth when different ones must be added up: about its On-Demand price (us-east-1, general purpose).
WORTH_USD_VCPU_HOUR = 0.04
WORTH_USD_GIB_HOUR = 0.005
WORTH_USD_GPU_HOUR = 0.75
# Beyond so many shapes the smallest wait for the next launch: they fill what the larger leave.
SHAPES_AT_ONCE = 64


class Budget:
    """What a beat may still buy."""

    def __init__(self, world: World) -> None:
        self.launches = limits.LAUNCHES_PER_BEAT_MAX
        self.vcpus = {
            name: environment.max_vcpus - world.vcpus[name]
            for name, environment in world.compute_environments.items()
        }
        self.zones: Counter[str] = Counter(node.offering.pool for node in world.nodes.values())

    def spend(self, environment: str, offering: Offering, count: int) -> None:
        self.launches -= count
        self.vcpus[environment] -= offering.vcpus * count
        self.zones[offering.pool] += count


def provision(world: World, left: dict[str, Demand], now: int) -> list[Launch]:
    """Launches for what was not placed and does not fit on nodes that are on their way."""
    budget = Budget(world)
    launches: list[Launch] = []
    coming = floors_of_coming_nodes(world) if left else {}
    for queue in queues_in_order(world):
        demand = left.get(queue.name)
        if not demand:
            continue
        shapes: Shapes = {}
        for job_class, count in demand.items():
            shapes[job_class.shape] = shapes.get(job_class.shape, 0) + count
        for name in queue.compute_environments:
            if name in coming:
                take_room(shapes, coming[name])
        for choice, name in enumerate(queue.compute_environments):
            environment = world.compute_environments.get(name)
            if environment is not None and environment.may_grow:
                for tier in tiers_of(environment, buyable(world, environment, now)):
                    launches += buy(environment, tier, shapes, budget, choice)
    launches += keep_minimum(world, budget, now)
    return launches


def take_room(shapes: Shapes, floor: Floor) -> None:
    """Leave out what fits on nodes that come anyway."""
    for shape in largest_first(shapes):
        shapes[shape] -= sum(count for _, count in floor.fit(shape, shapes[shape]))


def buyable(world: World, environment: ComputeEnvironment, now: int) -> list[Offering]:
    """Offerings of an environment that were not refused lately."""
    return [
        offering
        for offering in world.offerings.get(environment.name, ())
        if world.refused_until.get(offering.pool, 0) <= now
    ]


def buy(
    environment: ComputeEnvironment,
    offerings: list[Offering],
    shapes: Shapes,
    budget: Budget,
    choice: int,
) -> list[Launch]:
    """Buy for these shapes in one environment until they are served, or it is full or sold out."""
    launches: list[Launch] = []
    waiting = [shape for shape in largest_first(shapes) if fits_any(shape, offerings)]
    while waiting and budget.launches > 0 and budget.vcpus[environment.name] > 0:
        best = best_offering(offerings, waiting, shapes, budget.vcpus[environment.name])
        if best is None:
            return launches
        offering, load = best
        count = min(shapes[shape] // number for shape, number in load.items())
        affordable = max(1, budget.vcpus[environment.name] // offering.vcpus)
        count = max(1, min(count, affordable, budget.launches))
        for shape, number in load.items():
            shapes[shape] -= number * count
        waiting = [shape for shape in waiting if shapes[shape] > 0]
        for zone, number in over_zones(offerings, offering, count, budget, environment.name):
            launches.append(
                Launch(
                    compute_environment=environment.name,
                    offering=zone,
                    count=number,
                    choice=choice,
                )
            )
    return launches


def fits_any(shape: Resources, offerings: Iterable[Offering]) -> bool:
    """Whether an empty node could hold it; what nobody sells must not stand before what can be bought."""
    return any(shape.fits(offering.allocatable) for offering in offerings)


def best_offering(
    offerings: list[Offering], waiting: list[Resources], shapes: Shapes, room_vcpus: int
) -> tuple[Offering, Shapes] | None:
    """The offering whose load costs least for its worth; one past the maximum only if none stays within."""
    within = [offering for offering in offerings if offering.vcpus <= room_vcpus]
    best = cheapest(within, waiting, shapes)
    return best or cheapest(offerings, waiting, shapes)


def cheapest(
    offerings: list[Offering], waiting: list[Resources], shapes: Shapes
) -> tuple[Offering, Shapes] | None:
    """By price for worth; then the smaller, then by name, so that plans repeat."""
    wanted = [(shape, shapes[shape]) for shape in waiting[:SHAPES_AT_ONCE]]
    best: tuple[tuple[float, int, str], Offering, Shapes] | None = None
    seen: set[tuple[str, float]] = set()
    for offering in offerings:
        kind = (offering.instance_type, offering.price_usd_hour)
        if kind in seen:
            continue
        seen.add(kind)
        load = load_of(offering.allocatable, wanted)
        if load:
            key = (offering.price_usd_hour / worth(load), offering.vcpus, offering.pool)
            if best is None or key < best[0]:
                best = (key, offering, load)
    return None if best is None else best[1:]


def load_of(room: Resources, wanted: Iterable[tuple[Resources, int]]) -> Shapes:
    """What one empty node takes, largest first."""
    load: Shapes = {}
    cpu_m, memory_mib, pods = room.cpu_m, room.memory_mib, room.pods
    for shape, count in wanted:
        if shape.cpu_m > cpu_m or shape.memory_mib > memory_mib or shape.gpu > room.gpu:
            continue
        number = min(count, shape.count_in(room))
        if number:
            load[shape] = number
            room = room.minus(shape.times(number))
            cpu_m, memory_mib, pods = room.cpu_m, room.memory_mib, room.pods
            if not (cpu_m and memory_mib and pods):
                break
    return load


def over_zones(
    offerings: list[Offering], chosen: Offering, count: int, budget: Budget, environment: str
) -> list[tuple[Offering, int]]:
    """Spread equal offerings over their zones, fewest nodes first: one reclaim then hits fewer."""
    alike = [
        offering
        for offering in offerings
        if offering.instance_type == chosen.instance_type
        and offering.price_usd_hour == chosen.price_usd_hour
    ]
    counts: Counter[str] = Counter()
    by_pool = {offering.pool: offering for offering in alike}
    for _ in range(count):
        pool = min(by_pool, key=lambda pool: (budget.zones[pool], pool))
        counts[pool] += 1
        budget.spend(environment, by_pool[pool], 1)
    return [(by_pool[pool], number) for pool, number in counts.items()]


def keep_minimum(world: World, budget: Budget, now: int) -> list[Launch]:
    """Nodes up to minvCpus, jobs or not, by the lowest price a vCPU."""
    launches: list[Launch] = []
    for environment in world.compute_environments.values():
        if not environment.may_grow or not environment.min_vcpus:
            continue
        name = environment.name
        missing = environment.min_vcpus - (environment.max_vcpus - budget.vcpus[name])
        tiers = tiers_of(environment, buyable(world, environment, now))
        offerings = tiers[0] if tiers else []
        while missing > 0 and offerings and budget.launches > 0:
            best = min(
                offerings,
                key=lambda o: (o.vcpus > missing, o.price_usd_hour / o.vcpus, o.vcpus, o.pool),
            )
            count = max(1, min(missing // best.vcpus, budget.launches))
            launches.append(Launch(compute_environment=name, offering=best, count=count))
            budget.spend(name, best, count)
            missing -= best.vcpus * count
    return launches


def largest_first(shapes: Shapes) -> list[Resources]:
    """Shapes still wanted, the most worth first; equal worth in a fixed order."""
    return sorted(
        (shape for shape, count in shapes.items() if count > 0),
        key=lambda shape: (worth({shape: 1}), shape),
        reverse=True,
    )


def worth(load: Shapes) -> float:
    """US dollars an hour that this load is worth, at fixed rates."""
    return sum(
        count
        * (
            shape.cpu_m / 1000 * WORTH_USD_VCPU_HOUR
            + shape.memory_mib / 1024 * WORTH_USD_GIB_HOUR
            + shape.gpu * WORTH_USD_GPU_HOUR
        )
        for shape, count in load.items()
    )
