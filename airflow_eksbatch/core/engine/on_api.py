"""What callers ask for of the set-up: job queues, compute environments, policies, definitions, tags."""

from __future__ import annotations

import msgspec

from airflow_eksbatch.core.engine import effects, facts
from airflow_eksbatch.core.engine.on_jobs import stop_job
from airflow_eksbatch.core.engine.setbacks import look_again
from airflow_eksbatch.core.engine.turn import Turn
from airflow_eksbatch.core.model import limits
from airflow_eksbatch.core.model.compute_environment import ComputeEnvironment
from airflow_eksbatch.core.model.errors import Outdated, Rejected
from airflow_eksbatch.core.model.job_definition import JobDefinition, split_revision
from airflow_eksbatch.core.model.job_queue import JobQueue
from airflow_eksbatch.core.model.node import OUTDATED, NodeStatus

QUEUE_DELETED = "JobQueue deleted"
SCALING_FIELDS = frozenset({"min_vcpus", "max_vcpus", "state", "idle_s", "tags", "wire"})


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
            turn.effects.append(
                effects.DeleteEnvironment(
                    compute_environment=environment.name, uuid=environment.uuid
                )
            )


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
