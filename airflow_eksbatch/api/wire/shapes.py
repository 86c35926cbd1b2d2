"""Wire dicts to model and back, both ways, nothing else."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from airflow_eksbatch.api.port import ApiSettings
from airflow_eksbatch.api.wire.node_properties import details_wire, properties_wire
from airflow_eksbatch.core.engine.views import array_summary
from airflow_eksbatch.core.model import limits, ranges
from airflow_eksbatch.core.model.errors import Rejected
from airflow_eksbatch.core.model.job import (
    Attempt,
    Dependency,
    DependencyType,
    Job,
    JobEvent,
    JobId,
    JobStatus,
    pod_name,
)
from airflow_eksbatch.core.model.resources import Bill, Cost
from airflow_eksbatch.core.model.retry import (
    DEPENDENCY_FAILED,
    AttemptEnd,
    Cause,
    EvaluateOnExit,
    RetryAction,
    RetryStrategy,
)
from airflow_eksbatch.core.world.where import INSTANCE_TYPE
from airflow_eksbatch.core.world.world import World

Wire = dict[str, Any]
EXIT_CODE = re.compile(r"[0-9]*\*?")


# ---- from the wire


def retry_from(wire: Wire | None) -> RetryStrategy | None:
    """retryStrategy; AWS wants `attempts` beside evaluateOnExit."""
    if not wire:
        return None
    rules = wire.get("evaluateOnExit", [])
    if rules and "attempts" not in wire:
        raise Rejected("retryStrategy.attempts must be given with evaluateOnExit.")
    attempts = wire.get("attempts", 1)
    if not 1 <= attempts <= limits.ATTEMPTS_MAX:
        raise Rejected(
            f"retryStrategy.attempts must be 1 to {limits.ATTEMPTS_MAX}, not {attempts}."
        )
    if len(rules) > limits.EVALUATE_ON_EXIT_MAX:
        raise Rejected(
            f"retryStrategy.evaluateOnExit takes at most {limits.EVALUATE_ON_EXIT_MAX} rules."
        )
    return RetryStrategy(
        attempts=attempts, evaluate_on_exit=tuple(rule_from(rule) for rule in rules)
    )


def rule_from(rule: Wire) -> EvaluateOnExit:
    return EvaluateOnExit(
        action=RetryAction(rule["action"]),
        on_status_reason=pattern_from(rule, "onStatusReason"),
        on_reason=pattern_from(rule, "onReason"),
        on_exit_code=pattern_from(rule, "onExitCode"),
    )


def pattern_from(rule: Wire, name: str) -> str | None:
    """One that AWS's model allows: others would match nothing, and the job would do what its rule forbids.

    Letters are not checked: rules are written with brackets and hyphens as reasons have them.
    """
    pattern = rule.get(name)
    if pattern is None:
        return None
    if len(pattern) > limits.PATTERN_LENGTH_MAX:
        raise Rejected(
            f"evaluateOnExit.{name} takes up to {limits.PATTERN_LENGTH_MAX} characters, not {len(pattern)}."
        )
    if name == "onExitCode" and not EXIT_CODE.fullmatch(pattern):
        raise Rejected(
            f"evaluateOnExit.onExitCode must be digits, with * at the end or not, not {pattern!r}: "
            "give each code a rule, and the others one without onExitCode."
        )
    if "*" in pattern[:-1]:
        raise Rejected(
            f"evaluateOnExit.{name} may have one * at its end, not {pattern!r}: write how the text begins."
        )
    return pattern


def scheduling_priority_from(priority: int, name: str) -> int:
    if not 0 <= priority <= limits.SCHEDULING_PRIORITY_MAX:
        raise Rejected(f"{name} must be 0 to {limits.SCHEDULING_PRIORITY_MAX}, not {priority}.")
    return priority


def timeout_from(wire: Wire | None) -> int | None:
    if not wire or wire.get("attemptDurationSeconds") is None:
        return None
    seconds = wire["attemptDurationSeconds"]
    if seconds < limits.TIMEOUT_S_MIN:
        raise Rejected(
            f"timeout.attemptDurationSeconds must be at least {limits.TIMEOUT_S_MIN}, not {seconds}."
        )
    return int(seconds)


def dependencies_from(wire: list[Wire] | None, array_size: int | None) -> tuple[Dependency, ...]:
    """dependsOn; SEQUENTIAL and N_TO_N need an array. SEQUENTIAL with a jobId waits for that job, too."""
    wire = wire or []
    if len(wire) > limits.DEPENDENCIES_MAX:
        raise Rejected(f"dependsOn takes at most {limits.DEPENDENCIES_MAX} jobs, not {len(wire)}.")
    found: list[Dependency] = []
    for entry in wire:
        kind = DependencyType(entry["type"]) if entry.get("type") else DependencyType.PLAIN
        if kind is not DependencyType.PLAIN and array_size is None:
            raise Rejected(
                f"dependsOn.type {kind.value} is for array jobs: give arrayProperties.size."
            )
        if kind is DependencyType.SEQUENTIAL:
            found.append(Dependency(type=kind))
            if entry.get("jobId"):
                found.append(Dependency(type=DependencyType.PLAIN, job_id=JobId(entry["jobId"])))
        elif not entry.get("jobId"):
            raise Rejected("dependsOn.jobId is required.")
        else:
            found.append(Dependency(type=kind, job_id=JobId(entry["jobId"])))
    return tuple(found)


# ---- to the wire


def retry_wire(retry: RetryStrategy) -> Wire:
    rules = [
        without_nothing(
            {
                "action": rule.action.value.lower(),
                "onStatusReason": rule.on_status_reason,
                "onReason": rule.on_reason,
                "onExitCode": rule.on_exit_code,
            }
        )
        for rule in retry.evaluate_on_exit
    ]
    return {"attempts": retry.attempts, "evaluateOnExit": rules}


def dependencies_wire(depends_on: tuple[Dependency, ...]) -> list[Wire]:
    return [
        {
            **({"jobId": entry.job_id} if entry.job_id else {}),
            **({} if entry.type is DependencyType.PLAIN else {"type": entry.type.value}),
        }
        for entry in depends_on
    ]


class JobView(msgspec.Struct, frozen=True, kw_only=True):
    """A job, one child of an array or one node of a multi-node job, with what DescribeJobs needs of it."""

    job: Job
    index: int | None
    """None: the job as a whole."""
    status: JobStatus
    attempts: Sequence[Attempt] = ()
    """Of the index (0 of a plain job, and of a multi-node one as a whole), oldest first, the live one included."""
    namespace: str = ""
    cluster_arn: str = ""
    stuck: str | None = None
    """Why it cannot be placed as things are, if it is RUNNABLE; None while it waits its turn."""
    summary: dict[str, int] | None = None

    @property
    def public_id(self) -> str:
        return public_id(self.job, self.index)

    @property
    def pod(self) -> Wire:
        """podProperties as resolved; of a multi-node job as a whole its main node's."""
        return msgspec.json.decode(self.job.spec.pod_of(self.index or 0))


def public_id(job: Job, index: int | None) -> str:
    """`uuid`, `uuid:index` of a child, or `uuid#node` by AWS's number of the node."""
    if index is None:
        return job.job_id
    multi_node = job.spec.multi_node
    if multi_node is not None:
        return f"{job.job_id}#{multi_node.renumbered(index)}"
    return f"{job.job_id}:{index}"


def status_in(world: World, job: Job, index: int | None) -> JobStatus:
    """Status of a live or finished job, or of one child or node; also of a copy that the world has left behind."""
    if index is None and job.is_array:
        return world.status_of(job)
    if index is None and job.main_ended is not None:
        return JobStatus.RUNNING
    index = index or 0
    number = job.running.get(index)
    if number is not None:
        attempt = world.attempts.get(pod_name(job.job_id, index, number))
        return attempt.status if attempt is not None else JobStatus.STARTING
    return job.status_of(index)


def job_detail(view: JobView, settings: ApiSettings) -> Wire:
    """JobDetail of an EKS job."""
    job, spec = view.job, view.job.spec
    last = view.attempts[-1] if view.attempts else None
    detail: Wire = {
        "jobArn": settings.arn(f"job/{view.public_id}"),
        "jobName": spec.name,
        "jobId": view.public_id,
        "jobQueue": settings.arn(f"job-queue/{spec.queue}"),
        "status": view.status.value,
        "statusReason": status_reason(view, last),
        "attempts": attempts_of_nodes(view),
        "eksAttempts": [
            eks_attempt(view, attempt) for attempt in view.attempts if has_begun(attempt)
        ],
        "createdAt": spec.created_at,
        "retryStrategy": retry_wire(spec.retry),
        "startedAt": last.started_at if last is not None else job.started_at,
        "stoppedAt": stopped_at(view, last),
        "dependsOn": dependencies_wire(spec.depends_on),
        "jobDefinition": settings.arn(f"job-definition/{spec.definition}"),
        "parameters": spec.parameters,
        "timeout": {"attemptDurationSeconds": spec.timeout_s} if spec.timeout_s else None,
        "tags": spec.tags if view.index is None else None,
        "platformCapabilities": [],
        "eksProperties": {"podProperties": pod_detail(view, last)},
        "container": container_view(view, last),
        "shareIdentifier": spec.share or None,
        "schedulingPriority": spec.priority if spec.share else None,
        "isCancelled": is_cancelled(view),
        "isTerminated": is_terminated(view, last),
    }
    if job.is_array and view.index is not None:
        detail["arrayProperties"] = {"index": view.index, "statusSummary": {}}
    elif job.is_array:
        detail["arrayProperties"] = {"size": spec.size, "statusSummary": view.summary or {}}
    if spec.multi_node is not None and view.index is not None:
        detail["nodeDetails"] = details_wire(spec.multi_node, view.index)
    elif spec.multi_node is not None:
        instance_type = spec.tags.get(INSTANCE_TYPE)
        detail["nodeProperties"] = properties_wire(spec.multi_node, instance_type)
    return without_nothing(detail)


def status_reason(view: JobView, last: Attempt | None) -> str | None:
    """The job's own reason once it has ended; what it is stuck for; else what became of the last attempt."""
    if view.stuck is not None:
        return view.stuck
    if view.index is None and view.job.status_reason:
        return view.job.status_reason
    if waited_for_its_stop(view):
        return view.job.reason_of_stop(view.index or 0)
    if last is not None and last.end is not None:
        return last.end.status_reason
    if view.status is JobStatus.FAILED:
        return view.job.stop_reason or DEPENDENCY_FAILED
    return None


def waited_for_its_stop(view: JobView) -> bool:
    """Whether CancelJob or TerminateJob ended this child while it waited, however its last attempt had ended."""
    job, index = view.job, view.index
    if index is None:
        return False
    if job.is_multi_node:
        return job.cancelled
    return (
        ranges.contains(job.cancelled_children, index)
        or ranges.contains(job.terminated_children, index)
        or index in job.child_stops
    )


def is_cancelled(view: JobView) -> bool:
    """Of a child, only if it was one of those that CancelJob found waiting; nodes are what their job is."""
    if view.index is None or view.job.is_multi_node:
        return view.job.cancelled
    return waited_for_its_stop(view) and not is_terminated(view, None)


def is_terminated(view: JobView, last: Attempt | None) -> bool:
    """Of a child, only if TerminateJob found it waiting, or ended its last attempt; nodes are what their job is."""
    if view.index is None or view.job.is_multi_node:
        return view.job.terminated
    if ranges.contains(view.job.terminated_children, view.index):
        return True
    if last is None or last.stopping is None or last.stopping.cause is not Cause.STOPPED:
        return False
    return last.end is None or last.end.cause is Cause.STOPPED


def stopped_at(view: JobView, last: Attempt | None) -> int | None:
    if view.index is None:
        return view.job.stopped_at
    ended = view.status in (JobStatus.SUCCEEDED, JobStatus.FAILED)
    return last.stopped_at if ended and last is not None else None


def has_begun(attempt: Attempt) -> bool:
    """Whether it ended, and was more than a wait for a quota."""
    return attempt.end is not None and attempt.end.cause is not Cause.WAITING


def eks_attempt(view: JobView, attempt: Attempt) -> Wire:
    end = attempt.end
    assert end is not None
    pod = view.pod
    wire: Wire = {
        **{
            kind: [
                {"name": container.get("name", "Default"), **ending_in_pod(pod, container, end)}
                for container in pod.get(kind) or ()
            ]
            for kind in ("containers", "initContainers")
        },
        "eksClusterArn": view.cluster_arn,
        "podName": attempt.pod_name,
        "podNamespace": (pod.get("metadata") or {}).get("namespace") or view.namespace,
        "nodeName": attempt.node_name or attempt.node_id,
        "startedAt": attempt.started_at,
        "stoppedAt": attempt.stopped_at,
        "statusReason": end.status_reason,
        "charged": attempt.charged,  # ours; clients that know AWS's model skip it
    }
    return without_nothing(wire)


def attempts_of_nodes(view: JobView) -> list[Wire]:
    """ECS's list, which AWS leaves empty for EKS: of multi-node jobs clients made for ECS look for log streams here.

    The attempt that runs is in it.
    """
    if not view.job.is_multi_node:
        return []
    return [
        without_nothing(
            {
                "container": {"logStreamName": attempt.pod_name, **ending(attempt.end)},
                "startedAt": attempt.started_at,
                "stoppedAt": attempt.stopped_at,
                "statusReason": attempt.end.status_reason if attempt.end is not None else None,
            }
        )
        for attempt in view.attempts
        if attempt.started_at is not None or has_begun(attempt)
    ]


def ending(end: AttemptEnd | None) -> Wire:
    """exitCode and reason, as far as they are known."""
    wire: Wire = {}
    if end is not None and end.exit_code is not None:
        wire["exitCode"] = end.exit_code
    if end is not None and end.reason:
        wire["reason"] = end.reason[: limits.CONTAINER_REASON_LENGTH_MAX]
    return wire


def ending_in_pod(pod: Wire, container: Wire, end: AttemptEnd | None) -> Wire:
    """What the end of a pod says of one of its containers: of a failure only the one that failed is known."""
    if end is None or end.exit_code == 0:
        return ending(end)
    mains = pod.get("containers") or []
    if end.container:
        is_meant = container.get("name", "Default").lower() == end.container.lower()
    else:
        # An end from before names were kept, or one that no container says anything of.
        is_meant = container in mains and (len(mains) == 1 or end.exit_code is None)
    return ending(end) if is_meant else {}


def pod_detail(view: JobView, last: Attempt | None) -> Wire:
    """podProperties as resolved, with where the last attempt ran and how it ended."""
    pod = view.pod
    if last is not None:
        pod["podName"], pod["nodeName"] = last.pod_name, last.node_name or last.node_id
        for container in (*pod.get("containers", ()), *(pod.get("initContainers") or ())):
            container |= ending_in_pod(pod, container, last.end)
    return pod


def container_view(view: JobView, last: Attempt | None) -> Wire:
    """Not in AWS's answer for EKS jobs; clients made for ECS find exit code and log stream here."""
    pod = view.pod
    first = (pod.get("containers") or [{}])[0]
    words = [*(first.get("command") or ()), *(first.get("args") or ())]
    # As the container gets them: Kubernetes makes one $ of two.
    command = [word.replace("$$", "$") for word in words]
    wire: Wire = {"image": first.get("image", ""), "command": command}
    if last is not None:
        wire |= {"logStreamName": last.pod_name, **ending(last.end)}
    return wire


def capacity(cpu_m: int) -> list[Wire]:
    return [{"capacityUnit": "cpu", "quantity": cpu_m / 1000}]


def job_summary(view: JobView, settings: ApiSettings) -> Wire:
    """JobSummary of ListJobs."""
    job, spec = view.job, view.job.spec
    last = view.attempts[-1] if view.attempts else None
    wire: Wire = {
        "jobArn": settings.arn(f"job/{view.public_id}"),
        "jobId": view.public_id,
        "jobName": spec.name,
        "createdAt": spec.created_at,
        "status": view.status.value,
        "statusReason": status_reason(view, last),
        "startedAt": last.started_at if last is not None else job.started_at,
        "stoppedAt": stopped_at(view, last),
        "jobDefinition": settings.arn(f"job-definition/{spec.definition}"),
        "shareIdentifier": spec.share or None,
        "capacityUsage": capacity(spec.resources.cpu_m * nodes_in(view)),
        "isCancelled": is_cancelled(view) or None,
        "isTerminated": is_terminated(view, last) or None,
    }
    if last is not None:
        wire["scheduledAt"] = last.created_at
        wire["container"] = ending(last.end) or None
    if spec.multi_node is not None and view.index is not None:
        wire["nodeProperties"] = {
            **details_wire(spec.multi_node, view.index),
            "numNodes": spec.multi_node.nodes,
        }
    elif spec.multi_node is not None:
        wire["nodeProperties"] = {"numNodes": spec.multi_node.nodes}
    elif view.index is not None:
        wire["arrayProperties"] = {"index": view.index}
    elif job.is_array:
        wire["arrayProperties"] = {"size": spec.size, "statusSummary": view.summary or {}}
    return without_nothing(wire)


def nodes_in(view: JobView) -> int:
    """How many nodes of a multi-node job it is; 1 of any other."""
    multi_node = view.job.spec.multi_node
    return multi_node.nodes if multi_node is not None and view.index is None else 1


def event_wire(event: JobEvent) -> Wire:
    """One event, as streams and stories tell it."""
    return {
        "seq": event.seq,
        "time": event.time,
        "jobId": event.public_id,
        "jobName": event.job_name,
        "jobQueue": event.job_queue,
        "status": event.status.value,
        "statusReason": event.status_reason,
        "exitCode": event.exit_code,
        "attempt": event.attempt,
        "attempts": event.attempts,
        "parent": event.parent,
        **({"cost": cost_wire(event.cost)} if event.cost is not None else {}),
    }


def cost_wire(cost: Cost) -> Wire:
    """Whole nano-dollars add up; dollars are for reading."""
    return {
        "nanoUsd": cost.nano_usd,
        "usd": cost.nano_usd / 1e9,
        "instanceSeconds": cost.instance_ms / 1_000,
        "vcpuHours": round(cost.vcpu_ms / 3_600_000, 6),
    }


def bill_wire(bill: Bill) -> Wire:
    return {
        "onDemand": cost_wire(bill.on_demand),
        "spot": cost_wire(bill.spot),
        "total": cost_wire(bill.total),
    }


def summary_of(world: World, job: Job) -> dict[str, int] | None:
    return array_summary(world, job) if job.is_array else None


def without_nothing(wire: Mapping[str, Any]) -> Wire:
    """Members that are None are not sent."""
    return {name: value for name, value in wire.items() if value is not None}
