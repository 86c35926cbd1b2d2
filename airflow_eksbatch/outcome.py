"""One job from submit to outcome, the same for a trigger and for a worker that waits itself."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future
from importlib import import_module
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import msgspec
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from airflow_eksbatch.endpoint import ACCESS_DENIED
from airflow_eksbatch.floor.clock import Backoff
from airflow_eksbatch.hooks import (
    AsyncBatchClient,
    EKSBatchHook,
    Endpoint,
    NotOurService,
    ServiceAway,
    ServiceRefused,
    job_url,
)
from airflow_eksbatch.job_output import JobOutput
from airflow_eksbatch.stream import ENDED, JobFeed, JobNews, Waiter, exit_code_of, feed_of
from airflow_eksbatch.submission import Submission

ASKING_NEEDS = ("aiohttp", "botocore.auth", "botocore.awsrequest", "botocore.credentials")
LOOK_S = 10  # for a look at what the end of a job does not tell, which must not hold it back
BACKOFF = Backoff(first_s=0.5, most_s=30.0)
SUBMIT_ROUNDS = 4  # a definition to register, a share to drop, and one to spare
# For ending a job: longer than a fail-over, shorter than Airflow's on_kill_timeout of 30 s.
END_S = 25
# Why a job waits is asked after a minute, then ever more rarely, and for all jobs of a triggerer
# one by one: a thousand that wait cost their service five questions a second at most.
EXPLAIN_AFTER_S = 60.0
EXPLAIN_LONGEST_S = 900.0
EXPLAIN_GAP_S = 0.2
EXPLAIN_CHARACTERS = 1_000
UNPLACED = frozenset({"SUBMITTED", "PENDING", "RUNNABLE"})

Answer = TypeVar("Answer")


class JobOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """How a job ended, or why there was none."""

    job_id: str
    status: str
    reason: str = ""
    exit_code: int | None = None
    attempts: int = 0
    """Those that counted against the retry strategy; what the platform did to the job is free."""
    is_array: bool = False
    # Nothing a retry could change: refused, or ended by somebody's hand.
    final: bool = False
    url: str = ""
    """Where a person reads about it, for the button of a task that a worker ends."""

    @property
    def sentence(self) -> str:
        if not self.job_id:
            return self.reason
        exit_code = "" if self.exit_code is None else f" (exit code {self.exit_code})"
        because = f": {self.reason}" if self.reason else ""
        return f"job {self.job_id} {self.status}{exit_code}{because}"

    def result(self) -> dict[str, Any]:
        """What goes to XCom; an array as a whole has no exit code and no attempts."""
        return {
            "job_id": self.job_id,
            "status": self.status,
            "exit_code": self.exit_code,
            "attempts": self.attempts,
        }


class EKSBatchJobFailed(AirflowException):
    """The job ended FAILED; a retry of the task submits a new one."""

    def __init__(self, sentence: str, outcome: JobOutcome | None = None) -> None:
        super().__init__(sentence)
        self.job_id = outcome.job_id if outcome else ""
        self.exit_code = outcome.exit_code if outcome else None
        self.reason = outcome.reason if outcome else ""


class EKSBatchJobRefused(AirflowFailException):
    """The service refused the job, or somebody ended it: retries would not help."""


def result_of(outcome: JobOutcome) -> dict[str, Any]:
    """The task's result, or the exception that says why there is none."""
    if outcome.status != "FAILED":
        return outcome.result()
    if outcome.final:
        raise EKSBatchJobRefused(outcome.sentence)
    raise EKSBatchJobFailed(outcome.sentence, outcome)


def feed_for(conn_id: str, note: Callable[[Endpoint], Any] = lambda _: None) -> JobFeed:
    """The feed of a connection; `note` is told where its service is before anything is asked there."""

    async def connect() -> AsyncBatchClient:
        endpoint = await EKSBatchHook(conn_id).aendpoint()
        # Before the note: whoever acts on it may have interrupted this thread, and another thread
        # cannot import what this one is in the middle of importing.
        for module in ASKING_NEEDS:
            import_module(module)
        note(endpoint)
        return AsyncBatchClient(endpoint)

    return feed_of(conn_id, connect)


async def asked(conn_id: str, operation: str, body: dict[str, Any]) -> dict[str, Any]:
    """The answer to a call of its own, from wherever the service is now."""
    client = AsyncBatchClient(await EKSBatchHook(conn_id).aendpoint())
    try:
        return await client.call(operation, body)
    finally:
        await client.close()


async def submit(
    feed: JobFeed, submission: Submission, within_s: float, say: Callable[[str], Any]
) -> str:
    """The job's id. A service that is away is asked again; the token makes that one job."""
    say = _once_each(say)

    def tell(error: ServiceAway) -> None:
        seconds = min(within_s, error.patience_s)
        say(f"The service does not take the job yet ({error}); trying for {seconds:g} s")

    return await patiently(feed, lambda: submit_once(feed, submission, say), within_s, tell)


async def patiently(
    feed: JobFeed,
    ask: Callable[[], Awaitable[Answer]],
    within_s: float,
    tell: Callable[[ServiceAway], Any] = lambda _: None,
) -> Answer:
    """Ask a service that is away again, where it is by then, ever more rarely; tell the first time.

    The patience with one kind of trouble begins with that trouble: what came before it had nothing to mend.
    """
    began = time.monotonic()
    failures, trouble, troubled_at = 0, None, began
    while True:
        try:
            if failures:
                await feed.renewed_service()
            return await ask()
        except ServiceAway as error:
            now = time.monotonic()
            failures += 1
            if trouble is not type(error):
                trouble, troubled_at = type(error), now
            until, allowed_s = min(
                (began + within_s, within_s), (troubled_at + error.patience_s, error.patience_s)
            )
            left_s = until - now
            if left_s <= 0:
                raise ServiceAway(f"gave up after {allowed_s:g} s: {error}") from error
            if failures == 1:
                tell(error)
        await asyncio.sleep(min(BACKOFF.after(failures), left_s))


def _once_each(say: Callable[[str], Any]) -> Callable[[str], Any]:
    said: set[str] = set()

    def say_new(text: str) -> None:
        if text not in said:
            said.add(text)
            say(text)

    return say_new


async def submit_once(
    feed: JobFeed, submission: Submission, say: Callable[[str], Any] = lambda _: None
) -> str:
    """One SubmitJob; more calls only where the service lacks what we may add or drop."""
    request = dict(submission.request)
    for last in (False,) * (SUBMIT_ROUNDS - 1) + (True,):
        try:
            answer = await feed.call("submitjob", request, submission.headers)
            return str(answer["jobId"])
        except ServiceRefused as error:
            # Whom something is denied, nothing added or dropped will help; job queues may have any words in their names.
            text = "" if error.code == ACCESS_DENIED else error.message.lower()
            chosen = submission.share_was_chosen or "shareIdentifier" not in request
            if not last and submission.definition and "definition" in text:
                await feed.call("registerjobdefinition", submission.definition)
            elif not last and not chosen and "share" in text:
                share = request.pop("shareIdentifier")
                say(
                    f"Job queue {request['jobQueue']} has no scheduling policy, so the share {share} is "
                    "left out: its jobs run in the order they come, those of backfills and of today alike"
                )
            else:
                raise
    raise AssertionError("the last round returns or raises")


async def follow(
    feed: JobFeed,
    job_id: str,
    say: Callable[[str], Any],
    *,
    place: str = "",
    log_lines: int = 0,
    log_every_s: float | None = None,
) -> JobOutcome:
    """Wait until the job has ended, saying what happens; the outcome is from its last event only.

    :param place: of the service that has it, if it may have been submitted by another process.
    :param log_lines: how many last lines of its output are said at the end.
    :param log_every_s: how often so many last lines of what is new are said before.
    """
    output = JobOutput(feed, job_id, say, lines=log_lines, every_s=log_every_s)
    with feed.waiting_for(job_id, place) as waiter:
        last = await _hear_the_end(feed, waiter, say, output)
        if last.cost_usd:
            say(f"Job {job_id} cost {last.cost_usd:.6f} USD")
        outcome = JobOutcome(
            job_id=job_id,
            status=last.status,
            reason=last.reason,
            exit_code=last.exit_code,
            attempts=last.attempts,
            is_array=last.is_array,
            url=await url_of(feed, job_id),
        )
        if outcome.status == "FAILED":
            outcome = await _looked_into(feed, outcome)
        await output.say_last(is_array=outcome.is_array, has_failed=outcome.status == "FAILED")
        return outcome


async def url_of(feed: JobFeed, job_id: str) -> str:
    """Where a person reads about the job; nothing while the service cannot be found."""
    try:
        service: Any = await feed.service()
    except ServiceAway:
        return ""
    return job_url(service.endpoint, job_id)


async def _hear_the_end(
    feed: JobFeed, waiter: Waiter, say: Callable[[str], Any], output: JobOutput
) -> JobNews:
    shown: tuple[str, int] = ("", 0)
    explaining: asyncio.Task[None] | None = None
    try:
        while True:
            news = await waiter.hear()
            if news.trouble:
                say(f"Event stream: {news.trouble}")
            elif news.failed_child:
                say(f"Array child {news.failed_child} FAILED: {news.reason or 'no reason given'}")
            elif news.status in ENDED:
                return news
            elif (news.status, max(news.attempt, 1)) != shown:
                shown = (news.status, max(news.attempt, 1))
                attempt = f", attempt {news.attempt}" if news.attempt > 1 else ""
                because = f" ({news.reason})" if news.reason else ""
                say(f"Job {waiter.job_id} is {news.status}{attempt}{because}")
                if explaining is not None:
                    explaining.cancel()
                # The output of an array is that of its children.
                if news.status == "RUNNING" and not news.is_array:
                    output.begin(shown[1])
                else:
                    output.pause()
                if news.status != "RUNNING":
                    explaining = asyncio.create_task(_explain(feed, waiter.job_id, say))
    finally:
        output.leave()
        if explaining is not None:
            explaining.cancel()


# One question at a time for each feed.
_explaining: WeakKeyDictionary[JobFeed, asyncio.Lock] = WeakKeyDictionary()


async def _explain(feed: JobFeed, job_id: str, say: Callable[[str], Any]) -> None:
    """Say why a job is not running yet, and again when that has changed; of an array, how far it is."""
    pause_s, said, strange_at = EXPLAIN_AFTER_S, "", math.inf
    while True:
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, EXPLAIN_LONGEST_S)
        try:
            async with _explaining.setdefault(feed, asyncio.Lock()), asyncio.timeout(LOOK_S):
                service: Any = await feed.service()
                answer = json.loads(await service.get(f"jobs/{job_id}/explain"))
                await asyncio.sleep(EXPLAIN_GAP_S)
            why = " ".join(answer["sentences"])[:EXPLAIN_CHARACTERS]
            sentence = f"Job {job_id} is {answer['status']}: {why}"
        except (ServiceRefused, ValueError, KeyError, TypeError):
            return  # it is no service of ours, or an older one
        except NotOurService as error:
            now = time.monotonic()
            strange_at = min(strange_at, now)
            if now - strange_at < error.patience_s:
                continue
            say(f"Why job {job_id} waits cannot be told: {error}")
            return
        except (ServiceAway, TimeoutError):
            continue  # the stream tells of it
        strange_at = math.inf
        if why != said:
            said = why
            say(sentence)


async def _looked_into(feed: JobFeed, outcome: JobOutcome) -> JobOutcome:
    """Whether it failed or was ended by somebody is only in DescribeJobs."""
    with contextlib.suppress(ServiceAway, ServiceRefused, TimeoutError):
        async with asyncio.timeout(LOOK_S):
            jobs = (await feed.call("describejobs", {"jobs": [outcome.job_id]}))["jobs"]
        for job in jobs:
            code = exit_code_of(job)
            return msgspec.structs.replace(
                outcome,
                final=bool(job.get("isTerminated") or job.get("isCancelled")),
                exit_code=outcome.exit_code if code is None else code,
                reason=outcome.reason or job.get("statusReason") or "",
            )
    return outcome


async def status_of(feed: JobFeed, job_id: str) -> str | None:
    """What a job is now; None if the service does not know it."""
    jobs = (await feed.call("describejobs", {"jobs": [job_id]}))["jobs"]
    return jobs[0]["status"] if jobs else None


# ---- ends that somebody asks for


async def end_job(feed: JobFeed, job: str | Submission, reason: str) -> tuple[str, str | None]:
    """The job that was ended, and what it was before. A service that is away is asked for END_S.

    A submit may have arrived without its answer: its token finds that same job.
    """

    async def ask() -> tuple[str, str | None]:
        job_id = job if isinstance(job, str) else await submit_once(feed, job)
        status = await status_of(feed, job_id)
        await feed.call("terminatejob", {"jobId": job_id, "reason": reason})
        return job_id, status

    async with asyncio.timeout(END_S):
        return await patiently(feed, ask, END_S)


def end_from_anywhere(endpoint: Endpoint, job: str | Submission, reason: str) -> str:
    """The same for a signal handler, also one that has interrupted an event loop of this thread.

    So in a thread of its own, and without asking Airflow for anything: whoever was interrupted may
    hold the way there, or the lock that all thread pools share.
    """

    async def connect() -> AsyncBatchClient:
        return AsyncBatchClient(endpoint)

    async def end() -> str:
        feed = JobFeed(connect)
        try:
            return (await end_job(feed, job, reason))[0]
        finally:
            await feed.close()

    ended: Future[str] = Future()

    def run() -> None:
        try:
            ended.set_result(asyncio.run(end()))
        except Exception as error:
            ended.set_exception(error)

    threading.Thread(target=run, name="eksbatch-end", daemon=True).start()
    return ended.result(2 * END_S)


@contextlib.asynccontextmanager
async def reading(feed: JobFeed) -> AsyncIterator[JobFeed]:
    """Read the stream here, where no triggerer does it."""
    reader = asyncio.create_task(feed.read(), name="eksbatch-stream")
    try:
        yield feed
    finally:
        reader.cancel()
        await asyncio.wait([reader])
