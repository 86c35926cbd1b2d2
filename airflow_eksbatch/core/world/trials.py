"""When what went wrong in a compute environment is tried again: in memory only, since a restart looks into all of them."""

from __future__ import annotations

from collections import Counter

import msgspec

from airflow_eksbatch.core.model.node import Node, NodeId


class Trials(msgspec.Struct, kw_only=True):
    """By compute environment; times are epoch ms."""

    check_at: dict[str, int] = {}
    """When an INVALID one is looked into again."""
    invalid_times: Counter[str] = msgspec.field(default_factory=Counter[str])
    """How often in a row it became INVALID, or stayed so, without an instance in between."""
    answered: dict[str, tuple[NodeId, int]] = {}
    """The launch that its cloud last answered, whatever it said, and when."""
    overtaken_at: dict[NodeId, int] = {}
    """Launches without an answer, and since when one that was asked for later has its own."""

    def note_answer(self, node: Node, now: int) -> None:
        self.answered[node.compute_environment] = node.node_id, now
        self.overtaken_at.pop(node.node_id, None)

    def unanswered_since(self, node: Node, now: int) -> int:
        """Since when the answer to its launch is due.

        A burst is launched one after another at the cloud's pace: as long as older ones are answered, its turn may come.
        """
        last, at = self.answered.get(node.compute_environment, (node.node_id, 0))
        if last > node.node_id:
            return self.overtaken_at.setdefault(node.node_id, now)
        return max(node.requested_at, at)
