"""What time alone brings: timeouts, unanswered requests, nodes that never joined."""

from __future__ import annotations

from airflow_eksbatch.core.engine.effects import LaunchNode
from airflow_eksbatch.core.engine.lives import stop_attempt
from airflow_eksbatch.core.engine.on_api import empty_queue
from airflow_eksbatch.core.engine.on_cluster import host_ended, measure
from airflow_eksbatch.core.engine.quotas import try_namespace
from airflow_eksbatch.core.engine.setbacks import (
    fail_to_join,
    none_joined,
    rest,
    try_environment,
    watch_spot,
)
from airflow_eksbatch.core.engine.time_limits import look_for_stuck
from airflow_eksbatch.core.engine.turn import Turn
from airflow_eksbatch.core.model import limits
from airflow_eksbatch.core.model.job import JobId, JobStatus, PodName
from airflow_eksbatch.core.model.node import SPOT_NOTICE, Node, NodeId, NodeStatus
from airflow_eksbatch.core.model.retry import TIMED_OUT, Cause
from airflow_eksbatch.core.world.fading import drop_faded, watch_usage
from airflow_eksbatch.core.world.measured import kind_of

# Nothing to look at: that it is time lets the planner, which comes next, buy again.
BUYING = ("refusal", "gather")


def on_time(turn: Turn) -> None:
    """Look at everything whose deadline has come. A deadline that is stale by now means nothing."""
    for kind, key in turn.world.due(turn.now):
        if kind in ("timeout", "unseen", "stopping"):
            on_pod_deadline(turn, kind, PodName(key))
        elif kind == "quota":
            try_namespace(turn, key)
        elif kind == "on-demand":
            if (job := turn.world.jobs.get(JobId(key))) is not None:
                watch_spot(turn, job)
        elif kind == "trial":
            try_environment(turn, key)
        elif kind == "emptying":
            empty_queue(turn, key)
        elif kind == "stuck":
            look_for_stuck(turn, key)
        elif kind == "share":
            drop_faded(turn.world, key, turn.now)
        elif kind == "measured":
            doubt_measure(turn, key)
        elif kind not in BUYING:
            on_node_deadline(turn, kind, NodeId(key))


def on_pod_deadline(turn: Turn, kind: str, pod: PodName) -> None:
    attempt = turn.world.attempts.get(pod)
    if attempt is None:
        return
    job = turn.world.jobs[attempt.job_id]
    node = turn.world.nodes.get(attempt.node_id)
    if kind == "timeout" and attempt.status is JobStatus.RUNNING and attempt.stopping is None:
        stop_attempt(turn, attempt, Cause.TIMEOUT, TIMED_OUT)
    elif kind == "stopping" and node is not None:
        turn.delete_pod(attempt)
    elif kind == "unseen" and node is not None and attempt.is_unseen:
        turn.create_pod(attempt, job, node)


def on_node_deadline(turn: Turn, kind: str, node_id: NodeId) -> None:
    node = turn.world.nodes.get(node_id)
    if node is None:
        return
    if kind == "launch" and node.status is NodeStatus.REQUESTED:
        look_at_launch(turn, node)
    elif kind == "join" and node.is_young:
        look_at_youth(turn, node)
    elif kind == "reclaim":
        empty_reclaimed(turn, node)
    elif kind == "ending" and node.status is NodeStatus.TERMINATING:
        turn.terminate_node(node, node.reason or "")
    elif kind == "reopen" and node.is_paused:
        turn.world.close_node(node, None)


def look_at_launch(turn: Turn, node: Node) -> None:
    """Asked for again, and given up when no answer comes: its room must not be counted on for ever."""
    if turn.now < launch_by(turn, node):
        ask_launch(turn, node)
        return
    rest(turn, node.offering.pool)
    turn.world.trials.overtaken_at.pop(node.node_id, None)
    # The request may have arrived: only the cloud knows, and then what came of it ends.
    turn.terminate_node(node, f"no answer to its launch for {limits.LAUNCH_S_MAX} s")


def launch_by(turn: Turn, node: Node) -> int:
    """How long its launch may stay without an answer."""
    return turn.world.trials.unanswered_since(node, turn.now) + limits.LAUNCH_S_MAX * 1000


def look_at_youth(turn: Turn, node: Node) -> None:
    """Each step has its own time: until it joins, and from then until it is ready with its DaemonSets."""
    join_s = turn.settings.join_s
    if turn.now < node.join_by(join_s):
        return
    if node.joined_at is None:
        fail_to_join(turn, node, f"did not join within {join_s} s")
    else:
        reason = f"joined, and was not ready within {limits.NODE_READY_S_MAX} s: {node.lacks}"
        fail_to_join(turn, node, reason)


def empty_reclaimed(turn: Turn, node: Node) -> None:
    """SIGTERM while there is time for it: in the end EC2 asks nobody."""
    for pod in sorted(turn.world.pods_by_node.get(node.node_id, ())):
        stop_attempt(turn, turn.world.attempts[pod], Cause.PLATFORM, host_ended(node))


def doubt_measure(turn: Turn, key: str) -> None:
    """Without a node to ask, what was measured may be over: a DaemonSet is taken away again, a device plugin comes."""
    environment, _, instance_type = key.partition("/")
    kind = (environment, instance_type)
    if any(
        node.ready_at is not None and kind_of(node) == kind for node in turn.world.nodes.values()
    ):
        turn.wake_in(limits.MEASURED_S, "measured", key)
    else:
        turn.world.measured.forget(kind)


def ask_launch(turn: Turn, node: Node) -> None:
    """Buy the node's instance; the node id makes a second request harmless."""
    turn.effects.append(
        LaunchNode(
            node_id=node.node_id,
            compute_environment=node.compute_environment,
            offering=node.offering,
            together=node.together,
            all_or_none=node.all_or_none,
        )
    )
    again_at, until = turn.now + limits.LAUNCH_ANSWER_S_MAX * 1000, launch_by(turn, node)
    at = min(again_at, until) if until > turn.now else again_at
    turn.world.wake_at(at, "launch", node.node_id)


def derive_deadlines(turn: Turn) -> None:
    """After a load: what the heap held, and which environments are tried with one instance."""
    for environment in turn.world.compute_environments.values():
        if none_joined(environment):
            turn.world.never_joined[environment.name] = limits.NEVER_JOINED_MAX
    for queue in turn.world.queues.values():
        if queue.status == "DELETING":
            turn.wake_in(0, "emptying", queue.name)
        if queue.time_limits:
            turn.wake_in(0, "stuck", queue.name)
    for usage in turn.world.usages.values():
        if not usage.running_cpu_m:
            watch_usage(turn.world, usage)
    for job in turn.world.jobs.values():
        watch_spot(turn, job)
    for attempt in turn.world.attempts.values():
        job = turn.world.jobs[attempt.job_id]
        if attempt.started_at is not None and job.spec.timeout_s is not None:
            at = attempt.started_at + job.spec.timeout_s * 1000
            turn.world.wake_at(at, "timeout", attempt.pod_name)
    for node in sorted(turn.world.nodes.values(), key=lambda node: node.ready_at or 0):
        if node.status is NodeStatus.READY:
            measure(turn, node)
        if node.idle_since is not None:
            turn.wake_in(turn.idle_s(node), "idle", node.node_id)
        if node.status is NodeStatus.LAUNCHED:
            turn.watch_youth(node)
        if node.closed == SPOT_NOTICE:
            turn.wake_in(0, "reclaim", node.node_id)
        if node.is_paused:
            turn.wake_in(limits.REFUSED_POD_PAUSE_S, "reopen", node.node_id)
