"""Nodes that are alike for packing stand together: what is free, or will be, is looked at once for all of them."""

from __future__ import annotations

from typing import TypeVar

from airflow_eksbatch.core.model.node import Load, Node, NodeId
from airflow_eksbatch.core.model.resources import Resources

K = TypeVar("K")
Room = tuple[str, Resources]
"""Compute environment and what is free."""
ComingRoom = tuple[str, Resources, Load]
"""Compute environment, what will be free, and what it was bought for: alike, as long as nothing has come."""


class Rooms:
    """Each node is in one room at most; a dict of node ids is a set that keeps its order."""

    def __init__(self) -> None:
        self.open: dict[Room, dict[NodeId, None]] = {}
        self.coming: dict[ComingRoom, dict[NodeId, None]] = {}

    def enter(self, node: Node) -> None:
        """As it is now."""
        if node.is_open:
            self.open.setdefault((node.compute_environment, node.free), {})[node.node_id] = None
        elif node.is_coming:
            self.coming.setdefault(coming_room(node), {})[node.node_id] = None

    def leave(self, node: Node) -> None:
        """Before it changes."""
        leave(self.open, (node.compute_environment, node.free), node.node_id)
        leave(self.coming, coming_room(node), node.node_id)


def coming_room(node: Node) -> ComingRoom:
    return node.compute_environment, node.allocatable, node.bought_for


def leave(rooms: dict[K, dict[NodeId, None]], room: K, node_id: NodeId) -> None:
    """Take a node out of a room, and the room away if it was the last."""
    members = rooms.get(room)
    if members is not None and node_id in members:
        del members[node_id]
        if not members:
            del rooms[room]
