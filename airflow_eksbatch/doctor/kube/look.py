"""What every look at a cluster is given: whose eyes, whose rights, and which compute environments."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from airflow_eksbatch.cluster.kube.connection import ApiError, Connection
from airflow_eksbatch.core.model.compute_environment import ComputeEnvironment

T = TypeVar("T")
Json = dict[str, Any]
MANIFEST = "kubectl apply -f docker/kubernetes.yaml"
ACCOUNT = "system:serviceaccount:eksbatch:eksbatch"
"""Whom docker/kubernetes.yaml gives its rights."""
AS_ADMINISTRATOR = f"As an administrator: eksbatch doctor --cluster kubeconfig --as {ACCOUNT}"


class Look(msgspec.Struct, kw_only=True):
    eyes: Connection
    """Whoever looks; an administrator sees more than the service may."""
    account: Connection
    """Whose rights are judged."""
    environments: tuple[ComputeEnvironment, ...] | None = ()
    """None: no database could be read that knows them."""
    user: str = ""
    """The name of `account`, as Kubernetes has it."""

    @property
    def has_two(self) -> bool:
        return self.eyes is not self.account


async def find(connection: Connection, path: str) -> Json | None:
    """None where it is not there. Raises ApiError, also for what may not be seen."""
    try:
        return msgspec.json.decode(await connection.get(path), type=Json)
    except ApiError as error:
        if error.status == 404:
            return None
        raise


async def list_all(connection: Connection, path: str, kind: type[T], **query: str) -> list[T]:
    """Objects of one kind, all pages. Raises ApiError."""
    found: list[T] = []
    more = ""
    while True:
        given = {"limit": 500, **query, **({"continue": more} if more else {})}
        page = msgspec.json.decode(await connection.get(path, given), type=_Page)
        found += msgspec.convert(page.items, list[kind])
        more = page.metadata.get("continue") or ""
        if not more:
            return found


class _Page(msgspec.Struct, frozen=True):
    items: list[Json] = []
    metadata: Json = {}


def is_forbidden(error: ApiError) -> bool:
    return error.status in (401, 403)
