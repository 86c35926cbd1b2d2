"""A pod as a job's, created with dryRun: every rule of the cluster judges it, and nothing comes of it."""

from __future__ import annotations

from typing import Any

import msgspec

from airflow_eksbatch.cluster.kube.connection import ApiError
from airflow_eksbatch.cluster.kube.manifests import pod_from
from airflow_eksbatch.cluster.kube.objects import Pod, requests_of
from airflow_eksbatch.core.engine.effects import CreatePod
from airflow_eksbatch.core.model.job import PodName
from airflow_eksbatch.core.model.limits import GRACE_S
from airflow_eksbatch.core.model.node import NodeId
from airflow_eksbatch.core.planner.words import amount
from airflow_eksbatch.doctor.findings import Group
from airflow_eksbatch.doctor.kube.look import ACCOUNT, MANIFEST, Look

NAME = "eksbatch-doctor"
# The least that AWS Batch takes, so that a quota that is nearly used up does not say no to it.
PLAIN: dict[str, Any] = {
    "image": "busybox",
    "command": ["true"],
    "resources": {
        "requests": {"cpu": "250m", "memory": "4Mi"},
        "limits": {"cpu": "250m", "memory": "4Mi"},
    },
}
CAUTIOUS = {
    "runAsNonRoot": True,
    "runAsUser": 1000,
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}


def a_pod(namespace: str, *, cautious: bool) -> CreatePod:
    """As a job definition makes it that says nothing; or as it must be where Pod Security is `restricted`."""
    container = {**PLAIN, "securityContext": CAUTIOUS} if cautious else PLAIN
    properties = {"containers": [container], "hostNetwork": not cautious}
    return CreatePod(
        pod=PodName(NAME),
        compute_environment="",
        node_id=NodeId(NAME),
        node_name=NAME,
        namespace=namespace,
        pod_properties=msgspec.json.encode(properties),
        environment={},
        labels={},
        grace_s=GRACE_S,
    )


async def try_pod(group: Group, look: Look, namespace: str) -> None:
    """The finding `a job's pod`."""
    refusal = await _refusal(group, look, namespace, cautious=False)
    if refusal is None:
        return
    said, status = refusal.message or refusal.reason, refusal.status
    if "exceeded quota" in said:
        group.warn(
            "a job's pod",
            f"The smallest pod of a job is not taken now: {said}. Jobs wait.",
            f"kubectl -n {namespace} describe resourcequota",
        )
    elif "violates PodSecurity" in said:
        if await _refusal(group, look, namespace, cautious=True) is None:
            return
        group.wrong(
            "a job's pod",
            f"No pod of a job is taken: {said}",
            f"{MANIFEST}    # labels the namespace",
        )
    elif "does not support dry run" in said or status == 404:
        group.unseen("a job's pod", f"It cannot be tried out: {said}")
    elif "service account" in said:
        group.wrong(
            "a job's pod",
            f"A pod of a job is refused: {said}",
            f"kubectl -n {namespace} create serviceaccount default",
        )
    else:
        group.wrong(
            "a job's pod", f"A pod of a job is refused: {said}", _fix(said, namespace, look.user)
        )


def _fix(said: str, namespace: str, user: str) -> str:
    if "ValidatingAdmissionPolicy" in said and user != ACCOUNT:
        return f"Run the service as {ACCOUNT}, or let {user} through in eksbatch-namespaces and eksbatch-taint."
    if "ValidatingAdmissionPolicy" in said:
        return f"{MANIFEST}    # its policies let the service's own account through, and only that"
    if "usage per" in said or "limit is" in said:
        return f"kubectl -n {namespace} describe limitrange"
    if "webhook" in said:
        return f"Exempt namespace {namespace} from that webhook: its namespaceSelector"
    return MANIFEST


async def _refusal(group: Group, look: Look, namespace: str, *, cautious: bool) -> ApiError | None:
    """The API server's no; None when it said yes and that was told."""
    wanted = pod_from(a_pod(namespace, cautious=cautious))
    path = f"/api/v1/namespaces/{namespace}/pods?dryRun=All"
    try:
        answer = await look.account.write("POST", path, msgspec.json.encode(wanted))
    except ApiError as error:
        return error
    _judge_answer(group, msgspec.convert(wanted, Pod), msgspec.json.decode(answer, type=Pod))
    if cautious:
        group.warn(
            "plain pods",
            "Pod Security refuses pods that say nothing: job definitions need hostNetwork: false, and for level "
            "restricted a securityContext without root, privileges and capabilities.",
            f"kubectl label --overwrite namespace {namespace} pod-security.kubernetes.io/enforce=privileged    "
            "# or leave it, if jobs are written for it",
        )
    return None


def _judge_answer(group: Group, sent: Pod, made: Pod) -> None:
    """What rules of the cluster put into a pod takes room that nobody counted."""
    before, after = requests_of(sent.spec), requests_of(made.spec)
    added = [c.name for c in made.spec.containers[len(sent.spec.containers) :]]
    added += [c.name for c in made.spec.init_containers[len(sent.spec.init_containers) :]]
    if added or after != before:
        what = f"containers {', '.join(added)}" if added else "requests"
        group.warn(
            "a job's pod",
            f"It is taken, and something in the cluster adds {what} to it: it asks for {amount(after)} instead of "
            f"{amount(before)}. The service does not count that: nodes turn such pods away.",
            "kubectl get mutatingwebhookconfigurations    # exempt the namespace of jobs",
        )
    else:
        group.ok("a job's pod", "It would be taken, as it is (tried with dryRun).")
