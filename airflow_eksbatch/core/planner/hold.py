"""Hold: a node kept free of younger work for a job that has waited too long."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import cached_property

import msgspec

from airflow_eksbatch.core.model import limits
from airflow_eksbatch.core.model.compute_environment import ComputeEnvironment
from airflow_eksbatch.core.model.job_queue import JobQueue
from airflow_eksbatch.core.model.node import Node, NodeId, NodeStatus, Offering
from airflow_eksbatch.core.model.resources import Resources
from airflow_eksbatch.core.world.job_class import ClassLine, JobClass
from airflow_eksbatch.core.world.where import Where, allowed
from airflow_eksbatch.core.world.world import World


def has_waited_long(world: World, line: ClassLine, now: int) -> bool:
    """Whether the oldest job in line has waited so long that back-fill must not pass it any more."""
    job = line.head(world.jobs)
    since = job.runnable_at if job is not None else None
    return since is not None and now - since >= limits.RESERVE_AFTER_S * 1000


def takes_work(world: World, name: str) -> bool:
    """Whether new work may be placed on the nodes of an environment."""
    environment = world.compute_environments.get(name)
    is_enabled = environment is not None and environment.state == "ENABLED"
    return is_enabled and name not in world.full


def buyable(world: World, environment: ComputeEnvironment, now: int) -> list[Offering]:
    """Offerings of an environment that were not refused lately."""
    offerings = world.offerings.get(environment.name, ())
    if not world.refused_until:
        return list(offerings)
    return [offering for offering in offerings if world.rests_until(offering) <= now]


def able_offerings(world: World, name: str, job_class: JobClass, now: int) -> list[Offering]:
    """What could hold one of these and may be asked for, were it not for the maximum."""
    environment = world.compute_environments.get(name)
    if environment is None or not environment.may_grow or not takes_work(world, name):
        return []
    offerings = allowed(job_class.where, buyable(world, environment, now))
    return [o for o in offerings if job_class.shape.fits(o.allocatable)]


def is_coming(world: World, queue: JobQueue, job_class: JobClass) -> bool:
    """Whether a node that could hold one of these is on its way."""
    where, nodes = job_class.where, world.nodes
    return any(
        name in queue.compute_environments
        and takes_work(world, name)
        and job_class.shape.fits(room)
        and (where is None or any(where.allows(nodes[n].offering) for n in ids))
        for (name, room, _), ids in world.coming.items()
    )


class Roomiest:
    """The open nodes with the most free cpu, one of each environment and size: nodes alike are looked at once.

    The roomiest node that could hold a shape when empty takes nothing new; its free room only grows, so it stays
    the choice and the job starts at the latest when that node's last job ends.
    """

    def __init__(self, world: World) -> None:
        self._best: dict[tuple[str, Resources, str], Node] = {}
        usable = {name for name in world.compute_environments if takes_work(world, name)}
        for node in world.nodes.values():
            if node.is_open and node.compute_environment in usable:
                kind = (node.compute_environment, node.allocatable, node.offering.pool)
                best = self._best.get(kind)
                if best is None or rank(node) > rank(best):
                    self._best[kind] = node

    def node_for(
        self, shape: Resources, environments: Collection[str], where: Where | None = None
    ) -> Node | None:
        """The node to keep for this shape, or None where no node could ever hold it."""
        able = (
            node
            for (name, allocatable, _), node in self._best.items()
            if name in environments
            and shape.fits(allocatable)
            and (where is None or where.allows(node.offering))
        )
        return max(able, key=rank, default=None)


def rank(node: Node) -> tuple[int, str]:
    return (node.allocatable.cpu_m - node.used.cpu_m, node.node_id)


class Way(msgspec.Struct, frozen=True, kw_only=True):
    """Nodes of a compute environment that take nothing younger, so that one day a job finds room there."""

    name: str
    nodes: list[Node]
    saved: int = 0
    """vCPUs that nobody else may buy."""
    exchanged: int = 0
    """vCPUs that are to be bought for nodes that go, where the minimum may go with them."""


def shortest(ways: Iterable[Way | None]) -> Way | None:
    """The first of those that wait for no job that runs, or else the first."""
    found = [way for way in ways if way is not None]
    return min(found, key=lambda way: any(n.idle_since is None for n in way.nodes), default=None)


class Ways:
    """Jobs that waited too long, and the nodes that take nothing younger for them.

    Of those that no node here could ever hold each environment buys for one first. Where its maximum is used up by
    smaller nodes, the emptiest take no new work and go: what runs is not stopped.
    """

    def __init__(self, world: World, now: int) -> None:
        self.first: dict[str, tuple[str, JobClass]] = {}
        """Whom an environment buys one machine for before all others: queue and class."""
        self.emptied: set[NodeId] = set()
        """Nodes that go as soon as they are empty."""
        self.exchanged: dict[str, int] = {}
        """vCPUs of each environment that are to be bought in their place."""
        self._world = world
        self._now = now
        self._in_the_way: dict[tuple[str, bool], tuple[list[Node], int] | None] = {}

    @cached_property
    def roomiest(self) -> Roomiest:
        """In most beats nobody has waited too long, and nobody asks for it."""
        return Roomiest(self._world)

    def nodes_for(self, queue: JobQueue, job_class: JobClass) -> list[Node]:
        """The nodes that take nothing younger: the one that is kept for one of these, or those that go for a larger one."""
        names = queue.compute_environments
        node = self.roomiest.node_for(job_class.shape, names, job_class.where)
        if node is not None:
            return [node]
        return [] if is_coming(self._world, queue, job_class) else self.make(queue, job_class)

    def make(self, queue: JobQueue, job_class: JobClass) -> list[Node]:
        """The nodes that take no new work for it."""
        names = [name for name in queue.compute_environments if name not in self.first]
        way = shortest(self._way_in(name, job_class) for name in names)
        if way is None:
            return []
        self.first[way.name] = queue.name, job_class
        self.emptied.update(node.node_id for node in way.nodes)
        if way.exchanged:
            self.exchanged[way.name] = way.exchanged
        return way.nodes

    def is_in_reach(self, queue: JobQueue, job_class: JobClass) -> bool:
        """Whether one of these may find a node at all: one that is there, is coming, or can be bought."""
        names = queue.compute_environments
        return (
            self.roomiest.node_for(job_class.shape, names, job_class.where) is not None
            or is_coming(self._world, queue, job_class)
            or any(self._way_in(name, job_class) is not None for name in names)
        )

    def _way_in(self, name: str, job_class: JobClass) -> Way | None:
        """None where this environment may not buy for it at all."""
        world = self._world
        able = able_offerings(world, name, job_class, self._now)
        if not able:
            return None
        most = world.compute_environments[name].max_vcpus
        within = [offering for offering in able if offering.vcpus <= most]
        exchange = may_exchange(world, within or able, self._now)
        if (name, exchange) not in self._in_the_way:
            self._in_the_way[name, exchange] = nodes_in_the_way(world, name, exchange=exchange)
        found, least = self._in_the_way[name, exchange], min(o.vcpus for o in able)
        if found is None or (least > found[1] and waits_for_less(world, name, job_class, found[1])):
            return None
        return Way(name=name, nodes=found[0], exchanged=least * exchange)


def is_full(world: World, name: str) -> bool:
    """Whether its maximum forbids to buy, also for what is ending."""
    return world.vcpus[name] >= world.compute_environments[name].max_vcpus


def may_exchange(
    world: World, able: Iterable[Offering], now: int, *, at_once: bool = False
) -> bool:
    """Whether machines of a minimum may go for one of these: what was refused lately may be refused again, and they had gone in vain."""
    before = now - limits.EXCHANGE_AGAIN_S * 1000
    return any(world.rests_until(offering, at_once=at_once) <= before for offering in able)


def waits_for_less(world: World, name: str, job_class: JobClass, left: int) -> bool:
    """Whether one that is refused just now is sold within the maximum: then none may pass it."""
    sold = allowed(job_class.where, world.offerings.get(name, ()))
    return any(o.vcpus <= left and job_class.shape.fits(o.allocatable) for o in sold)


def nodes_in_the_way(
    world: World, name: str, needed: int = 1, *, exchange: bool
) -> tuple[list[Node], int] | None:
    """The emptiest nodes without which so many vCPUs are free of its maximum, and how many are then; None where they must stay
    for its minimum.

    With one left the environment may buy again: its last machine may pass the maximum (AWS). With `exchange` the minimum waits
    for what is bought in their place.
    """
    environment = world.compute_environments[name]
    nodes = [node for node in world.nodes.values() if node.compute_environment == name]
    ending = sum(n.offering.vcpus for n in nodes if n.status is NodeStatus.TERMINATING)
    staying = world.vcpus[name] - ending
    chosen: list[Node] = []
    for node in sorted(nodes, key=lambda node: (node.used.cpu_m, node.node_id)):
        if staying + needed <= environment.max_vcpus:
            break
        if node.is_open and (exchange or staying - node.offering.vcpus >= environment.min_vcpus):
            chosen.append(node)
            staying -= node.offering.vcpus
    left = environment.max_vcpus - staying
    return (chosen, left) if needed <= left else None
