"""The event stream: nothing twice, nothing lost, and slow readers cost no memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

from airflow_eksbatch.core.model.job import JobEvent, JobId, JobStatus
from airflow_eksbatch.service.broadcast import Broadcast, History, Line, StreamSettings


def event(seq: int) -> JobEvent:
    return JobEvent(
        seq=seq,
        time=seq,
        job_id=JobId("job"),
        index=None,
        job_name="name",
        job_queue="default",
        status=JobStatus.RUNNABLE,
    )


class Studio:
    """A broadcast over a history kept in a list."""

    def __init__(self, *, kept_from: int = 1, behind_max: int = 100, page: int = 10) -> None:
        self.kept: list[JobEvent] = []
        self.kept_from = kept_from
        self.broadcast = Broadcast(
            StreamSettings(batch_s=0, heartbeat_s=0.01, behind_max=behind_max, page=page),
            History(events_since=self._events_since, first_seq=self._first_seq),
        )

    async def _events_since(self, seq: int, limit: int) -> list[JobEvent]:
        await asyncio.sleep(0)
        return [event for event in self.kept if event.seq > seq][:limit]

    async def _first_seq(self) -> int:
        return self.kept_from

    def happen(self, first: int, last: int) -> None:
        events = [event(seq) for seq in range(first, last + 1)]
        self.kept += events
        self.broadcast.publish(events)

    async def read_until(self, stream: AsyncIterator[Line], last: int) -> list[int]:
        """Sequence numbers of events up to that one."""
        seqs: list[int] = []
        while not seqs or seqs[-1] < last:
            line = await anext(stream)
            seqs += [e["seq"] for e in line.get("events", [])]
        return seqs


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(10):
            await scenario()

    asyncio.run(bounded())


def test_from_now_on_means_from_now_on() -> None:
    async def scenario() -> None:
        studio = Studio()
        studio.happen(1, 5)
        stream = studio.broadcast.subscribe(-1)
        assert await anext(stream) == {"hello": 5}
        studio.happen(6, 7)
        assert await studio.read_until(stream, 7) == [6, 7]

    run(scenario)


def test_a_cursor_gets_what_it_missed_and_then_what_happens_each_once() -> None:
    async def scenario() -> None:
        studio = Studio()
        studio.happen(1, 35)
        stream = studio.broadcast.subscribe(3)
        assert await anext(stream) == {"hello": 35}
        first = await studio.read_until(stream, 13)
        studio.happen(36, 50)
        assert first + await studio.read_until(stream, 50) == list(range(4, 51))

    run(scenario)


def test_a_cursor_older_than_what_is_kept_has_a_gap() -> None:
    async def scenario() -> None:
        studio = Studio(kept_from=20)
        studio.happen(20, 30)
        stream = studio.broadcast.subscribe(5)
        assert await anext(stream) == {"hello": 30, "gap": True}
        studio.happen(31, 31)
        assert await studio.read_until(stream, 31) == [31]

    run(scenario)


def test_a_cursor_from_another_database_has_a_gap() -> None:
    async def scenario() -> None:
        studio = Studio()
        studio.happen(1, 3)
        assert await anext(studio.broadcast.subscribe(900)) == {"hello": 3, "gap": True}

    run(scenario)


def test_a_reader_that_falls_behind_reads_on_from_the_store() -> None:
    async def scenario() -> None:
        studio = Studio(behind_max=20)
        stream = studio.broadcast.subscribe(-1)
        await anext(stream)
        for first in range(1, 200, 10):
            studio.happen(first, first + 9)
        assert await studio.read_until(stream, 200) == list(range(1, 201))

    run(scenario)


def test_a_quiet_stream_has_a_heartbeat_that_moves_no_cursor() -> None:
    async def scenario() -> None:
        studio = Studio()
        studio.happen(1, 2)
        stream = studio.broadcast.subscribe(-1)
        await anext(stream)
        assert await anext(stream) == {"seq": 2}

    run(scenario)


def test_closing_ends_every_stream() -> None:
    async def scenario() -> None:
        studio = Studio()
        connected = asyncio.Event()

        async def read() -> None:
            async for _ in studio.broadcast.subscribe(-1):
                connected.set()

        reader = asyncio.create_task(read())
        await connected.wait()
        studio.broadcast.close()
        await reader
        assert studio.broadcast.subscribers == 0

    run(scenario)


def test_an_event_speaks_the_words_of_the_wire() -> None:
    async def scenario() -> None:
        studio = Studio()
        stream = studio.broadcast.subscribe(-1)
        await anext(stream)
        studio.happen(1, 1)
        assert await anext(stream) == {
            "seq": 1,
            "events": [
                {
                    "seq": 1,
                    "time": 1,
                    "jobId": "job",
                    "jobName": "name",
                    "jobQueue": "default",
                    "status": "RUNNABLE",
                    "statusReason": None,
                    "exitCode": None,
                    "attempt": 0,
                    "attempts": 0,
                    "parent": False,
                }
            ],
        }

    run(scenario)
