"""Job definitions: numbered revisions of what an attempt will run."""

from __future__ import annotations

import re

import msgspec

from airflow_eksbatch.core.model.retry import RetryStrategy

REVISION = re.compile(r"[0-9]{1,9}")


class JobDefinition(msgspec.Struct, frozen=True, kw_only=True):
    """`pod` is eksProperties.podProperties (JSON); `parameters` fill its `Ref::name` places."""

    name: str
    revision: int
    arn: str
    status: str = "ACTIVE"
    pod: bytes = b"{}"
    container: bytes = b""
    """containerProperties (JSON) as registered, if `pod` was made from them: then its words are literal."""
    nodes: bytes = b""
    """nodeProperties (JSON) of a multi-node parallel job; `pod` is then its main node's."""
    parameters: dict[str, str] = {}
    retry: RetryStrategy | None = None
    timeout_s: int | None = None
    scheduling_priority: int = 0
    tags: dict[str, str] = {}
    created_at: int = 0

    @property
    def key(self) -> str:
        return f"{self.name}:{self.revision}"


def split_revision(key: str) -> tuple[str, int | None]:
    """`name` or `name:revision`; 0, which no revision has, where no number follows the colon."""
    name, colon, revision = key.partition(":")
    if not colon:
        return name, None
    return name, int(revision) if REVISION.fullmatch(revision) else 0
