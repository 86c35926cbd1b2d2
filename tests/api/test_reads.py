"""What is told of jobs, over a world that is played by hand."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from airflow_eksbatch.api import job_reads
from tests.api.desk import StageDesk
from tests.build import a_job, a_node, a_world
from tests.core.stage import Stage

# ---- lists


def ids_of(answer: dict[str, Any]) -> list[str]:
    return [row["jobId"] for row in answer["jobSummaryList"]]


def test_a_page_looks_at_no_more_jobs_than_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest of many are found without a look at the others, wherever the page begins."""
    desk = StageDesk(Stage(a_world(*(a_job(f"job-{number:03d}") for number in range(100)))))
    looks: list[str] = []
    matches = job_reads.matches
    monkeypatch.setattr(
        job_reads, "matches", lambda job, query: looks.append(job.job_id) or matches(job, query)
    )
    asked = {"jobQueue": "queue", "jobStatus": "RUNNABLE", "maxResults": 10}
    first = desk.ask_for("ListJobs", **asked)
    second = desk.ask_for("ListJobs", **asked, nextToken=first["nextToken"])
    newest = [f"job-{number:03d}" for number in range(99, 79, -1)]
    assert ids_of(first) + ids_of(second) == newest
    assert len(looks) == 22, "each page looks at one more, to know whether there is a next one"


def test_running_jobs_are_found_by_their_pods(monkeypatch: pytest.MonkeyPatch) -> None:
    running, other = a_job("running"), a_job("other", queue="second")
    world = a_world(a_node("n1"), *(a_job() for _ in range(50)))
    world.with_running(running, "n1").with_running(other, "n1")
    looks: list[str] = []
    matches = job_reads.matches
    monkeypatch.setattr(
        job_reads, "matches", lambda job, query: looks.append(job.job_id) or matches(job, query)
    )
    assert ids_of(StageDesk(Stage(world)).ask_for("ListJobs", jobQueue="queue")) == ["running"]
    assert set(looks) == {"running", "other"}


def test_who_looks_for_few_among_many_lets_others_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """1 a name that nobody has 2 jobs end while they are looked at 3 somebody else got turns meanwhile."""
    monkeypatch.setattr(job_reads, "LOOKED_AT_ONCE", 10)
    stage = Stage(a_world(*(a_job(f"job-{number:03d}") for number in range(100))))
    desk = StageDesk(stage)
    turns: list[int] = []

    async def others() -> None:
        while True:
            turns.append(len(turns))
            stage.cancel(f"job-{len(turns):03d}")
            await asyncio.sleep(0)

    async def both() -> dict[str, Any]:
        beat = asyncio.ensure_future(others())
        asked = {"name": "JOB_NAME", "values": ["job-000"]}
        answer = await desk.answer("ListJobs", jobQueue="queue", filters=[asked])
        beat.cancel()
        return answer

    assert ids_of(asyncio.run(both())) == ["job-000"]
    assert len(turns) >= 8
