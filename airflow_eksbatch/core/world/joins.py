"""Nodes as their clusters know them: one that was bought together with others is known there by its instance."""

from __future__ import annotations

from airflow_eksbatch.core.model.node import Node, NodeId

# How ids of instances begin; node ids begin otherwise.
INSTANCE = "i-"


class Joins:
    """In memory only: after a new start clusters tell everything again, and a load within a process takes over what is early."""

    def __init__(self) -> None:
        self._nodes: dict[str, NodeId] = {}
        self._early: dict[str, list[object]] = {}

    def note(self, node: Node) -> list[object]:
        """Its instance is known from now on; answers what its cluster has told of it before that."""
        if node.instance_id is None:
            return []
        self._nodes[node.instance_id] = node.node_id
        return self._early.pop(node.instance_id, [])

    def forget(self, node: Node) -> None:
        if node.instance_id is not None:
            self._nodes.pop(node.instance_id, None)

    def node_of(self, known_as: NodeId) -> NodeId:
        """The node that a cluster calls so."""
        return self._nodes.get(known_as, known_as)

    def keep(self, known_as: NodeId, fact: object, *, anew: bool = False) -> None:
        """News of an instance of which no cloud has told yet: an answer to a launch may be slower than the machine."""
        if known_as.startswith(INSTANCE):
            kept = [] if anew else self._early.get(known_as, [])
            self._early[known_as] = [*kept[:1], fact]

    def early(self) -> dict[str, list[object]]:
        """By instance, what came before its node was known: for the world that may follow this one."""
        return dict(self._early)

    def recall(self, early: dict[str, list[object]]) -> None:
        """What the world before this one kept, but for instances that are known by now."""
        self._early = {known: facts for known, facts in early.items() if known not in self._nodes}

    def drop(self, known_as: NodeId) -> None:
        self._early.pop(known_as, None)
