"""Retire: nodes without work go, down to the minimum. Never one that has work or gets some."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Set

from airflow_eksbatch.core.model.node import Node, NodeId, NodeStatus
from airflow_eksbatch.core.planner.plan import Placement, Retirement
from airflow_eksbatch.core.world.world import World


def retire_nodes(
    world: World,
    placements: Iterable[Placement],
    now: int,
    idle_s: float,
    *,
    kept_back: Set[NodeId] = frozenset(),
    emptied: Set[NodeId] = frozenset(),
    exchanged: Mapping[str, int] = {},
) -> list[Retirement]:
    """Empty nodes whose time has come; `idle_s` counts where an environment does not say.

    `kept_back` wait for jobs of nodes that are being taken back; `emptied` go at once, since they are too small, and whatever
    the minimum is in the environments of `exchanged`.
    """
    busy = {placement.node_id for placement in placements} | kept_back
    closing = any(e.status == "DELETING" for e in world.compute_environments.values())
    going = [
        (node, reason)
        for node in world.nodes.values()
        # Most nodes have work.
        if (closing or node.idle_since is not None)
        and (reason := why_retire(world, node, busy, emptied, now, idle_s=idle_s)) is not None
    ]
    if not going:
        return []
    spare = spare_vcpus(world)
    retirements: list[Retirement] = []
    order = sorted(going, key=lambda pair: (stays_useful(pair[0]), pair[0].node_id not in emptied))
    for node, reason in order:
        name = node.compute_environment
        is_exchanged = node.node_id in emptied and name in exchanged
        if stays_useful(node) and spare[name] < node.offering.vcpus and not is_exchanged:
            continue
        spare[name] -= node.offering.vcpus
        retirements.append(Retirement(node_id=node.node_id, reason=reason))
    return retirements


def stays_useful(node: Node) -> bool:
    """Whether it may count for the minimum: closed ones go first, and whatever the minimum is."""
    return node.closed is None or node.is_paused


def spare_vcpus(world: World) -> defaultdict[str, int]:
    """What each environment has above its minimum, nodes on their way out not counted."""
    spare = defaultdict[str, int](int)
    for name, environment in world.compute_environments.items():
        floor = 0 if environment.status == "DELETING" else environment.min_vcpus
        spare[name] = world.vcpus[name] - floor
    for node in world.nodes.values():
        if node.status is NodeStatus.TERMINATING:
            spare[node.compute_environment] -= node.offering.vcpus
    return spare


def why_retire(
    world: World, node: Node, busy: Set[NodeId], emptied: Set[NodeId], now: int, *, idle_s: float
) -> str | None:
    """Why this node should go now; None keeps it."""
    environment = world.compute_environments.get(node.compute_environment)
    if environment is None or not environment.managed:
        return None
    if node.is_young and environment.status == "DELETING":
        return "its compute environment is being deleted"
    if node.status is not NodeStatus.READY or node.idle_since is None or node.node_id in busy:
        return None
    if environment.status == "DELETING":
        return "its compute environment is being deleted"
    if node.closed is not None and not node.is_paused:
        return f"empty and closed: {node.closed}"
    if node.node_id in emptied:
        return "empty, and to leave room for a larger one"
    if node.reserved_for is not None:
        return None
    grace_s = idle_s if environment.idle_s is None else environment.idle_s
    if now - node.idle_since >= grace_s * 1000:
        return f"idle for {grace_s:g} s"
    return None
