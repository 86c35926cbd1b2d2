"""When what went wrong in a compute environment is tried again: in memory only, since a restart looks into all of them."""

from __future__ import annotations

from collections import Counter

import msgspec


class Trials(msgspec.Struct, kw_only=True):
    """By compute environment; times are epoch ms."""

    check_at: dict[str, int] = {}
    """When an INVALID one is looked into again."""
    invalid_times: Counter[str] = msgspec.field(default_factory=Counter[str])
    """How often in a row it became INVALID, or stayed so, without an instance in between."""
    answered_at: dict[str, int] = {}
    """When its cloud last answered a launch, whatever it said."""
