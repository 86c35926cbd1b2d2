"""Pod objects -> facts: what Kubernetes says of a pod, in the words of retryStrategy; pure.

Every new way for pods to die belongs here, with a golden pod beside the test.
"""

from __future__ import annotations

import msgspec

from airflow_eksbatch.cluster.kube.objects import ContainerStatus, Pod, Terminated, epoch_ms
from airflow_eksbatch.core.engine.facts import Fact, PodEnded, PodRefused, PodRunning, PodSeen
from airflow_eksbatch.core.model.job import PodName
from airflow_eksbatch.core.model.limits import CONTAINER_REASON_LENGTH_MAX
from airflow_eksbatch.core.model.retry import (
    CONTAINER_EXITED,
    POD_DELETED,
    TIMED_OUT,
    AttemptEnd,
    Cause,
    exited,
    host_ended,
)

# The kubelet turned the pod away; it never ran. Another node may take it.
TURNED_AWAY = frozenset(
    {
        "NodeAffinity",
        "NodePorts",
        "NodeUnschedulable",
        "TopologyAffinityError",
        "UnexpectedAdmissionError",
        "InvalidNodeInfo",
        "TaintToleration",
    }
)
# The kubelet turned it away, and so would every other one.
NEVER_ADMITTED = frozenset(
    {"AppArmor", "SysctlForbidden", "PodOSNotSupported", "PodLevelResourcesNotSupported"}
)
# What Kubernetes did to the pod for reasons that are not the pod's.
DISRUPTED = frozenset({"Terminated", "Shutdown", "NodeShutdown", "NodeLost", "Preempting"})
# Of an eviction: the pod took more disk than it had asked for, which is its own doing.
OWN_DISK = ("exceeds the total limit", "exceeds the limit", "exceeded its local ephemeral storage")
# The machine went, so `Host EC2*`, on which people's rules match.
HOST_GONE = frozenset({"DeletionByPodGC", "DeletionByTaintManager"})
# A container that waits for one of these may still start ...
SLOW_STARTS_S = {
    "ErrImagePull": 300,
    "ImagePullBackOff": 300,
    "ImageInspectError": 300,
    "RegistryUnavailable": 300,
    "CreateContainerConfigError": 120,
    "CreateContainerError": 120,
    "RunContainerError": 120,
    # ... and these will not get better.
    "InvalidImageName": 0,
    "ErrImageNeverPull": 0,
}
# Volumes attach within minutes, or not at all (AWS gives up on claims too).
SANDBOX_S_MAX = 900
# Timestamps of Kubernetes have whole seconds; ours are better where we saw it happen.
FRESH_MS = 2500


class Trouble(msgspec.Struct, frozen=True, kw_only=True):
    """Why a pod does not start, and how long that may last."""

    reason: str
    patience_s: int


def facts_from_pod(pod: Pod, now: int, *, host: str, asked: bool, ahead_ms: int = 0) -> list[Fact]:
    """All there is to tell of a pod as it is now, oldest first.

    `host` names its machine as people know it; `asked` says that we have asked for its end; `now` is so much ahead
    of the cluster's clock.
    """
    name = PodName(pod.metadata.name)
    facts: list[Fact] = [PodSeen(pod=name, at=now)]
    started = started_at(pod, now, ahead_ms)
    if started is not None:
        facts.append(PodRunning(pod=name, at=started, address=pod.status.pod_ip))
    if not pod.is_over:
        return facts
    refusal = refusal_of(pod, now)
    if refusal is not None and started is None:
        return [refusal]
    end = end_of(pod, host=host, asked=asked)
    return [*facts, PodEnded(pod=name, at=ended_at(pod, now, ahead_ms), end=end)]


def started_at(pod: Pod, now: int, ahead_ms: int = 0) -> int | None:
    """When its containers began to run; None while they have not. Init containers are STARTING time."""
    begun: list[int] = []
    for status in pod.status.container_statuses:
        state = status.state.running or status.state.terminated
        at = None if state is None else _moment(state.started_at)
        if at is not None:
            begun.append(at + ahead_ms)
    if not begun or pod.status.phase == "Pending":
        return None
    return now if now - min(begun) < FRESH_MS else min(begun)


def ended_at(pod: Pod, now: int, ahead_ms: int = 0) -> int:
    """When the last container ended, as well as it is known."""
    states = (s.state.terminated for s in _statuses(pod))
    times = [at for state in states if state and (at := _moment(state.finished_at)) is not None]
    last = max(times) + ahead_ms if times else now
    return last if now - last >= FRESH_MS else now


def refusal_of(pod: Pod, now: int) -> PodRefused | None:
    """The kubelet did not admit it (OutOfcpu, OutOfmemory, OutOfpods, ...)."""
    reason = pod.status.reason
    permanent = reason in NEVER_ADMITTED
    if pod.status.phase != "Failed" or not (
        permanent or reason in TURNED_AWAY or reason.startswith("OutOf")
    ):
        return None
    text = sentence(reason, pod.status.message)
    return PodRefused(pod=PodName(pod.metadata.name), at=now, reason=text, permanent=permanent)


def end_of(pod: Pod, *, host: str, asked: bool) -> AttemptEnd:
    """How a pod that is over has ended, and which container with it."""
    speaks = _failed_container(pod)
    if speaks is None:
        return _end_by(pod, None, host=host, asked=asked)
    end = _end_by(pod, speaks.state.terminated, host=host, asked=asked)
    return end if not end.exit_code else msgspec.structs.replace(end, container=speaks.name)


def _end_by(pod: Pod, failed: Terminated | None, *, host: str, asked: bool) -> AttemptEnd:
    status = pod.status
    if status.reason == "DeadlineExceeded":
        return AttemptEnd(cause=Cause.TIMEOUT, exit_code=_code(failed), status_reason=TIMED_OUT)
    if status.reason == "Evicted" and any(text in status.message for text in OWN_DISK):
        return AttemptEnd(
            cause=Cause.EXITED,
            exit_code=_code(failed) or 137,
            reason=sentence("Evicted", status.message),
            status_reason=CONTAINER_EXITED,
        )
    disruption = _disruption(pod, host)
    if disruption is not None and not asked:
        return _platform(disruption, failed)
    if pod.metadata.deletion_timestamp is not None and not asked and _ended_by_deletion(pod):
        return _platform(POD_DELETED, failed)
    if status.phase == "Succeeded":
        return AttemptEnd(cause=Cause.EXITED, exit_code=0, reason="Completed")
    if failed is None:
        return _end_without_container(pod)
    if failed.reason == "ContainerStatusUnknown":
        return _platform("The end of the container was lost with its kubelet", None)
    return exited(failed.exit_code, _container_reason(failed))


def end_of_vanished(pod: Pod, *, host: str, host_is_gone: bool) -> AttemptEnd:
    """It is not there any more and never said how it ended."""
    if host_is_gone:
        return _platform(host_ended(host), None)
    return _platform(_disruption(pod, host) or POD_DELETED, None)


def trouble_of(pod: Pod) -> Trouble | None:
    """What keeps it from starting, if it is more than time."""
    if pod.is_over or pod.status.phase != "Pending":
        return None
    for status in _statuses(pod):
        waiting = status.state.waiting
        if waiting is not None and waiting.reason in SLOW_STARTS_S:
            text = sentence(waiting.reason, waiting.message)
            return Trouble(reason=text, patience_s=SLOW_STARTS_S[waiting.reason])
    for condition in pod.status.conditions:
        if condition.type == "PodReadyToStartContainers" and condition.status == "False":
            text = "its volumes or its network cannot be set up"
            return Trouble(reason=f"FailedMount: {text}", patience_s=SANDBOX_S_MAX)
    return None


def sentence(reason: str, message: str) -> str:
    """`Reason: message` as short as AWS has it."""
    plain = " ".join(message.split())
    return (f"{reason}: {plain}" if plain else reason)[:CONTAINER_REASON_LENGTH_MAX]


# ---- parts


def _moment(text: str | None) -> int | None:
    """Of a container that never ran (StartError) a kubelet says that it began with the epoch."""
    at = epoch_ms(text)
    return at if at is not None and at > 0 else None


def _statuses(pod: Pod) -> list[ContainerStatus]:
    return [*pod.status.init_container_statuses, *pod.status.container_statuses]


def _failed_container(pod: Pod) -> ContainerStatus | None:
    """The first that failed, init containers first, then in the order of the specification; sidecars at last.

    Those are ended when their work is, and many say 143 then.
    """
    by_name = {status.name: status for status in _statuses(pod)}
    containers = (*pod.spec.init_containers, *pod.spec.containers)
    for container in sorted(containers, key=lambda container: container.is_sidecar):
        status = by_name.get(container.name)
        ended = status.state.terminated if status is not None else None
        if ended is not None and ended.exit_code != 0:
            return status
    return None


def _container_reason(ended: Terminated) -> str:
    """`OOMKilled`, `Error`; a container that could not be run says why in its message."""
    reason = ended.reason or "Error"
    if reason in ("StartError", "ContainerCannotRun"):
        return sentence(reason, ended.message)
    return reason


def _code(failed: Terminated | None) -> int | None:
    return None if failed is None else failed.exit_code


def _platform(status_reason: str, failed: Terminated | None) -> AttemptEnd:
    return AttemptEnd(
        cause=Cause.PLATFORM,
        exit_code=_code(failed),
        reason=failed.reason or None if failed is not None else None,
        status_reason=status_reason,
    )


def _disruption(pod: Pod, host: str) -> str | None:
    """What Kubernetes did to it, in one sentence."""
    status = pod.status
    if status.reason == "Evicted" or status.reason in DISRUPTED:
        return sentence(f"Pod was disrupted: {status.reason}", status.message)
    for condition in status.conditions:
        if condition.type == "DisruptionTarget" and condition.status == "True":
            if condition.reason in HOST_GONE:
                return host_ended(host)
            return sentence(f"Pod was disrupted: {condition.reason}", condition.message)
    return None


def _ended_by_deletion(pod: Pod) -> bool:
    """Whether its containers were still running when somebody deleted it.

    A polite program that ends with 0 on SIGTERM has not done its work.
    """
    due = epoch_ms(pod.metadata.deletion_timestamp)
    if due is None:
        return False
    asked_at = due - 1000 * (pod.metadata.deletion_grace_period_seconds or 0)
    return ended_at(pod, due) >= asked_at


def _end_without_container(pod: Pod) -> AttemptEnd:
    """Failed, and no container says why."""
    status = pod.status
    text = sentence(status.reason or "Failed", status.message or "no container says why")
    return _platform(f"Pod failed: {text}", None)


# ---- what the API server says against a pod that is to be created

# The pod itself cannot be right ...
BAD_POD = (400, 413, 422)
# ... or is against a rule of the cluster: Pod Security, admission webhooks and policies, accounts, LimitRanges,
# ResourceQuotas. A "forbidden" that is none of these may pass: also a lookup that failed is called so.
AGAINST_RULES = (
    *("violates PodSecurity", "denied", "service account", "usage per", "limit to request ratio"),
    *("failed quota", "insufficient quota", "conflict with its namespace"),
    "conflicts with its namespace",
)
# What would forbid it does not know yet, or could not find out.
NOT_YET = (
    *("status unknown for quota", "not yet ready to handle request", "time allotted", "timeout"),
    *("timed out", "deadline exceeded", "connection refused", "etcdserver"),
)
# The namespace takes no pods: it is going, or we have no right to make some in it; or it is gone.
GOING = "unable to create new content in namespace"
NO_RIGHT = "cannot create resource"
# Others use up what there is for all; it comes back as they end.
NO_ROOM = "exceeded quota"


def is_against_rules(status: int, message: str) -> bool:
    """Whether the pod would be refused again."""
    return status in BAD_POD or any(words in message for words in AGAINST_RULES)


def is_not_yet(message: str) -> bool:
    return any(words in message for words in NOT_YET)


def closed_for_all(message: str, namespace: str) -> str:
    """That the namespace takes no pods at all, whichever pod was asked for; empty when something else is wrong."""
    if GOING in message:
        return message[message.index(GOING) :]
    is_closed = NO_RIGHT in message or f'namespaces "{namespace}" not found' in message
    return message if is_closed else ""
