"""What the reactions of one step share: the world, the time, and what has to be done."""

from __future__ import annotations

from collections import deque

import msgspec

from airflow_eksbatch.core.engine.effects import CreatePod, DeletePod, Effect, TerminateNode
from airflow_eksbatch.core.model import labels, limits
from airflow_eksbatch.core.model.job import (
    Attempt,
    Ended,
    Job,
    JobEvent,
    JobId,
    JobStatus,
    pod_name,
)
from airflow_eksbatch.core.model.node import Node, NodeStatus
from airflow_eksbatch.core.model.ranges import Ranges
from airflow_eksbatch.core.world.world import World


class StepSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator may set about decisions."""

    idle_s: float = 60.0
    """How long an empty node is kept where its environment does not say."""
    join_s: int = limits.NODE_JOIN_S_MAX
    """How long an instance may take to join its cluster."""
    gather_s: float = 0.0
    """How long no new work must have come before instances are bought; three times as long at most."""
    check_plans: bool = False
    """Count again what every plan does before it is carried out: for tests and the simulator."""


class News(msgspec.Struct, frozen=True, kw_only=True):
    """These indices of a job have ended; `members` None: the job as a whole has."""

    job: Job
    members: Ranges | None
    succeeded: bool


class Turn(msgspec.Struct, kw_only=True):
    world: World
    now: int
    settings: StepSettings
    effects: list[Effect] = []
    news: deque[News] = msgspec.field(default_factory=deque[News])
    """Ends that others may have waited for and have not been told of yet."""
    main_nodes: list[JobId] = []
    """Multi-node jobs whose main node runs since this step: their other nodes may begin."""
    ended: dict[JobId, Ended] = {}
    """Jobs that left the world in this step: the store does not know of their end yet."""
    ended_by_token: dict[str, JobId] = {}

    def wake_in(self, seconds: float, kind: str, key: str) -> None:
        self.world.wake_at(self.now + int(seconds * 1000), kind, key)

    def tell(
        self,
        job: Job,
        status: JobStatus,
        *,
        index: int | None = None,
        reason: str | None = None,
        attempt: Attempt | None = None,
    ) -> None:
        """One event: of an index, or (index None) of the job as a whole."""
        exit_code = attempt.end.exit_code if attempt is not None and attempt.end else None
        self.world.tell(
            JobEvent(
                seq=self.world.next_event_seq(),
                time=self.now,
                job_id=job.job_id,
                index=index if job.is_array else None,
                job_name=job.spec.name,
                job_queue=job.spec.queue,
                status=status,
                status_reason=reason,
                exit_code=exit_code,
                attempt=attempt.number if attempt is not None else 0,
                attempts=attempt.charged_before + attempt.charged if attempt is not None else 0,
                parent=job.is_array and index is None,
                node_id=attempt.node_id if attempt is not None else None,
                task_key=job.spec.task_key,
                cost=job.bill.total if index is None and job.stopped_at is not None else None,
            )
        )

    def create_pod(self, attempt: Attempt, job: Job, node: Node) -> None:
        """Ask for the attempt's pod; asking twice is harmless. Of a multi-node job the main node is first (AWS)."""
        address = ""
        if not job.leads(attempt.index):
            main = self.main_of(job)
            if main is None or not main.address:
                return
            address = main.address
        environment = self.world.compute_environments[node.compute_environment]
        self.effects.append(
            CreatePod(
                pod=attempt.pod_name,
                compute_environment=environment.name,
                node_id=node.known_as,
                node_name=node.node_name or "",
                namespace=environment.namespace,
                pod_properties=job.spec.pod_of(attempt.index),
                environment=batch_environment(job, attempt, environment.name)
                | node_environment(job, attempt, address),
                labels={
                    labels.JOB_ID: job.job_id,
                    labels.ENVIRONMENT_UUID: environment.uuid,
                    labels.NODE_UID: node.node_id,
                },
                grace_s=limits.GRACE_S,
            )
        )
        self.wake_in(limits.POD_SEEN_S_MAX, "unseen", attempt.pod_name)

    def main_of(self, job: Job) -> Attempt | None:
        """The live attempt of a multi-node job's main node."""
        return self.world.attempts.get(pod_name(job.job_id, 0, job.running.get(0, 0)))

    def delete_pod(self, attempt: Attempt) -> None:
        """Ask for the end of the attempt's pod."""
        node = self.world.nodes[attempt.node_id]
        self.effects.append(
            DeletePod(
                pod=attempt.pod_name,
                compute_environment=node.compute_environment,
                grace_s=limits.GRACE_S,
            )
        )
        self.wake_in(limits.GRACE_S + limits.POD_SEEN_S_MAX, "stopping", attempt.pod_name)

    def terminate_node(self, node: Node, reason: str) -> None:
        """Ask for the end of the node's instance."""
        if node.status is not NodeStatus.TERMINATING:
            self.world.move_node(node, NodeStatus.TERMINATING)
            node.reason = reason
        self.effects.append(
            TerminateNode(
                node_id=node.node_id,
                compute_environment=node.compute_environment,
                instance_id=node.instance_id,
                node_name=node.node_name,
            )
        )
        self.wake_in(limits.LAUNCH_ANSWER_S_MAX, "ending", node.node_id)

    def watch_youth(self, node: Node) -> None:
        """Look again when the step of its youth that it is in must be over."""
        self.world.wake_at(node.join_by(self.settings.join_s), "join", node.node_id)

    def idle_s(self, node: Node) -> float:
        """How long this node is kept when it is empty."""
        environment = self.world.compute_environments.get(node.compute_environment)
        if environment is None or environment.idle_s is None:
            return self.settings.idle_s
        return environment.idle_s


def batch_environment(job: Job, attempt: Attempt, environment: str) -> dict[str, str]:
    """The variables that AWS Batch gives a container."""
    variables = {
        "AWS_BATCH_JOB_ID": job.job_id,
        "AWS_BATCH_JOB_ATTEMPT": str(attempt.charged_before + 1),
        "AWS_BATCH_JQ_NAME": job.spec.queue,
        "AWS_BATCH_CE_NAME": environment,
        "AWS_BATCH_JOB_KUBERNETES_NODE_UID": attempt.node_id,
    }
    if job.is_array:
        variables["AWS_BATCH_JOB_ID"] = f"{job.job_id}:{attempt.index}"
        variables["AWS_BATCH_JOB_ARRAY_INDEX"] = str(attempt.index)
        variables["AWS_BATCH_JOB_ARRAY_SIZE"] = str(job.spec.size)
    return variables


def node_environment(job: Job, attempt: Attempt, main_address: str) -> dict[str, str]:
    """What AWS Batch tells the nodes of a multi-node job beside that; the main one is not told its own address."""
    multi_node = job.spec.multi_node
    if multi_node is None:
        return {}
    number = multi_node.renumbered(attempt.index)
    variables = {
        "AWS_BATCH_JOB_ID": f"{job.job_id}#{number}",
        "AWS_BATCH_JOB_MAIN_NODE_INDEX": str(multi_node.main),
        "AWS_BATCH_JOB_NODE_INDEX": str(number),
        "AWS_BATCH_JOB_NUM_NODES": str(multi_node.nodes),
    }
    if main_address:
        variables["AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS"] = main_address
    return variables
