"""What a job prints, in its task's log: the last lines when it has ended and, if asked for, what is new while it runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import msgspec

from airflow_eksbatch.hooks import ServiceAway, ServiceRefused
from airflow_eksbatch.stream import JobFeed

# For one look at an output, which must not hold the job's end back.
LOOK_S = 10
# A service is asked for so many outputs at a time by all tasks of a process that wait for its jobs.
LOOKS_MAX = 4
_looks: WeakKeyDictionary[JobFeed, asyncio.Semaphore] = WeakKeyDictionary()


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
        self._attempt = 0
        self._said = 0
        """Bytes of that attempt's output."""
        self._looking: asyncio.Task[None] | None = None

    def is_running(self, running: bool) -> None:
        """Look every so often while it is, and once more when it is not any more."""
        if self._lines and self._every_s is not None and (running or self._looking is not None):
            self.leave()
            looking = self._look_on(self._every_s) if running else self._try_to_say(self._job_id)
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
            self._say(f"The output of job {self._job_id} cannot be shown: {error}")

    async def _failed_child(self) -> str:
        asked = {"arrayJobId": self._job_id, "jobStatus": "FAILED", "maxResults": 1}
        children = (await self._feed.call("listjobs", asked))["jobSummaryList"]
        return str(children[0]["jobId"]) if children else ""

    async def _look_on(self, every_s: float) -> None:
        while True:
            await asyncio.sleep(every_s)
            await self._try_to_say(self._job_id)

    async def _try_to_say(self, job_id: str) -> None:
        """What cannot be read now is read later; the stream tells of a service that is away."""
        looks = _looks.setdefault(self._feed, asyncio.Semaphore(LOOKS_MAX))
        try:
            async with looks, asyncio.timeout(LOOK_S):
                await self._say_new(job_id, is_over=False)
        except (ServiceAway, ServiceRefused, TimeoutError):
            return

    async def _say_new(self, job_id: str, *, is_over: bool) -> None:
        former, tail = self._attempt, await self._tail(job_id)
        if former and tail.attempt != former:
            self._say_rest(job_id, await self._tail(job_id, former), is_over=True)
            self._attempt, self._said = tail.attempt, 0
        self._attempt = tail.attempt
        self._say_rest(job_id, tail, is_over=is_over)

    async def _tail(self, job_id: str, attempt: int = 0) -> Tail:
        service: Any = await self._feed.service()
        asked = {"tail": self._lines, **({"attempt": attempt} if attempt else {})}
        text, headers = await service.read(f"jobs/{job_id}/log", asked)
        # Services of a release before this one do not say which attempt it is.
        number = int(headers.get("x-eksbatch-attempt", 0))
        return Tail(number, text, int(headers.get("x-eksbatch-next-offset", 0)))

    def _say_rest(self, job_id: str, tail: Tail, *, is_over: bool) -> None:
        """The lines after those that were said; a line without an end yet is said when it has one, or when all is over."""
        text = tail.text if is_over else tail.text[: tail.text.rfind(b"\n") + 1]
        end = tail.end - len(tail.text) + len(text)
        new = end - self._said
        if new <= 0:
            return
        if self._said and new > len(text):
            self._say(f"[{job_id}] ({new - len(text):,} bytes of output between, not shown here)")
        for line in text[-new:].decode(errors="replace").splitlines():
            self._say(f"[{job_id}] {line}")
        self._said = end
