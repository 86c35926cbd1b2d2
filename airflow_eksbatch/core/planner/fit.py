"""Fit, queue by queue: turns onto floors, environment by environment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from airflow_eksbatch.core.model import limits
from airflow_eksbatch.core.model.job_queue import JobQueue
from airflow_eksbatch.core.model.node import Node, NodeId
from airflow_eksbatch.core.planner.order import Turns, lines_by_queue, queues_in_order
from airflow_eksbatch.core.planner.pack import Floor
from airflow_eksbatch.core.planner.plan import Placement
from airflow_eksbatch.core.world.job_class import ClassLine, JobClass
from airflow_eksbatch.core.world.world import World

Demand = dict[JobClass, int]


def floors_of_ready_nodes(world: World) -> dict[str, Floor]:
    """What is free now, by compute environment; only environments that may run new work."""
    floors: dict[str, Floor] = {}
    for (name, free), nodes in world.rooms.items():
        environment = world.compute_environments.get(name)
        if environment is not None and environment.state == "ENABLED":
            floors.setdefault(name, Floor()).open(free, nodes)
    return floors


def floors_of_coming_nodes(world: World) -> dict[str, Floor]:
    """What nodes on their way will have free."""
    floors: dict[str, Floor] = {}
    for node in world.nodes.values():
        if node.is_coming:
            floor = floors.setdefault(node.compute_environment, Floor())
            floor.open(node.allocatable, [node.node_id])
    return floors


def fit_classes(world: World, now: int) -> tuple[list[Placement], dict[str, Demand]]:
    """Place what fits; what is left over, by queue and class in the order it would have been served."""
    floors = floors_of_ready_nodes(world)
    placements: list[Placement] = []
    left: dict[str, Demand] = {}
    lines = lines_by_queue(world)
    for queue in queues_in_order(world):
        if queue.name in lines:
            ours = [floors[name] for name in queue.compute_environments if name in floors]
            places = count_places(world, queue, lines[queue.name])
            turns = Turns(world, queue, lines[queue.name], now, places)
            left[queue.name] = serve(world, queue, turns, ours, placements, now)
    return placements, left


def count_places(world: World, queue: JobQueue, lines: Iterable[ClassLine]) -> int:
    """At most so many pods can be placed: the free cpu of the queue's environments by the smallest shape."""
    smallest = max(1, min(line.job_class.shape.cpu_m for line in lines))
    free = sum(
        room.cpu_m * len(nodes)
        for (name, room), nodes in world.rooms.items()
        if name in queue.compute_environments
    )
    return free // smallest


def serve(
    world: World,
    queue: JobQueue,
    turns: Turns,
    floors: list[Floor],
    placements: list[Placement],
    now: int,
) -> Demand:
    """One queue's turns, until nothing more fits."""
    left: Demand = {}
    while (turn := turns.next()) is not None:
        job_class, allowed = turn
        wanted = allowed
        for floor in floors:
            if wanted:
                for node_id, count in floor.fit(job_class.shape, wanted):
                    placements.append(Placement(job_class=job_class, node_id=node_id, count=count))
                    wanted -= count
        placed = left.setdefault(job_class, world.lines[job_class].count)
        left[job_class] = placed - (allowed - wanted)
        turns.served(allowed - wanted, blocked=wanted > 0)
        if wanted:
            reserve_node(world, queue, job_class, floors, now)
    return {job_class: count for job_class, count in left.items() if count}


def reserve_node(
    world: World, queue: JobQueue, job_class: JobClass, floors: list[Floor], now: int
) -> None:
    """Keep one node free of younger work for a class that has waited too long.

    Back-fill could keep a large job waiting for ever. After `RESERVE_AFTER_S` the node with the most free room
    that could hold it when empty takes nothing new; its free room only grows, so it stays the choice and the
    job starts at the latest when that node's last job ends.
    """
    job = world.lines[job_class].head(world.jobs)
    since = job.runnable_at if job is not None else None
    if since is None or now - since < limits.RESERVE_AFTER_S * 1000:
        return
    node = roomiest(world.nodes, queue, job_class)
    if node is not None:
        for floor in floors:
            floor.hold(node.node_id, node.free)


def roomiest(nodes: Mapping[NodeId, Node], queue: JobQueue, job_class: JobClass) -> Node | None:
    """Of the nodes that could hold the class when empty, the one with the most free cpu."""
    able = [
        node
        for node in nodes.values()
        if node.is_open
        and node.compute_environment in queue.compute_environments
        and job_class.shape.fits(node.allocatable)
    ]
    return max(able, key=lambda node: (node.free.cpu_m, node.node_id), default=None)
