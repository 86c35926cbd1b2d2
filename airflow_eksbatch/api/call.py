"""What an operation gets: the validated input, who asks, and the desk."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from airflow_eksbatch.api.port import Desk


class Call(msgspec.Struct, frozen=True, kw_only=True):
    desk: Desk
    input: dict[str, Any]
    headers: Mapping[str, str]
    access_key: str


Operation = Callable[[Call], Awaitable[dict[str, Any]]]


def now_ms() -> int:
    """Epoch milliseconds, as every timestamp on this wire."""
    return time.time_ns() // 1_000_000
