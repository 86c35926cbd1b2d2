"""What the outside may tell us. Facts may come late, twice, out of order or not at all."""

from __future__ import annotations

from typing import Literal

import msgspec

from airflow_eksbatch.core.model.compute_environment import ComputeEnvironment
from airflow_eksbatch.core.model.job import Ended, JobId, JobSpec, PodName
from airflow_eksbatch.core.model.job_definition import JobDefinition
from airflow_eksbatch.core.model.job_queue import JobQueue
from airflow_eksbatch.core.model.node import NodeId, Offering
from airflow_eksbatch.core.model.resources import Resources
from airflow_eksbatch.core.model.retry import AttemptEnd
from airflow_eksbatch.core.model.share import SchedulingPolicy


class Fact(msgspec.Struct, frozen=True, kw_only=True):
    """Anything that happened."""


# ---- from callers; each gets an answer after the commit


class JobSubmitted(Fact, frozen=True, kw_only=True):
    """`spec` is complete but for `seq`; the definition, parameters and overrides are already worked in."""

    spec: JobSpec
    dependency_ends: dict[JobId, Ended] = {}
    """Dependencies that left the world. Looked up by the loop in the same beat."""
    earlier_job: JobId | None = None
    """The job an earlier submit with this token made, if it left the world. Looked up likewise."""
    newest: JobSpec | None = None
    """The newest job of its Airflow task, if that left the world. Looked up likewise."""
    may_end_in: tuple[str, ...] = ()
    """The job queues in which it may take the place of an earlier try; empty for all."""


class JobTried(JobSubmitted, frozen=True, kw_only=True):
    """A submit that is only tried: refused as it would be, else answered with the job that it would make."""


class JobStopped(Fact, frozen=True, kw_only=True):
    """CancelJob (`terminate` False) or TerminateJob, for a job or one child (`index`)."""

    job_id: JobId
    index: int | None = None
    reason: str
    terminate: bool


class QueuePut(Fact, frozen=True, kw_only=True):
    """Create or update: the whole job queue as it shall be. `create` refuses a name that is taken."""

    queue: JobQueue
    create: bool
    seen: JobQueue | None = None
    """What an update was made from: refused as Outdated if that is not what is there; None overwrites whatever is."""


class ComputeEnvironmentPut(Fact, frozen=True, kw_only=True):
    """As QueuePut."""

    compute_environment: ComputeEnvironment
    create: bool
    seen: ComputeEnvironment | None = None
    replaces_nodes: bool = False
    """Machines are made otherwise from now on: those there are go when their jobs have ended."""


class PolicyPut(Fact, frozen=True, kw_only=True):
    """As QueuePut."""

    policy: SchedulingPolicy
    create: bool
    seen: SchedulingPolicy | None = None


class Deleted(Fact, frozen=True, kw_only=True):
    """DeleteJobQueue, DeleteComputeEnvironment, DeleteSchedulingPolicy."""

    kind: Literal["job_queue", "compute_environment", "scheduling_policy"]
    name: str


class DefinitionRegistered(Fact, frozen=True, kw_only=True):
    """Becomes the next revision of its name; `revision` and `arn` of what is given are replaced."""

    definition: JobDefinition
    arn_prefix: str


class DefinitionDeregistered(Fact, frozen=True, kw_only=True):
    name: str
    revision: int


class TagsChanged(Fact, frozen=True, kw_only=True):
    """TagResource and UntagResource, in the words of the ARN."""

    kind: Literal["job-queue", "compute-environment", "scheduling-policy", "job-definition"]
    name: str
    added: dict[str, str] = {}
    removed: tuple[str, ...] = ()


# ---- from a cluster


class PodSeen(Fact, frozen=True, kw_only=True):
    """The pod exists and is not running yet."""

    pod: PodName
    at: int


class PodRunning(Fact, frozen=True, kw_only=True):
    pod: PodName
    at: int
    address: str = ""
    """IP address of the pod; empty where it has none yet, and told again with it."""


class PodEnded(Fact, frozen=True, kw_only=True):
    pod: PodName
    at: int
    end: AttemptEnd


class PodRefused(Fact, frozen=True, kw_only=True):
    """The pod could not be created or was turned away by the node (OutOfcpu, ...): a free requeue.

    `permanent` when the API server calls the pod itself invalid: then it fails for good.
    """

    pod: PodName
    at: int
    reason: str
    permanent: bool = False
    quota: bool = False
    """The namespace of its compute environment has no room under its ResourceQuota: it waits."""
    unusable: bool = False
    """Beside `quota`: that namespace takes no pods at all (it is gone, or our rights are): to be checked again."""


class PodStuck(Fact, frozen=True, kw_only=True):
    """The pod cannot start, and waiting has not helped (ImagePullBackOff, ...): it is ended, and the user pays."""

    pod: PodName
    at: int
    reason: str


class NodeReady(Fact, frozen=True, kw_only=True):
    """The node joined, carries our labels, and its DaemonSets run. `allocatable` is what is left for our pods."""

    node_id: NodeId
    node_name: str
    allocatable: Resources
    at: int


class NodeFound(Fact, frozen=True, kw_only=True):
    """A node of an unmanaged compute environment is ready: somebody gave it our label, nobody asked for it.

    `offering` says what the machine is. The first time the node enters the world, later its room is corrected.
    """

    node_id: NodeId
    compute_environment: str
    node_name: str
    offering: Offering
    allocatable: Resources
    at: int


class NodeClosed(Fact, frozen=True, kw_only=True):
    """Cordoned or under pressure: takes no new pods; `reason` None opens it again."""

    node_id: NodeId
    reason: str | None
    at: int


class NodeLost(Fact, frozen=True, kw_only=True):
    """The node left the cluster or is unreachable for good: its pods are gone."""

    node_id: NodeId
    at: int
    reason: str


class PodsListed(Fact, frozen=True, kw_only=True):
    """A full look at one compute environment's pods: whatever is not in it, and was seen before, is gone."""

    compute_environment: str
    pods: frozenset[PodName]
    at: int
    """When the look began; younger attempts are not judged by it."""


class NodesListed(Fact, frozen=True, kw_only=True):
    """A full look at one compute environment's nodes: one that was ready before and is not in it is lost."""

    compute_environment: str
    nodes: frozenset[NodeId]
    at: int


# ---- from a cloud


class OfferingsListed(Fact, frozen=True, kw_only=True):
    """All that a compute environment may buy; whatever it could buy before and is not in it is sold no more."""

    compute_environment: str
    offerings: tuple[Offering, ...]
    made_from: ComputeEnvironment | None = None
    """As in EnvironmentChecked."""


class InstanceLaunched(Fact, frozen=True, kw_only=True):
    node_id: NodeId
    instance_id: str
    at: int


class LaunchAlone(Fact, frozen=True, kw_only=True):
    """Its instance was not made with the others that were asked for together: it is to be asked for alone."""

    node_id: NodeId


class LaunchRefused(Fact, frozen=True, kw_only=True):
    """The cloud's no. `code` as EC2 words it (InsufficientInstanceCapacity, ...)."""

    node_id: NodeId
    code: str
    message: str
    at: int
    quota: bool = False
    """It holds for all that counts against the same quota (VcpuLimitExceeded, ...) and is not smaller, in all pools."""
    for_good: bool = False
    """Only a person can mend it (UnauthorizedOperation, wrong subnet): the environment goes INVALID."""


class SpotInterrupted(Fact, frozen=True, kw_only=True):
    """Two-minute notice, given at `at`: the node takes no new work, is emptied in time, and is replaced at once."""

    node_id: NodeId
    at: int


class RebalanceRecommended(Fact, frozen=True, kw_only=True):
    """EC2 finds an interruption more likely than usual: the node takes no new work, and keeps what it has."""

    node_id: NodeId
    at: int


class InstanceGone(Fact, frozen=True, kw_only=True):
    """The instance has ended; `reclaimed` when the cloud took it back."""

    node_id: NodeId
    at: int
    reason: str
    reclaimed: bool = False


class InstancesListed(Fact, frozen=True, kw_only=True):
    """A full look at one compute environment's instances by node id; others are gone, unknown ones are strays."""

    compute_environment: str
    instances: dict[str, str]
    """node id -> instance id"""
    at: int


# ---- from the service itself


class ClockTicked(Fact, frozen=True, kw_only=True):
    """Nothing happened but time."""


class EnvironmentChecked(Fact, frozen=True, kw_only=True):
    """Validation of a compute environment by its adapters: VALID, or INVALID with the reason."""

    name: str
    status: Literal["VALID", "INVALID"]
    status_reason: str
    made_from: ComputeEnvironment | None = None
    """What was looked at: of one that was updated since it says nothing. None takes it for what is there."""
