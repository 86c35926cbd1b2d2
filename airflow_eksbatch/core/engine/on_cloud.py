"""What clouds report: instances, refusals, interruptions."""

from __future__ import annotations

from airflow_eksbatch.core.engine import effects, facts
from airflow_eksbatch.core.engine.lives import stop_attempt
from airflow_eksbatch.core.engine.on_cluster import (
    give_up_node,
    host_ended,
    on_node_closed,
    on_node_ready,
)
from airflow_eksbatch.core.engine.on_time import ask_launch
from airflow_eksbatch.core.engine.setbacks import (
    distrust,
    forget_refusals,
    invalidate,
    rest,
    rest_refused,
)
from airflow_eksbatch.core.engine.turn import Turn
from airflow_eksbatch.core.model import limits
from airflow_eksbatch.core.model.job import JobStatus
from airflow_eksbatch.core.model.node import REBALANCE, SPOT_NOTICE, Node, NodeId, NodeStatus
from airflow_eksbatch.core.model.retry import Cause


def on_offerings_listed(turn: Turn, fact: facts.OfferingsListed) -> None:
    """Kept in memory only: it is read anew at every start."""
    name = fact.compute_environment
    environment = turn.world.compute_environments.get(name)
    if environment is not None and not environment.is_still(fact.made_from):
        return
    turn.world.offerings[name] = turn.world.measured.corrected(name, fact.offerings)


def on_instance_launched(turn: Turn, fact: facts.InstanceLaunched) -> None:
    node = turn.world.nodes.get(fact.node_id)
    if node is None:
        return
    turn.world.trials.note_answer(node, turn.now)
    if node.instance_id is None:
        node.instance_id = fact.instance_id
        turn.world.note_node(node)
    turn.world.note_launched(node, fact.at)
    if node.reserved_for is None:
        # One of several that are of no use alone says little of the others.
        forget_refusals(turn, node.offering)
    turn.world.trials.invalid_times.pop(node.compute_environment, None)
    if node.status is NodeStatus.TERMINATING:
        turn.terminate_node(node, node.reason or "not needed any more")
    elif turn.world.move_node(node, NodeStatus.LAUNCHED):
        turn.watch_youth(node)
    for early in turn.world.joins.note(node):
        if isinstance(early, facts.NodeReady):
            on_node_ready(turn, early)
        elif isinstance(early, facts.NodeClosed):
            on_node_closed(turn, early)


def on_launch_alone(turn: Turn, fact: facts.LaunchAlone) -> None:
    """Noted before it is asked for: asked for both ways, it could be made twice."""
    node = turn.world.nodes.get(fact.node_id)
    if node is not None and node.status is NodeStatus.REQUESTED and node.together:
        turn.world.trials.note_answer(node, turn.now)
        node.together, node.all_or_none = (), False
        turn.world.note_node(node)
        ask_launch(turn, node)


def on_launch_refused(turn: Turn, fact: facts.LaunchRefused) -> None:
    """Pool or quota is left alone for a while; the planner turns to the next offering in this same beat."""
    node = turn.world.nodes.get(fact.node_id)
    if node is None or node.launched_at is not None:
        return
    turn.world.trials.note_answer(node, turn.now)
    rest_refused(turn, node, quota=fact.quota)
    turn.world.totals.refused += 1
    turn.world.remove_node(node, turn.now, f"{fact.code}: {fact.message}")
    environment = turn.world.compute_environments.get(node.compute_environment)
    if fact.for_good and environment is not None and environment.status == "VALID":
        invalidate(turn, environment, f"CLIENT_ERROR - {fact.code}: {fact.message}")


def on_spot_interrupted(turn: Turn, fact: facts.SpotInterrupted) -> None:
    """Two minutes are left: no new work, what runs gets half of them to finish, and the planner replaces the node now."""
    node = turn.world.nodes.get(fact.node_id)
    if node is None or node.closed == SPOT_NOTICE:
        return
    turn.world.close_node(node, SPOT_NOTICE)
    turn.world.totals.reclaims += 1
    rest(turn, node.offering.pool)
    for pod in sorted(turn.world.pods_by_node.get(node.node_id, ())):
        attempt = turn.world.attempts[pod]
        if attempt.status is JobStatus.STARTING:
            stop_attempt(turn, attempt, Cause.PLATFORM, host_ended(node))
    turn.world.wake_at(fact.at + limits.SPOT_STOP_S * 1000, "reclaim", node.node_id)


def on_rebalance_recommended(turn: Turn, fact: facts.RebalanceRecommended) -> None:
    """More likely than others to be taken back: no new work there, and none of what runs is touched.

    One that has not joined yet would do no work at all: it is ended at once.
    """
    node = turn.world.nodes.get(fact.node_id)
    if node is None or node.is_leaving or node.status is NodeStatus.TERMINATING:
        return
    rest(turn, node.offering.pool)
    if node.is_young:
        turn.terminate_node(node, REBALANCE)
    else:
        turn.world.close_node(node, REBALANCE)


def on_instance_gone(turn: Turn, fact: facts.InstanceGone) -> None:
    node = turn.world.nodes.get(fact.node_id)
    if node is None:
        return
    if fact.reclaimed and node.closed != SPOT_NOTICE:
        turn.world.totals.reclaims += 1
        rest(turn, node.offering.pool)
    lose_instance(turn, node, fact.at, fact.reason, reclaimed=fact.reclaimed)


def lose_instance(turn: Turn, node: Node, at: int, reason: str, *, reclaimed: bool) -> None:
    """One that ends while its node is coming, and that nobody took back, did not get as far as others do."""
    if node.status is NodeStatus.LAUNCHED and not reclaimed and not node.is_leaving:
        distrust(turn, node, f"ended before it joined: {reason.rstrip('.')}")
    give_up_node(turn, node, at, reason)


def on_instances_listed(turn: Turn, fact: facts.InstancesListed) -> None:
    """Heals lost news: instances nobody told us of, instances that ended unseen, and strays."""
    known = turn.world.nodes
    environment = turn.world.compute_environments.get(fact.compute_environment)
    if environment is not None and not environment.managed:
        return  # Its machines are others': no cloud of ours has them on its list.
    for key, instance_id in sorted(fact.instances.items()):
        node = known.get(NodeId(key))
        if node is None:
            turn.effects.append(
                effects.TerminateStray(
                    instance_id=instance_id, compute_environment=fact.compute_environment
                )
            )
        elif node.instance_id is None:
            on_instance_launched(
                turn,
                facts.InstanceLaunched(node_id=node.node_id, instance_id=instance_id, at=fact.at),
            )
    for node in list(known.values()):
        if node.compute_environment != fact.compute_environment:
            continue
        is_old = node.launched_at is not None and node.launched_at < fact.at
        if is_old and node.node_id not in fact.instances:
            reason = "instance ended outside our knowledge"
            lose_instance(turn, node, fact.at, reason, reclaimed=False)
