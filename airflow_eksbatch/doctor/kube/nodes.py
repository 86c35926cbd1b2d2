"""Nodes looked at: labels and taint belong together, nodes are Ready, and their DaemonSets run."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from airflow_eksbatch.cluster.kube.connection import ApiError
from airflow_eksbatch.cluster.kube.daemons import runs_on
from airflow_eksbatch.cluster.kube.node_book import closed_by, has_taint
from airflow_eksbatch.cluster.kube.objects import DaemonSet, KubeNode, Pod
from airflow_eksbatch.core.model import labels
from airflow_eksbatch.core.model.compute_environment import ComputeEnvironment
from airflow_eksbatch.core.planner.words import listed, number_of
from airflow_eksbatch.doctor.findings import Group
from airflow_eksbatch.doctor.kube.look import Look, is_forbidden, list_all
from airflow_eksbatch.doctor.stores import AS_SERVE

TAINTS = f"{labels.TAINT}:NoSchedule {labels.TAINT}:NoExecute"


class Nodes(msgspec.Struct, frozen=True, kw_only=True):
    """What there is."""

    nodes: list[KubeNode]
    daemon_sets: list[DaemonSet] = []
    pods: list[Pod] = []
    """Of DaemonSets and others, on whatever node."""


async def look_at_nodes(group: Group, look: Look) -> None:
    try:
        there = Nodes(
            nodes=await list_all(look.eyes, "/api/v1/nodes", KubeNode),
            daemon_sets=await list_all(look.eyes, "/apis/apps/v1/daemonsets", DaemonSet),
            pods=await list_all(
                look.eyes,
                "/api/v1/pods",
                Pod,
                labelSelector=f"{labels.MANAGED_BY}!={labels.OURS}",
                fieldSelector="spec.nodeName!=,status.phase!=Succeeded,status.phase!=Failed",
            ),
        )
    except ApiError as error:
        if not is_forbidden(error):
            raise
        group.unseen("nodes", f"They may not be seen: {error.message}", "See the group of rights.")
        return
    judge_nodes(group, there, look.environments)


def judge_nodes(
    group: Group, there: Nodes, environments: Iterable[ComputeEnvironment] | None
) -> None:
    """None: nobody knows which there are, so nothing is said against a label."""
    mine = by_key(there.nodes, lambda node: node.metadata.labels.get(labels.ENVIRONMENT_UUID, ""))
    others = mine.pop("", [])
    if environments is None:
        _tell_of_labelled(group, [node for several in mine.values() for node in several])
    else:
        known = {environment.uuid: environment for environment in environments}
        for environment in known.values():
            _judge_environment(group, environment, mine.get(environment.uuid, []), there)
        for uuid, several in mine.items():
            if uuid not in known:
                _judge_unknown(group, uuid, several)
    tainted = [node for node in others if _taints(node)]
    if tainted:
        names = names_of(tainted)
        group.warn(
            "taint without label",
            f"{_are(tainted, 'has', 'have')} our taint and no label of a compute environment: {listed(names)}. "
            "Neither jobs nor anybody else's pods get there.",
            f"kubectl taint node {' '.join(names)} {labels.TAINT}-    # or give it the label:\n"
            f"kubectl label node {' '.join(names)} {labels.ENVIRONMENT_UUID}=UUID    # of DescribeComputeEnvironments",
        )


def _tell_of_labelled(group: Group, nodes: list[KubeNode]) -> None:
    if nodes:
        group.unseen(
            "environments",
            f"{_are(nodes, 'has', 'have')} the label of a compute environment ({listed(names_of(nodes))}); which "
            "there are is known to the service's database, and none was read.",
            AS_SERVE,
        )


def _judge_unknown(group: Group, uuid: str, nodes: list[KubeNode]) -> None:
    """Taking the label from a live node makes the service that it belongs to give the node up."""
    names = names_of(nodes)
    group.warn(
        "unknown environment",
        f"{_are(nodes, 'is', 'are')} labelled with a compute environment that this database does not have "
        f"({uuid}): {listed(names)}. No job of this service gets there.",
        f"kubectl label node {' '.join(names)} {labels.ENVIRONMENT_UUID}-"
        "    # only if no other eksbatch has this environment",
    )


def _judge_environment(
    group: Group, environment: ComputeEnvironment, nodes: list[KubeNode], there: Nodes
) -> None:
    check = f"nodes of {environment.name}"
    if not nodes:
        _judge_none(group, check, environment)
        return
    names = names_of([node for node in nodes if not has_taint(node)])
    if names:
        taint = f"kubectl taint node --overwrite {' '.join(names)} {TAINTS}"
        if environment.managed:
            group.wrong(
                check,
                f"{_are(names, 'has', 'have')} the label of {environment.name} without the taint {labels.TAINT} "
                f"(NoSchedule and NoExecute): {listed(names)}. The service does not use them, and others' pods may.",
                taint,
            )
        else:
            group.warn(
                check,
                f"{_are(names, 'has', 'have')} the label of {environment.name} without our taint: {listed(names)}. "
                "Others' pods may take the room between two looks.",
                f"{taint}    # if they are for jobs only",
            )
    closed = by_key(nodes, lambda node: closed_by(node) or "")
    fit = closed.pop("", [])
    for reason, several in closed.items():
        _judge_closed(group, check, reason, names_of(several))
    late = [node for node in fit if owed_daemons(node, there)]
    if late:
        owed = sorted({name for node in late for name in owed_daemons(node, there)})
        group.warn(
            check,
            f"On {listed(names_of(late))} DaemonSets do not run: {listed(owed)}. A new node takes jobs only once they do.",
            "kubectl get pods -A --field-selector spec.nodeName=" + late[0].metadata.name,
        )
    if len(fit) == len(nodes) and not names and not late:
        group.ok(
            check,
            f"{number_of(len(nodes), 'node')}: Ready, labelled, tainted, "
            f"{'DaemonSets run' if there.daemon_sets else 'no DaemonSets'}.",
        )


def _judge_none(group: Group, check: str, environment: ComputeEnvironment) -> None:
    if environment.managed:
        group.ok(check, "None now; they are bought when there is work.")
        return
    group.warn(
        check,
        f"No node has the label of {environment.name}, which is unmanaged: its jobs wait for one.",
        f"kubectl label node NODE {labels.ENVIRONMENT_UUID}={environment.uuid}\n"
        f"kubectl taint node NODE {TAINTS}    # if it is for jobs only",
    )


def _judge_closed(group: Group, check: str, reason: str, names: list[str]) -> None:
    fixes = {
        "the node is not ready": f"kubectl describe node {names[0]}    # its conditions say why",
        "cordoned": f"kubectl uncordon {' '.join(names)}",
    }
    said = reason.removeprefix("the node ")
    described = f"kubectl describe node {names[0]}"
    group.warn(
        check, f"{listed(names)}: {said}; no new job gets there.", fixes.get(reason, described)
    )


def owed_daemons(node: KubeNode, there: Nodes) -> list[str]:
    """DaemonSets that are to run there and have no ready pod."""
    name = node.metadata.name
    up = {
        owner.uid
        for pod in there.pods
        if pod.spec.node_name == name and pod.is_ready
        for owner in pod.metadata.owner_references
    }
    return [
        f"{one.metadata.namespace}/{one.metadata.name}"
        for one in there.daemon_sets
        if one.metadata.uid not in up and runs_on(one.spec.template.spec, node)
    ]


def by_key(nodes: Iterable[KubeNode], key: Callable[[KubeNode], str]) -> dict[str, list[KubeNode]]:
    found: dict[str, list[KubeNode]] = {}
    for node in nodes:
        found.setdefault(key(node), []).append(node)
    return found


def _taints(node: KubeNode) -> bool:
    return any(taint.key == labels.TAINT for taint in node.spec.taints)


def names_of(nodes: Iterable[KubeNode]) -> list[str]:
    return sorted(node.metadata.name for node in nodes)


def _are(several: list[KubeNode] | list[str], one: str, many: str) -> str:
    return f"{number_of(len(several), 'node')} {one if len(several) == 1 else many}"
