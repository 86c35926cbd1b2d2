"""Whose turn is before a runnable job's: other queues, other shares, other jobs of its share."""

from __future__ import annotations

from collections import Counter

from airflow_eksbatch.core.model import limits, ranges
from airflow_eksbatch.core.model.job import Job
from airflow_eksbatch.core.model.job_queue import JobQueue
from airflow_eksbatch.core.model.share import MINUTE_MS, SchedulingPolicy
from airflow_eksbatch.core.planner.explain_room import stuck_by
from airflow_eksbatch.core.planner.order import queues_in_order, use_vcpus
from airflow_eksbatch.core.planner.words import listed, number_of, roughly, span
from airflow_eksbatch.core.world.world import World

# Counting who is in front stops here: the answer is then "at least".
LOOKED_AT = 10_000
# Fewer say nothing of a pace.
BEGAN_LEAST = 3


def explain_order(world: World, job: Job, now: int, siblings: int | None) -> list[str]:
    """Of the job as a whole (None), or of the child of an array that so many siblings go before."""
    queue = world.queues.get(job.spec.queue)
    if queue is None:
        return []
    policy = world.policy_of(queue)
    sentences = explain_queues_ahead(world, queue)
    if policy is not None:
        sentences += explain_shares_ahead(world, job, policy, now)
    ahead = jobs_ahead(world, job, policy) + (siblings or 0)
    where = f"job queue {job.spec.queue}" if policy is None else f"share {job.spec.share}"
    turns = [(ahead, "its turn comes")] if ahead else []
    if siblings is None and job.is_array and (children := ranges.count(job.runnable)) > 1:
        turns.append((ahead + children, "the last of its children begins"))
    return [
        *sentences,
        explain_jobs_ahead(ahead, where),
        *explain_pace(world, job, policy, turns, now),
    ]


def explain_queues_ahead(world: World, queue: JobQueue) -> list[str]:
    """Queues that are served first on the same environments and have runnable jobs."""
    ours = set(queue.compute_environments)
    runnable = runnable_by_queue(world)
    ahead: list[str] = []
    for other in queues_in_order(world):
        if other.name == queue.name:
            break
        if runnable[other.name] and ours & set(other.compute_environments):
            ahead.append(
                f"{other.name} (priority {other.priority}, {runnable[other.name]} runnable)"
            )
    if not ahead:
        return []
    return [f"Served before job queue {queue.name} (priority {queue.priority}): {listed(ahead)}."]


def runnable_by_queue(world: World) -> Counter[str]:
    counts: Counter[str] = Counter()
    for line in world.lines.values():
        counts[line.job_class.queue] += line.jobs
    return counts


def explain_shares_ahead(world: World, job: Job, policy: SchedulingPolicy, now: int) -> list[str]:
    """Shares with runnable jobs and less weighted use."""
    name, share = job.spec.queue, job.spec.share
    runnable = runnable_by_share(world, name)
    use = {other: use_vcpus(world, name, other, now) for other in {*runnable, share}}
    key = {other: use[other] * policy.weight_of(other) for other in use}
    ahead = sorted((other for other in use if key[other] < key[share]), key=key.__getitem__)
    own = described(share, use[share], policy)
    if not ahead:
        return [f"Its share is next: {own}; no share with runnable jobs has used less by weight."]
    others = [
        f"{described(other, use[other], policy)}, {runnable[other]} runnable" for other in ahead
    ]
    return [
        f"By fair share {number_of(len(ahead), 'share')} go first: {listed(others)}; its own is {own}."
    ]


def described(share: str, use: float, policy: SchedulingPolicy) -> str:
    weight = policy.weight_of(share)
    return f"{share} ({use:.3g} vCPUs lately x weight {weight:g} = {use * weight:.3g})"


def runnable_by_share(world: World, queue: str) -> Counter[str]:
    counts: Counter[str] = Counter()
    for line in world.lines.values():
        if line.job_class.queue == queue:
            counts[line.job_class.share] += line.jobs
    return counts


def jobs_ahead(world: World, job: Job, policy: SchedulingPolicy | None) -> int:
    """Runnable jobs in front of it: of its share, or of its queue where there are no shares."""
    ahead, priority = 0, job.spec.priority if policy is not None else 0
    for line in world.lines.values():
        job_class = line.job_class
        if job_class.queue != job.spec.queue:
            continue
        if policy is not None and job_class.share != job.spec.share:
            continue
        theirs = job_class.priority if policy is not None else 0
        if theirs > priority:
            ahead += line.jobs
        elif theirs == priority:
            ahead += line.ahead_of(job.spec.seq, world.jobs, LOOKED_AT)
    return ahead


def explain_jobs_ahead(ahead: int, where: str) -> str:
    if not ahead:
        return f"It is the first in {where}."
    least = "at least " if ahead >= LOOKED_AT else ""
    return f"In {where} {least}{number_of(ahead, 'runnable job')} are older or of higher priority."


def explain_pace(
    world: World, job: Job, policy: SchedulingPolicy | None, turns: list[tuple[int, str]], now: int
) -> list[str]:
    """When its turn may come, if those before it go on to begin as they did while it waited.

    `turns`: how many begin before something, and what that is.
    """
    runnable_at = job.runnable_at if job.runnable_at is not None else job.spec.created_at
    first = max(-(-runnable_at // MINUTE_MS), now // MINUTE_MS - limits.PACE_MINUTES)
    passed_ms, queue, share = now - first * MINUTE_MS, job.spec.queue, job.spec.share
    began = sum(
        usage.began_since(first)
        for (name, other), usage in world.usages.items()
        if name == queue and (policy is None or other == share)
    )
    if began < BEGAN_LEAST or passed_ms < MINUTE_MS or not turns:
        return []
    if stuck_by(world, world.class_of(job), now) is not None:
        return []
    about = "at least" if turns[0][0] >= LOOKED_AT else "about"
    when = [f"{what} in {about} {roughly(number * passed_ms // began)}" for number, what in turns]
    jobs = number_of(began, "job has", "jobs have")
    return [f"In {span(passed_ms)} {jobs} begun there: at that pace {' and '.join(when)}."]
