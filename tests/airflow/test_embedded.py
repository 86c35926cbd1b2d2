"""The service that tasks start by themselves: it leaves when it is not needed, and no task is lost by that."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from airflow_eksbatch import hooks
from airflow_eksbatch.hooks import AsyncBatchClient, find_or_start_embedded
from airflow_eksbatch.outcome import JobOutcome, follow, reading, submit
from airflow_eksbatch.stream import JobFeed
from airflow_eksbatch.submission import RunFacts, TaskKey, build_submission
from tests.airflow.processes import wait_for

WAIT_S = 120
TASK = TaskKey(dag_id="weather", run_id="r1", task_id="month")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home whose service leaves after less than a second instead of an hour."""
    monkeypatch.delenv("EKSBATCH_URL", raising=False)
    monkeypatch.setenv("EKSBATCH_HOME", str(tmp_path))
    monkeypatch.setenv("EKSBATCH_IDLE_S", "0.1")
    monkeypatch.setattr(hooks, "EMBEDDED_IDLE_MIN", 0.01)
    yield tmp_path
    for process in hooks._begun:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGTERM)
        process.wait(WAIT_S)
    hooks._begun.clear()


def wait_until_it_left(home: Path) -> None:
    gone = home / "service.json"
    wait_for("the service to leave", lambda: not gone.exists(), within_s=WAIT_S)


def test_tasks_that_come_together_after_it_left_start_one_service(home: Path) -> None:
    """Four of this process, and two starters of other ones, while the old service may still be closing."""
    first = find_or_start_embedded()
    wait_until_it_left(home)
    others = [hooks._begin_embedded(home) for _ in range(2)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: find_or_start_embedded(), range(4)))
    assert set(found) == {first}
    assert [process.wait(WAIT_S) for process in others] == [0, 0]


def test_a_task_whose_service_left_before_its_submit_gets_through(home: Path) -> None:
    async def connect() -> AsyncBatchClient:
        return AsyncBatchClient(await asyncio.to_thread(find_or_start_embedded))

    async def scenario() -> JobOutcome:
        feed = JobFeed(connect)
        await feed.service()
        await asyncio.to_thread(wait_until_it_left, home)
        fields = {"job_queue": "default", "command": ["true"]}
        submission = build_submission(fields, task=TASK, run=RunFacts())
        job_id = await submit(feed, submission, WAIT_S, said.append)
        async with reading(feed):
            return await follow(feed, job_id, said.append)

    said: list[str] = []
    outcome = asyncio.run(asyncio.wait_for(scenario(), WAIT_S))
    assert (outcome.status, outcome.attempts) == ("SUCCEEDED", 1)
    assert "does not take the job yet" in said[0]
    wait_until_it_left(home)
