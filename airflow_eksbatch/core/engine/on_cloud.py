"""What clouds report: instances, refusals, interruptions."""

from __future__ import annotations

import msgspec

from airflow_eksbatch.core.engine import effects, facts
from airflow_eksbatch.core.engine.on_cluster import give_up_node
from airflow_eksbatch.core.engine.turn import Turn
from airflow_eksbatch.core.model import limits
from airflow_eksbatch.core.model.node import SPOT_NOTICE, NodeId, NodeStatus, Offering


def on_offerings_listed(turn: Turn, fact: facts.OfferingsListed) -> None:
    """Kept in memory only: it is read anew at every start."""
    turn.world.offerings[fact.compute_environment] = fact.offerings


def on_instance_launched(turn: Turn, fact: facts.InstanceLaunched) -> None:
    node = turn.world.nodes.get(fact.node_id)
    if node is None:
        return
    if node.instance_id is None:
        node.instance_id = fact.instance_id
        turn.world.note_node(node)
    turn.world.note_launched(node, fact.at)
    forget_refusals(turn, node.offering)
    if node.status is NodeStatus.TERMINATING:
        turn.terminate_node(node, node.reason or "not needed any more")
    elif turn.world.move_node(node, NodeStatus.LAUNCHED):
        turn.wake_in(limits.NODE_JOIN_S_MAX, "join", node.node_id)


def on_launch_refused(turn: Turn, fact: facts.LaunchRefused) -> None:
    """Pool or quota is left alone for a while; the planner turns to the next offering in this same beat."""
    node = turn.world.nodes.get(fact.node_id)
    if node is None or node.launched_at is not None:
        return
    rest(turn, node.offering.quota if fact.quota else node.offering.pool)
    turn.world.totals.refused += 1
    turn.world.remove_node(node, turn.now, f"{fact.code}: {fact.message}")
    environment = turn.world.compute_environments.get(node.compute_environment)
    if fact.for_good and environment is not None and environment.status == "VALID":
        reason = f"CLIENT_ERROR - {fact.code}: {fact.message}"
        turn.world.put_compute_environment(
            msgspec.structs.replace(environment, status="INVALID", status_reason=reason)
        )


def rest(turn: Turn, where: str) -> None:
    """Leave a pool or a quota alone for a while, and longer each time; what comes while it rests was on its way."""
    until, times = turn.world.refused_until, turn.world.refused_times
    since = turn.now - until.get(where, 0)
    if since < 0:
        return
    times[where] = times.get(where, 0) + 1 if since <= limits.REFUSAL_S_MAX * 1000 else 1
    rest_s = min(limits.REFUSAL_S << min(times[where] - 1, 10), limits.REFUSAL_S_MAX)
    until[where] = turn.now + rest_s * 1000
    turn.wake_in(rest_s, "refusal", where)


def forget_refusals(turn: Turn, offering: Offering) -> None:
    """It was granted; a grant that comes after a no was there before it."""
    for where in (offering.pool, offering.quota):
        if turn.world.refused_until.get(where, turn.now) < turn.now:
            del turn.world.refused_until[where], turn.world.refused_times[where]


def on_spot_interrupted(turn: Turn, fact: facts.SpotInterrupted) -> None:
    """Two minutes are left: no new work; what runs may still finish."""
    node = turn.world.nodes.get(fact.node_id)
    if node is not None and node.closed != SPOT_NOTICE:
        turn.world.close_node(node, SPOT_NOTICE)
        rest(turn, node.offering.pool)


def on_instance_gone(turn: Turn, fact: facts.InstanceGone) -> None:
    node = turn.world.nodes.get(fact.node_id)
    if node is None:
        return
    if fact.reclaimed:
        turn.world.totals.reclaims += 1
    give_up_node(turn, node, fact.at, fact.reason)


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
            give_up_node(turn, node, fact.at, "instance ended outside our knowledge")
