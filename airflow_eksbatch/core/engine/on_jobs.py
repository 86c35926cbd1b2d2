"""What callers ask for of jobs: submits, of which one may repeat or overtake another, and stops."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from airflow_eksbatch.core.engine import facts
from airflow_eksbatch.core.engine.lives import (
    fail_pending,
    release_ready,
    settle,
    stop_attempt,
)
from airflow_eksbatch.core.engine.setbacks import watch_spot
from airflow_eksbatch.core.engine.turn import Turn
from airflow_eksbatch.core.model import dependencies, limits, ranges
from airflow_eksbatch.core.model.errors import Denied, Rejected
from airflow_eksbatch.core.model.job import Ended, Job, JobId, JobSpec, JobStatus, pod_name
from airflow_eksbatch.core.model.job_queue import JobQueue
from airflow_eksbatch.core.model.ranges import Ranges
from airflow_eksbatch.core.model.retry import DEPENDENCY_FAILED, Cause
from airflow_eksbatch.core.planner.reservation import active_shares
from airflow_eksbatch.core.world import where


def on_job_submitted(turn: Turn, fact: facts.JobSubmitted) -> JobId:
    """Accept a job; a repeat of the same submit is the same job."""
    known = earlier_submit(turn, fact)
    if known is not None:
        return known
    world, ends = turn.world, turn.ended | fact.dependency_ends
    job = new_job(turn, fact.spec, ends)
    follows = job.follows = supersede(turn, fact)
    seq, pod = world.next_job_seq(), world.pods_kept[fact.spec.pod]
    spec = job.spec = msgspec.structs.replace(fact.spec, seq=seq, pod=pod)
    world.add_job(job)
    watch_spot(turn, job)
    world.totals.jobs += spec.jobs
    if has_failed_whole(spec, ends):
        members, job.pending = job.pending, ranges.EMPTY
        settle(turn, job, members, succeeded=False, reason=DEPENDENCY_FAILED)
        return spec.job_id
    if job.is_array or job.waits_for or job.matched or follows:
        turn.tell(job, JobStatus.PENDING)
    fail_pending(turn, job, doomed_at_submit(turn, job, ends))
    release_ready(turn, job)
    return spec.job_id


def on_job_tried(turn: Turn, fact: facts.JobTried) -> Job:
    """The job as it would be after a submit that repeats and overtakes no other; nothing of it is kept."""
    world, ends = turn.world, turn.ended | fact.dependency_ends
    job = new_job(turn, fact.spec, ends)
    job.spec = msgspec.structs.replace(fact.spec, seq=world.counters.job_seq + 1)
    doomed = job.pending if has_failed_whole(job.spec, ends) else doomed_at_submit(turn, job, ends)
    job.pending, job.failed = ranges.minus(job.pending, doomed), doomed
    ready = dependencies.ready_indices(job)
    job.pending, job.runnable = ranges.minus(job.pending, ready), ready
    return job


def has_failed_whole(spec: JobSpec, ends: Mapping[JobId, Ended]) -> bool:
    """Whether a job that all of it waits for has failed already."""
    return any(
        job_id in ends and not ends[job_id].succeeded
        for job_id in dependencies.awaited_wholes(spec)
    )


def doomed_at_submit(turn: Turn, job: Job, ends: Mapping[JobId, Ended]) -> Ranges:
    """Children whose partners have failed already, in arrays that live or have ended, and what follows from that."""
    doomed = ranges.EMPTY
    for awaited in job.matched:
        other = turn.world.jobs.get(awaited) or ends[awaited]
        doomed = ranges.union(doomed, dependencies.doomed_indices(job, awaited, other.failed))
    return ranges.union(doomed, dependencies.doomed_indices(job, None, doomed))


def new_job(turn: Turn, spec: JobSpec, ends: Mapping[JobId, Ended]) -> Job:
    """All of it PENDING, with what it waits for; raises Rejected where it cannot be."""
    queue = check_queue_takes_jobs(turn.world.queues.get(spec.queue), spec.queue)
    check_share_count(turn, queue, spec.share)
    check_where(turn, queue, spec)
    waits_for, matched = resolve_dependencies(turn, spec, ends)
    return Job(
        spec=spec,
        pending=ranges.whole(spec.size),
        waits_for=frozenset(waits_for),
        matched=matched,
    )


def earlier_submit(turn: Turn, fact: facts.JobSubmitted) -> JobId | None:
    """The job that an earlier submit with this token made: live, ended in this step, or long gone."""
    token = fact.spec.token
    if not token:
        return None
    live = turn.world.job_by_token.get(token) or live_over_releases(turn, fact.spec)
    return live or turn.ended_by_token.get(token) or fact.earlier_job or ended_over_releases(fact)


def live_over_releases(turn: Turn, spec: JobSpec) -> JobId | None:
    """The live job of this try, where either that or this submit is of a client that names no task instances yet."""
    known = job_of_task(turn, spec)
    if known is None or bool(known.spec.task_instance) == bool(spec.task_instance):
        return None
    return known.job_id if known.spec.try_number == spec.try_number else None


def ended_over_releases(fact: facts.JobSubmitted) -> JobId | None:
    """The ended job of this try from a client that named no task instances yet.

    A run that was deleted and made again has the same tries; but its instances are younger than that job.
    """
    spec, ended = fact.spec, fact.newest
    if ended is None or ended.task_instance or ended.try_number != spec.try_number:
        return None
    began = instance_began(spec.task_instance)
    return ended.job_id if began is not None and began <= ended.created_at else None


def instance_began(task_instance: str) -> int | None:
    """When Airflow made it, in ms since 1970: the first 48 bits of a UUID of version 7 (RFC 9562)."""
    is_dated = len(task_instance) == 36 and task_instance[14] == "7"
    return int(task_instance.replace("-", "")[:12], 16) if is_dated else None


def job_of_task(turn: Turn, spec: JobSpec) -> Job | None:
    """The newest live job of the Airflow task that submits."""
    return turn.world.jobs.get(turn.world.job_by_task.get(spec.task_key or "", JobId("")))


def check_queue_takes_jobs(queue: JobQueue | None, name: str) -> JobQueue:
    if queue is None:
        raise Rejected(
            f"Job queue {name} does not exist. Create it with CreateJobQueue, or see `eksbatch queues`."
        )
    if queue.state != "ENABLED" or queue.status == "DELETING":
        raise Rejected(
            f"Job queue {name} is {queue.status if queue.status == 'DELETING' else queue.state} "
            "and takes no new jobs. Enable it with UpdateJobQueue, or use another queue."
        )
    return queue


def check_share_count(turn: Turn, queue: JobQueue, share: str) -> None:
    """A queue has at most so many active shares (AWS); only a share without live jobs may be one more."""
    if queue.policy is None or (queue.name, share) in turn.world.jobs_by_share:
        return
    active = active_shares(turn.world, queue, turn.now)
    if share not in active and len(active) >= limits.ACTIVE_SHARES_MAX:
        raise Rejected(
            f"Job queue {queue.name} has {len(active)} active shares already, the most there may be. "
            "Use one of them, or wait until a share has had no jobs for its decay time."
        )


def check_where(turn: Turn, queue: JobQueue, spec: JobSpec) -> None:
    """Tags that say where a job may run mean something, and there is such a place."""
    if where.TAGS.isdisjoint(spec.tags):
        return
    where.check_tags(spec.tags)
    for_ever = {where.ON_DEMAND_AFTER, where.ON_DEMAND_BY}.isdisjoint(spec.tags)
    wanted = where.where_of(spec.tags, on_demand=not for_ever)
    environments = [
        environment
        for name in queue.compute_environments
        if (environment := turn.world.compute_environments.get(name)) is not None
    ]
    # Nodes of others are not known before they come, nor what may be bought before the cloud was asked.
    sold = [turn.world.offerings.get(environment.name, ()) for environment in environments]
    unknown = any(not e.managed or not s for e, s in zip(environments, sold, strict=True))
    if wanted is not None and not unknown and not any(where.allowed(wanted, s) for s in sold):
        raise Rejected(
            f"No compute environment of job queue {queue.name} has nodes that are {wanted}, as the job's tags ask for. "
            "Add one, use another job queue, or leave out the tags."
        )


def resolve_dependencies(
    turn: Turn, spec: JobSpec, ends: Mapping[JobId, Ended]
) -> tuple[list[JobId], dict[JobId, Ranges]]:
    """What the job must wait for: whole jobs, and arrays index by index."""
    world = turn.world
    for job_id in {*dependencies.awaited_wholes(spec), *dependencies.awaited_pairs(spec)}:
        if job_id not in world.jobs and job_id not in ends:
            raise Rejected(f"dependsOn names job {job_id}, which does not exist (any more).")
    waits_for = [job for job in dependencies.awaited_wholes(spec) if job in world.jobs]
    matched: dict[JobId, Ranges] = {}
    for job_id in dependencies.awaited_pairs(spec):
        live = world.jobs.get(job_id)
        size = ends[job_id].array_size if live is None else live.spec.array_size
        if size != spec.array_size:
            raise Rejected(
                f"N_TO_N needs two arrays of one size: job {job_id} has "
                f"{size or 'no array'}, this one {spec.array_size}."
            )
        whole = ranges.whole(spec.size)
        matched[job_id] = (
            ranges.minus(whole, ends[job_id].failed) if live is None else live.succeeded
        )
    return waits_for, matched


def supersede(turn: Turn, fact: facts.JobSubmitted) -> JobId | None:
    """A later try of an Airflow task ends the job of the earlier one; an earlier try is too late.

    Returns the job whose pods must have ended before those of this one begin.
    """
    spec, older = fact.spec, job_of_task(turn, fact.spec)
    if older is None:
        if is_overtaken(spec, fact.newest):
            raise Rejected(
                f"Try {spec.try_number} of this Airflow task was overtaken by a later one, whose job has ended already."
            )
        return None
    if overtakes(spec, older.spec):
        if fact.may_end_in and older.spec.queue not in fact.may_end_in:
            raise Denied(
                f"This Airflow task has a job in job queue {older.spec.queue}, which the access key may not end: it is held "
                f"to {', '.join(fact.may_end_in)}. If that is another Airflow with the same DAGs, give the connection "
                "of each a deployment."
            )
        which = f"try {spec.try_number} of the same Airflow task"
        if spec.try_number <= older.spec.try_number:
            which = (
                f"a younger run of the same Airflow task {spec.task_key}. If that is another Airflow with the "
                "same DAGs, give the connection of each a deployment"
            )
        stop_job(turn, older, range(older.spec.size), f"Superseded by {which}", terminate=True)
        return older.job_id if older.running else older.follows
    if overtakes(older.spec, spec):
        raise Rejected(
            f"Try {spec.try_number} of this Airflow task was overtaken by try "
            f"{older.spec.try_number}, whose job {older.job_id} is live."
        )
    return older.follows


def overtakes(new: JobSpec, old: JobSpec) -> bool:
    """A later try does, and a younger instance: tries of a run that was deleted and made again begin anew."""
    return new.try_number > old.try_number or "" < old.task_instance < new.task_instance


def is_overtaken(spec: JobSpec, newest: JobSpec | None) -> bool:
    """By a job that has ended. Without both instances the run may be one that was deleted and made again."""
    if newest is None or not spec.task_instance or not newest.task_instance:
        return False
    return overtakes(newest, spec) and not overtakes(spec, newest)


def on_job_stopped(turn: Turn, fact: facts.JobStopped) -> None:
    """CancelJob and TerminateJob; on jobs that have ended, or that nobody knows, nothing happens (AWS)."""
    job = turn.world.jobs.get(fact.job_id)
    if job is None:
        return
    if fact.index is None:
        stop_job(turn, job, range(job.spec.size), fact.reason, terminate=fact.terminate)
    elif job.is_array and 0 <= fact.index < job.spec.size:
        one = range(fact.index, fact.index + 1)
        stop_job(turn, job, one, fact.reason, terminate=fact.terminate)


def stop_job(turn: Turn, job: Job, members: range, reason: str, *, terminate: bool) -> None:
    """End what waits at once and, if `terminate`, what runs by SIGTERM."""
    whole = len(members) == job.spec.size
    chosen: Ranges = ((members.start, members.stop),)
    waiting = ranges.intersect(ranges.union(job.pending, job.runnable), chosen)
    if whole and (terminate or waiting):
        job.first_stop_reason = job.first_stop_reason or job.stop_reason or reason
        job.stop_reason = reason
    job.terminated = job.terminated or (whole and terminate)
    job.cancelled = job.cancelled or (whole and not terminate and bool(waiting))
    turn.world.note_job(job)
    if terminate:
        for index, number in list(job.running.items()):
            if index in members:
                attempt = turn.world.attempts[pod_name(job.job_id, index, number)]
                stop_attempt(turn, attempt, Cause.STOPPED, reason)
    if waiting:
        if not whole:
            job.child_stops |= dict.fromkeys(ranges.indices(waiting), reason)
        if job.is_array and terminate:
            job.terminated_children = ranges.union(job.terminated_children, waiting)
        elif job.is_array:
            job.cancelled_children = ranges.union(job.cancelled_children, waiting)
        turn.world.drop_runnable(job, waiting)
        job.pending = ranges.minus(job.pending, waiting)
        for index in [index for index in job.tries if ranges.contains(waiting, index)]:
            del job.tries[index]
        settle(turn, job, waiting, succeeded=False, reason=reason)
