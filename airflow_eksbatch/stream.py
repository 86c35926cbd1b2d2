"""One reader of the service's event stream for everybody in this process who waits for a job.

Waiters are found by job id, so an event costs the same whether ten or ten thousand tasks wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Protocol

import msgspec

from airflow_eksbatch.core.model import limits
from airflow_eksbatch.endpoint import Endpoint, NotLetIn, ServiceAway
from airflow_eksbatch.floor.clock import Backoff

log = logging.getLogger(__name__)

HEARTBEAT_S = 5
SILENCE_S = 2 * HEARTBEAT_S  # a stopping server may keep a dead socket open for a minute
GATHER_S = 0.05  # looks of tasks that start together become one call
LOOK_UP_S = 60.0  # a key or URL that is changed in the connection is used after so long
BACKOFF = Backoff()
FAILED_CHILDREN_TOLD = 10
FROM_NOW = -1

ENDED = frozenset({"SUCCEEDED", "FAILED"})
UNDER_WAY = frozenset({"STARTING", "RUNNING"})

# Where each service's stream was left, by URL: the stream closes with its last waiter and the
# next one must not begin at "now" in between.
_cursor_by_url: dict[str, int] = {}


class Service(Protocol):
    """What this module needs of a client."""

    @property
    def endpoint(self) -> Endpoint: ...

    async def call(
        self, operation: str, body: dict[str, Any], headers: dict[str, str] | None = None
    ) -> dict[str, Any]: ...

    def lines(self, path: str, params: dict[str, Any], silence_s: float) -> Any: ...

    async def close(self) -> None: ...


class StreamBroken(Exception):
    """The reader ended by a mistake of its own; whoever waited must look again."""


class JobNews(msgspec.Struct, frozen=True, kw_only=True):
    """What a waiter is told."""

    status: str = ""
    reason: str = ""
    exit_code: int | None = None
    attempt: int = 0
    """Counts placements, as pods and outputs are numbered."""
    attempts: int = 0
    """Those that count against the retry strategy, the one under way included."""
    is_array: bool = False
    cost_usd: float | None = None
    """Told with the end of the job, if it was heard on the stream."""
    failed_child: str = ""
    trouble: str = ""
    broken: bool = False


class Waiter:
    """One wait for one job."""

    def __init__(self, job_id: str, place: str = "") -> None:
        self.job_id = job_id
        self.place = place
        """Of the service that has the job, as far as that is known."""
        self.told_of = ""
        """A place that does not know the job."""
        self.next_look: asyncio.TimerHandle | None = None
        """Whether another one knows it by then."""
        self.failed_children: list[str] = []
        self._news: asyncio.Queue[JobNews] = asyncio.Queue()

    def tell(self, news: JobNews) -> None:
        if news.failed_child:
            if len(self.failed_children) >= FAILED_CHILDREN_TOLD:
                return
            self.failed_children.append(news.failed_child)
        self._news.put_nowait(news)

    async def hear(self) -> JobNews:
        news = await self._news.get()
        if news.broken:
            raise StreamBroken(news.trouble)
        return news


class JobFeed:
    """The stream of one service, its waiters, and the looks that make up for what it missed."""

    def __init__(self, connect: Callable[[], Awaitable[Service]]) -> None:
        self.loop = asyncio.get_running_loop()
        self._connect = connect
        self._service: Service | None = None
        self._connecting = asyncio.Lock()
        self._looked_up_at = 0.0
        self._waiters_by_job: dict[str, list[Waiter]] = {}
        self._unseen: set[str] = set()
        self._look_wanted = asyncio.Event()
        self._readers = 0
        self._in_trouble = False

    # -- for those who wait --

    @contextlib.contextmanager
    def waiting_for(self, job_id: str, place: str = "") -> Iterator[Waiter]:
        """Be told of everything that happens to a job, beginning with what it is now.

        :param place: of the service that has the job; without it, the one that is used now.
        """
        waiter = Waiter(job_id, place or self._place())
        self._waiters_by_job.setdefault(job_id, []).append(waiter)
        self._want_look([job_id])
        try:
            yield waiter
        finally:
            left = self._waiters_by_job[job_id]
            left.remove(waiter)
            if not left:
                del self._waiters_by_job[job_id]

    async def service(self) -> Service:
        """The client, shared by all; somebody may change the connection, so it is looked up anew after a while."""
        if self._service is not None and time.monotonic() - self._looked_up_at > LOOK_UP_S:
            return await self.renewed_service()
        async with self._connecting:
            if self._service is None:
                self._looked_up_at = time.monotonic()
                self._service = await self._connect()
            return self._service

    async def call(
        self, operation: str, body: dict[str, Any], headers: dict[str, str] | None = None
    ) -> dict[str, Any]:
        """One operation of the Batch API. A key that is not taken (any more) is looked up anew, once."""
        service = await self.service()
        try:
            return await service.call(operation, body, headers)
        except NotLetIn:
            renewed = await self.renewed_service()
            if renewed is service:
                raise
            return await renewed.call(operation, body, headers)

    async def close(self) -> None:
        """For who has only called the service; a reader closes by itself."""
        await self._drop_service()

    # -- the one reader --

    async def read(self) -> None:
        """Read for ever. Whatever goes wrong is waited out: to end would fail every waiting task."""
        self._readers += 1
        looking = asyncio.create_task(self._look_for_ever(), name="eksbatch-looks")
        try:
            await self._read_for_ever()
        except Exception as error:
            self._tell_all(JobNews(trouble=f"event stream: {error!r}", broken=True))
            raise
        finally:
            looking.cancel()
            self._readers -= 1
            if not self._readers:
                await self._drop_service()

    async def _read_for_ever(self) -> None:
        failures = 0
        while True:
            try:
                async for _ in self._read_once():
                    failures = 0
                trouble = "the service closed the event stream"
            except Exception as error:
                trouble = str(error) or type(error).__name__
            self._report_trouble(trouble)
            failures += 1
            await asyncio.sleep(BACKOFF.after(failures))

    async def _read_once(self) -> AsyncIterator[None]:
        service = await self.renewed_service()
        url = service.endpoint.url
        cursor = _cursor_by_url.get(url, FROM_NOW)
        async for line in service.lines("events", {"cursor": cursor}, SILENCE_S):
            message = json.loads(line)
            if "hello" in message:
                cursor = _after_hello(message, cursor)
                self._on_connected()
            else:
                for event in message.get("events", ()):
                    self._on_event(event)
                cursor = message["seq"]
            _cursor_by_url[url] = cursor
            yield None

    def _on_connected(self) -> None:
        if self._in_trouble:
            self._in_trouble = False
            self._tell_all(JobNews(trouble="the service answers again"))
        self._want_look(self._waiters_by_job)

    def _on_event(self, event: dict[str, Any]) -> None:
        job_id, _, index = str(event["jobId"]).partition(":")
        waiters = self._waiters_by_job.get(event["jobId"], ())
        if waiters:
            news = JobNews(
                status=event["status"],
                reason=event.get("statusReason") or "",
                exit_code=event.get("exitCode"),
                attempt=event.get("attempt") or 0,
                attempts=event.get("attempts") or 0,
                is_array=bool(event.get("parent")),
                cost_usd=(event.get("cost") or {}).get("usd"),
            )
            for waiter in waiters:
                waiter.tell(news)
        if index and event["status"] == "FAILED":
            for waiter in self._waiters_by_job.get(job_id, ()):
                reason = event.get("statusReason") or ""
                waiter.tell(JobNews(failed_child=event["jobId"], reason=reason))

    def _report_trouble(self, trouble: str) -> None:
        if not self._in_trouble:
            self._in_trouble = True
            log.warning("eksbatch: %s; trying again until it answers", trouble)
            self._tell_all(JobNews(trouble=f"{trouble}; the job is not affected, still waiting"))

    def _tell_all(self, news: JobNews) -> None:
        for waiters in self._waiters_by_job.values():
            for waiter in waiters:
                waiter.tell(news)

    async def renewed_service(self) -> Service:
        """Connected anew: the embedded service may have come back elsewhere, and keys may have changed."""
        self._looked_up_at = time.monotonic()
        known = self._service
        try:
            fresh = await self._connect()
        except ServiceAway:
            # Connections cannot be read just now; the service that was named last may answer all the same.
            if known is None or known.endpoint.embedded:
                raise
            return known
        async with self._connecting:
            stale = self._service
            if stale is not None and (
                stale.endpoint == fresh.endpoint or _gives_way(stale.endpoint, fresh.endpoint)
            ):
                return stale
            self._service = fresh
        if stale is not None:
            await stale.close()
        return fresh

    async def _drop_service(self) -> None:
        service, self._service = self._service, None
        if service is not None:
            await service.close()

    # -- looks: what a stream that begins "now" cannot know --

    def _want_look(self, job_ids: Any) -> None:
        self._unseen.update(job_ids)
        if self._unseen:
            self._look_wanted.set()

    async def _look_for_ever(self) -> None:
        failures = 0
        while True:
            await self._look_wanted.wait()
            await asyncio.sleep(GATHER_S)
            try:
                await self._look_once()
                failures = 0
            except Exception as error:
                self._report_trouble(str(error) or type(error).__name__)
                failures += 1
                await asyncio.sleep(BACKOFF.after(failures))

    async def _look_once(self) -> None:
        self._unseen &= self._waiters_by_job.keys()
        job_ids = sorted(self._unseen)[: limits.DESCRIBE_MAX]
        if job_ids:
            answer = await self.call("describejobs", {"jobs": job_ids})
            jobs = {job["jobId"]: job for job in answer["jobs"]}
            for job_id in job_ids:
                self._tell_what_is(job_id, jobs.get(job_id))
        if not self._unseen:
            self._look_wanted.clear()

    def _tell_what_is(self, job_id: str, job: dict[str, Any] | None) -> None:
        """A job that another service was asked for has not failed because this one does not know it."""
        place = self._place()
        for waiter in self._waiters_by_job.get(job_id, ()):
            if job is None and waiter.place not in ("", place):
                self._tell_of_another_place(waiter, place)
            else:
                waiter.place, waiter.told_of = place, ""
                waiter.tell(news_from_job(job))
        self._unseen.discard(job_id)

    def _tell_of_another_place(self, waiter: Waiter, place: str) -> None:
        """Once; and look again when the connection is looked up anew, though the stream may be well."""
        if waiter.next_look is not None:
            waiter.next_look.cancel()  # Each look and each new stream come here
        waiter.next_look = self.loop.call_later(LOOK_UP_S, self._want_look, [waiter.job_id])
        if waiter.told_of != place:
            waiter.told_of = place
            trouble = (
                f"the service at {place} does not know job {waiter.job_id}, which was submitted to that at "
                f"{waiter.place}; waiting until the connection names one that does"
            )
            waiter.tell(JobNews(trouble=trouble))

    def _place(self) -> str:
        return self._service.endpoint.place if self._service else ""


def _gives_way(known: Endpoint, found: Endpoint) -> bool:
    """A service that was configured never becomes the embedded one while somebody waits for its jobs."""
    return found.embedded and not known.embedded


def _after_hello(message: dict[str, Any], cursor: int) -> int:
    """Where to go on: after a gap, or on another store, from the newest; else where we were."""
    newest = message["hello"]
    fresh = cursor == FROM_NOW or message.get("gap") or newest < cursor
    return newest if fresh else cursor


def news_from_job(job: dict[str, Any] | None) -> JobNews:
    """What DescribeJobs says, told like an event."""
    if job is None:
        return JobNews(status="FAILED", reason="the service does not know this job any more")
    ended = job.get("attempts") or job.get("eksAttempts") or []
    return JobNews(
        status=job["status"],
        reason=job.get("statusReason") or "",
        exit_code=exit_code_of(job),
        attempt=len(ended) + _has_live_attempt(job, ended),
        # Only our own service says which attempts were free.
        attempts=sum(one.get("charged", True) for one in ended),
        is_array=bool((job.get("arrayProperties") or {}).get("size")),
    )


def _has_live_attempt(job: dict[str, Any], ended: list[dict[str, Any]]) -> bool:
    """Not a multi-node job whose other nodes are being stopped: it is RUNNING, and its attempt has ended."""
    began = ended[-1].get("startedAt") if ended else None
    return job["status"] in UNDER_WAY and (began is None or began != job.get("startedAt"))


def exit_code_of(job: dict[str, Any]) -> int | None:
    """The exit code of the last container that has one; of a pod that fails in an init container, of that one."""
    found = None
    for attempt in [*(job.get("attempts") or ()), *(job.get("eksAttempts") or ())]:
        containers = attempt.get("containers") or [attempt.get("container") or {}]
        for container in [*(attempt.get("initContainers") or ()), *containers]:
            if container.get("exitCode") is not None:
                found = container["exitCode"]
    return found


# One feed per connection and event loop; a triggerer has one loop for its whole life.
_feeds: dict[str, JobFeed] = {}


def feed_of(name: str, connect: Callable[[], Awaitable[Service]]) -> JobFeed:
    """The feed that everybody on this event loop shares for this connection."""
    feed = _feeds.get(name)
    if feed is None or feed.loop is not asyncio.get_running_loop():
        feed = _feeds[name] = JobFeed(connect)
    return feed
