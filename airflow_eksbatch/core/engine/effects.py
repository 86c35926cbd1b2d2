"""What one step leaves behind: what to keep, what to answer, and what the outside must do.

Every effect may be carried out twice; its name makes the second one harmless.
"""

from __future__ import annotations

import msgspec

from airflow_eksbatch.core.model.errors import Rejected
from airflow_eksbatch.core.model.job import PodName
from airflow_eksbatch.core.model.node import NodeId, Offering
from airflow_eksbatch.core.planner.plan import Plan
from airflow_eksbatch.core.world.changes import Changes

Key = tuple[type["Effect"], str]


class Effect(msgspec.Struct, frozen=True, kw_only=True):
    """Anything to be done."""

    compute_environment: str

    @property
    def name(self) -> str:
        """What it is done to: a pod, a node, an instance, or the compute environment itself."""
        return self.compute_environment

    @property
    def key(self) -> Key:
        """What makes two effects the same one."""
        return type(self), self.name


class PodEffect(Effect, frozen=True, kw_only=True):
    pod: PodName

    @property
    def name(self) -> str:
        return self.pod


class NodeEffect(Effect, frozen=True, kw_only=True):
    node_id: NodeId

    @property
    def name(self) -> str:
        return self.node_id


class CreatePod(PodEffect, frozen=True, kw_only=True):
    """Create the pod straight on its node; 'already there' is success."""

    node_id: NodeId
    node_name: str
    namespace: str
    pod_properties: bytes
    """podProperties (JSON) of the job."""
    environment: dict[str, str]
    """AWS_BATCH_* variables, added to every container."""
    labels: dict[str, str]
    grace_s: int


class DeletePod(PodEffect, frozen=True, kw_only=True):
    """SIGTERM, after the grace SIGKILL; its end comes back as PodEnded. 'Not there' comes back so too."""

    grace_s: int


class ForgetPod(PodEffect, frozen=True, kw_only=True):
    """The attempt's end is remembered: keep its output, drop the pod."""


class LaunchNode(NodeEffect, frozen=True, kw_only=True):
    """Buy one instance; the node id is the idempotency token and becomes its label and tag."""

    offering: Offering
    together: tuple[NodeId, ...] = ()
    """Nodes, it among them, whose instances one request may make: the same ones each time it is asked for."""
    all_or_none: bool = False
    """Whether that request makes none of them if it cannot make all."""


class TerminateNode(NodeEffect, frozen=True, kw_only=True):
    """End the instance; 'not there' comes back as InstanceGone."""

    instance_id: str | None
    node_name: str | None


class TerminateStray(Effect, frozen=True, kw_only=True):
    """End an instance that carries our tags but that nobody remembers asking for."""

    instance_id: str

    @property
    def name(self) -> str:
        return self.instance_id


class CheckEnvironment(Effect, frozen=True, kw_only=True):
    """Validate a new or changed compute environment and list its offerings."""


class DeleteEnvironment(Effect, frozen=True, kw_only=True):
    """End what is left of a compute environment in its cloud, also instances that were never known here."""

    uuid: str


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """`answers[i]` belongs to fact i: None, a noun (the job id, the definition, a job that was tried), or a Rejected.

    Order for the caller: commit `changes`, then give the answers, then start the effects.
    """

    changes: Changes
    effects: list[Effect]
    answers: list[object | Rejected | None]
    plan: Plan
    wake_at: int | None = None
    """Epoch ms of the next thing that time alone brings."""
