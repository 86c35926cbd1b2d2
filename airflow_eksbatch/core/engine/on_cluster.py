"""What clusters report: pods that live and end, nodes that come and go."""

from __future__ import annotations

from airflow_eksbatch.core.engine import effects, facts
from airflow_eksbatch.core.engine.lives import end_attempt, note_stop
from airflow_eksbatch.core.engine.quotas import forget_rests, note_room, rest_namespace
from airflow_eksbatch.core.engine.setbacks import (
    fail_to_join,
    is_hopeless,
    note_refusal,
    note_taken,
)
from airflow_eksbatch.core.engine.turn import Turn
from airflow_eksbatch.core.model import limits, retry
from airflow_eksbatch.core.model.job import Attempt, JobStatus, PodName, pod_name
from airflow_eksbatch.core.model.node import Node, NodeId, NodeStatus
from airflow_eksbatch.core.model.retry import AttemptEnd, Cause
from airflow_eksbatch.core.world.measured import kind_of

WAIT_BUCKETS = 40
# As AWS words it.
NOT_STARTED = "Task failed to start"


def on_pod_seen(turn: Turn, fact: facts.PodSeen) -> None:
    attempt = turn.world.attempts.get(fact.pod)
    if attempt is None:
        delete_stray(turn, fact.pod, "")
    elif attempt.seen_at is None:
        attempt.seen_at = fact.at
        turn.world.note_attempt(attempt)


def on_pod_running(turn: Turn, fact: facts.PodRunning) -> None:
    attempt = turn.world.attempts.get(fact.pod)
    if attempt is None:
        delete_stray(turn, fact.pod, "")
        return
    job = turn.world.jobs[attempt.job_id]
    if job.is_multi_node and attempt.index == 0:
        note_main_node(turn, attempt, fact.address)
    if attempt.status is JobStatus.RUNNING:
        return
    forget_rests(turn, environment_of(turn, attempt))
    attempt.status = JobStatus.RUNNING
    attempt.seen_at = attempt.seen_at or fact.at
    attempt.started_at = fact.at
    turn.world.note_attempt(attempt)
    note_taken(turn, job)
    if not job.leads(attempt.index):
        return
    if job.started_at is None or not job.is_array:
        job.started_at = fact.at
        turn.world.note_job(job)
    if attempt.number == 1:
        note_wait(turn, max(0, fact.at - (job.runnable_at or job.spec.created_at)))
    turn.tell(job, JobStatus.RUNNING, index=attempt.index, attempt=attempt)
    if job.spec.timeout_s is not None:
        turn.world.wake_at(fact.at + job.spec.timeout_s * 1000, "timeout", fact.pod)


def note_main_node(turn: Turn, main: Attempt, address: str) -> None:
    """It runs, and where is known."""
    if address and not main.address:
        main.address = address
        turn.world.note_attempt(main)
        turn.main_nodes.append(main.job_id)


def begin_other_nodes(turn: Turn) -> None:
    """Of those whose main node runs; what else this step was told may have ended some of them already."""
    for job_id in turn.main_nodes:
        job = turn.world.jobs.get(job_id)
        for index, number in job.running.items() if job is not None else ():
            attempt = turn.world.attempts[pod_name(job_id, index, number)]
            if index and attempt.stopping is None:
                assert job is not None
                turn.create_pod(attempt, job, turn.world.nodes[attempt.node_id])


def note_wait(turn: Turn, wait_ms: int) -> None:
    """Count a wait from runnable to running in its power-of-two bucket."""
    totals = turn.world.totals
    if not totals.waits_ms:
        totals.waits_ms = [0] * WAIT_BUCKETS
    totals.waits_ms[min(wait_ms.bit_length(), WAIT_BUCKETS - 1)] += 1
    totals.longest_wait_ms = max(totals.longest_wait_ms, wait_ms)


def on_pod_ended(turn: Turn, fact: facts.PodEnded) -> None:
    """The pod is over; what we asked for goes before what it said itself, if it was not over before that."""
    attempt = turn.world.attempts.get(fact.pod)
    environment = environment_of(turn, attempt)
    turn.effects.append(effects.ForgetPod(pod=fact.pod, compute_environment=environment))
    if attempt is None:
        return
    note_room(turn, environment)
    end = fact.end
    if attempt.stopping is not None and not ended_before(turn, attempt, fact):
        end = AttemptEnd(
            cause=attempt.stopping.cause,
            exit_code=None if attempt.stopping.cause is Cause.EXITED else end.exit_code,
            reason=end.reason or attempt.stopping.reason,
            status_reason=attempt.stopping.status_reason,
            container=end.container,
        )
    end_attempt(turn, attempt, end, fact.at)


def ended_before(turn: Turn, attempt: Attempt, fact: facts.PodEnded) -> bool:
    """Whether its own end came before ours, and the news of it only now.

    That goes for any end before a timeout. Before other stops only for a success: a machine that is taken back may have ended
    it, too, and that costs no attempt.
    """
    by = attempt.stop_asked_at
    if attempt.stopping is not None and attempt.stopping.cause is Cause.TIMEOUT:
        timeout_s = turn.world.jobs[attempt.job_id].spec.timeout_s
        by = (attempt.started_at or 0) + (timeout_s or 0) * 1000
    elif not fact.end.succeeded:
        return False
    return by is not None and fact.at + limits.END_AHEAD_S * 1000 <= by


def on_pod_refused(turn: Turn, fact: facts.PodRefused) -> None:
    """It never ran: for free to another node, later if it is not the node, or for good if the pod itself is wrong."""
    attempt = turn.world.attempts.get(fact.pod)
    environment = environment_of(turn, attempt)
    turn.effects.append(effects.ForgetPod(pod=fact.pod, compute_environment=environment))
    if attempt is None:
        return
    if fact.quota:
        waiting = AttemptEnd(cause=Cause.WAITING, status_reason=fact.reason)
        end_attempt(turn, attempt, attempt.stopping or waiting, fact.at)
        rest_namespace(turn, environment, fact.reason, unusable=fact.unusable)
        return
    job = turn.world.jobs[attempt.job_id]
    cause = Cause.STOPPED if fact.permanent else Cause.PLATFORM
    end = AttemptEnd(cause=cause, status_reason=fact.reason)
    if not fact.permanent and is_hopeless(turn, job):
        reason = fact.reason[: limits.CONTAINER_REASON_LENGTH_MAX]
        end = AttemptEnd(cause=Cause.EXITED, reason=reason, status_reason=NOT_STARTED)
    end_attempt(turn, attempt, attempt.stopping or end, fact.at)
    if not fact.permanent:
        note_refusal(turn, job, turn.world.nodes.get(attempt.node_id), fact.reason)


def on_pod_stuck(turn: Turn, fact: facts.PodStuck) -> None:
    """It would stay STARTING for ever: ended like any attempt that failed, so retryStrategy decides."""
    attempt = turn.world.attempts.get(fact.pod)
    if attempt is None or attempt.status is JobStatus.RUNNING or attempt.stopping is not None:
        return
    reason = fact.reason[: limits.CONTAINER_REASON_LENGTH_MAX]
    end = AttemptEnd(cause=Cause.EXITED, reason=reason, status_reason=NOT_STARTED)
    note_stop(turn, attempt, end)
    turn.delete_pod(attempt)


def on_pods_listed(turn: Turn, fact: facts.PodsListed) -> None:
    """Pods that were seen before the look began and are not in it are gone; unknown ones are strays."""
    for pod in sorted(fact.pods - turn.world.attempts.keys()):
        delete_stray(turn, pod, fact.compute_environment)
    end = AttemptEnd(cause=Cause.PLATFORM, status_reason=retry.POD_DELETED)
    for attempt in list(turn.world.attempts.values()):
        node = turn.world.nodes.get(attempt.node_id)
        if node is None or node.compute_environment != fact.compute_environment:
            continue
        is_old = attempt.seen_at is not None and attempt.seen_at < fact.at
        if is_old and attempt.pod_name not in fact.pods:
            end_attempt(turn, attempt, attempt.stopping or end, fact.at)


def on_node_ready(turn: Turn, fact: facts.NodeReady) -> None:
    node = node_known_as(turn, fact.node_id)
    if node is None:
        turn.world.joins.keep(fact.node_id, fact, anew=True)
        return
    if node.status is NodeStatus.READY:
        if node.allocatable != fact.allocatable:
            turn.world.set_allocatable(node, fact.allocatable)
            turn.world.measured.grow(node)
        return
    if node.status is NodeStatus.TERMINATING:
        return
    turn.world.note_launched(node, fact.at)
    turn.world.settle(node, min(fact.at, turn.now))  # what came before is BOOT
    node.joined_as = None if fact.node_id == node.node_id else fact.node_id
    node.node_name, node.ready_at, node.idle_since = fact.node_name, fact.at, turn.now
    turn.world.set_allocatable(node, fact.allocatable)
    turn.world.move_node(node, NodeStatus.READY)
    turn.world.never_joined.pop(node.compute_environment, None)
    measure(turn, node)
    turn.wake_in(turn.idle_s(node), "idle", node.node_id)


def measure(turn: Turn, node: Node) -> None:
    """What it has for pods, others of its type are believed to have."""
    measured, kind = turn.world.measured, kind_of(node)
    environment = turn.world.compute_environments.get(node.compute_environment)
    if environment is not None and environment.managed and measured.join(node):
        believed_s = limits.doubled(
            limits.MEASURED_S, measured.forgotten[kind] + 1, limits.MEASURED_S_MAX
        )
        turn.wake_in(believed_s, "measured", "/".join(kind))


def on_node_found(turn: Turn, fact: facts.NodeFound) -> None:
    """Others own it: it enters the world ready, is never given back, and leaves when it is lost."""
    node = turn.world.nodes.get(fact.node_id)
    if node is not None:
        if node.allocatable != fact.allocatable:
            turn.world.set_allocatable(node, fact.allocatable)
        return
    environment = turn.world.compute_environments.get(fact.compute_environment)
    if environment is None or environment.managed or environment.status == "DELETING":
        return
    turn.world.add_node(
        Node(
            node_id=fact.node_id,
            compute_environment=environment.name,
            offering=fact.offering,
            status=NodeStatus.READY,
            allocatable=fact.allocatable,
            node_name=fact.node_name,
            requested_at=fact.at,
            ready_at=fact.at,
            idle_since=turn.now,
        )
    )
    turn.world.note_launched(turn.world.nodes[fact.node_id], fact.at)


def on_node_closed(turn: Turn, fact: facts.NodeClosed) -> None:
    """A node that is still coming is not closed: being not ready is how it begins."""
    node = node_known_as(turn, fact.node_id)
    if node is None:
        turn.world.joins.keep(fact.node_id, fact)
    elif node.status is NodeStatus.READY:
        if node.closed != fact.reason and not node.is_leaving:
            turn.world.close_node(node, fact.reason)
    elif node.status is not NodeStatus.TERMINATING and fact.reason:
        note_joined(turn, node, fact)


def note_joined(turn: Turn, node: Node, fact: facts.NodeClosed) -> None:
    """It is in the cluster, and the next step of its youth has a time of its own."""
    if node.joined_at is None:
        node.joined_at = turn.now
        turn.watch_youth(node)
    node.lacks = fact.reason
    turn.world.note_node(node)


def on_node_lost(turn: Turn, fact: facts.NodeLost) -> None:
    """Nothing of a managed node runs again before its instance has certainly ended: nothing runs twice at once.

    The machine of an unmanaged one is out of reach: its jobs run again now, and if it was only cut off, beside what still
    runs there (DECISIONS 4).
    """
    node = node_known_as(turn, fact.node_id)
    if node is None:
        turn.world.joins.drop(fact.node_id)
        return
    environment = turn.world.compute_environments.get(node.compute_environment)
    if environment is not None and not environment.managed:
        give_up_node(turn, node, fact.at, fact.reason)
    elif node.is_young:
        fail_to_join(turn, node, fact.reason)
    elif node.status is not NodeStatus.TERMINATING:
        turn.terminate_node(node, fact.reason)


def on_nodes_listed(turn: Turn, fact: facts.NodesListed) -> None:
    """Heals lost news: nodes that left while nobody looked."""
    for node in list(turn.world.nodes.values()):
        if node.compute_environment != fact.compute_environment or node.known_as in fact.nodes:
            continue
        if (
            node.status is NodeStatus.READY
            and node.ready_at is not None
            and node.ready_at < fact.at
        ):
            lost = facts.NodeLost(node_id=node.node_id, at=fact.at, reason="it left the cluster")
            on_node_lost(turn, lost)


def node_known_as(turn: Turn, known_as: NodeId) -> Node | None:
    """The node that its cluster calls so."""
    return turn.world.nodes.get(turn.world.joins.node_of(known_as))


def give_up_node(turn: Turn, node: Node, at: int, reason: str) -> None:
    """The machine is gone: its attempts ended with it, at no cost to the user."""
    end = AttemptEnd(cause=Cause.PLATFORM, status_reason=host_ended(node))
    for pod in sorted(turn.world.pods_by_node.get(node.node_id, ())):
        attempt = turn.world.attempts[pod]
        end_attempt(turn, attempt, attempt.stopping or end, at)
    turn.world.remove_node(node, turn.now, reason, at=at)


def host_ended(node: Node) -> str:
    return retry.host_ended(node.instance_id or node.node_name or node.node_id)


def delete_stray(turn: Turn, pod: PodName, environment: str) -> None:
    """A pod that no live attempt asks for must not run; without an environment every cluster is asked."""
    turn.effects.append(
        effects.DeletePod(pod=pod, compute_environment=environment, grace_s=limits.GRACE_S)
    )


def environment_of(turn: Turn, attempt: Attempt | None) -> str:
    """The compute environment an attempt's pod runs in; empty when nobody knows any more."""
    node = turn.world.nodes.get(attempt.node_id) if attempt is not None else None
    return node.compute_environment if node is not None else ""
