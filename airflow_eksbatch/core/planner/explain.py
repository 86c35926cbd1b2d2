"""Why is this job not running: the planner's own checks, answered in words."""

from __future__ import annotations

from collections.abc import Iterable

from airflow_eksbatch.core.model import dependencies, ranges
from airflow_eksbatch.core.model.job import Attempt, Job, JobId, JobStatus, pod_name
from airflow_eksbatch.core.planner.explain_order import explain_order
from airflow_eksbatch.core.planner.explain_room import (
    explain_environment,
    explain_room,
    stuck_by,
)
from airflow_eksbatch.core.planner.multi_node.why import explain_number, explain_together
from airflow_eksbatch.core.planner.words import amount, listed, number_of, span
from airflow_eksbatch.core.world.job_class import JobClass
from airflow_eksbatch.core.world.where import is_off_spot
from airflow_eksbatch.core.world.world import World


def explain(world: World, job: Job, now: int) -> list[str]:
    """Sentences for people, the nearest cause first; `now` is epoch ms."""
    if job.is_finished:
        reason = f": {job.status_reason}" if job.status_reason else ""
        return [f"It has ended and is {job.end_status}{reason}."]
    return [
        *explain_array(job),
        *explain_stop(job),
        *explain_attempts(world, job, now),
        *explain_pending(world, job),
        *explain_runnable(world, job, now),
    ]


def explain_child(world: World, job: Job, index: int, now: int) -> list[str]:
    """The same of one child of an array, or of one that runs of a multi-node job's nodes; it has not ended."""
    if index in job.running:
        pod = pod_name(job.job_id, index, job.running[index])
        return [explain_attempt(world, world.attempts[pod], now)]
    if not ranges.contains(job.runnable, index):
        return [*explain_stop(job), *explain_pending(world, job)]
    siblings = ranges.count(ranges.minus(job.runnable, ((index, job.spec.size),)))
    return [
        *explain_stop(job),
        *explain_waiting(job, now, index),
        *explain_turn(world, job, now, siblings),
    ]


def explain_new(world: World, job: Job, now: int) -> list[str]:
    """What would be said at this moment of a job that is not in the world, were it there."""
    on_demand_only = world.lines.on_demand_only
    if is_off_spot(job.spec.tags, 0, now):
        on_demand_only.add(job.job_id)
    try:
        nodes = f" on each of {job.spec.size} nodes" if job.is_multi_node else ""
        array = f"is an array of {job.spec.size} children, each of which " if job.is_array else ""
        return [
            f"It {array}asks for {amount(job.spec.resources)}{nodes}.",
            *explain_doom(job),
            *explain_pending(world, job),
            *(explain_turn(world, job, now) if job.runnable else ()),
        ]
    finally:
        on_demand_only.discard(job.job_id)


def explain_doom(job: Job) -> list[str]:
    """What it waits for has failed already."""
    if not job.failed:
        return []
    which = "It" if job.is_finished else f"{ranges.count(job.failed)} of its children"
    return [f"{which} would fail at once: a job that it depends on has failed."]


def why_stuck(world: World, job_class: JobClass, now: int) -> str | None:
    """statusReason of runnable jobs that no environment of their queue can take as things are; None if they just wait."""
    queue, obstacle = world.queues.get(job_class.queue), stuck_by(world, job_class, now)
    if queue is None or obstacle is None:
        return None
    sentences: list[str] = []
    for name in queue.compute_environments:
        sentences.append(explain_environment(world, name, job_class.shape, job_class.where, now))
        sentences += explain_number(world, name, job_class, now) if job_class.nodes else []
    return f"{obstacle} - {' '.join(sentences)}"


def explain_array(job: Job) -> list[str]:
    """How far an array is."""
    if not job.is_array:
        return []
    parts = [
        f"{ranges.count(members)} {word}"
        for members, word in (
            (job.succeeded, "succeeded"),
            (job.failed, "failed"),
            (job.runnable, "runnable"),
            (job.pending, "pending"),
        )
        if members
    ]
    if job.running:
        parts.insert(0, f"{len(job.running)} starting or running")
    return [f"Of {job.spec.size} children {', '.join(parts)}."]


def explain_stop(job: Job) -> list[str]:
    if job.stop_reason is None:
        return []
    return [f"It was told to stop ({job.stop_reason}); what still runs is being ended."]


# ---- placed


def explain_attempts(world: World, job: Job, now: int) -> list[str]:
    """What was placed already."""
    live = [world.attempts[pod_name(job.job_id, i, n)] for i, n in sorted(job.running.items())]
    if job.is_array:
        starting = sum(attempt.status is JobStatus.STARTING for attempt in live)
        return [f"{number_of(starting, 'child', 'children')} starting."] if starting else []
    if job.main_ended is not None:
        return [
            f"Its main node has ended; {number_of(len(live), 'other node is', 'other nodes are')} being ended."
        ]
    if job.is_multi_node:
        return explain_nodes(world, job, live, now)
    return [explain_attempt(world, attempt, now) for attempt in live]


def explain_nodes(world: World, job: Job, live: list[Attempt], now: int) -> list[str]:
    """A multi-node job does as its main node does, which is the first."""
    sentences = [explain_attempt(world, attempt, now) for attempt in live[:1]]
    if live[1:] and not live[0].address:
        sentences.append("Its other nodes are reserved, and begin when the main node runs.")
    elif live and job.spec.size > 1:
        running = sum(attempt.status is JobStatus.RUNNING for attempt in live[1:])
        ended = job.spec.size - len(live)
        also = f", {ended} {'has' if ended == 1 else 'have'} ended" if ended else ""
        others = number_of(job.spec.size - 1, "other node")
        sentences.append(f"Of its {others} {running} {'runs' if running == 1 else 'run'}{also}.")
    return sentences


def explain_attempt(world: World, attempt: Attempt, now: int) -> str:
    node = world.nodes[attempt.node_id]
    where = f"on node {node.node_name or node.node_id} ({node.compute_environment})"
    if attempt.stopping is not None:
        return f"Its attempt {attempt.number} {where} is being ended: {attempt.stopping.status_reason}."
    if attempt.started_at is not None:
        since = span(now - attempt.started_at)
        return f"It has been RUNNING for {since} {where}, attempt {attempt.number}."
    since = span(now - attempt.created_at)
    if attempt.seen_at is None:
        return f"It was placed {since} ago {where}; the cluster has not shown its pod yet."
    return (
        f"It was placed {since} ago {where}; its pod is there and its containers are starting "
        "(images, volumes, init containers)."
    )


# ---- pending


def explain_pending(world: World, job: Job) -> list[str]:
    """Which jobs, or which of its own children, are awaited."""
    if not job.pending:
        return []
    sentences: list[str] = []
    if job.follows is not None:
        earlier = described(world, [job.follows])
        sentences.append(f"An earlier try of its Airflow task is being ended first: {earlier}.")
    if job.waits_for:
        jobs = number_of(len(job.waits_for), "job")
        sentences.append(f"It waits for {jobs} to succeed: {described(world, job.waits_for)}.")
    for awaited, members in job.matched.items():
        if ranges.minus(job.pending, members):
            sentences.append(
                f"Child i waits for child i of array {described(world, [awaited])}: "
                f"{ranges.count(members)} of {job.spec.size} have succeeded."
            )
    if dependencies.is_sequential(job.spec) and not job.waits_for:
        sentences += explain_sequence(job)
    return sentences or ["Nothing holds it back: it becomes RUNNABLE in the next beat."]


def explain_sequence(job: Job) -> list[str]:
    """SEQUENTIAL: who is next and on whom it waits."""
    first = job.pending[0][0]
    if first == 0:
        return []
    status = "placed" if first - 1 in job.running else job.status_of(first - 1)
    return [
        f"Its children run one after the other: child {first} waits for {first - 1} ({status})."
    ]


def described(world: World, job_ids: Iterable[JobId]) -> str:
    """`name (id, STATUS)` of each, a few of many."""
    return listed(sorted(describe(world, job_id) for job_id in job_ids))


def describe(world: World, job_id: JobId) -> str:
    job = world.jobs.get(job_id)
    if job is None:
        return job_id
    return f"{job.spec.name} ({job_id}, {world.status_of(job)})"


# ---- runnable


def explain_runnable(world: World, job: Job, now: int) -> list[str]:
    """Why what may run is not placed."""
    if not job.runnable:
        return []
    index = None if job.is_array else 0
    return [*explain_waiting(job, now, index), *explain_turn(world, job, now)]


def explain_turn(world: World, job: Job, now: int, siblings: int | None = None) -> list[str]:
    """Room first, then whose turn is before its own: of the job, or of the child that so many siblings go before."""
    room = explain_together if job.is_multi_node else explain_room
    return [*room(world, job, now), *explain_order(world, job, now, siblings)]


def explain_waiting(job: Job, now: int, index: int | None) -> list[str]:
    """How long, and what was tried before; None: the array as a whole."""
    what = f"{ranges.count(job.runnable)} of its children have" if index is None else "It has"
    since = job.runnable_at if job.runnable_at is not None else job.spec.created_at
    tries = None if index is None else job.tries.get(index)
    if tries is None or tries.placed == tries.waited:
        return [f"{what} been RUNNABLE for {span(now - since)}."]
    return [
        f"It is RUNNABLE again after {number_of(tries.placed - tries.waited, 'attempt')}, of which {tries.charged} "
        f"count against the {job.spec.retry.attempts} of its retry strategy."
    ]
