"""Why a multi-node job is not running: how many of its nodes are there, and what each environment lacks for the others."""

from __future__ import annotations

from collections import Counter

from airflow_eksbatch.core.model.job import Job
from airflow_eksbatch.core.model.job_queue import JobQueue
from airflow_eksbatch.core.model.node import NodeStatus
from airflow_eksbatch.core.planner.explain_room import (
    explain_before_room,
    explain_environment,
    explain_reservation,
)
from airflow_eksbatch.core.planner.hold import has_waited_long
from airflow_eksbatch.core.planner.multi_node.together import (
    Together,
    able,
    least_vcpus,
    pool_of,
)
from airflow_eksbatch.core.planner.words import listed, number_of, span
from airflow_eksbatch.core.world.job_class import JobClass
from airflow_eksbatch.core.world.where import allowed
from airflow_eksbatch.core.world.world import World


def explain_together(world: World, job: Job, now: int) -> list[str]:
    """As explain_room, for a job that needs several nodes at once."""
    queue, job_class = world.queues.get(job.spec.queue), world.class_of(job)
    sentences = explain_before_room(world, job, now)
    if queue is None or world.trials.is_left_alone(job_class, now):
        return sentences
    sentences += [
        f"It needs {job_class.nodes} nodes at once, each to itself, of one instance type in one zone.",
        *explain_reserved(world, job),
    ]
    for name in queue.compute_environments:
        sentences.append(explain_environment(world, name, job_class.shape, job_class.where, now))
        sentences += explain_number(world, name, job_class, now)
    sentences += explain_way_made(world, job, queue, now)
    return sentences + explain_reservation(world, job, queue, now)


def explain_reserved(world: World, job: Job) -> list[str]:
    """What it has so far."""
    kept = [node for node in world.nodes.values() if node.reserved_for == job.job_id]
    if not kept:
        return []
    ready = sum(node.status is NodeStatus.READY for node in kept)
    where = " and ".join(sorted({f"{pool} of {name}" for name, pool in map(pool_of, kept)}))
    coming = len(kept) - ready
    are = "is" if ready == 1 else "are"
    still = f", and {coming} {'is' if coming == 1 else 'are'} on the way" if coming else ""
    return [f"{ready} {are} reserved for it{still} ({where})."]


def explain_number(world: World, name: str, job_class: JobClass, now: int) -> list[str]:
    """Why one node might be had here, and not all of them."""
    environment = world.compute_environments.get(name)
    if environment is None or environment.state != "ENABLED" or name in world.full:
        return []
    if not environment.managed:
        nodes = [
            node
            for node in world.nodes.values()
            if node.is_open and node.compute_environment == name
        ]
        most = max(Counter(map(pool_of, able(nodes, job_class))).values(), default=0)
        return [f"Of a kind there are {most} that could hold one of its pods."]
    offerings = allowed(job_class.where, world.offerings.get(name, ()))
    fitting = [o for o in offerings if job_class.shape.fits(o.allocatable)]
    if not fitting:
        return []
    least = min(fitting, key=lambda o: (o.vcpus, o.pool))
    needed, left = (
        least_vcpus(job_class.nodes, least.vcpus),
        environment.max_vcpus - world.vcpus[name],
    )
    if needed > environment.max_vcpus:
        return [
            f"{job_class.nodes} of its smallest that would do, {least.instance_type}, have "
            f"{job_class.nodes * least.vcpus} vCPUs: more than its maximum of {environment.max_vcpus} allows."
        ]
    if needed > left:
        return [
            f"{job_class.nodes} of its smallest that would do, {least.instance_type}, need more than the "
            f"{max(0, left)} vCPUs that are left of its maximum."
        ]
    rest = {o.pool: world.rests_until(o, at_once=True) - now for o in fitting}
    again = [f"{pool} in {span(ms)}" for pool, ms in sorted(rest.items()) if ms > 0]
    if again:
        return [f"So many at once were refused and are asked for again: {listed(again)}."]
    return []


def explain_way_made(world: World, job: Job, queue: JobQueue, now: int) -> list[str]:
    """What takes no younger work for it."""
    line = world.lines.get(world.class_of(job))
    if line is None or not has_waited_long(world, line, now) or line.head(world.jobs) is not job:
        return []
    nodes = Together(world, now).make_way(queue, job)
    if not nodes:
        return []
    busy = sum(node.idle_since is None for node in nodes)
    return [
        f"It has waited long, so {number_of(len(nodes), 'node takes', 'nodes take')} no younger work for it; "
        f"{busy} of them still {'works' if busy == 1 else 'work'}."
    ]
