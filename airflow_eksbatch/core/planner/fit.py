"""Fit, queue by queue: turns onto floors, environment by environment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Set
from functools import cached_property

from airflow_eksbatch.core.model import limits
from airflow_eksbatch.core.model.job import Job
from airflow_eksbatch.core.model.job_queue import JobQueue
from airflow_eksbatch.core.model.node import SPOT_NOTICE, Node, NodeId
from airflow_eksbatch.core.model.resources import Resources
from airflow_eksbatch.core.planner.hold import Ways, has_waited_long, takes_work
from airflow_eksbatch.core.planner.multi_node.together import Together
from airflow_eksbatch.core.planner.order import Turns, lines_by_queue, queues_in_order
from airflow_eksbatch.core.planner.pack import Floor, total
from airflow_eksbatch.core.planner.plan import Placement
from airflow_eksbatch.core.planner.reservation import Headroom, headroom_of
from airflow_eksbatch.core.world.job_class import ClassLine, JobClass
from airflow_eksbatch.core.world.where import allowed
from airflow_eksbatch.core.world.world import World

Demand = dict[JobClass, int]


def floors_of_ready_nodes(world: World, waiting: Set[Resources]) -> dict[str, Floor]:
    """What is free now, by compute environment; only environments that may run new work.

    A node without a pod yet is kept for what it was bought for, as far as such jobs wait.
    """
    floors: dict[str, Floor] = {}
    for (name, free), nodes in world.rooms.items():
        if not takes_work(world, name):
            continue
        floor = floors.setdefault(name, Floor())
        kept = [n for n in nodes if waiting and world.nodes[n].is_kept]
        for node_id in kept:
            load = [(s, n) for s, n in world.nodes[node_id].bought_for if s in waiting]
            floor.keep(node_id, free, load)
        if not kept:
            floor.add(free, nodes)
        elif len(kept) < len(nodes):
            floor.add(free, [node_id for node_id in nodes if not world.nodes[node_id].is_kept])
    return floors


def places_on_their_way(world: World) -> dict[str, Counter[Resources]]:
    """What nodes on their way were bought for, by environment."""
    places: dict[str, Counter[Resources]] = {}
    for (name, _, load), nodes in world.coming.items():
        counts = places.setdefault(name, Counter())
        for shape, count in load:
            counts[shape] += count * len(nodes)
    return places


class Fit:
    """Who goes where in one plan."""

    def __init__(self, world: World, now: int) -> None:
        self.placements: list[Placement] = []
        self.left: dict[str, Demand] = {}
        """What still waits, by queue and class in the order it would have been served."""
        self.headrooms: dict[str, Headroom] = {}
        """Queues that hold back room for shares to come (computeReservation)."""
        self._world = world
        self._now = now
        self.doomed: dict[str, Demand] = {}
        """What runs on nodes that are being taken back and has no other room yet, by queue."""
        self.kept_back: set[NodeId] = set()
        """Nodes with room for what does."""
        self._held: set[NodeId] = set()
        self.ways = Ways(world, now)
        self.together = Together(world, now)
        self._placed: set[NodeId] = set()
        self.together.taken = self._placed, self.kept_back, self._held
        self._lines = lines_by_queue(world, now)
        for queue in queues_in_order(world):
            if queue.name in self._lines:
                self._serve(queue, self._lines[queue.name])
        for (name, job_class), count in sorted_doomed(world):
            self._find_refuge(name, job_class, count)
        self.together.give_up_others()

    # In most beats nobody waits, and nobody asks for these.

    @cached_property
    def _floors(self) -> dict[str, Floor]:
        lines = (line for several in self._lines.values() for line in several)
        return floors_of_ready_nodes(self._world, {line.job_class.shape for line in lines})

    @cached_property
    def _on_their_way(self) -> dict[str, Counter[Resources]]:
        return places_on_their_way(self._world)

    @cached_property
    def _free_cpu_m(self) -> dict[str, int]:
        return free_cpu_m(self._world)

    @property
    def exchanged(self) -> dict[str, int]:
        """vCPUs by compute environment that are to be bought in the place of nodes that make way."""
        return Counter(self.ways.exchanged) + Counter(self.together.exchanged)

    def buyable_demand(self) -> dict[str, Demand]:
        """What capacity may be bought for; what nobody sells must not use up what a queue may still take.

        For those that kubelets turned away one machine, where no node is left to try them on.
        """
        left = {
            name: {job_class: count for job_class, count in demand.items() if not job_class.nodes}
            for name, demand in self.left.items()
        }
        demands = {
            name: self.headrooms[name].permitted(sold_of(self._world, name, demand))
            if name in self.headrooms
            else demand
            for name, demand in left.items()
        }
        for name, demand in demands.items():
            if any(job_class.turned_away for job_class in demand):
                demands[name] = self._with_trials(name, demand)
        for name, doomed in self.doomed.items():
            demand = demands[name] = dict(demands.get(name, {}))
            for job_class, count in doomed.items():
                demand[job_class] = demand.get(job_class, 0) + count
        return demands

    def _with_trials(self, name: str, demand: Demand) -> Demand:
        names = self._world.queues[name].compute_environments
        return {
            x: 1 if x.turned_away else count
            for x, count in demand.items()
            if not x.turned_away or self.ways.roomiest.node_for(x.shape, names, x.where) is None
        }

    def _find_refuge(self, name: str, job_class: JobClass, count: int) -> None:
        """Room that is left over stays; for the rest a replacement is bought before it is needed."""
        for environment in self._world.queues[name].compute_environments:
            if count and environment in self._floors:
                placed = self._fit(self._floors[environment], job_class, count)
                self.kept_back.update(node_id for node_id, _ in placed)
                count -= total(placed)
        if count:
            self.doomed.setdefault(name, {})[job_class] = count

    def _serve(self, queue: JobQueue, lines: list[ClassLine]) -> None:
        """One queue's turns, until nothing more fits."""
        floors = [self._floors[name] for name in queue.compute_environments if name in self._floors]
        places = count_places(self._free_cpu_m, queue, lines)
        turns = Turns(self._world, queue, lines, self._now, places)
        headroom = headroom_of(self._world, queue, self._now)
        if headroom is not None:
            self.headrooms[queue.name] = headroom
        left: Demand = {}
        while (turn := turns.next()) is not None:
            line, allowed = turn
            job_class = line.job_class
            if job_class.nodes:
                placed = self._serve_together(queue, turns.job, job_class, floors, headroom)
                left[job_class] = left.get(job_class, line.count) - placed
                turns.served(placed, blocked=not placed)
                continue
            wanted = headroom.count_of(job_class, allowed) if headroom is not None else allowed
            placed = self._place(queue, job_class, wanted, floors)
            if headroom is not None:
                headroom.take(job_class, placed)
            left[job_class] = left.get(job_class, line.count) - placed
            turns.served(placed, blocked=placed < allowed)
            if job_class.turned_away:
                continue
            if placed < allowed and has_waited_long(self._world, line, self._now):
                self._keep_room(queue, job_class, headroom)
                if placed < wanted:
                    self._hold_node(queue, job_class, floors)
        self.left[queue.name] = {job_class: count for job_class, count in left.items() if count}

    def _place(self, queue: JobQueue, job_class: JobClass, wanted: int, floors: list[Floor]) -> int:
        """How many found room; who has a place on a node that is on its way waits rather than take another's."""
        missing, shape = wanted, job_class.shape
        patient = sum(
            self._on_their_way[name][shape]
            for name in queue.compute_environments
            if name in self._on_their_way
        )
        for floor in floors:
            if not missing:
                break
            for node_id, count in self._fit(floor, job_class, missing, min(patient, missing)):
                self._note(Placement(job_class=job_class, node_id=node_id, count=count))
                missing -= count
        return wanted - missing

    def _fit(
        self, floor: Floor, job_class: JobClass, wanted: int, patient: int = 0
    ) -> list[tuple[NodeId, int]]:
        where, nodes = job_class.where, self._world.nodes
        if where is None:
            return floor.fit(job_class.shape, wanted, patient)
        return floor.fit_where(
            job_class.shape, wanted, lambda node_id: where.allows(nodes[node_id].offering)
        )

    def _serve_together(
        self,
        queue: JobQueue,
        job: Job,
        job_class: JobClass,
        floors: list[Floor],
        headroom: Headroom | None,
    ) -> int:
        """All nodes of a multi-node job, or none; the others of its class wait behind one that waits."""
        line = self._world.lines[job_class]
        is_overdue = not job_class.turned_away and has_waited_long(self._world, line, self._now)
        may_go = 1 << 30 if headroom is None else headroom.count_together(job_class)
        if not may_go:
            if is_overdue:
                self._keep_room(queue, job_class, headroom)
            return 0
        nodes = self.together.place(queue, job)
        for node in nodes:
            self._hold(node, floors)
            self._note(Placement(job_class=job_class, node_id=node.node_id, count=1))
        if nodes and headroom is not None:
            headroom.take(job_class, len(nodes))
        if not nodes:
            oldest = line.first(limits.LAUNCHES_PER_BEAT_MAX, self._world.jobs)
            waiting = [one for one in oldest if one.spec.seq >= job.spec.seq]
            self.together.wait(queue, job_class, waiting[:may_go])
            if headroom is not None:
                headroom.promise(job_class, len(waiting[:may_go]))
            if is_overdue:
                self._keep_room(queue, job_class, headroom, is_coming=self.together.has_some(job))
                for node in self.together.make_way(queue, job, besides=self.ways.first):
                    self._hold(node, floors)
        return len(nodes)

    def _note(self, placement: Placement) -> None:
        self.placements.append(placement)
        self._placed.add(placement.node_id)

    # Back-fill could keep a large job waiting for ever.

    def _keep_room(
        self,
        queue: JobQueue,
        job_class: JobClass,
        headroom: Headroom | None,
        *,
        is_coming: bool = False,
    ) -> None:
        """Of what the queue may still take, room for one of these: unless nothing could hold it anyway."""
        if headroom is None or headroom.kept_for is not None:
            return
        if is_coming or self.ways.is_in_reach(queue, job_class):
            headroom.keep_for(job_class)

    def _hold_node(self, queue: JobQueue, job_class: JobClass, floors: list[Floor]) -> None:
        """A node takes nothing younger until one of these fits there, or until it is gone for a larger one."""
        for node in self.ways.nodes_for(queue, job_class):
            if node.node_id not in self._held and node.node_id not in self.together.promised:
                self._held.add(node.node_id)
                self._hold(node, floors)

    def _hold(self, node: Node, floors: list[Floor]) -> None:
        for floor in floors:
            floor.hold(node.node_id, node.free)


def sold_of(world: World, queue: str, demand: Demand) -> Demand:
    """What an empty node of some offering of the queue's environments could hold."""
    offered = [
        offering
        for name in world.queues[queue].compute_environments
        for offering in world.offerings.get(name, ())
    ]
    rooms = {
        where: {offering.allocatable for offering in allowed(where, offered)}
        for where in {job_class.where for job_class in demand}
    }
    return {
        job_class: count
        for job_class, count in demand.items()
        if any(job_class.shape.fits(room) for room in rooms[job_class.where])
    }


def sorted_doomed(world: World) -> list[tuple[tuple[str, JobClass], int]]:
    """What runs on nodes with a Spot notice and will run again elsewhere, by queue and class."""
    doomed: Counter[tuple[str, JobClass]] = Counter()
    for node in world.nodes.values():
        if node.closed == SPOT_NOTICE:
            for pod in world.pods_by_node.get(node.node_id, ()):
                job = world.jobs[world.attempts[pod].job_id]
                # The nodes of a multi-node job are bought when all of them are free of it.
                runs_again = job.stop_reason is None and not job.is_multi_node
                if runs_again and job.spec.queue in world.queues:
                    doomed[job.spec.queue, world.class_of(job)] += 1
    return sorted(doomed.items(), key=lambda item: repr(item[0]))


def free_cpu_m(world: World) -> dict[str, int]:
    """Free cpu of open nodes by compute environment."""
    free: dict[str, int] = {}
    for (name, room), nodes in world.rooms.items():
        free[name] = free.get(name, 0) + max(0, room.cpu_m) * len(nodes)
    return free


def count_places(
    free_by_environment: Mapping[str, int], queue: JobQueue, lines: Iterable[ClassLine]
) -> int:
    """At most so many pods can be placed: the free cpu of the queue's environments by the smallest shape."""
    smallest = max(1, min(line.job_class.shape.cpu_m for line in lines))
    free_m = sum(free_by_environment.get(name, 0) for name in set(queue.compute_environments))
    return free_m // smallest
