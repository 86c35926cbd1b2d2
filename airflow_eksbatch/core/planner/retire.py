"""Retire: nodes without work go, down to the minimum. Never one that has work or gets some."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from airflow_eksbatch.core.model.node import Node, NodeId, NodeStatus
from airflow_eksbatch.core.planner.plan import Placement, Retirement
from airflow_eksbatch.core.world.world import World


def retire_nodes(
    world: World, placements: Iterable[Placement], now: int, idle_s: float
) -> list[Retirement]:
    """Empty nodes whose time has come; `idle_s` counts where an environment does not say."""
    busy = {placement.node_id for placement in placements}
    spare = defaultdict[str, int](int)
    for name, environment in world.compute_environments.items():
        floor = 0 if environment.status == "DELETING" else environment.min_vcpus
        spare[name] = world.vcpus[name] - floor
    retirements: list[Retirement] = []
    for node in world.nodes.values():
        reason = why_retire(world, node, busy, now, idle_s)
        if reason is None:
            continue
        if node.is_open and spare[node.compute_environment] < node.offering.vcpus:
            continue
        spare[node.compute_environment] -= node.offering.vcpus
        retirements.append(Retirement(node_id=node.node_id, reason=reason))
    return retirements


def why_retire(world: World, node: Node, busy: set[NodeId], now: int, idle_s: float) -> str | None:
    """Why this node should go now; None keeps it."""
    environment = world.compute_environments.get(node.compute_environment)
    if environment is None or not environment.managed:
        return None
    if node.is_coming and environment.status == "DELETING":
        return "its compute environment is being deleted"
    if node.status is not NodeStatus.READY or node.idle_since is None or node.node_id in busy:
        return None
    if environment.status == "DELETING":
        return "its compute environment is being deleted"
    if node.closed is not None:
        return f"empty and closed: {node.closed}"
    grace_s = idle_s if environment.idle_s is None else environment.idle_s
    if now - node.idle_since >= grace_s * 1000:
        return f"idle for {grace_s:g} s"
    return None
