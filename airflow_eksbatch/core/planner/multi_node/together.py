"""Nodes for multi-node jobs: as many as one needs at once, all of one pool, each to itself.

A pool is an instance type in one zone, so the nodes of a job are alike and near each other; in an environment with a
placement group they are in that, too. A job gets nodes only when all of them are ready, so two of them never wait for what
the other has. What is bought for one is reserved for it, and what nobody uses of that pool beside it; whatever is reserved and
cannot become complete is given up.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Collection, Iterable, Mapping, Set
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING

from airflow_eksbatch.core.model import limits
from airflow_eksbatch.core.model.allocation import tiers_of
from airflow_eksbatch.core.model.compute_environment import ComputeEnvironment
from airflow_eksbatch.core.model.job import Job, JobId
from airflow_eksbatch.core.model.job_queue import JobQueue
from airflow_eksbatch.core.model.node import Node, NodeId, NodeStatus, Offering
from airflow_eksbatch.core.model.resources import Resources
from airflow_eksbatch.core.planner.hold import (
    Way,
    able_offerings,
    may_exchange,
    nodes_in_the_way,
    shortest,
    takes_work,
)
from airflow_eksbatch.core.planner.plan import Launch
from airflow_eksbatch.core.world.job_class import JobClass
from airflow_eksbatch.core.world.world import World

if TYPE_CHECKING:
    from airflow_eksbatch.core.planner.provision import Budget

Pool = tuple[str, str]
"""Compute environment, and the pool of the offering."""


class Together:
    """What one plan does for multi-node jobs."""

    def __init__(self, world: World, now: int) -> None:
        self.claims: dict[NodeId, JobId | None] = {}
        """Nodes that are reserved from now on, or with None no longer."""
        self.emptied: set[NodeId] = set()
        """Nodes that go as soon as they are empty, to make way."""
        self.saved: Counter[str] = Counter()
        """vCPUs of each compute environment that nobody else may buy than the job way was made for."""
        self.exchanged: dict[str, int] = {}
        """vCPUs of each environment that are to be bought for that job instead of what goes."""
        self.taken: tuple[Set[NodeId], ...] = ()
        """Nodes that somebody else got, or waits for, in this plan: these sets grow while it is made."""
        self._world = world
        self._now = now
        self._waiting: defaultdict[str, list[tuple[JobClass, Job]]] = defaultdict(list)
        self.promised: dict[NodeId, JobId] = {}
        """Nodes that take nothing younger for a job that way is made for."""
        self._made_way_for: dict[str, JobId] = {}
        """By compute environment: one job at a time."""
        self._sold_to: dict[tuple[str, JobClass], list[Offering]] = {}

    # ---- what there is; in most plans nobody asks

    @cached_property
    def _reserved(self) -> dict[str, list[Node]]:
        """Nodes kept for a job, on their way or without a pod, by its id."""
        found: defaultdict[str, list[Node]] = defaultdict(list)
        for node in self._world.nodes.values():
            is_there = node.takes_work and node.idle_since is not None
            if node.reserved_for is not None and (is_there or is_on_its_way(node)):
                found[node.reserved_for].append(node)
        return found

    @cached_property
    def _reserved_by_class(self) -> dict[JobClass, list[Node]]:
        """The same that are ready, for all jobs of a class."""
        found: defaultdict[JobClass, list[Node]] = defaultdict(list)
        for job_id, nodes in self._reserved.items():
            job_class = self._world.class_of(self._world.jobs[JobId(job_id)])
            found[job_class] += (node for node in nodes if node.status is NodeStatus.READY)
        return found

    @cached_property
    def _open(self) -> dict[Pool, list[Node]]:
        """Nodes that are anybody's, also those with pods, the emptiest first."""
        found: defaultdict[Pool, list[Node]] = defaultdict(list)
        for node in self._world.nodes.values():
            if node.is_open and takes_work(self._world, node.compute_environment):
                found[pool_of(node)].append(node)
        for nodes in found.values():
            nodes.sort(key=lambda node: (node.used.cpu_m, node.node_id))
        return found

    @cached_property
    def _empty(self) -> dict[Pool, deque[Node]]:
        """Those of them without a pod; whoever gets one here is taken off its front."""
        by_pool = {
            pool: deque(node for node in nodes if node.idle_since is not None)
            for pool, nodes in self._open.items()
        }
        return {pool: nodes for pool, nodes in by_pool.items() if nodes}

    @cached_property
    def _shapes(self) -> set[Resources]:
        """Of all that wait for room on some node."""
        return {x.shape for x in self._world.lines if not x.nodes}

    def has_some(self, job: Job) -> bool:
        """Whether anything is reserved for it."""
        return bool(self._kept(job))

    def _kept(self, job: Job) -> list[Node]:
        """What is reserved for a job now; this plan may have claimed more, or given some up."""
        return [n for n in self._reserved.get(job.job_id, ()) if n.node_id not in self.claims]

    def _is_gone(self, node: Node) -> bool:
        """Whether this plan has given it to somebody."""
        node_id = node.node_id
        return node_id in self.claims or any(node_id in some for some in self.taken)

    # ---- nodes that are there

    def place(self, queue: JobQueue, job: Job) -> list[Node]:
        """The nodes of this job, if all of them are there; none if not.

        It is the first of its class: what is reserved for younger ones of that is its own, too, or both would wait.
        """
        job_class = self._world.class_of(job)
        kept: defaultdict[Pool, list[Node]] = defaultdict(list)
        for node in able(self._reserved_by_class.get(job_class, ()), job_class):
            if node.node_id not in self.claims:
                kept[pool_of(node)].append(node)
        for nodes in kept.values():
            nodes.sort(key=lambda node: node.reserved_for != job.job_id)
        for name in queue.compute_environments:
            if not takes_work(self._world, name):
                continue
            pools = {pool for pool in (*kept, *self._empty) if pool[0] == name}
            for pool in sorted(pools, key=lambda pool: (-len(kept[pool]), pool)):
                mine = kept[pool][: job_class.nodes]
                nodes = mine + self._idle(pool, job, job_class, job_class.nodes - len(mine))
                if len(nodes) == job_class.nodes:
                    self.claims |= {node.node_id: job.job_id for node in nodes}
                    return nodes
        return []

    def _idle(self, pool: Pool, job: Job, job_class: JobClass, number: int) -> list[Node]:
        """Up to so many empty nodes that nobody has in this plan, nor waits for since they were bought for him."""
        nodes = self._empty.get(pool, deque())
        while nodes and self._is_gone(nodes[0]):
            nodes.popleft()
        free = (
            node
            for node in nodes
            if is_able(node, job_class)
            and not self._is_gone(node)
            and self.promised.get(node.node_id, job.job_id) == job.job_id
            and not any(shape in self._shapes for shape, _ in node.bought_for)
        )
        return [*islice(free, number)] if number > 0 else []

    def wait(self, queue: JobQueue, job_class: JobClass, jobs: Iterable[Job]) -> None:
        """They found no nodes: what is missing is to be bought, in this order.

        A node that turned out too small for them, since DaemonSets took more of it than was believed, is anybody's again.
        """
        for job in jobs:
            small = [node for node in self._kept(job) if not is_able(node, job_class)]
            self.claims |= {node.node_id: None for node in small}
            self._waiting[queue.name].append((job_class, job))

    def give_up_others(self) -> None:
        """What is reserved for jobs that are not to have nodes now is anybody's: their share has enough, or they are left alone."""
        waiting = {job.job_id for jobs in self._waiting.values() for _, job in jobs}
        for job_id in self._reserved.keys() - waiting:
            self._give_up(self._world.jobs[JobId(job_id)])

    # ---- back-fill could keep a job waiting for ever

    def make_way(self, queue: JobQueue, job: Job, besides: Collection[str] = ()) -> list[Node]:
        """The nodes that take nothing younger, so that one day all are empty, or may be bought.

        Not in the environments `besides`, where nodes go for somebody whose turn was before its.
        """
        job_class = self._world.class_of(job)
        kept = Counter(map(pool_of, self._kept(job)))
        if max(kept.values(), default=0) >= job_class.nodes:
            return []
        way = shortest(
            self._nodes_to_keep(name, job, job_class) or self._nodes_to_give_back(name, job_class)
            for name in queue.compute_environments
            if name not in self._made_way_for
            and name not in besides
            and takes_work(self._world, name)
        )
        if way is None:
            return []
        self._made_way_for[way.name] = job.job_id
        self.promised |= {node.node_id: job.job_id for node in way.nodes}
        if way.saved:
            self.saved[way.name] = way.saved
            self.emptied.update(node.node_id for node in way.nodes)
        if way.exchanged:
            self.exchanged[way.name] = way.exchanged
        return way.nodes

    def _nodes_to_keep(self, name: str, job: Job, job_class: JobClass) -> Way | None:
        """The emptiest of a pool that has enough of them; what of these is empty already is reserved."""
        best: tuple[int, Pool, list[Node]] | None = None
        for pool in sorted(self._open):
            if pool[0] != name:
                continue
            kept = [node for node in self._kept(job) if pool_of(node) == pool]
            nodes = able(self._open[pool], job_class)[: job_class.nodes - len(kept)]
            if len(nodes) + len(kept) == job_class.nodes:
                busy_m = sum(node.used.cpu_m for node in nodes)
                if best is None or (busy_m, pool) < best[:2]:
                    best = busy_m, pool, nodes
        return Way(name=name, nodes=best[2]) if best is not None else None

    def _nodes_to_give_back(self, name: str, job_class: JobClass) -> Way | None:
        """The emptiest without which the environment may buy all that it needs; None where it never may."""
        environment = self._world.compute_environments[name]
        number = job_class.nodes
        able = [
            offering
            for offering in self._sold(name, job_class)
            if self._may_be_had(offering, number)
            and least_vcpus(number, offering.vcpus) <= environment.max_vcpus
        ]
        if not able:
            return None
        least = min(offering.vcpus for offering in able)
        needed = least_vcpus(number, least)
        exchange = may_exchange(self._world, able, self._now, at_once=number > 1)
        found = nodes_in_the_way(self._world, name, needed, exchange=exchange)
        if found is None:
            return None
        return Way(name=name, nodes=found[0], saved=needed, exchanged=number * least * exchange)

    def _sold(self, name: str, job_class: JobClass) -> list[Offering]:
        """What may be asked for now, and could hold one of its pods."""
        key = name, job_class
        if key not in self._sold_to:
            self._sold_to[key] = able_offerings(self._world, name, job_class, self._now)
        return self._sold_to[key]

    def _may_be_had(self, offering: Offering, number: int) -> bool:
        """Whether so many at once were not refused lately."""
        return number < 2 or self._world.rests_until(offering, at_once=True) <= self._now

    # ---- nodes that are not there

    def save(self, budget: Budget) -> None:
        """Nobody else may buy what a job that way is made for will need."""
        for name, vcpus in self.saved.items():
            budget.vcpus[name] -= vcpus
            budget.exact.add(name)

    def unsave(self, budget: Budget) -> None:
        """Back in the budget is what it did not buy yet."""
        while self.saved:
            self._unsave(budget, next(iter(self.saved)))

    def _unsave(self, budget: Budget, name: str) -> None:
        budget.vcpus[name] += self.saved.pop(name, 0)
        budget.exact.discard(name)

    def buy(self, queue: JobQueue, budget: Budget) -> list[Launch]:
        """What the waiting jobs of a queue lack, all of it or nothing."""
        launches: list[Launch] = []
        for job_class, job in self._waiting[queue.name]:
            launches += self._buy_for(queue, job_class, job, budget)
        return launches

    def _buy_for(
        self, queue: JobQueue, job_class: JobClass, job: Job, budget: Budget
    ) -> list[Launch]:
        names = queue.compute_environments
        kept: defaultdict[Pool, list[Node]] = defaultdict(list)
        for node in self._kept(job):
            kept[pool_of(node)].append(node)
        most = Counter[str]()
        for (name, _), nodes in kept.items():
            most[name] = max(most[name], len(nodes))
        for name in sorted(names, key=lambda name: -most[name]):
            environment = self._world.compute_environments.get(name)
            if environment is None or not takes_work(self._world, name):
                continue
            room = budget.vcpus[name]
            if self._made_way_for.get(name) == job.job_id:
                room += self.saved[name]
            found = self._pool_to_fill(environment, job, job_class, kept, room)
            if found is None:
                continue
            pool, offering = found
            self._give_up(job, besides=pool)
            idle = self._idle(pool, job, job_class, job_class.nodes - len(kept[pool]))
            self.claims |= {node.node_id: job.job_id for node in idle}
            count = min(job_class.nodes - len(kept[pool]) - len(idle), budget.launches)
            if is_on_trial(self._world, name):
                count = min(count, 1)
            if count <= 0 or offering is None:
                return []
            if self._made_way_for.get(name) == job.job_id:
                self._unsave(budget, name)
            budget.spend(name, offering, count)
            launch = Launch(
                compute_environment=name,
                offering=offering,
                count=count,
                choice=names.index(name),
                reserved_for=job.job_id,
            )
            return [launch]
        if job.job_id not in self._made_way_for.values():
            self._give_up(job)
        else:
            self._keep_what_is_empty(job, job_class)
        return []

    def _pool_to_fill(
        self,
        environment: ComputeEnvironment,
        job: Job,
        job_class: JobClass,
        kept: Mapping[Pool, list[Node]],
        room: int,
    ) -> tuple[Pool, Offering | None] | None:
        """Where all that is missing may be had: most of it there, then the environment's tiers, then the least price.

        `room` is how many vCPUs may be bought; without an offering nothing is missing.
        """
        name = environment.name
        on_trial, best = is_on_trial(self._world, name), None
        for pool, nodes in kept.items():
            # On trial one is waited for before another is asked for.
            waits = on_trial and any(map(is_on_its_way, nodes))
            if pool[0] == name and (len(nodes) >= job_class.nodes or waits):
                return pool, None
        offerings = self._sold(name, job_class)
        for rank, tier in enumerate(tiers_of(environment, offerings)):
            for offering in tier:
                pool = (name, offering.pool)
                missing = job_class.nodes - len(kept.get(pool, ()))
                missing -= len(self._idle(pool, job, job_class, missing))
                vcpus = 1 if on_trial else least_vcpus(missing, offering.vcpus)
                if (vcpus <= room and self._may_be_had(offering, missing)) or not missing:
                    key = (-len(kept.get(pool, ())), rank, missing * offering.price_usd_hour)
                    if best is None or (key, pool) < best[:2]:
                        best = (key, pool, offering)
        return best[1:] if best is not None else None

    def _give_up(self, job: Job, besides: Pool | None = None) -> None:
        """What is reserved for it elsewhere is anybody's again."""
        for node in self._kept(job):
            if pool_of(node) != besides:
                self.claims[node.node_id] = None

    def _keep_what_is_empty(self, job: Job, job_class: JobClass) -> None:
        """Of the nodes that take nothing younger for it, those that have become empty wait for the others.

        Also those that were bought for somebody else: he cannot have them any more.
        """
        for name in [name for name, one in self._made_way_for.items() if one == job.job_id]:
            way = self._nodes_to_keep(name, job, job_class)
            for node in way.nodes if way is not None else ():
                if node.idle_since is not None and not self._is_gone(node):
                    self.claims[node.node_id] = job.job_id


def pool_of(node: Node) -> Pool:
    return node.compute_environment, node.offering.pool


def is_on_its_way(node: Node) -> bool:
    return node.is_young and node.closed is None


def able(nodes: Iterable[Node], job_class: JobClass) -> list[Node]:
    return [node for node in nodes if is_able(node, job_class)]


def is_able(node: Node, job_class: JobClass) -> bool:
    """Whether it could hold one of its pods when empty."""
    where = job_class.where
    return job_class.shape.fits(node.allocatable) and (where is None or where.allows(node.offering))


def least_vcpus(nodes: int, vcpus: int) -> int:
    """So many must be left of a maximum for so many machines: the last one may pass it (AWS)."""
    return (nodes - 1) * vcpus + 1 if nodes else 0


def is_on_trial(world: World, name: str) -> bool:
    return world.never_joined[name] >= limits.NEVER_JOINED_MAX
