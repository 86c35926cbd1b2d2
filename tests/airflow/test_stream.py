"""The shared stream when a connection changes, or cannot be read, while tasks wait for their jobs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web

from airflow_eksbatch import outcome, stream
from airflow_eksbatch.floor.clock import Backoff
from airflow_eksbatch.hooks import (
    AsyncBatchClient,
    Endpoint,
    NotLetIn,
    NotOurService,
    ServiceAway,
    ServiceNotNamed,
)
from airflow_eksbatch.outcome import JobOutcome, follow, patiently, reading, submit
from airflow_eksbatch.stream import JobFeed, news_from_job
from airflow_eksbatch.submission import RunFacts, TaskKey, build_submission
from tests.airflow.contract_service import ContractService

PATIENCE_S = 30
SUBMISSION = build_submission(
    {"job_queue": "default", "command": ["run"]},
    task=TaskKey(dag_id="weather", run_id="r1", task_id="month"),
    run=RunFacts(),
)


class Guarded(ContractService):
    """Lets in whoever has this key."""

    key = "OLD"

    async def _operation(self, request: web.Request) -> web.Response:
        if f"Credential={self.key}/" in request.headers.get("Authorization", ""):
            return await super()._operation(request)
        return web.json_response(
            {"message": "The access key is not known here."},
            status=403,
            headers={"x-amzn-ErrorType": "UnrecognizedClientException"},
        )


class Connection:
    """What an operator's connection says, until somebody changes it."""

    def __init__(self, url: str, key: str | None = None, **more: Any) -> None:
        self.endpoint = Endpoint(url=url, access_key_id=key, secret_access_key=key, **more)
        self.error: Exception | None = None
        self.reads = 0

    def feed(self) -> JobFeed:
        async def connect() -> AsyncBatchClient:
            self.reads += 1
            if self.error:
                raise self.error
            return AsyncBatchClient(self.endpoint)

        return JobFeed(connect)

    def names(self, url: str, key: str | None = None, **more: Any) -> None:
        self.__init__(url, key, **more)


def play(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), PATIENCE_S))


def waiting(
    feed: JobFeed, job: str, place: str = ""
) -> tuple[asyncio.Task[JobOutcome], asyncio.Queue[str]]:
    heard = asyncio.Queue[str]()
    return asyncio.create_task(follow(feed, job, heard.put_nowait, place=place)), heard


async def until(heard: asyncio.Queue[str], words: str) -> str:
    """The first thing that is said with these words."""
    while words not in (said := await heard.get()):
        pass
    return said


def test_a_key_that_was_changed_is_used_for_the_next_call_also_while_tasks_wait() -> None:
    async def scenario() -> None:
        async with Guarded() as service:
            connection = Connection(service.url, "OLD")
            feed = connection.feed()
            async with reading(feed):
                await feed.call("describejobs", {"jobs": []})
                service.key = "NEW"
                with pytest.raises(NotLetIn):
                    await feed.call("describejobs", {"jobs": []})
                connection.names(service.url, "NEW")
                job = await submit(feed, SUBMISSION, 60, lambda _: None)
                assert list(service.jobs) == [job]

    play(scenario)


def test_what_a_person_has_to_mend_is_not_waited_for_as_long_as_a_service_that_is_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(NotLetIn, "patience_s", 0.0)

    async def scenario() -> None:
        async with Guarded() as service:
            feed = Connection(service.url, "WRONG").feed()
            said: list[str] = []
            with pytest.raises(ServiceAway, match="gave up after 0 s: Unrecognized"):
                await submit(feed, SUBMISSION, 3600, said.append)
            await feed.close()

    play(scenario)


def test_patience_with_what_a_person_has_to_mend_begins_when_that_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr(outcome, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(outcome, "BACKOFF", Backoff(most_s=0.01))

    async def asked_at(*moments: tuple[float, ServiceAway | None]) -> None:
        nonlocal now
        now, ahead = 0.0, iter(moments)

        async def ask() -> None:
            nonlocal now
            now, error = next(ahead)
            if error is not None:
                raise error

        await patiently(Connection("http://nowhere").feed(), ask, 3600)

    async def scenario() -> None:
        away, refused = ServiceAway("away"), NotLetIn("refused")
        await asked_at((0, away), (600, refused), (800, away), (1000, refused), (1200, None))
        with pytest.raises(ServiceAway, match="gave up after 300 s: refused"):
            await asked_at((0, away), (600, refused), (900, refused))
        with pytest.raises(ServiceAway, match="gave up after 3600 s: away"):
            await asked_at((0, refused), (100, away), (3600, away))

    play(scenario)


def test_what_is_no_answer_of_the_service_explains_nothing_and_is_not_asked_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(outcome, "EXPLAIN_AFTER_S", 0.01)
    monkeypatch.setattr(NotOurService, "patience_s", 0.01)
    said: list[str] = []

    async def scenario() -> None:
        async with ContractService() as service:
            feed = Connection(service.url).feed()
            service.jobs["j"] = {"status": "RUNNABLE"}
            for service.why in (None, [1]):
                await outcome._explain(feed, "j", said.append)
            assert said == []
            service.strange = True
            await outcome._explain(feed, "j", said.append)
            await feed.close()

    play(scenario)
    (sentence,) = said
    assert sentence.startswith("Why job j waits cannot be told: HTTP 404: page not found")


def test_a_url_that_was_changed_is_looked_at_while_tasks_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario() -> None:
        async with ContractService() as old, ContractService() as new:
            connection = Connection(old.url)
            feed = connection.feed()
            async with reading(feed):
                await old.connected()
                connection.names(new.url)
                monkeypatch.setattr(stream, "LOOK_UP_S", 0.0)
                await submit(feed, SUBMISSION, 60, lambda _: None)
                assert (len(old.jobs), len(new.jobs)) == (0, 1)
                await new.connected()

    play(scenario)


def test_a_job_that_another_service_does_not_know_has_not_failed() -> None:
    """1 the connection names another service for a while 2 then the one that has the job again."""

    async def scenario() -> None:
        async with ContractService() as ours, ContractService() as wrong:
            connection = Connection(ours.url)
            feed = connection.feed()
            async with reading(feed):
                job = await submit(feed, SUBMISSION, 60, lambda _: None)
                ending, heard = waiting(feed, job)
                await until(heard, "SUBMITTED")
                connection.names(wrong.url)
                await feed.renewed_service()
                said = await until(heard, "does not know job")
                assert ours.url in said
                assert wrong.url in said
                assert not ending.done()
                connection.names(ours.url)
                await feed.renewed_service()
                await ours.connected(2)
                await ours.change(job, "SUCCEEDED")
                assert (await ending).status == "SUCCEEDED"

    play(scenario)


def test_a_job_of_another_process_waits_for_the_service_that_has_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """1 a feed begins at a service that does not know it 2 the connection is mended; the stream is well all the time."""
    monkeypatch.setattr(stream, "LOOK_UP_S", 0.5)

    async def scenario() -> None:
        async with ContractService() as ours, ContractService() as wrong:
            worker = Connection(ours.url).feed()
            job = await submit(worker, SUBMISSION, 60, lambda _: None)
            await worker.close()
            connection = Connection(wrong.url, embedded=True)
            feed = connection.feed()
            async with reading(feed):
                ending, heard = waiting(feed, job, ours.url)
                await until(heard, "the service at embedded does not know job")
                connection.names(ours.url)
                await until(heard, "SUBMITTED")
                await ours.change(job, "SUCCEEDED")
                assert (await ending).status == "SUCCEEDED"

    play(scenario)


def test_who_waits_for_another_place_is_looked_after_once_however_often_it_is_told() -> None:
    """As it is with each look, and with each stream that begins anew."""

    async def scenario() -> None:
        feed = Connection("http://127.0.0.1:1").feed()
        waiter = stream.Waiter("job", "http://there")
        looks: list[asyncio.TimerHandle] = []
        for _ in range(3):
            feed._tell_of_another_place(waiter, "http://here")
            assert waiter.next_look is not None
            looks.append(waiter.next_look)
        assert [look.cancelled() for look in looks] == [True, True, False]
        looks[-1].cancel()
        await feed.close()

    play(scenario)


def test_a_job_that_its_own_service_does_not_know_has_failed() -> None:
    async def scenario() -> None:
        async with ContractService() as service:
            feed = Connection(service.url).feed()
            async with reading(feed):
                outcome = await follow(feed, "nobody's", lambda _: None)
                assert "does not know this job" in outcome.reason

    play(scenario)


@pytest.mark.parametrize(
    ("status", "began", "last_began", "attempt"),
    [
        ("RUNNABLE", {"startedAt": 100}, {"startedAt": 100}, 1),
        ("STARTING", {}, {"startedAt": 100}, 2),
        ("STARTING", {}, {}, 2),  # the node was lost before its pod ran
        ("RUNNING", {"startedAt": 200}, {"startedAt": 100}, 2),
        # The other nodes of a multi-node job are being stopped after its main one.
        ("RUNNING", {"startedAt": 100}, {"startedAt": 100}, 1),
        ("FAILED", {"startedAt": 100}, {"startedAt": 100}, 1),
    ],
)
def test_a_look_tells_the_attempt_that_runs_or_the_last_one(
    status: str, began: dict[str, int], last_began: dict[str, int], attempt: int
) -> None:
    job = {"status": status, "eksAttempts": [{**last_began, "stoppedAt": 150}], **began}
    assert news_from_job(job).attempt == attempt


def test_a_configured_service_does_not_become_the_embedded_one_while_tasks_wait() -> None:
    async def scenario() -> None:
        async with ContractService() as ours, ContractService() as embedded:
            connection = Connection(ours.url)
            feed = connection.feed()
            first = await feed.service()
            connection.names(embedded.url, embedded=True)
            assert await feed.renewed_service() is first
            connection.error = ServiceNotNamed("the secrets backend is down")
            assert await feed.renewed_service() is first
            await feed.close()

    play(scenario)


def test_the_embedded_service_may_come_back_elsewhere_and_give_way_to_a_configured_one() -> None:
    async def scenario() -> None:
        connection = Connection("http://127.0.0.1:1", embedded=True)
        feed = connection.feed()
        await feed.service()
        for url, embedded in (("http://127.0.0.1:2", True), ("http://prod", False)):
            connection.names(url, embedded=embedded)
            assert (await feed.renewed_service()).endpoint.url == url
        await feed.close()

    play(scenario)


def test_tasks_that_ask_at_once_look_the_connection_up_once() -> None:
    async def scenario() -> None:
        connection = Connection("http://127.0.0.1:1")
        feed = connection.feed()
        await asyncio.gather(*(feed.service() for _ in range(100)))
        assert connection.reads == 1
        feed._looked_up_at -= stream.LOOK_UP_S
        await asyncio.gather(*(feed.service() for _ in range(100)))
        assert connection.reads == 2
        await feed.close()

    play(scenario)
