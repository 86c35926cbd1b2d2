"""What a key may do: by its role, named as Airflow names its own, and by the job queues it is held to."""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from airflow_eksbatch.api.port import Caller
from airflow_eksbatch.core.model.errors import Denied

READS = ("Describe", "List", "Get")
# Of an Airflow and of tools that submit: whatever they need, and nothing that others stand on.
OF_USERS = frozenset(
    {
        "SubmitJob",
        "CancelJob",
        "CancelJobs",
        "TerminateJob",
        "TerminateJobs",
        "RegisterJobDefinition",
    }
)
NAME_SHOWN_MAX = 200


class Metadata(msgspec.Struct, frozen=True):
    namespace: str | None = None


class PodProperties(msgspec.Struct, frozen=True):
    """As far as it matters here."""

    metadata: Metadata = Metadata()


def changes_something(operation: str) -> bool:
    return not operation.startswith(READS)


def check_role(caller: Caller, operation: str) -> None:
    """Raises Denied. What only reads is for all roles."""
    role = caller.rights.role
    if role == "admin" or not changes_something(operation):
        return
    if role == "user" and operation in OF_USERS:
        return
    needed = "user" if operation in OF_USERS else "admin"
    raise Denied(
        f"The access key {caller.access_key} is not authorized to perform batch:{operation}: its role is {role}. Use a "
        f"key of the role {needed} (`eksbatch keys create --role {needed}`)."
    )


def check_queue(caller: Caller, queue: str) -> None:
    """Whether it may submit and end jobs there; raises Denied."""
    queues = caller.rights.queues
    if queues and queue not in queues:
        raise Denied(
            f"The access key {caller.access_key} is not authorized to submit or end jobs in job queue "
            f"{queue[:NAME_SHOWN_MAX]!r}: it is held to {', '.join(queues)} (`eksbatch keys create --queue`)."
        )


def check_namespace(caller: Caller, pod: bytes, own: Collection[str]) -> None:
    """Of a key that is held to job queues: whether a pod (podProperties, JSON) stays in the namespaces of their compute
    environments; raises Denied. It would otherwise reach the Secrets of all others by naming theirs.
    """
    namespace = msgspec.json.decode(pod, type=PodProperties).metadata.namespace
    if namespace is not None and namespace not in own:
        raise Denied(
            f"The access key {caller.access_key} is held to job queues, so its jobs run in the namespaces of their "
            f"compute environments: leave out metadata.namespace {namespace}."
        )
