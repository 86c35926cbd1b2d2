"""An Airflow's connection with a key that may not do everything."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from airflow_eksbatch.endpoint import Endpoint, ServiceRefused
from airflow_eksbatch.hooks import AsyncBatchClient
from airflow_eksbatch.outcome import JobOutcome, follow, reading, submit
from airflow_eksbatch.stream import JobFeed
from airflow_eksbatch.submission import RunFacts, TaskKey, build_submission
from tests.api.test_auth import a_key
from tests.service.running import RunningService

WAIT_S = 120


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    with RunningService(
        tmp_path_factory.mktemp("keys"), "--auth", "sigv4", "--launch-delay-s", "0.1"
    ) as running:
        yield running


def run_task(
    service: RunningService,
    *options: str,
    task_id: str,
    seconds: int = 0,
    said: list[str] | None = None,
) -> JobOutcome:
    """What an operator does, with a key made by those options; a job that takes longer is ended."""
    said = [] if said is None else said
    key = a_key(service.home, *options)
    endpoint = Endpoint(url=service.url, access_key_id=key.access_key, secret_access_key=key.secret)
    fields = {"job_queue": "default", "command": ["sleep", str(seconds)]}
    task = TaskKey(dag_id="weather", run_id="r1", task_id=task_id)

    async def connect() -> AsyncBatchClient:
        return AsyncBatchClient(endpoint)

    async def scenario() -> JobOutcome:
        feed = JobFeed(connect)
        submission = build_submission(fields, task=task, run=RunFacts())
        async with reading(feed):
            job_id = await submit(feed, submission, WAIT_S, said.append)
            if seconds:
                given = {"jobId": job_id, "reason": "cleared"}
                await (await feed.service()).call("terminatejob", given)
            return await follow(feed, job_id, said.append)

    return asyncio.run(asyncio.wait_for(scenario(), WAIT_S))


def test_a_user_held_to_its_job_queue_is_all_that_an_airflow_needs(service: RunningService) -> None:
    """It registers the definition, submits, follows, and ends what is cleared."""
    options = ("--role", "user", "--queue", "default")
    assert run_task(service, *options, task_id="month").status == "SUCCEEDED"
    ended = run_task(service, *options, task_id="day", seconds=WAIT_S)
    assert (ended.status, ended.reason) == ("FAILED", "cleared")


def test_a_task_that_may_not_submit_is_refused_at_once_and_told_which_key_may(
    service: RunningService,
) -> None:
    with pytest.raises(ServiceRefused, match="eksbatch keys create --role user"):
        run_task(service, "--role", "viewer", task_id="year")
    said: list[str] = []
    with pytest.raises(ServiceRefused, match="it is held to share-of-others"):
        run_task(service, "--queue", "share-of-others", task_id="year", said=said)
    assert said == [], "whatever words are in the name of a queue"
