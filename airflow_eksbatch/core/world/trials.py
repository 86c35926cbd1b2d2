"""When what went wrong in a compute environment is tried again: in memory only, since a restart looks into all of them."""

from __future__ import annotations

from collections import Counter

import msgspec

from airflow_eksbatch.core.model.job import JobId
from airflow_eksbatch.core.model.node import Node, NodeId
from airflow_eksbatch.core.world.job_class import JobClass


class Refusals(msgspec.Struct, kw_only=True):
    """How often kubelets turned away pods of a job class, since one of them last ran."""

    reason: str = ""
    """The kubelet's words."""
    nodes: list[NodeId] = []
    """Where, in order; while a node is left alone for it, what it turns away is not counted."""
    jobs: set[JobId] = set()
    """Whose pods they were."""
    times: int = 0
    """How often these jobs were left alone; before the first time it may be the nodes."""
    until: int = 0
    proofs: int = 0
    """How often that was after the word of a node on which nothing else ran: there is no more room than that."""


class Stuck(msgspec.Struct, frozen=True, kw_only=True):
    """Why jobs of a class cannot be placed, and since when; `paused` while it seems otherwise for the first time."""

    reason: str
    since: int
    paused: bool = False


class Trials(msgspec.Struct, kw_only=True):
    """By compute environment; times are epoch ms."""

    stuck: dict[JobClass, Stuck] = {}
    """By job class, of queues with time limits."""
    stuck_look_at: dict[str, int] = {}
    """When a queue with time limits is looked at."""
    refusals: dict[JobClass, Refusals] = {}
    """By job class."""

    check_at: dict[str, int] = {}
    """When an INVALID one is looked into again."""
    invalid_times: Counter[str] = msgspec.field(default_factory=Counter[str])
    """How often in a row it became INVALID, or stayed so, without an instance in between."""
    answered: dict[str, tuple[NodeId, int]] = {}
    """The launch that its cloud last answered, whatever it said, and when."""
    overtaken_at: dict[NodeId, int] = {}
    """Launches without an answer, and since when one that was asked for later has its own."""

    def is_left_alone(self, job_class: JobClass, now: int) -> bool:
        """Whether none of these is to be tried now."""
        if not job_class.turned_away:
            return False
        refusals = self.refusals.get(job_class.without_refusals)
        return refusals is not None and now < refusals.until

    def forget_job(self, job_id: JobId) -> None:
        """It is over, or of another class; of a class none of whose jobs are left nothing is known."""
        for job_class, refusals in list(self.refusals.items()):
            refusals.jobs.discard(job_id)
            if not refusals.jobs:
                del self.refusals[job_class]

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
