"""Jobs, their attempts, and the lifecycle as a table."""

from __future__ import annotations

import enum
from typing import NewType

import msgspec

from airflow_eksbatch.core.model import ranges
from airflow_eksbatch.core.model.node import NodeId
from airflow_eksbatch.core.model.ranges import EMPTY, Ranges
from airflow_eksbatch.core.model.resources import FREE, NO_BILL, Bill, Cost, Resources
from airflow_eksbatch.core.model.retry import AttemptEnd, RetryStrategy

JobId = NewType("JobId", str)
PodName = NewType("PodName", str)


class JobStatus(enum.StrEnum):
    SUBMITTED = "SUBMITTED"
    PENDING = "PENDING"
    RUNNABLE = "RUNNABLE"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"


TERMINAL = frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED})

# The life of one index (a plain job has index 0). RUNNABLE from STARTING or RUNNING is a retry.
TRANSITIONS: dict[JobStatus, frozenset[JobStatus]] = {
    JobStatus.SUBMITTED: frozenset({JobStatus.PENDING, JobStatus.RUNNABLE, JobStatus.FAILED}),
    JobStatus.PENDING: frozenset({JobStatus.RUNNABLE, JobStatus.FAILED}),
    JobStatus.RUNNABLE: frozenset({JobStatus.STARTING, JobStatus.FAILED}),
    JobStatus.STARTING: frozenset(
        {JobStatus.RUNNING, JobStatus.RUNNABLE, JobStatus.SUCCEEDED, JobStatus.FAILED}
    ),
    JobStatus.RUNNING: frozenset({JobStatus.RUNNABLE, JobStatus.SUCCEEDED, JobStatus.FAILED}),
    JobStatus.SUCCEEDED: frozenset(),
    JobStatus.FAILED: frozenset(),
}


class DependencyType(enum.StrEnum):
    PLAIN = "PLAIN"
    SEQUENTIAL = "SEQUENTIAL"
    N_TO_N = "N_TO_N"


class Dependency(msgspec.Struct, frozen=True, kw_only=True):
    """`job_id` is empty for SEQUENTIAL, which is a rule inside one array."""

    type: DependencyType = DependencyType.PLAIN
    job_id: JobId = JobId("")


class MultiNode(msgspec.Struct, frozen=True, kw_only=True):
    """What makes a job a multi-node parallel job: its indices are nodes that run together, index 0 its main node.

    AWS's number of a node differs from the index where another than node 0 is the main one: those two change places.
    """

    nodes: int
    main: int = 0
    """AWS's number of the main node."""
    pods: tuple[tuple[int, bytes], ...]
    """By AWS's numbers: the first node of each stretch, ascending from 0, and its podProperties (JSON)."""

    def renumbered(self, number: int) -> int:
        """AWS's number of an index, and the index of AWS's number."""
        return {0: self.main, self.main: 0}.get(number, number)

    def pod_of(self, index: int) -> bytes:
        number = self.renumbered(index)
        return next(pod for first, pod in reversed(self.pods) if first <= number)


class JobSpec(msgspec.Struct, frozen=True, kw_only=True):
    """All that SubmitJob fixed; never changes afterwards."""

    job_id: JobId
    name: str
    queue: str
    definition: str
    """`name:revision` of the job definition."""
    resources: Resources
    """What each of its pods asks for; of a multi-node job the most that one of them does."""
    pod: bytes
    """podProperties (JSON) with parameters filled in and overrides applied; of a multi-node job its main node's."""
    share: str = ""
    priority: int = 0
    array_size: int | None = None
    multi_node: MultiNode | None = None
    retry: RetryStrategy = RetryStrategy()
    timeout_s: int | None = None
    depends_on: tuple[Dependency, ...] = ()
    parameters: dict[str, str] = {}
    tags: dict[str, str] = {}
    token: str | None = None
    """A repeat with the same token is the same job."""
    task_key: str | None = None
    """dag|run|task|map index of the Airflow task that wants this job, and @deployment if that has a name."""
    try_number: int = 0
    task_instance: str = ""
    """Airflow's id of this try; a younger one is greater. Empty if it was not told."""
    airflow: bytes | None = None
    """What Airflow told of the task (JSON), shown to people."""
    created_at: int = 0
    seq: int = 0
    """Order of arrival over the whole system; set when it is accepted."""

    @property
    def size(self) -> int:
        """How many indices it has."""
        return self.multi_node.nodes if self.multi_node is not None else self.array_size or 1

    @property
    def jobs(self) -> int:
        """How many jobs people see in it."""
        return self.array_size or 1

    def pod_of(self, index: int) -> bytes:
        """podProperties of an index."""
        return self.pod if self.multi_node is None else self.multi_node.pod_of(index)


class Attempt(msgspec.Struct, kw_only=True):
    """One placement of one index on one node; its pod's name is made of all three."""

    job_id: JobId
    index: int
    number: int
    """1, 2, ...: counts placements, also those that cost the user nothing."""
    charged_before: int
    """How many attempts were counted against the retry strategy before this one."""
    waited_before: int = 0
    """How many before this one met a quota that was used up, and did not begin."""
    node_id: NodeId
    node_name: str = ""
    """As its cluster calls the node."""
    status: JobStatus = JobStatus.STARTING
    created_at: int
    seen_at: int | None = None
    """When the cluster first showed the pod; a full look older than that says nothing about it."""
    started_at: int | None = None
    stopped_at: int | None = None
    stopping: AttemptEnd | None = None
    """Set when we asked the cluster to end it: that is then how it ended, unless it had before."""
    stop_asked_at: int | None = None
    """When `stopping` was set; None where an earlier release did it."""
    end: AttemptEnd | None = None
    charged: bool = True
    """Whether its end counted against the retry strategy."""
    part: int = 0
    """Billionths of its node that it pays for while it is there."""
    address: str = ""
    """IP address of the pod of a main node: its other nodes are told."""
    cost: Cost = FREE
    """Set by its end."""

    @property
    def is_unseen(self) -> bool:
        """Its pod was asked for, is still wanted, and the cluster has not shown it."""
        return self.seen_at is None and self.stopping is None

    @property
    def pod_name(self) -> PodName:
        return pod_name(self.job_id, self.index, self.number)


def pod_name(job_id: JobId, index: int, number: int) -> PodName:
    """Derived, so that creating a pod a second time is 'already there'."""
    return PodName(f"{job_id}-{index}-{number}")


class Tries(msgspec.Struct, frozen=True, kw_only=True):
    """What an index has behind it while it waits to run again."""

    placed: int = 0
    charged: int = 0
    waited: int = 0

    @property
    def lost(self) -> int:
        """How often the platform took it, mostly with its node."""
        return self.placed - self.charged - self.waited


class Job(msgspec.Struct, kw_only=True):
    """A live job: every index is in exactly one of the four sets or has a live attempt.

    A plain job is an array of one; only its wire form differs. A multi-node job lives as its index 0, its main node, does:
    how other nodes ended is told by their sets, and means nothing for the job.
    """

    spec: JobSpec
    pending: Ranges = EMPTY
    runnable: Ranges = EMPTY
    succeeded: Ranges = EMPTY
    failed: Ranges = EMPTY
    running: dict[int, int] = {}
    """index -> number of its live attempt."""
    tries: dict[int, Tries] = {}
    """Only indices that were placed before and are not finished."""
    waits_for: frozenset[JobId] = frozenset()
    """Jobs whose end is awaited as a whole (plain dependencies)."""
    matched: dict[JobId, Ranges] = {}
    """N_TO_N: the indices that each awaited array has succeeded in so far."""
    follows: JobId | None = None
    """The job of an earlier try of its Airflow task, which is being ended: nothing of this one begins before that."""
    runnable_at: int | None = None
    """When its dependencies were met; waits are counted from here."""
    runnable_again_at: int | None = None
    """When something of it last became RUNNABLE after that: an index that runs again, or more of an array's."""
    stop_reason: str | None = None
    """Given by CancelJob or TerminateJob on the job as a whole; by the last of them."""
    first_stop_reason: str | None = None
    """Of the first of those, which ended all that waited: nothing of the job waits again after it."""
    child_stops: dict[int, str] = {}
    """Reasons of children that were ended one by one before they ran."""
    cancelled_children: Ranges = EMPTY
    terminated_children: Ranges = EMPTY
    """Those that waited when CancelJob or TerminateJob came, for them or for the whole array."""
    cancelled: bool = False
    terminated: bool = False
    status_reason: str | None = None
    started_at: int | None = None
    stopped_at: int | None = None
    main_ended: Attempt | None = None
    """The main node's last attempt while the other nodes of a multi-node job are being ended after it."""
    bill: Bill = NO_BILL
    """What its ended attempts cost, all indices together."""

    @property
    def job_id(self) -> JobId:
        return self.spec.job_id

    @property
    def is_array(self) -> bool:
        return self.spec.array_size is not None

    @property
    def is_multi_node(self) -> bool:
        return self.spec.multi_node is not None

    def leads(self, index: int) -> bool:
        """Whether what happens to this index happens to the job, or to a child that people know as one."""
        return index == 0 or self.spec.multi_node is None

    @property
    def is_finished(self) -> bool:
        return not (self.pending or self.runnable or self.running)

    @property
    def last_runnable_at(self) -> int:
        """Since then all that waits of it has waited."""
        return self.runnable_again_at or self.runnable_at or self.spec.created_at

    def status_of(self, index: int) -> JobStatus:
        """Status of an index without a live attempt; STARTING stands for one that has (ask the attempt)."""
        if index in self.running:
            return JobStatus.STARTING
        for status, members in (
            (JobStatus.PENDING, self.pending),
            (JobStatus.RUNNABLE, self.runnable),
            (JobStatus.SUCCEEDED, self.succeeded),
        ):
            if ranges.contains(members, index):
                return status
        return JobStatus.FAILED

    def reason_of_stop(self, index: int) -> str | None:
        """What was said by the stop that found it waiting; jobs of before `first_stop_reason` have the last one's."""
        return self.child_stops.get(index) or self.first_stop_reason or self.stop_reason

    @property
    def end_status(self) -> JobStatus:
        """How the job as a whole ended; only for finished ones."""
        if self.is_multi_node:
            return self.status_of(0)
        return JobStatus.FAILED if self.failed else JobStatus.SUCCEEDED


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """What jobs that name it in dependsOn need to know of a job that has ended."""

    succeeded: bool
    array_size: int | None = None
    failed: Ranges = EMPTY


def ended(job: Job) -> Ended:
    """Of a finished job."""
    return Ended(
        succeeded=job.end_status is JobStatus.SUCCEEDED,
        array_size=job.spec.array_size,
        failed=job.failed,
    )


class JobEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One step in a life, as listeners and the story of a job tell it."""

    seq: int
    time: int
    job_id: JobId
    index: int | None
    """None for an array job as a whole; plain jobs have None too."""
    job_name: str
    job_queue: str
    status: JobStatus
    status_reason: str | None = None
    exit_code: int | None = None
    attempt: int = 0
    """Its number, which counts placements."""
    attempts: int = 0
    """How many count against the retry strategy, this one included unless it was free."""
    parent: bool = False
    node_id: str | None = None
    task_key: str | None = None
    cost: Cost | None = None
    """What the job cost, told with its end."""

    @property
    def public_id(self) -> str:
        return self.job_id if self.index is None else f"{self.job_id}:{self.index}"
