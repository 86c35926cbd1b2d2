"""Provision: what is left becomes launches, environment by environment, up to the maximum.

Whole machines of the cheapest mix first (planner/mix). What that leaves, less than a machine of each load, is bought load by
load: fill one empty node of each offering with it, and buy the one whose content costs least for its worth. Cost follows
shapes and offerings, not jobs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

from airflow_eksbatch.core.model import limits
from airflow_eksbatch.core.model.allocation import tiers_of
from airflow_eksbatch.core.model.node import Load, NodeId, Offering
from airflow_eksbatch.core.model.resources import Resources
from airflow_eksbatch.core.planner.fit import Demand, Fit
from airflow_eksbatch.core.planner.hold import buyable, takes_work
from airflow_eksbatch.core.planner.mix.cheapest import Mix, cheapest_mix, not_outdone
from airflow_eksbatch.core.planner.order import queues_in_order
from airflow_eksbatch.core.planner.pack import Floor, Shapes, fill, total
from airflow_eksbatch.core.planner.plan import Launch
from airflow_eksbatch.core.world.where import Where, allowed
from airflow_eksbatch.core.world.world import World

Site = tuple[str, Offering | None]
"""Compute environment, and an offering where that matters."""

# What a resource is about worth before a mix says better: its On-Demand price (us-east-1, general purpose).
WORTH_USD_VCPU_HOUR = 0.04
WORTH_USD_GIB_HOUR = 0.005
WORTH_USD_GPU_HOUR = 0.75
# Beyond so many shapes the smallest wait for the next launch: they fill what the larger leave.
SHAPES_AT_ONCE = 64
# With less to buy for each shape a mix would be fractions of machines only, and not worth its time.
VCPUS_A_SHAPE_LEAST = 4
TINY = 1e-6


class Budget:
    """What a beat may still buy."""

    def __init__(self, world: World) -> None:
        self.launches = limits.LAUNCHES_PER_BEAT_MAX
        self.exact: set[str] = set()
        """Compute environments where not even the last machine may pass what is left."""
        self.vcpus = {
            name: environment.max_vcpus - world.vcpus[name]
            for name, environment in world.compute_environments.items()
        }
        for name, number in world.never_joined.items():
            if number >= limits.NEVER_JOINED_MAX and name in self.vcpus:
                # On trial: one instance, and no other before it has joined.
                nodes = world.nodes.values()
                coming = any(n.is_young and n.compute_environment == name for n in nodes)
                self.vcpus[name] = min(self.vcpus[name], 0 if coming else 1)
        self._world = world

    @cached_property
    def zones(self) -> Counter[str]:
        """Nodes by pool; most beats buy nothing and need not count them."""
        return Counter(node.offering.pool for node in self._world.nodes.values())

    def allows(self, environment: str) -> bool:
        return self.launches > 0 and self.vcpus[environment] > 0

    def spend(self, environment: str, offering: Offering, count: int) -> None:
        self.launches -= count
        self.vcpus[environment] -= offering.vcpus * count
        self.zones[offering.pool] += count


def provision(
    world: World,
    left: dict[str, Demand],
    now: int,
    fit: Fit,
) -> list[Launch]:
    """Launches for what was not placed and does not fit on nodes that are on their way; `fit` knows for whom way is made."""
    first, together, budget = fit.ways.first, fit.together, Budget(world)
    launches: list[Launch] = []
    together.save(budget)
    wanted = {queue: shapes_of(demand) for queue, demand in left.items() if demand}
    coming = Coming(world, wanted.values()) if wanted else None
    for queue in queues_in_order(world):
        for choice, name in enumerate(queue.compute_environments):
            queue_name, job_class = first.get(name, (None, None))
            if job_class is None or queue_name != queue.name:
                continue
            where, shape = job_class.where, job_class.shape
            waiting = wanted.get(queue.name, {}).get(where, {})
            if waiting.get(shape):
                alone = {shape: 1}
                launches += buy(world, name, where, alone, budget, choice=choice, now=now)
                waiting[shape] -= 1 - alone[shape]
        launches += together.buy(queue, budget)
        for where, shapes in wanted.get(queue.name, {}).items():
            assert coming is not None
            coming.take(queue.compute_environments, shapes, where)
            for choice, name in enumerate(queue.compute_environments):
                launches += buy(world, name, where, shapes, budget, choice=choice, now=now)
    together.unsave(budget)
    launches += keep_minimum(world, budget, fit.exchanged, now)
    return launches


def buy(
    world: World,
    name: str,
    where: Where | None,
    shapes: Shapes,
    budget: Budget,
    *,
    choice: int,
    now: int,
) -> list[Launch]:
    """Launches in one environment, tier by tier; what they serve is taken off `shapes`."""
    environment = world.compute_environments.get(name)
    if environment is None or not environment.may_grow or name in world.full:
        return []
    launches: list[Launch] = []
    sold = allowed(where, world.offerings.get(name, ()))
    for tier in tiers_of(environment, allowed(where, buyable(world, environment, now))):
        launches += Purchase(name, tier, shapes, sold=sold, budget=budget, choice=choice).launches
    return launches


def shapes_of(demand: Demand) -> dict[Where | None, Shapes]:
    """By where they may run, the choosiest first: the others can take what those leave."""
    by_where: dict[Where | None, Shapes] = {}
    for where in sorted({x.where for x in demand}, key=lambda w: (w is None, str(w))):
        some = ({x.shape: count} for x, count in demand.items() if x.where == where)
        by_where[where] = sum_of(some)
    return by_where


def sum_of(several: Iterable[Shapes]) -> Shapes:
    summed: Shapes = {}
    for shapes in several:
        for shape, count in shapes.items():
            summed[shape] = summed.get(shape, 0) + count
    return summed


class Coming:
    """Nodes on their way: whose places they bring, and what room is left on them. `wanted` is by all queues.

    Where somebody is choosy they are told apart by their offering.
    """

    def __init__(self, world: World, wanted: Iterable[dict[Where | None, Shapes]]) -> None:
        wanted = list(wanted)
        self._places: dict[Site, Counter[Resources]] = {}
        self._floors: dict[Site, Floor] = {}
        self._wanted = sum_of(shapes for by_where in wanted for shapes in by_where.values())
        choosy = any(where is not None for by_where in wanted for where in by_where)
        for (name, room, load), nodes in world.coming.items():
            if takes_work(world, name):
                sites: dict[Site, list[NodeId]] = {}
                for node_id in nodes:
                    offering = world.nodes[node_id].offering if choosy else None
                    sites.setdefault((name, offering), []).append(node_id)
                for site, some in sites.items():
                    self._add(site, room, load, some)

    def _add(self, site: Site, room: Resources, load: Load, nodes: list[NodeId]) -> None:
        """Each holds of its load what is still wanted; those of a kind are counted at once."""
        places = self._places.setdefault(site, Counter())
        floor = self._floors.setdefault(site, Floor())
        while nodes:
            # What was measured meanwhile may be less than what they were bought for.
            held, rest = fill(room, ((s, min(n, self._wanted.get(s, 0))) for s, n in load))
            alike = min((self._wanted[s] // n for s, n in held.items()), default=len(nodes))
            alike = min(alike, len(nodes))
            for shape, number in held.items():
                places[shape] += number * alike
                self._wanted[shape] -= number * alike
            floor.add(rest, nodes[:alike])
            nodes = nodes[alike:]

    def take(self, environments: Iterable[str], shapes: Shapes, where: Where | None) -> None:
        """Leave out what will have room: what the nodes were bought for, then what fits beside it."""
        sites = [
            (name, offering)
            for wanted in environments
            for name, offering in self._floors
            if name == wanted and (where is None or offering is None or where.allows(offering))
        ]
        for site in sites:
            places = self._places[site]
            for shape in shapes:
                count = min(shapes[shape], places[shape])
                shapes[shape] -= count
                places[shape] -= count
        for site in sites:
            for shape in largest_first(shapes):
                shapes[shape] -= total(self._floors[site].fit(shape, shapes[shape]))


class Purchase:
    """Launches of some offerings of one environment for these shapes, until they are served, or it is full or sold out.

    `sold` are all its offerings, also those of other tiers and those that were refused lately.
    """

    def __init__(
        self,
        environment: str,
        offerings: Sequence[Offering],
        shapes: Shapes,
        *,
        sold: Sequence[Offering],
        budget: Budget,
        choice: int,
    ) -> None:
        self.launches: list[Launch] = []
        self._environment = environment
        self._sold = sold
        self._offerings = offerings
        self._shapes = shapes
        self._budget = budget
        self._choice = choice
        self._kinds = not_outdone(offerings) if budget.allows(environment) else []
        # What nobody sells must not stand before what can be bought.
        self._waiting = [x for x in largest_first(shapes) if fits_any(x, self._kinds)]
        self._worths = {shape: worth(shape) for shape in self._waiting}
        if budget.vcpus[environment] >= VCPUS_A_SHAPE_LEAST * len(self._waiting) > 0:
            self._buy_mix()
        self._buy_rest()

    def _buy_mix(self) -> None:
        """Whole machines of the cheapest mix; if not all may be bought, the same part of each."""
        wanted = {shape: self._shapes[shape] for shape in self._waiting[:SHAPES_AT_ONCE]}
        mix = cheapest_mix(self._kinds, wanted, self._worths)
        part = self._part_allowed(mix)
        for offering, load, machines in mix.parts:
            if count := int(machines * part + TINY):
                self._take(offering, load, count)
        about = sum(self._worths[shape] * count for shape, count in wanted.items())
        exact = sum(mix.worths[shape] * count for shape, count in wanted.items())
        self._worths = {s: w * exact / about for s, w in self._worths.items()} | mix.worths

    def _part_allowed(self, mix: Mix) -> float:
        vcpus = sum(offering.vcpus * machines for offering, _, machines in mix.parts)
        machines = sum(machines for *_, machines in mix.parts)
        budget = self._budget
        return min(1.0, budget.vcpus[self._environment] / vcpus, budget.launches / machines)

    def _buy_rest(self) -> None:
        """Load by load, each as often as it repeats."""
        budget, environment = self._budget, self._environment
        while self._waiting and budget.allows(environment):
            best = self._best_load()
            if best is None:
                return
            offering, load = best
            count = min(self._shapes[shape] // number for shape, number in load.items())
            affordable = max(1, budget.vcpus[environment] // offering.vcpus)
            self._take(offering, load, max(1, min(count, affordable, budget.launches)))

    def _best_load(self) -> tuple[Offering, Shapes] | None:
        """The offering whose load costs least for its worth, and stays within the maximum if it can."""
        room, waiting = self._budget.vcpus[self._environment], self._waiting
        if all(offering.vcpus <= room for offering in self._kinds):
            return self._cheapest(self._kinds, waiting)
        within = not_outdone(offering for offering in self._offerings if offering.vcpus <= room)
        best = self._cheapest(within, waiting)
        if best is not None or self._environment in self._budget.exact:
            return best
        return self._least_past(room)

    def _least_past(self, room: int) -> tuple[Offering, Shapes] | None:
        """Past the maximum goes only what no type within it can hold, refused lately or not, and no further than it must."""
        within = [offering for offering in self._sold if offering.vcpus <= room]
        large = [shape for shape in self._waiting if not fits_any(shape, within)]
        able = [o for o in self._offerings if any(shape.fits(o.allocatable) for shape in large)]
        least = min((offering.vcpus for offering in able), default=0)
        others = [shape for shape in self._waiting if shape not in large]
        return self._cheapest([o for o in able if o.vcpus == least], large + others)

    def _cheapest(
        self, offerings: list[Offering], shapes: list[Resources]
    ) -> tuple[Offering, Shapes] | None:
        """By price for worth; then the smaller, then by name, so that plans repeat."""
        wanted = [(shape, self._shapes[shape]) for shape in shapes[:SHAPES_AT_ONCE]]
        best: tuple[tuple[float, int, str], Offering, Shapes] | None = None
        for offering in offerings:
            load, _ = fill(offering.allocatable, wanted)
            if load:
                worths = sum(self._worths[shape] * count for shape, count in load.items())
                price = offering.price_usd_hour / worths if worths else math.inf
                key = (price, offering.vcpus, offering.pool)
                if best is None or key < best[0]:
                    best = (key, offering, load)
        return None if best is None else best[1:]

    def _take(self, offering: Offering, load: Shapes, count: int) -> None:
        for shape, number in load.items():
            self._shapes[shape] = max(0, self._shapes[shape] - number * count)
        self._waiting = [shape for shape in self._waiting if self._shapes[shape] > 0]
        self.launches += [
            Launch(
                compute_environment=self._environment,
                offering=zone,
                count=number,
                choice=self._choice,
                load=tuple(load.items()),
            )
            for zone, number in over_zones(
                self._offerings, offering, count, self._budget, self._environment
            )
        ]


def fits_any(shape: Resources, offerings: Iterable[Offering]) -> bool:
    """Whether an empty node could hold it."""
    return any(shape.fits(offering.allocatable) for offering in offerings)


def over_zones(
    offerings: Sequence[Offering], chosen: Offering, count: int, budget: Budget, environment: str
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


def keep_minimum(
    world: World, budget: Budget, exchanged: Mapping[str, int], now: int
) -> list[Launch]:
    """Nodes up to minvCpus, jobs or not, by the lowest price a vCPU; what is to come in the place of others counts."""
    launches: list[Launch] = []
    for environment in world.compute_environments.values():
        if not environment.may_grow or not environment.min_vcpus:
            continue
        name = environment.name
        there = environment.max_vcpus - budget.vcpus[name] + exchanged.get(name, 0)
        missing = environment.min_vcpus - there
        tiers = tiers_of(environment, buyable(world, environment, now))
        offerings = tiers[0] if tiers else []
        while missing > 0 and offerings and budget.launches > 0:
            best = min(
                offerings,
                key=lambda o: (max(0, o.vcpus - missing), o.price_usd_hour / o.vcpus, o.pool),
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
        key=lambda shape: (worth(shape), shape),
        reverse=True,
    )


def worth(shape: Resources) -> float:
    """US dollars an hour that this much is about worth, at fixed rates."""
    return (
        shape.cpu_m / 1000 * WORTH_USD_VCPU_HOUR
        + shape.memory_mib / 1024 * WORTH_USD_GIB_HOUR
        + shape.gpu * WORTH_USD_GPU_HOUR
    )
