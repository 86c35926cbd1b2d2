"""What callers ask for: jobs, stops, and the set-up of queues and environments."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from airflow_eksbatch.core.engine import effects, facts
from airflow_eksbatch.core.engine.lives import (
    fail_pending,
    release_ready,
    settle,
    stop_attempt,
)
from airflow_eksbatch.core.engine.setbacks import look_again, watch_spot
from airflow_eksbatch.core.engine.turn import Turn
from airflow_eksbatch.core.model import dependencies, limits, ranges
from airflow_eksbatch.core.model.compute_environment import ComputeEnvironment
from airflow_eksbatch.core.model.errors import Denied, Outdated, Rejected
from airflow_eksbatch.core.model.job import Job, JobId, JobSpec, JobStatus, pod_name
from airflow_eksbatch.core.model.job_definition import JobDefinition, split_revision
from airflow_eksbatch.core.model.job_queue import JobQueue
from airflow_eksbatch.core.model.node import OUTDATED, NodeStatus
from airflow_eksbatch.core.model.ranges import Ranges
from airflow_eksbatch.core.model.retry import DEPENDENCY_FAILED, Cause
from airflow_eksbatch.core.planner.reservation import active_shares
from airflow_eksbatch.core.world import where

QUEUE_DELETED = "JobQueue deleted"
SCALING_FIELDS = frozenset({"min_vcpus", "max_vcpus", "state", "idle_s", "tags", "wire"})


def on_job_submitted(turn: Turn, fact: facts.JobSubmitted) -> JobId:
    """Accept a job; a repeat of the same submit is the same job."""
    spec, world = fact.spec, turn.world
    known = earlier_submit(turn, fact)
    if known is not None:
        return known
    queue = check_queue_takes_jobs(world.queues.get(spec.queue), spec.queue)
    check_share_count(turn, queue, spec.share)
    check_where(turn, queue, spec)
    ends = turn.ended | fact.dependency_ends
    waits_for, matched = resolve_dependencies(turn, spec, ends)
    follows = supersede(turn, fact)
    spec = msgspec.structs.replace(spec, seq=world.next_job_seq(), pod=world.pods_kept[spec.pod])
    job = Job(
        spec=spec,
        pending=ranges.whole(spec.size),
        waits_for=frozenset(waits_for),
        matched=matched,
        follows=follows,
    )
    world.add_job(job)
    watch_spot(turn, job)
    world.totals.jobs += spec.jobs
    if any(ends.get(entry.job_id) is False for entry in spec.depends_on):
        members, job.pending = job.pending, ranges.EMPTY
        settle(turn, job, members, succeeded=False, reason=DEPENDENCY_FAILED)
        return spec.job_id
    if job.is_array or waits_for or matched or follows:
        turn.tell(job, JobStatus.PENDING)
    for awaited in matched:
        if awaited in world.jobs:
            fail_pending(
                turn, job, dependencies.doomed_indices(job, awaited, world.jobs[awaited].failed)
            )
    release_ready(turn, job)
    return spec.job_id


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
    turn: Turn, spec: JobSpec, ends: Mapping[JobId, bool]
) -> tuple[list[JobId], dict[JobId, Ranges]]:
    """What the job must wait for: whole jobs, and arrays index by index."""
    world = turn.world
    for job_id in {*dependencies.awaited_wholes(spec), *dependencies.awaited_pairs(spec)}:
        if job_id not in world.jobs and job_id not in ends:
            raise Rejected(f"dependsOn names job {job_id}, which does not exist (any more).")
    waits_for = [job for job in dependencies.awaited_wholes(spec) if job in world.jobs]
    matched: dict[JobId, Ranges] = {}
    for job_id in dependencies.awaited_pairs(spec):
        other = world.jobs.get(job_id)
        if other is not None and other.spec.array_size != spec.array_size:
            raise Rejected(
                f"N_TO_N needs two arrays of one size: job {job_id} has "
                f"{other.spec.array_size or 'no array'}, this one {spec.array_size}."
            )
        matched[job_id] = ranges.whole(spec.size) if other is None else other.succeeded
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


# ---- job queues


def check_seen(what: str, seen: msgspec.Struct | None, there: msgspec.Struct | None) -> None:
    """Of two changes made from the same state the second would undo the first."""
    if seen is not None and seen != there:
        raise Outdated(what)


def on_queue_put(turn: Turn, fact: facts.QueuePut) -> JobQueue:
    world, queue = turn.world, fact.queue
    before = world.queues.get(queue.name)
    if fact.create and before is not None:
        raise Rejected(f"Job queue {queue.name} exists already. Use UpdateJobQueue to change it.")
    if not fact.create and before is None:
        raise Rejected(f"Job queue {queue.name} does not exist. Create it with CreateJobQueue.")
    check_seen(f"Job queue {queue.name}", fact.seen, before)
    if before is not None and before.status == "DELETING":
        raise Rejected(f"Job queue {queue.name} is being deleted: wait until it is gone.")
    if before is not None and before.policy is None and queue.policy is not None:
        raise Rejected(
            f"Job queue {queue.name} is FIFO and stays so: a scheduling policy can only be given "
            "when a job queue is created."
        )
    for name in queue.compute_environments:
        environment = world.compute_environments.get(name)
        if environment is None or environment.status == "DELETING":
            raise Rejected(f"Compute environment {name} does not exist.")
    if queue.policy is not None and queue.policy not in world.policies:
        raise Rejected(f"Scheduling policy {queue.policy} does not exist.")
    world.put_queue(queue)
    if queue.time_limits:
        turn.wake_in(0, "stuck", queue.name)
    return queue


def on_queue_deleted(turn: Turn, name: str) -> None:
    """Its jobs are terminated, some in each beat; it is gone when the last of them is."""
    queue = turn.world.queues.get(name)
    if queue is None:
        return
    if queue.state != "DISABLED":
        raise Rejected(f"Job queue {name} is ENABLED. Disable it with UpdateJobQueue first.")
    turn.world.put_queue(msgspec.structs.replace(queue, status="DELETING"))
    turn.wake_in(0, "emptying", name)


def empty_queue(turn: Turn, name: str) -> None:
    """End jobs of a queue that is being deleted, and the others in the next beats: a million at once would outlast any lease.

    The youngest first, so none ends because another did.
    """
    left = limits.ENDS_PER_BEAT_MAX
    for job_id in reversed(turn.world.jobs_by_queue.get(name, {})):
        job = turn.world.jobs[job_id]
        if job.terminated:
            continue
        if left <= 0:
            turn.wake_in(0, "emptying", name)
            return
        left -= job.spec.size
        stop_job(turn, job, range(job.spec.size), QUEUE_DELETED, terminate=True)


# ---- compute environments


def on_compute_environment_put(turn: Turn, fact: facts.ComputeEnvironmentPut) -> ComputeEnvironment:
    """A new one, or one that changed more than its size, is checked before it is used."""
    world, environment = turn.world, fact.compute_environment
    before = world.compute_environments.get(environment.name)
    if fact.create and before is not None:
        raise Rejected(f"Compute environment {environment.name} exists already.")
    if not fact.create and (before is None or before.status == "DELETING"):
        raise Rejected(f"Compute environment {environment.name} does not exist.")
    check_seen(f"Compute environment {environment.name}", fact.seen, before)
    version = 0 if before is None else before.version
    environment = msgspec.structs.replace(environment, version=version)
    if before is None or fact.replaces_nodes or needs_check(before, environment):
        status = "CREATING" if before is None else "UPDATING"
        environment = msgspec.structs.replace(environment, status=status, version=version + 1)
        world.trials.invalid_times.pop(environment.name, None)
        turn.effects.append(effects.CheckEnvironment(compute_environment=environment.name))
    world.put_compute_environment(environment)
    world.measured.forget_environment(environment.name)
    if fact.replaces_nodes and environment.managed:
        retire_older(turn, environment.name)
    return environment


def retire_older(turn: Turn, name: str) -> None:
    """Machines from before an update get no new work, and none of what runs is touched; who has none yet is ended."""
    for node in list(turn.world.nodes.values()):
        if node.compute_environment != name or node.status is NodeStatus.TERMINATING:
            continue
        if node.is_young:
            turn.terminate_node(node, OUTDATED)
        elif not node.is_leaving:
            turn.world.close_node(node, OUTDATED)


def needs_check(before: ComputeEnvironment, after: ComputeEnvironment) -> bool:
    """Whether more changed than its size, or it was not valid."""
    return before.status != "VALID" or any(
        getattr(before, name) != getattr(after, name)
        for name in before.__struct_fields__
        if name not in SCALING_FIELDS
    )


def on_compute_environment_deleted(turn: Turn, name: str) -> None:
    environment = turn.world.compute_environments.get(name)
    if environment is None:
        return
    if environment.state != "DISABLED":
        raise Rejected(
            f"Cannot delete, compute environment {name} is ENABLED. "
            "Disable it with UpdateComputeEnvironment first."
        )
    if any(name in queue.compute_environments for queue in turn.world.queues.values()):
        raise Rejected("Cannot delete, found existing JobQueue relationship")
    deleting = msgspec.structs.replace(environment, status="DELETING")
    turn.world.put_compute_environment(deleting)


def on_environment_checked(turn: Turn, fact: facts.EnvironmentChecked) -> None:
    """Counts if nothing was updated since it began: every update has asked for a check of its own."""
    environment = turn.world.compute_environments.get(fact.name)
    if environment is None or environment.status == "DELETING":
        return
    if not environment.is_still(fact.made_from):
        return
    checked = (fact.status, fact.status_reason)
    if checked != (environment.status, environment.status_reason):
        environment = msgspec.structs.replace(
            environment, status=fact.status, status_reason=fact.status_reason
        )
        turn.world.put_compute_environment(environment)
    turn.world.trials.check_at.pop(fact.name, None)
    if fact.status == "INVALID":
        look_again(turn, environment)


def finish_deletions(turn: Turn) -> None:
    """Queues without jobs and environments without nodes that were to go, go."""
    world = turn.world
    for queue in [queue for queue in world.queues.values() if queue.status == "DELETING"]:
        if not world.jobs_by_queue.get(queue.name):
            world.delete("job_queue", queue.name)
    for environment in [e for e in world.compute_environments.values() if e.status == "DELETING"]:
        nodes = [n for n in world.nodes.values() if n.compute_environment == environment.name]
        if not environment.managed and not any(world.pods_by_node[n.node_id] for n in nodes):
            for node in nodes:
                world.remove_node(node, turn.now, "its compute environment is deleted")
            nodes = []
        if not nodes:
            world.delete("compute_environment", environment.name)
            turn.effects.append(effects.DeleteEnvironment(compute_environment=environment.name))


# ---- scheduling policies and job definitions


def on_policy_put(turn: Turn, fact: facts.PolicyPut) -> object:
    name, world = fact.policy.name, turn.world
    if fact.create and name in world.policies:
        raise Rejected(f"Scheduling policy {name} exists already.")
    if not fact.create and name not in world.policies:
        raise Rejected(f"Scheduling policy {name} does not exist.")
    check_seen(f"Scheduling policy {name}", fact.seen, world.policies.get(name))
    world.put_policy(fact.policy)
    return fact.policy


def on_policy_deleted(turn: Turn, name: str) -> None:
    users = [queue.name for queue in turn.world.queues.values() if queue.policy == name]
    if users:
        raise Rejected(f"Scheduling policy {name} is used by job queue {users[0]}.")
    if name in turn.world.policies:
        turn.world.delete("scheduling_policy", name)


def on_deleted(turn: Turn, fact: facts.Deleted) -> None:
    delete = {
        "job_queue": on_queue_deleted,
        "compute_environment": on_compute_environment_deleted,
        "scheduling_policy": on_policy_deleted,
    }
    delete[fact.kind](turn, fact.name)


def on_definition_registered(turn: Turn, fact: facts.DefinitionRegistered) -> JobDefinition:
    """The next revision; numbers are never used twice, also not after deregistering (AWS)."""
    name = fact.definition.name
    revision = max(turn.world.definitions.get(name, {0: None})) + 1
    definition = msgspec.structs.replace(
        fact.definition, revision=revision, arn=f"{fact.arn_prefix}{name}:{revision}"
    )
    turn.world.put_definition(definition)
    return definition


def on_definition_deregistered(turn: Turn, fact: facts.DefinitionDeregistered) -> None:
    definition = turn.world.definitions.get(fact.name, {}).get(fact.revision)
    if definition is None:
        raise Rejected(f"Job definition {fact.name}:{fact.revision} does not exist.")
    turn.world.put_definition(msgspec.structs.replace(definition, status="INACTIVE"))


# ---- tags


def on_tags_changed(turn: Turn, fact: facts.TagsChanged) -> None:
    """Tags are merged here, so that two callers at once lose nothing."""
    world = turn.world
    if fact.kind == "job-definition":
        name, revision = split_revision(fact.name)
        noun = world.definitions.get(name, {}).get(revision or 0)
        put = world.put_definition
    elif fact.kind == "job-queue":
        noun, put = world.queues.get(fact.name), world.put_queue
    elif fact.kind == "compute-environment":
        noun, put = world.compute_environments.get(fact.name), world.put_compute_environment
    else:
        noun, put = world.policies.get(fact.name), world.put_policy
    if noun is None:
        raise Rejected(f"{fact.kind} {fact.name} does not exist.")
    kept = {key: value for key, value in noun.tags.items() if key not in fact.removed}
    tags = {**kept, **fact.added}
    if len(tags) > limits.TAGS_MAX:
        raise Rejected(f"At most {limits.TAGS_MAX} tags are allowed, not {len(tags)}.")
    put(msgspec.structs.replace(noun, tags=tags))  # type: ignore[arg-type]
