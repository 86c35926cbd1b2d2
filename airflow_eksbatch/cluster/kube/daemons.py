"""Which DaemonSets run on a node, as their controller decides it; pure."""

from __future__ import annotations

from airflow_eksbatch.cluster.kube.objects import (
    KubeNode,
    NodeSelector,
    PodSpec,
    Requirement,
    Taint,
    Term,
    Toleration,
)

# What the controller adds to every DaemonSet's pods.
ALWAYS_TOLERATED = frozenset(
    f"node.kubernetes.io/{trouble}"
    for trouble in (
        "not-ready",
        "unreachable",
        "disk-pressure",
        "memory-pressure",
        "pid-pressure",
        "unschedulable",
        "network-unavailable",
    )
)
REPELLING = ("NoSchedule", "NoExecute")


def runs_on(spec: PodSpec, node: KubeNode) -> bool:
    """Whether a DaemonSet with this pod template has, or is to have, a pod on the node."""
    labels = node.metadata.labels
    if any(labels.get(key) != value for key, value in spec.node_selector.items()):
        return False
    affinity = spec.affinity and spec.affinity.node_affinity
    if affinity and affinity.required and not selects(affinity.required, node):
        return False
    return all(
        taint.key in ALWAYS_TOLERATED or any(tolerates(t, taint) for t in spec.tolerations)
        for taint in node.spec.taints
        if taint.effect in REPELLING
    )


def selects(selector: NodeSelector, node: KubeNode) -> bool:
    """One of its terms holds; an empty term holds for nothing."""
    return any(_holds(term, node) for term in selector.node_selector_terms)


def _holds(term: Term, node: KubeNode) -> bool:
    if not term.match_expressions and not term.match_fields:
        return False
    labels, fields = node.metadata.labels, {"metadata.name": node.metadata.name}
    return all(_meets(one, labels) for one in term.match_expressions) and all(
        _meets(one, fields) for one in term.match_fields
    )


def _meets(requirement: Requirement, labels: dict[str, str]) -> bool:
    value, values = labels.get(requirement.key), requirement.values
    match requirement.operator:
        case "In":
            return value in values
        case "NotIn":
            return value not in values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case "Gt" | "Lt" as operator:
            try:
                ours, bound = int(value or ""), int(values[0])
            except (ValueError, IndexError):
                return False
            return ours > bound if operator == "Gt" else ours < bound
        case _:
            return False


def tolerates(toleration: Toleration, taint: Taint) -> bool:
    if toleration.effect not in ("", taint.effect):
        return False
    if toleration.operator == "Exists":
        return toleration.key in ("", taint.key)
    return (toleration.key, toleration.value) == (taint.key, taint.value)
