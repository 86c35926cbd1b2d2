"""Whether a compute environment can be used: its namespace is there, and we have the rights we need in it."""

from __future__ import annotations

import msgspec

from airflow_eksbatch.cluster.kube.connection import ApiError, Connection
from airflow_eksbatch.cluster.port import ClusterDown

REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"


class Right(msgspec.Struct, frozen=True):
    """A verb on a resource, in the environment's namespace or in the whole cluster."""

    verb: str
    resource: str
    group: str = ""
    everywhere: bool = False


# What the service does in Kubernetes; docker/kubernetes.yaml gives this and no more.
NEEDED = (
    Right("get", "nodes", everywhere=True),
    Right("list", "nodes", everywhere=True),
    Right("watch", "nodes", everywhere=True),
    Right("list", "pods", everywhere=True),
    Right("watch", "pods", everywhere=True),
    Right("list", "daemonsets", "apps", everywhere=True),
    Right("watch", "daemonsets", "apps", everywhere=True),
    Right("create", "pods"),
    Right("get", "pods"),
    Right("delete", "pods"),
    Right("get", "pods/log"),
)


class _Answer(msgspec.Struct, frozen=True):
    allowed: bool = False


class _Review(msgspec.Struct, frozen=True):
    status: _Answer = _Answer()


class _Phase(msgspec.Struct, frozen=True):
    phase: str = ""


class _Namespace(msgspec.Struct, frozen=True):
    status: _Phase = _Phase()


async def find_trouble(connection: Connection, namespace: str) -> str | None:
    """What keeps the namespace from being used, in one sentence; None when nothing does.

    Raises ClusterDown when the API server cannot say now.
    """
    unable = f"Unable to validate Kubernetes Namespace {namespace}"
    try:
        answer = await connection.get(f"/api/v1/namespaces/{namespace}")
    except ApiError as error:
        if error.is_passing:
            raise ClusterDown(f"{unable} now: {error}") from error
        return f"{unable}: {error.message or error.reason}"
    if msgspec.json.decode(answer, type=_Namespace).status.phase == "Terminating":
        return f"{unable}: it is being deleted"
    for right in NEEDED:
        if not await may(connection, right, namespace):
            place = "in the whole cluster" if right.everywhere else "in it"
            return (
                f"{unable}: this service may not {right.verb} {right.resource} {place}. "
                "docker/kubernetes.yaml has the rights it needs."
            )
    return None


async def may(connection: Connection, right: Right, namespace: str) -> bool:
    """Whether we have a right, as the API server sees it."""
    resource, _, subresource = right.resource.partition("/")
    attributes = {
        "verb": right.verb,
        "group": right.group,
        "resource": resource,
        "subresource": subresource,
        "namespace": "" if right.everywhere else namespace,
    }
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": attributes},
    }
    try:
        answer = await connection.write("POST", REVIEWS, msgspec.json.encode(review))
    except ApiError as error:
        raise ClusterDown(f"Rights cannot be asked for: {error}") from error
    return msgspec.json.decode(answer, type=_Review).status.allowed
