"""A namespace of jobs looked at: its labels, what limits it, and whether a pod of a job would be taken there."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from airflow_eksbatch.cluster.kube.connection import ApiError
from airflow_eksbatch.cluster.kube.objects import read_quantity
from airflow_eksbatch.core.planner.words import listed
from airflow_eksbatch.doctor.findings import Group
from airflow_eksbatch.doctor.kube.look import (
    AS_ADMINISTRATOR,
    Json,
    Look,
    find,
    is_forbidden,
    list_all,
)
from airflow_eksbatch.doctor.kube.rights import rights_fix
from airflow_eksbatch.doctor.kube.trial import try_pod

JOBS_LABEL = "eksbatch/jobs"
LEVEL_LABEL = "pod-security.kubernetes.io/enforce"


class Quota(msgspec.Struct, frozen=True):
    """A ResourceQuota as it stands."""

    name: str
    hard: dict[str, str]
    used: dict[str, str]

    def spent(self) -> list[str]:
        """What of it is used up, `pods (10 of 10)`."""
        return [
            f"{resource} ({self.used.get(resource, '0')} of {amount})"
            for resource, amount in sorted(self.hard.items())
            if read_quantity(self.used.get(resource, "0")) >= read_quantity(amount)
        ]


async def look_at_namespace(group: Group, look: Look, namespace: str) -> None:
    try:
        found = await find(look.eyes, f"/api/v1/namespaces/{namespace}")
    except ApiError as error:
        group.unseen("namespace", f"It may not be read: {error.message}", AS_ADMINISTRATOR)
        return
    if found is None:
        group.wrong(
            "namespace",
            f"Namespace {namespace} does not exist.",
            rights_fix(look.user, namespace),
        )
        return
    if found["status"].get("phase") == "Terminating":
        group.wrong(
            "namespace",
            f"Namespace {namespace} is being deleted.",
            f"kubectl get namespace {namespace} -o yaml    # says what it waits for; then make it anew",
        )
        return
    judge_labels(group, namespace, found["metadata"].get("labels") or {})
    await _look_at_account(group, look, namespace)
    await _look_at_quotas(group, look, namespace)
    await _look_at_limits(group, look, namespace)
    await try_pod(group, look, namespace)


def judge_labels(group: Group, namespace: str, labels: dict[str, str]) -> None:
    if labels.get(JOBS_LABEL) != "true":
        group.wrong(
            "namespace",
            f"Namespace {namespace} has no label {JOBS_LABEL}=true, so the policy that keeps others' pods out of it "
            "does not hold there.",
            f"kubectl label --overwrite namespace {namespace} {JOBS_LABEL}=true",
        )
    else:
        group.ok("namespace", f"It is there, labelled {JOBS_LABEL}=true.")
    level = labels.get(LEVEL_LABEL)
    if level in (None, "privileged"):
        group.ok(
            "Pod Security", "No Pod Security level is enforced: jobs may be whatever they ask for."
        )
    else:
        group.ok(
            "Pod Security", f"Level {level} is enforced; what is against it fails, and says so."
        )


async def _look_at_account(group: Group, look: Look, namespace: str) -> None:
    """Without its default service account no pod is taken."""
    try:
        found = await find(look.eyes, f"/api/v1/namespaces/{namespace}/serviceaccounts/default")
    except ApiError:
        return  # The trial pod tells it as well
    if found is None:
        group.wrong(
            "jobs' account",
            f"Namespace {namespace} has no service account `default`: pods without serviceAccountName are refused.",
            f"kubectl -n {namespace} create serviceaccount default",
        )


async def _look_at_quotas(group: Group, look: Look, namespace: str) -> None:
    quotas = await _seen(group, look, namespace, "resourcequotas", "quota")
    if quotas is None:
        return
    spent = False
    for quota in map(quota_from, quotas):
        full = quota.spent()
        if full:
            spent = True
            group.warn(
                "quota",
                f"ResourceQuota {quota.name} is used up: {', '.join(full)}. Jobs wait until others have ended.",
                f"kubectl -n {namespace} edit resourcequota {quota.name}",
            )
    if not quotas:
        group.ok("quota", "No ResourceQuota limits it.")
    elif not spent:
        told = listed([f"{q.name} ({amounts(q)})" for q in map(quota_from, quotas)])
        group.ok("quota", f"ResourceQuota {told} leaves room.")


def quota_from(found: Json) -> Quota:
    status = found.get("status") or {}
    return Quota(
        name=found["metadata"]["name"],
        hard=found["spec"].get("hard") or {},
        used=status.get("used") or {},
    )


def amounts(quota: Quota) -> str:
    return ", ".join(
        f"{resource} {quota.used.get(resource, '0')} of {amount}"
        for resource, amount in sorted(quota.hard.items())
    )


async def _look_at_limits(group: Group, look: Look, namespace: str) -> None:
    found = await _seen(group, look, namespace, "limitranges", "limits")
    if found is None:
        return
    if not found:
        group.ok("limits", "No LimitRange bounds its pods.")
    for limit_range in found:
        judge_limits(
            group, namespace, limit_range["metadata"]["name"], limit_range["spec"]["limits"]
        )


def judge_limits(group: Group, namespace: str, name: str, limits: Iterable[Json]) -> None:
    """A default request is booked by the kubelet and not by us: it must be none of what we count."""
    added, bounds = set[str](), list[str]()
    for one in limits:
        if one.get("type") not in ("Container", "Pod"):
            continue
        requests = {**(one.get("default") or {}), **(one.get("defaultRequest") or {})}
        added |= requests.keys() & {"cpu", "memory"}
        bounds += [
            f"{bound} {resource} {amount}"
            for bound in ("min", "max")
            for resource, amount in sorted((one.get(bound) or {}).items())
        ]
    if added:
        group.warn(
            "limits",
            f"LimitRange {name} gives {' and '.join(sorted(added))} to containers that ask for none. The service "
            "does not count that: nodes turn such pods away, and each costs a try.",
            f"kubectl -n {namespace} edit limitrange {name}    # leave out default and defaultRequest",
        )
    else:
        told = f" ({', '.join(bounds)} a container or pod)" if bounds else ""
        group.ok("limits", f"LimitRange {name} adds nothing to pods{told}.")


async def _seen(
    group: Group, look: Look, namespace: str, resource: str, check: str
) -> list[Json] | None:
    """What is there of it; None, and said so, where it may not be seen."""
    try:
        return await list_all(look.eyes, f"/api/v1/namespaces/{namespace}/{resource}", Json)
    except ApiError as error:
        if not is_forbidden(error):
            raise
        group.unseen(
            check,
            f"The {resource} of {namespace} may not be listed by whoever looks.",
            AS_ADMINISTRATOR,
        )
        return None
