"""What a step changed and must be remembered: whole rows, so that writing one twice is harmless."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from airflow_eksbatch.core.model.compute_environment import ComputeEnvironment
from airflow_eksbatch.core.model.job import Attempt, Job, JobEvent
from airflow_eksbatch.core.model.job_definition import JobDefinition
from airflow_eksbatch.core.model.job_queue import JobQueue
from airflow_eksbatch.core.model.node import Node
from airflow_eksbatch.core.model.share import SchedulingPolicy, ShareUsage
from airflow_eksbatch.core.world.books import Entry

# What operators set up, and what shares have used: few, small, read whole at start.
NOUNS: dict[str, type[msgspec.Struct]] = {
    "job_queue": JobQueue,
    "compute_environment": ComputeEnvironment,
    "scheduling_policy": SchedulingPolicy,
    "job_definition": JobDefinition,
    "share_usage": ShareUsage,
}


class Totals(msgspec.Struct, kw_only=True):
    """Sums over the whole life of the installation, which no query could make from what is kept."""

    jobs: int = 0
    """Submitted, arrays counted by their children."""
    succeeded: int = 0
    failed: int = 0
    attempts: int = 0
    retries: int = 0
    free_retries: int = 0
    reclaims: int = 0
    instances: dict[str, int] = {}
    """Launched, by compute environment."""
    refused: int = 0
    overflows: int = 0
    """Launches in an environment that was not the queue's first choice."""
    peak_instances: int = 0
    instance_ms: dict[str, int] = {}
    """As far as it is in the books, by compute environment."""
    nano_usd: dict[str, int] = {}
    waits_ms: list[int] = []
    """Submit (or runnable) to start: a histogram, bucket i counts waits under 2**i ms."""
    longest_wait_ms: int = 0


class Counters(msgspec.Struct, kw_only=True):
    """Numbers that only grow and must never be given out twice."""

    job_seq: int = 0
    event_seq: int = 0
    node: int = 0


class Changes(msgspec.Struct, kw_only=True):
    """One beat's transaction."""

    jobs_added: list[Job] = []
    """New rows: specification and state."""
    jobs: list[Job] = []
    """State of jobs that were there before; a finished one stays in the store and leaves the world."""
    attempts: list[Attempt] = []
    nodes: list[Node] = []
    queues: list[JobQueue] = []
    compute_environments: list[ComputeEnvironment] = []
    policies: list[SchedulingPolicy] = []
    definitions: list[JobDefinition] = []
    usages: list[ShareUsage] = []
    deleted: list[tuple[str, str]] = []
    """(kind, name) with kind job_queue, compute_environment, scheduling_policy or share_usage; nothing here is put, too."""
    events: list[JobEvent] = []
    costs: list[Entry] = []
    """Added to what is kept, not put in its place: the one thing here that must not be written twice."""
    totals: Totals | None = None
    counters: Counters | None = None

    def nouns(self) -> Iterator[tuple[str, str, msgspec.Struct]]:
        """(kind, name, noun) of each that is kept by its kind and name."""
        for queue in self.queues:
            yield "job_queue", queue.name, queue
        for environment in self.compute_environments:
            yield "compute_environment", environment.name, environment
        for policy in self.policies:
            yield "scheduling_policy", policy.name, policy
        for definition in self.definitions:
            yield "job_definition", definition.key, definition
        for usage in self.usages:
            yield "share_usage", usage.name, usage

    @property
    def is_empty(self) -> bool:
        return not any(getattr(self, name) for name in self.__struct_fields__)


class Snapshot(msgspec.Struct, kw_only=True):
    """All that is alive, as the store gives it back at start."""

    jobs: list[Job] = []
    attempts: list[Attempt] = []
    """Live ones only."""
    nodes: list[Node] = []
    queues: list[JobQueue] = []
    compute_environments: list[ComputeEnvironment] = []
    policies: list[SchedulingPolicy] = []
    definitions: list[JobDefinition] = []
    usages: list[ShareUsage] = []
    totals: Totals = msgspec.field(default_factory=Totals)
    counters: Counters = msgspec.field(default_factory=Counters)
