"""Outputs on their way to a task's log: said once each, in time, and not more than was asked for."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_eksbatch import job_output
from airflow_eksbatch.hooks import AsyncBatchClient, Endpoint
from airflow_eksbatch.job_output import SLOW_S, JobOutput
from airflow_eksbatch.outcome import JobOutcome, follow, reading
from airflow_eksbatch.stream import JobFeed
from tests.airflow.contract_service import ContractService

PATIENCE_S = 30
JOB = "j"
EVERY_S = 0.02


class Task:
    """One that waits for its job; `said` is its log."""

    def __init__(self, feed: JobFeed, **options: Any) -> None:
        self.said: list[str] = []
        wait = follow(feed, JOB, self.said.append, **{"log_lines": 3, **options})
        self._waiting = asyncio.create_task(wait)

    async def end(self) -> JobOutcome:
        return await self._waiting

    async def has_said(self, words: str) -> None:
        while not any(words in line for line in self.said):
            await asyncio.sleep(0.01)

    @property
    def output(self) -> list[str]:
        return [line.removeprefix(f"[{JOB}] ") for line in self.said if line.startswith("[")]


Scenario = Callable[[ContractService, JobFeed], Coroutine[Any, Any, None]]


def play(scenario: Scenario) -> None:
    async def run() -> None:
        async with ContractService() as service:
            service.jobs[JOB] = {"jobId": JOB, "jobName": JOB, "status": "RUNNING"}

            async def connect() -> AsyncBatchClient:
                return AsyncBatchClient(Endpoint(url=service.url))

            async with reading(JobFeed(connect)) as feed:
                await scenario(service, feed)

    asyncio.run(asyncio.wait_for(run(), PATIENCE_S))


def test_what_is_new_is_said_while_the_job_runs_and_the_rest_at_the_end() -> None:
    """A line is said when it is whole, or when no more can come."""

    async def scenario(service: ContractService, feed: JobFeed) -> None:
        service.outputs[JOB] = [b"one\ntwo\nthr"]
        task = Task(feed, log_every_s=EVERY_S)
        await service.output_was_looked_at(3)
        assert task.output == ["one", "two"]
        service.outputs[JOB] = ["one\ntwo\nthree\nvier ü\nend".encode()]
        await service.output_was_looked_at(3)
        assert task.output == ["one", "two", "three", "vier ü"]
        await service.change(JOB, "SUCCEEDED", exitCode=0)
        assert (await task.end()).status == "SUCCEEDED"
        assert task.output == ["one", "two", "three", "vier ü", "end"]
        assert not [one for one in asyncio.all_tasks() if one.get_name() == f"output {JOB}"]

    play(scenario)


def test_each_look_says_its_last_lines_and_how_much_was_between() -> None:
    async def scenario(service: ContractService, feed: JobFeed) -> None:
        service.outputs[JOB] = [b"one\n"]
        task = Task(feed, log_every_s=EVERY_S)
        await service.output_was_looked_at(2)
        service.outputs[JOB] = [b"one\n" + b"".join(b"%d\n" % n for n in range(1000, 1010))]
        await service.output_was_looked_at(2)
        between = "(35 bytes of output between, not shown here)"
        assert task.output == ["one", between, "1007", "1008", "1009"]
        await service.change(JOB, "SUCCEEDED")
        await task.end()
        assert task.output[4:] == ["1009"]

    play(scenario)


def test_of_each_attempt_the_rest_is_said_before_the_next_one() -> None:
    """Also of one that came and went between two looks, and one that never had a pod is passed over."""

    async def scenario(service: ContractService, feed: JobFeed) -> None:
        service.outputs[JOB] = [b"one\n"]
        task = Task(feed, log_every_s=EVERY_S)
        await service.output_was_looked_at(2)
        service.outputs[JOB] = [b"one\nlost", b"between\n", None, b"two\n"]
        await service.change(JOB, "RUNNABLE", attempt=1)
        await service.change(JOB, "RUNNING", attempt=4)
        await service.output_was_looked_at(6)
        await service.change(JOB, "FAILED", attempt=4, exitCode=1)
        assert (await task.end()).exit_code == 1
        assert task.output == ["one", "lost", "between", "two"]

    play(scenario)


def test_attempts_before_the_first_look_are_said_too() -> None:
    async def scenario(service: ContractService, feed: JobFeed) -> None:
        service.outputs[JOB] = [b"one\n", b"two\n"]
        task = Task(feed, log_every_s=60)
        await task.has_said("is RUNNING")
        await service.change(JOB, "RUNNING", attempt=2)
        await service.change(JOB, "SUCCEEDED", attempt=2)
        await task.end()
        assert task.output == ["one", "two"]

    play(scenario)


def test_an_output_that_is_counted_anew_is_said_all_the_same() -> None:
    """As where a kubelet has begun a new file, or the service has and says only that it is lost."""

    async def scenario(service: ContractService, feed: JobFeed) -> None:
        service.outputs[JOB] = [b"one\ntwo\n"]
        task = Task(feed, log_every_s=EVERY_S)
        await service.output_was_looked_at(2)
        service.outputs[JOB] = [b"new\n"]
        await service.output_was_looked_at(4)
        assert task.output == ["one", "two", "new"]
        service.outputs[JOB] = [b"!\n"]
        await service.change(JOB, "FAILED")
        await task.end()
        assert task.output == ["one", "two", "new", "!"]

    play(scenario)


def test_of_a_progress_bar_each_look_says_how_far_it_is() -> None:
    async def scenario(service: ContractService, feed: JobFeed) -> None:
        service.outputs[JOB] = [b"\r10%\r20%\r30"]
        task = Task(feed, log_every_s=EVERY_S)
        await service.output_was_looked_at(3)
        assert task.output == ["20%"]
        service.outputs[JOB] = [b"\r10%\r20%\r30%\r100%\ndone\n"]
        await service.change(JOB, "SUCCEEDED")
        await task.end()
        assert task.output == ["20%", "100%", "done"]

    play(scenario)


def test_a_service_that_cannot_be_read_for_a_while_costs_no_line() -> None:
    async def scenario(service: ContractService, feed: JobFeed) -> None:
        service.outputs[JOB] = [b"one\n"]
        task = Task(feed, log_every_s=EVERY_S)
        await service.output_was_looked_at(2)
        service.strange = True
        await service.output_was_looked_at(2)
        service.strange = False
        service.outputs[JOB] = [b"one\ntwo\n"]
        await service.change(JOB, "SUCCEEDED")
        await task.end()
        assert task.output == ["one", "two"]

    play(scenario)


@pytest.mark.parametrize(
    ("options", "said"), [({}, ["2", "3", "4"]), ({"log_lines": 0, "log_every_s": EVERY_S}, [])]
)
def test_unless_asked_for_it_is_the_last_lines_at_the_end(
    options: dict[str, Any], said: list[str]
) -> None:
    async def scenario(service: ContractService, feed: JobFeed) -> None:
        service.outputs[JOB] = [b"1\n2\n3\n4\n"]
        task = Task(feed, **options)
        await task.has_said("is RUNNING")
        assert not [one for one in asyncio.all_tasks() if one.get_name() == f"output {JOB}"]
        await service.change(JOB, "SUCCEEDED")
        await task.end()
        assert task.output == said
        assert service.looks == bool(said)

    play(scenario)


def test_many_tasks_look_a_few_at_a_time() -> None:
    async def scenario(service: ContractService, feed: JobFeed) -> None:
        service.outputs[JOB] = [b"one\n"]
        tasks = [Task(feed, log_every_s=EVERY_S) for _ in range(20)]
        await service.output_was_looked_at(60)
        assert service.most_looks_at_once == 4
        await service.change(JOB, "SUCCEEDED")
        for task in tasks:
            await task.end()

    play(scenario)


def test_a_line_that_is_very_long_is_cut_and_says_so() -> None:
    async def scenario(service: ContractService, feed: JobFeed) -> None:
        service.outputs[JOB] = [b"x" * 1_000_000 + b"\nend\n"]
        task = Task(feed)
        await service.change(JOB, "SUCCEEDED")
        await task.end()
        long, end = task.output
        assert long == "x" * 2_000 + " ... (998,000 characters more: the job's page has them)"
        assert end == "end"

    play(scenario)


def test_nothing_stands_still_while_a_log_is_read_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    1. Whoever reads the log takes one line at a time, and lets each wait.
    2. Between two lines of a job all others go on, and jobs say their lines one after the other.
    """
    turns: list[str] = []
    now = 0.0

    def slowly(line: str) -> None:
        nonlocal now
        turns.append(line)
        now += 2 * SLOW_S

    monkeypatch.setattr(job_output, "time", SimpleNamespace(monotonic=lambda: now))

    async def others() -> None:
        while True:
            turns.append("others")
            await asyncio.sleep(0)

    async def scenario(service: ContractService, feed: JobFeed) -> None:
        outputs = []
        for name in ("a", "b"):
            service.jobs[name] = {"jobId": name, "jobName": name, "status": "SUCCEEDED"}
            service.outputs[name] = [b"1\n2\n3\n"]
            outputs.append(JobOutput(feed, name, slowly, lines=3))
        beside = asyncio.create_task(others())
        last = [output.say_last(is_array=False, has_failed=False) for output in outputs]
        await asyncio.gather(*last)
        beside.cancel()

    play(scenario)
    said = [(n, turn) for n, turn in enumerate(turns) if turn != "others"]
    assert len(said) == 6
    assert sorted(turn for _, turn in said) == [f"[{j}] {n}" for j in "ab" for n in (1, 2, 3)]
    assert len({turn[1] for _, turn in said[:3]}) == 1, "one after the other"
    assert all(later - earlier > 1 for (earlier, _), (later, _) in itertools.pairwise(said))
