"""What is left alone after it went wrong: pools and quotas for a while, compute environments whose nodes never join."""

from __future__ import annotations

import msgspec

from airflow_eksbatch.core.engine.effects import CheckEnvironment
from airflow_eksbatch.core.engine.turn import Turn
from airflow_eksbatch.core.model import limits
from airflow_eksbatch.core.model.compute_environment import ComputeEnvironment
from airflow_eksbatch.core.model.job import Job, JobStatus, pod_name
from airflow_eksbatch.core.model.node import AT_ONCE, TURNED_AWAY, Node, NodeStatus, Offering
from airflow_eksbatch.core.world import where
from airflow_eksbatch.core.world.trials import Refusals

# AWS Batch's own words as far as they are known: clients look for them.
NONE_JOINED = (
    "CLIENT_ERROR - Your compute environment has been INVALIDATED and scaled down because none of the nodes joined the "
    "underlying EKS Cluster."
)


def rest_refused(turn: Turn, node: Node, *, quota: bool) -> None:
    """Its pool or its quota rests; where all or none of several were to be had, for the like only: one of them may be had."""
    at_once = AT_ONCE if node.all_or_none else ""
    if quota:
        rest_quota(turn, node.offering, at_once)
    else:
        rest(turn, node.offering.pool + at_once)


def rest_quota(turn: Turn, offering: Offering, at_once: str) -> None:
    """EC2 says only that this machine does not fit into what is left of the quota: smaller ones may."""
    quota, least = offering.quota + at_once, turn.world.refused_vcpus
    was_resting = not rest(turn, quota)
    if not was_resting or offering.vcpus < least.get(quota, 0):
        least[quota] = offering.vcpus


def rest(turn: Turn, where: str) -> bool:
    """Leave a pool or a quota alone for a while, and longer each time; what comes while it rests was on its way."""
    until, times = turn.world.refused_until, turn.world.refused_times
    since = turn.now - until.get(where, 0)
    if since < 0:
        return False
    times[where] = times.get(where, 0) + 1 if since <= limits.REFUSAL_S_MAX * 1000 else 1
    rest_s = limits.doubled(limits.REFUSAL_S, times[where], limits.REFUSAL_S_MAX)
    until[where] = turn.now + rest_s * 1000
    turn.wake_in(rest_s, "refusal", where)
    return True


def forget_refusals(turn: Turn, offering: Offering) -> None:
    """It was granted; a grant that comes after a no was there before it, and one of a smaller machine says little."""
    world, quota = turn.world, offering.quota
    places = [offering.pool]
    if offering.vcpus >= world.refused_vcpus.get(quota, 0):
        places.append(quota)
    for place in places:
        if world.refused_until.get(place, turn.now) < turn.now:
            del world.refused_until[place], world.refused_times[place]
            world.refused_vcpus.pop(place, None)


def fail_to_join(turn: Turn, node: Node, reason: str) -> None:
    """Its time is over: its instance is ended. One that was being taken back says nothing of the others."""
    turn.terminate_node(node, reason)
    if not node.is_leaving:
        distrust(turn, node, reason)


def distrust(turn: Turn, node: Node, reason: str) -> None:
    """An instance became no node: its pool rests, and its compute environment is trusted less.

    So many in a row, and none that is ready: then no instance of it would join, and each costs money.
    """
    rest(turn, node.offering.pool)
    world, name = turn.world, node.compute_environment
    world.never_joined[name] += 1
    environment = world.compute_environments.get(name)
    if (
        environment is not None
        and environment.status == "VALID"
        and world.never_joined[name] >= limits.NEVER_JOINED_MAX
        and not any(n.compute_environment == name and n.ready_at for n in world.nodes.values())
    ):
        invalidate(turn, environment, f"{NONE_JOINED} {why_none(node, reason)}")
        for other in list(world.nodes.values()):
            if other.compute_environment == name and other.status is not NodeStatus.TERMINATING:
                turn.terminate_node(other, "none of its compute environment's nodes joined")


def why_none(node: Node, reason: str) -> str:
    offering, minutes = node.offering, limits.NONE_JOINED_S // 60
    return (
        f"The last one, {node.instance_id or node.node_id} ({offering.instance_type} in {offering.zone}), {reason}. "
        "Common causes: subnets or security groups without a way to the cluster's endpoint, an instance role that the "
        "cluster does not let in, an image or user data of a launch template. Mend it and call "
        f"UpdateComputeEnvironment; else one instance is tried again every {minutes} minutes."
    )


def is_hopeless(turn: Turn, job: Job) -> bool:
    """Whether the next kubelet that turns it away is charged: even nodes without other work have done so for a long time."""
    refusals = turn.world.trials.refusals.get(turn.world.class_of(job).without_refusals)
    return (
        refusals is not None
        and refusals.proofs > limits.TURNED_AWAY_RESTS_MAX
        and (job.started_at is None or job.is_multi_node)
        and job.job_id in refusals.jobs
    )


def note_refusal(turn: Turn, job: Job, node: Node | None, reason: str) -> None:
    """A kubelet turned its pod away: the node is left alone for a while, or the job, if it was not this node only."""
    world = turn.world
    job_class = world.class_of(job).without_refusals
    refusals = world.trials.refusals.setdefault(job_class, Refusals())
    refusals.reason = reason
    if not job.is_finished:
        refusals.jobs.add(job.job_id)
    if not refusals.times:
        if node is None or node.closed is not None:
            return
        refusals.nodes.append(node.node_id)
        alike, times = len(set(refusals.nodes)), len(refusals.nodes)
        if alike < limits.TURNED_AWAY_NODES and times < limits.TURNED_AWAY_TIMES:
            world.close_node(node, f"{TURNED_AWAY}: {reason}")
            turn.wake_in(limits.REFUSED_POD_PAUSE_S, "reopen", node.node_id)
            return
    leave_alone(turn, refusals, is_proof=node is not None and not has_work(turn, node))


def has_work(turn: Turn, node: Node) -> bool:
    """Whether a pod of ours runs there: then another may find less room than we think."""
    attempts = turn.world.attempts
    pods = turn.world.pods_by_node.get(node.node_id, ())
    return any(attempts[pod].status is JobStatus.RUNNING for pod in pods)


def leave_alone(turn: Turn, refusals: Refusals, *, is_proof: bool) -> None:
    """Jobs that kubelets turn away wait, ever longer; what comes meanwhile was on its way. Their nodes take others."""
    world = turn.world
    for job_id in sorted(refusals.jobs):
        if (job := world.jobs.get(job_id)) is not None:
            world.lines.change_class(job, world.lines.turned_away, joins=True)
    if turn.now < refusals.until:
        return
    refusals.times += 1
    refusals.proofs += is_proof
    for node_id in refusals.nodes:
        node = world.nodes.get(node_id)
        if node is not None and node.is_paused:
            world.close_node(node, None)
    # What is charged has an end without long waits.
    times = 1 if refusals.proofs > limits.TURNED_AWAY_RESTS_MAX else refusals.times
    rest_s = limits.doubled(limits.TURNED_AWAY_S, times, limits.TURNED_AWAY_S_MAX)
    refusals.until = turn.now + rest_s * 1000
    turn.wake_in(rest_s, "refusal", "")


def note_taken(turn: Turn, job: Job) -> None:
    """A kubelet took a pod of it, of a multi-node job all of them: what others said before does not count any more."""
    world = turn.world
    job_class = world.class_of(job).without_refusals
    refusals = world.trials.refusals.get(job_class)
    if refusals is None or (refusals.times and job.job_id not in refusals.jobs):
        return
    if job.is_multi_node:
        attempts = (world.attempts[pod_name(job.job_id, i, n)] for i, n in job.running.items())
        running = sum(attempt.status is JobStatus.RUNNING for attempt in attempts)
        if running < job.spec.size:
            return
    del world.trials.refusals[job_class]
    for job_id in sorted(refusals.jobs):
        if (other := world.jobs.get(job_id)) is not None:
            world.lines.change_class(other, world.lines.turned_away, joins=False)


def watch_spot(turn: Turn, job: Job) -> None:
    """Off Spot when its time has come, or one of its indices was lost with its node as often as its tags allow."""
    tags = job.spec.tags
    if where.TAGS.isdisjoint(tags):
        return
    lost = max((tries.lost for tries in job.tries.values()), default=0)
    if where.is_off_spot(tags, lost, turn.now):
        turn.world.keep_off_spot(job)
    elif (by := where.on_demand_by(tags)) is not None:
        turn.world.wake_at(by, "on-demand", job.job_id)


def invalidate(turn: Turn, environment: ComputeEnvironment, reason: str) -> None:
    """It buys nothing until it was looked into again and found VALID."""
    environment = msgspec.structs.replace(
        environment, status="INVALID", status_reason=reason[: limits.REASON_LENGTH_MAX]
    )
    turn.world.put_compute_environment(environment)
    look_again(turn, environment)


def look_again(turn: Turn, environment: ComputeEnvironment) -> None:
    """What makes one INVALID may pass: roles take minutes to be known everywhere, and upgrades of clusters end.

    A look costs nothing; only where no node joined it ends in an instance, so that is done more rarely.
    """
    world, name = turn.world, environment.name
    world.trials.invalid_times[name] += 1
    rest_s = limits.doubled(
        limits.INVALID_S, world.trials.invalid_times[name], limits.INVALID_S_MAX
    )
    if none_joined(environment):
        rest_s = limits.NONE_JOINED_S
    world.trials.check_at[name] = turn.now + rest_s * 1000
    turn.wake_in(rest_s, "trial", name)


def try_environment(turn: Turn, name: str) -> None:
    """Its time has come, unless it was looked into meanwhile."""
    environment = turn.world.compute_environments.get(name)
    if turn.world.trials.check_at.get(name, turn.now + 1) > turn.now:
        return
    del turn.world.trials.check_at[name]
    if environment is not None and environment.status == "INVALID":
        turn.effects.append(CheckEnvironment(compute_environment=name))


def none_joined(environment: ComputeEnvironment) -> bool:
    """Whether it is INVALID because its nodes did not join: it is tried with one instance."""
    return environment.status == "INVALID" and environment.status_reason.startswith(NONE_JOINED)
