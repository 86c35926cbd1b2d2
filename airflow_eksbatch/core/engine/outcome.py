"""What one step leaves behind: what to keep, what to do, what to answer."""

from __future__ import annotations

import msgspec

from airflow_eksbatch.core.engine.effects import Effect
from airflow_eksbatch.core.model.errors import Rejected
from airflow_eksbatch.core.planner.plan import Plan
from airflow_eksbatch.core.world.changes import Changes


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """`answers[i]` belongs to fact i: None, a noun (the job id, the definition), or a Rejected.

    Order for the caller: commit `changes`, then give the answers, then start the effects.
    """

    changes: Changes
    effects: list[Effect]
    answers: list[object | Rejected | None]
    plan: Plan
    wake_at: int | None = None
    """Epoch ms of the next thing that time alone brings."""
