"""Our rights in a cluster: all that we need, and none that would hurt if somebody took them from us."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from airflow_eksbatch.cluster.kube.access import NEEDED, Right, may
from airflow_eksbatch.core.planner.words import listed, number_of
from airflow_eksbatch.doctor.findings import Group
from airflow_eksbatch.doctor.kube.look import ACCOUNT, MANIFEST, Look

SHOWN = 6
NAMESPACES = Right("get", "namespaces", everywhere=True)
# What the service never does, and an intruder would like to.
TOO_MANY = (
    Right("list", "secrets", everywhere=True),
    Right("get", "secrets"),
    Right("get", "configmaps"),
    Right("create", "pods/exec"),
    Right("create", "pods/attach"),
    Right("create", "pods/portforward"),
    Right("patch", "pods/ephemeralcontainers"),
    Right("patch", "pods"),
    Right("create", "serviceaccounts/token"),
    Right("create", "deployments", "apps"),
    Right("create", "pods", everywhere=True),
    Right("get", "pods/log", everywhere=True),
    Right("delete", "pods", everywhere=True),
    Right("delete", "nodes", everywhere=True),
    Right("patch", "nodes", everywhere=True),
    Right("create", "nodes/proxy", everywhere=True),
    Right("delete", "namespaces", everywhere=True),
    Right("create", "clusterrolebindings", "rbac.authorization.k8s.io", everywhere=True),
    Right("escalate", "clusterroles", "rbac.authorization.k8s.io", everywhere=True),
    Right("impersonate", "users", everywhere=True),
)


async def look_at_rights(group: Group, look: Look, namespace: str) -> None:
    needed = (*NEEDED, NAMESPACES)
    answers = await asyncio.gather(
        *(may(look.account, right, namespace) for right in (*needed, *TOO_MANY))
    )
    allowed = dict(zip((*needed, *TOO_MANY), answers, strict=True))
    missing = [right for right in needed if not allowed[right]]
    if missing:
        group.wrong(
            "rights",
            f"{look.user} may not {told(missing)}.",
            rights_fix(look.user, namespace),
        )
    else:
        group.ok("rights", f"It has the {number_of(len(needed), 'right')} that it needs.")
    excess = [right for right in TOO_MANY if allowed[right]]
    if excess:
        group.warn(
            "too many rights",
            f"{look.user} may also {told(excess)}. The service needs none of it, and whoever gets hold of the "
            "service has it.",
            _LESS if look.user != ACCOUNT else f"{list_command(look.user, namespace)}\n{_WHOSE}",
        )
    else:
        group.ok(
            "too many rights",
            f"It has none of the {number_of(len(TOO_MANY), 'right')} that would be dangerous.",
        )


_WHOSE = "Look for RoleBindings and ClusterRoleBindings beside those of docker/kubernetes.yaml that name it."
_LESS = (
    "Run the service as the service account of docker/kubernetes.yaml. Its rights are judged, by an administrator, by\n"
    f"eksbatch doctor --cluster kubeconfig --as {ACCOUNT}"
)


def told(rights: Iterable[Right], shown: int = SHOWN) -> str:
    """`get and list nodes in the whole cluster, create pods in the namespace`; of many the first."""
    verbs: dict[tuple[str, bool], list[str]] = {}
    for right in rights:
        verbs.setdefault((right.resource, right.everywhere), []).append(right.verb)
    return listed(
        [
            f"{', '.join(several[:-1])}{' and ' if several[1:] else ''}{several[-1]} {resource} in the "
            f"{'whole cluster' if everywhere else 'namespace'}"
            for (resource, everywhere), several in verbs.items()
        ],
        shown,
    )


def rights_fix(user: str, namespace: str) -> str:
    """The manifest knows one account and one namespace."""
    if user != ACCOUNT:
        return f"{MANIFEST}    # and run the service as its account {ACCOUNT}, or bind its roles to {user}"
    if namespace == "batch-jobs":
        return MANIFEST
    return f"sed 's/batch-jobs/{namespace}/' docker/kubernetes.yaml | kubectl apply -f -"


def list_command(user: str, namespace: str) -> str:
    return f"kubectl auth can-i --list --as={user} -n {namespace}"
