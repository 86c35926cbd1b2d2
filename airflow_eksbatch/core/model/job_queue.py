"""Job queues: priority, switch, and the compute environments they fill in order."""

from __future__ import annotations

import msgspec


class TimeLimit(msgspec.Struct, frozen=True, kw_only=True):
    """Jobs that are stuck in RUNNABLE for this reason (the first word of statusReason) so long are cancelled."""

    reason: str
    max_time_s: int


class JobQueue(msgspec.Struct, frozen=True, kw_only=True):
    """`compute_environments` are names in the order they are tried; `policy` is a scheduling policy's name."""

    name: str
    arn: str
    priority: int = 1
    state: str = "ENABLED"
    status: str = "VALID"
    status_reason: str = "JobQueue Healthy"
    compute_environments: tuple[str, ...] = ()
    policy: str | None = None
    time_limits: tuple[TimeLimit, ...] = ()
    tags: dict[str, str] = {}
    created_at: int = 0
    wire: bytes = b"{}"
    """What else the caller sent (JSON), told back as it was."""
