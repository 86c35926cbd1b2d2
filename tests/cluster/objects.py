"""Builders of Kubernetes objects as the API server shows them: only what a test is about has to be said."""

from __future__ import annotations

from typing import Any

import msgspec

from airflow_eksbatch.cluster.kube.objects import DaemonSet, KubeNode, Pod
from airflow_eksbatch.core.model import labels
from airflow_eksbatch.core.model.compute_environment import ComputeEnvironment

Wire = dict[str, Any]
MANAGED = ComputeEnvironment(name="ce", arn="", uuid="uuid-ce", namespace="jobs")
UNMANAGED = ComputeEnvironment(name="own", arn="", uuid="uuid-own", managed=False, namespace="jobs")
TAINTS = [{"key": labels.TAINT, "effect": effect} for effect in ("NoSchedule", "NoExecute")]


def a_kube_node(
    name: str = "ip-1",
    *,
    ready: str = "True",
    environment: str = MANAGED.uuid,
    node_id: str | None = "node-1",
    taints: list[Wire] | None = None,
    cpu: str = "4",
    memory: str = "8Gi",
    **more: Any,
) -> KubeNode:
    """A Ready node with our labels and taint, 4 cores and 8 GiB for pods."""
    given = {labels.ENVIRONMENT_UUID: environment, **more.pop("labels", {})}
    if node_id is not None:
        given[labels.NODE_UID] = node_id
    amounts = {"cpu": cpu, "memory": memory, "pods": "58", **more.pop("devices", {})}
    conditions = [{"type": "Ready", "status": ready}, *more.pop("conditions", [])]
    wire = {
        "metadata": {
            "name": name,
            "uid": f"uid-{name}",
            "labels": given,
            **more.pop("metadata", {}),
        },
        "spec": {"taints": TAINTS if taints is None else taints, **more},
        "status": {"allocatable": amounts, "capacity": amounts, "conditions": conditions},
    }
    return msgspec.convert(wire, KubeNode)


def own_node(**fields: Any) -> KubeNode:
    """One of others, with our label and no more."""
    return a_kube_node(**{"environment": UNMANAGED.uuid, "node_id": None, "taints": [], **fields})


def a_daemon_set(name: str = "cni", *, cpu: str = "100m", memory: str = "64Mi", **spec: Any) -> Any:
    """One whose pods go everywhere."""
    wire = {
        "metadata": {"name": name, "namespace": "kube-system", "uid": f"uid-{name}"},
        "spec": {
            "template": {
                "spec": {
                    "containers": [a_container(cpu, memory)],
                    "tolerations": [{"operator": "Exists"}],
                    **spec,
                }
            }
        },
    }
    return msgspec.convert(wire, DaemonSet)


def a_container(cpu: str = "100m", memory: str = "64Mi", name: str = "main") -> Wire:
    return {"name": name, "resources": {"requests": {"cpu": cpu, "memory": memory}}}


def a_pod_beside(
    node: str = "ip-1",
    *,
    of: str | None = "cni",
    ready: bool = True,
    name: str | None = None,
    phase: str = "Running",
    cpu: str = "100m",
    memory: str = "64Mi",
) -> Pod:
    """A DaemonSet's pod, or with `of` None anybody's."""
    owners = [] if of is None else [{"kind": "DaemonSet", "uid": f"uid-{of}"}]
    name = name or f"{of}-{node}"
    wire = {
        "metadata": {"name": name, "uid": f"uid-{name}", "ownerReferences": owners},
        "spec": {"nodeName": node, "containers": [a_container(cpu, memory)]},
        "status": {
            "phase": phase,
            "conditions": [{"type": "Ready", "status": str(ready)}],
        },
    }
    return msgspec.convert(wire, Pod)


def a_kube_pod(name: str = "p", *, environment: str = MANAGED.uuid, **more: Any) -> Pod:
    """One of our pods, waiting to start; `metadata`, `spec` and `status` are merged in."""
    status = {"phase": "Pending", **more.pop("status", {})}
    wire = {
        "metadata": {
            "name": name,
            "namespace": "jobs",
            "uid": f"uid-{name}",
            "labels": {labels.ENVIRONMENT_UUID: environment},
            **more.pop("metadata", {}),
        },
        "spec": {"nodeName": "ip-1", "containers": [{"name": "default"}], **more.pop("spec", {})},
        "status": status,
    }
    assert not more, more
    return msgspec.convert(wire, Pod)


def running(at: str = "2026-01-01T00:00:00Z") -> Wire:
    return {
        "phase": "Running",
        "containerStatuses": [{"name": "default", "state": {"running": {"startedAt": at}}}],
    }


def ended(
    exit_code: int = 0, reason: str = "", at: str = "2026-01-01T00:01:00Z", **more: Any
) -> Wire:
    """A status whose one container has ended."""
    state = {"exitCode": exit_code, "reason": reason or ("Error" if exit_code else "Completed")}
    times = {"startedAt": "2026-01-01T00:00:00Z", "finishedAt": at}
    return {
        "phase": "Failed" if exit_code else "Succeeded",
        "containerStatuses": [{"name": "default", "state": {"terminated": {**state, **times}}}],
        **more,
    }


def waiting(reason: str, message: str = "") -> Wire:
    state = {"waiting": {"reason": reason, "message": message}}
    return {"phase": "Pending", "containerStatuses": [{"name": "default", "state": state}]}
