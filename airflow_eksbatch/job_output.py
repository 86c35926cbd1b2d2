"""What a job prints, in its task's log: the last lines when it has ended and, if asked for, what is new while it runs."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine
from typing import Any
from weakref import WeakKeyDictionary

import msgspec

from airflow_eksbatch.endpoint import ServiceAway, ServiceRefused, reason_of
from airflow_eksbatch.stream import JobFeed

# For one look at an output, which must not hold the job's end back.
LOOK_S = 10
# A service is asked for so many outputs at a time by all tasks of a process that wait for its jobs.
LOOKS_MAX = 4
_looks: WeakKeyDictionary[JobFeed, asyncio.Semaphore] = WeakKeyDictionary()
# What is longer is cut: the job's page has all of it.
LINE_CHARACTERS_MAX = 2_000
# A line that took so long has waited for whoever reads the log. Airflow 3.3 reads a triggerer's 4 KiB at a time, with a look
# into its database between; meanwhile no task there goes on. So one job speaks at a time, and the reader gets time to read.
SLOW_S, REST_S = 0.005, 0.1
_speaking: WeakKeyDictionary[JobFeed, asyncio.Lock] = WeakKeyDictionary()


class Tail(msgspec.Struct, frozen=True):
    """The last lines of an attempt's output."""

    attempt: int
    """0: there is none yet."""
    text: bytes
    end: int
    """Of the text, in the whole output of the attempt."""


class JobOutput:
    """The output of one job, on its way to a log."""

    def __init__(
        self,
        feed: JobFeed,
        job_id: str,
        say: Callable[[str], Any],
        *,
        lines: int,
        every_s: float | None = None,
    ) -> None:
        """
        :param lines: so many last lines are said at the end, and of what is new at each look before it.
        :param every_s: how often to look while the job runs; None: only when it has ended.
        """
        self._feed = feed
        self._job_id = job_id
        self._say = say
        self._lines = lines
        self._every_s = every_s
        self._first = 0
        """The attempt with which following began."""
        self._attempt = 0
        """The one of which something was seen last."""
        self._said = 0
        """Bytes of its output."""
        self._is_behind = False
        """What was seen last ended before that."""
        self._looking: asyncio.Task[None] | None = None

    def begin(self, attempt: int) -> None:
        """An attempt runs: look every so often."""
        if self._lines and self._every_s is not None:
            self._first = self._first or attempt
            self._turn_to(self._look_on(self._every_s))

    def pause(self) -> None:
        """None runs now: what the last one said is looked at once more."""
        if self._looking is not None:
            self._turn_to(self._try_to_say())

    def _turn_to(self, looking: Coroutine[Any, Any, None]) -> None:
        self.leave()
        self._looking = asyncio.create_task(looking, name=f"output {self._job_id}")

    def leave(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None

    async def say_last(self, *, is_array: bool, has_failed: bool) -> None:
        """What was not said before; of an array, the output of a child that failed."""
        self.leave()
        if not self._lines:
            return
        try:
            async with asyncio.timeout(LOOK_S):
                job_id = self._job_id
                if is_array:
                    job_id = await self._failed_child() if has_failed else ""
                if job_id:
                    await self._say_new(job_id, is_over=True)
        except (ServiceAway, ServiceRefused, TimeoutError) as error:
            self._say(f"The output of job {self._job_id} cannot be shown: {reason_of(error)}")

    async def _failed_child(self) -> str:
        asked = {"arrayJobId": self._job_id, "jobStatus": "FAILED", "maxResults": 1}
        children = (await self._feed.call("listjobs", asked))["jobSummaryList"]
        return str(children[0]["jobId"]) if children else ""

    async def _look_on(self, every_s: float) -> None:
        while True:
            await asyncio.sleep(every_s)
            await self._try_to_say()

    async def _try_to_say(self) -> None:
        """What cannot be read now is read later; the stream tells of a service that is away."""
        looks = _looks.setdefault(self._feed, asyncio.Semaphore(LOOKS_MAX))
        try:
            async with looks, asyncio.timeout(LOOK_S):
                await self._say_new(self._job_id, is_over=False)
        except (ServiceAway, ServiceRefused, TimeoutError):
            return

    async def _say_new(self, job_id: str, *, is_over: bool) -> None:
        tail = await self._tail(job_id)
        for former in range(self._attempt or self._first or tail.attempt, tail.attempt):
            # One that never had a pod has no output.
            with contextlib.suppress(ServiceRefused):
                await self._say_rest(job_id, await self._tail(job_id, former), is_over=True)
        await self._say_rest(job_id, tail, is_over=is_over)

    async def _tail(self, job_id: str, attempt: int = 0) -> Tail:
        service: Any = await self._feed.service()
        asked = {"tail": self._lines, **({"attempt": attempt} if attempt else {})}
        text, headers = await service.read(f"jobs/{job_id}/log", asked)
        number = int(headers.get("x-eksbatch-attempt", 0))
        return Tail(number, text, int(headers.get("x-eksbatch-next-offset", 0)))

    async def _say_rest(self, job_id: str, tail: Tail, *, is_over: bool) -> None:
        """The lines after those that were said; one without an end yet waits for it, or until all is over."""
        if tail.attempt != self._attempt:
            self._attempt, self._said, self._is_behind = tail.attempt, 0, False
        if tail.end < self._said and (is_over or self._is_behind):
            # It is counted anew, as where another replica reads what the node still has of it.
            self._said = 0
        self._is_behind = tail.end < self._said
        ended = max(tail.text.rfind(b"\n"), tail.text.rfind(b"\r")) + 1
        text = tail.text if is_over else tail.text[:ended]
        end = tail.end - len(tail.text) + len(text)
        new = end - self._said
        if new <= 0 or not text:
            return
        if self._said and new > len(text):
            self._say(f"[{job_id}] ({new - len(text):,} bytes of output between, not shown here)")
        self._said = max(self._said, end - len(text))
        async with _speaking.setdefault(self._feed, asyncio.Lock()):
            for line in text[-new:].removesuffix(b"\n").split(b"\n"):
                began = time.monotonic()
                self._say(f"[{job_id}] {shown(line)}")
                self._said += len(line) + 1
                await asyncio.sleep(REST_S if time.monotonic() - began > SLOW_S else 0)
        self._said = end


def shown(line: bytes) -> str:
    """As a terminal shows it in the end (a progress bar is written over itself), as far as it is not too long."""
    text = line.decode(errors="replace").rstrip("\r").rpartition("\r")[2]
    if len(text) <= LINE_CHARACTERS_MAX:
        return text
    cut = len(text) - LINE_CHARACTERS_MAX
    return f"{text[:LINE_CHARACTERS_MAX]} ... ({cut:,} characters more: the job's page has them)"
