"""The operations without a service: over a world that is played by hand, and what its stage has kept as the store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

from airflow_eksbatch.api.app import OPERATIONS
from airflow_eksbatch.api.port import ApiSettings, Call, Caller, Desk
from airflow_eksbatch.api.wire.model import request_check
from airflow_eksbatch.core.engine.facts import Fact
from airflow_eksbatch.core.model.job import Attempt, Job, JobId
from airflow_eksbatch.core.world.world import World
from airflow_eksbatch.store.port import JobQuery
from tests.core.stage import Stage


class StageStore:
    """What DescribeJobs and ListJobs ask a store."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    def find_jobs(self, ids: Iterable[JobId]) -> list[Job]:
        return [self._stage.jobs[job_id] for job_id in ids if job_id in self._stage.jobs]

    def find_attempts(self, ids: Iterable[JobId], indices: Iterable[int]) -> list[Attempt]:
        kept = self._stage.attempts.values()
        found = [a for a in kept if a.job_id in set(ids) and a.index in set(indices)]
        return sorted(found, key=lambda attempt: attempt.number)

    def list_jobs(self, query: JobQuery) -> list[Job]:
        return []


class StageDesk(Desk):
    """As far as operations on jobs need one; what they have no use for is not implemented, so that a use is noticed."""

    settings = ApiSettings()

    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    @property
    def trouble(self) -> str | None:
        return None

    @property
    def world(self) -> World:
        return self.stage.world

    async def settled(self) -> None:
        """It always is."""

    async def offer(self, fact: Fact) -> Any:
        return self.stage.give(fact)

    async def ask(self, question: Callable[[Any], Any]) -> Any:
        return question(StageStore(self.stage))

    async def read_log(self, attempt: Attempt, offset: int, limit: int) -> tuple[bytes, int] | None:
        raise NotImplementedError

    def subscribe(self, cursor: int) -> AsyncIterator[dict[str, Any]]:
        raise NotImplementedError

    async def control_cloud(self, request: dict[str, Any]) -> dict[str, Any]:
        raise NotImplementedError

    def metrics_text(self) -> bytes:
        raise NotImplementedError

    def tell_changed(self, operation: str, what: str | None, by: str | None, /) -> None:
        raise NotImplementedError

    def tell_denied(self, operation: str, what: str | None, by: str, /) -> None:
        raise NotImplementedError

    # ---- callers

    async def answer(self, operation: str, **given: Any) -> dict[str, Any]:
        checked = request_check(operation)(given, "")
        call = Call(desk=self, input=checked, headers={}, caller=Caller())
        return await OPERATIONS[operation](call)

    def ask_for(self, operation: str, **given: Any) -> dict[str, Any]:
        return asyncio.run(self.answer(operation, **given))

    def described(self, *job_ids: str) -> list[dict[str, Any]]:
        return list(self.ask_for("DescribeJobs", jobs=list(job_ids))["jobs"])
