"""The beat: nothing is told before it is kept, and a store that fails loses nothing that was told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path

import pytest

from airflow_eksbatch.core.engine.effects import CheckEnvironment, Effect, Outcome
from airflow_eksbatch.core.engine.facts import (
    ComputeEnvironmentPut,
    EnvironmentChecked,
    Fact,
    InstanceLaunched,
    JobStopped,
    JobSubmitted,
    NodeReady,
    PolicyPut,
    QueuePut,
)
from airflow_eksbatch.core.engine.step import step
from airflow_eksbatch.core.engine.turn import StepSettings
from airflow_eksbatch.core.model.compute_environment import ComputeEnvironment
from airflow_eksbatch.core.model.errors import Rejected
from airflow_eksbatch.core.model.job import Dependency, JobId, JobSpec
from airflow_eksbatch.core.model.job_queue import JobQueue
from airflow_eksbatch.core.model.node import NodeId, NodeStatus
from airflow_eksbatch.core.model.resources import Resources
from airflow_eksbatch.core.model.share import SchedulingPolicy
from airflow_eksbatch.core.world.changes import Changes
from airflow_eksbatch.core.world.world import World
from airflow_eksbatch.service.broadcast import Broadcast, History, StreamSettings
from airflow_eksbatch.service.inbox import Inbox
from airflow_eksbatch.service.lease import Lease
from airflow_eksbatch.service.loop import BeatSettings, Clock, Loop
from airflow_eksbatch.service.store_thread import StoreThread
from airflow_eksbatch.service.telemetry import Telemetry
from airflow_eksbatch.store.port import Fenced, Store, StoreError, Unstorable
from airflow_eksbatch.store.sqlite import sqlite_store
from tests.build import a_job, a_node, an_environment


class Trouble:
    """Stands between the loop and a real store, and fails commits when told so."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.failures: list[StoreError] = []
        self.unstorable = ""
        """Name of a job."""
        self.commits = 0
        self.then: Callable[[], object] = lambda: None
        """What comes of a commit that cannot be kept."""

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    def commit(self, changes: Changes) -> None:
        if self.failures:
            raise self.failures.pop(0)
        if any(job.spec.name == self.unstorable for job in changes.jobs_added):
            self.then()
            raise Unstorable("no index takes that")
        self.commits += 1
        self._store.commit(changes)


class Heart:
    """A loop over a real store, with what it asks of the outside in a list."""

    def __init__(self, path: Path) -> None:
        self.wall_ahead_ns = 0
        self.trouble = Trouble(sqlite_store(path))
        self.store = StoreThread(self.trouble)  # type: ignore[arg-type]
        self.inbox = Inbox(10_000)
        self.effects: list[Effect] = []
        clock, telemetry = Clock(lambda: time.time_ns() + self.wall_ahead_ns), Telemetry()
        self.clock = clock
        lease = Lease(
            "me",
            10,
            store=self.store,
            make_store=lambda: sqlite_store(path),
            clock=clock,
            telemetry=telemetry,
        )
        self.loop = Loop(
            store=self.store,
            inbox=self.inbox,
            broadcast=Broadcast(
                StreamSettings(),
                History(
                    events_since=lambda seq, n: self.store.ask(lambda s: s.events_since(seq, n)),
                    first_seq=lambda: self.store.ask(lambda s: s.first_event_seq()),
                ),
            ),
            telemetry=telemetry,
            clock=clock,
            hold_lease=lease.hold,
            step_settings=StepSettings(),
            settings=BeatSettings(interval_s=0.001),
        )
        self.loop.start_effects = self._start

    def _start(self, effects: Sequence[Effect]) -> None:
        self.effects.extend(effects)

    async def submit_all(self, specs: Iterable[JobSpec]) -> list[object]:
        callers = [self.inbox.offer(JobSubmitted(spec=spec)) for spec in specs]
        return await asyncio.gather(*callers, return_exceptions=True)


def a_spec(name: str, **fields: object) -> JobSpec:
    plain = {
        "job_id": JobId(f"id-{name}"),
        "name": name,
        "queue": "default",
        "definition": "d:1",
        "resources": Resources(cpu_m=1000, memory_mib=512, pods=1),
        "pod": b"{}",
        "share": "today",
    }
    return JobSpec(**{**plain, **fields})  # type: ignore[arg-type]


async def give_it_a_queue(heart: Heart, name: str = "ce") -> None:
    environment = ComputeEnvironment(name=name, arn="a", uuid="u", max_vcpus=4)
    queue = JobQueue(name="default", arn="q", compute_environments=(name,), policy="fair")
    await heart.inbox.offer(ComputeEnvironmentPut(compute_environment=environment, create=True))
    await heart.inbox.offer(PolicyPut(policy=SchedulingPolicy(name="fair", arn="p"), create=True))
    await heart.inbox.offer(QueuePut(queue=queue, create=True))


def run(scenario: Callable[[Heart], Awaitable[None]], path: Path, *, fresh: bool = True) -> None:
    async def bounded() -> None:
        heart = Heart(path)
        await heart.store.ask(lambda store: store.open())
        beating = asyncio.create_task(heart.loop.run())
        try:
            async with asyncio.timeout(20):
                if fresh:
                    await give_it_a_queue(heart)
                await scenario(heart)
                heart.loop.stop()
                await beating
        finally:
            beating.cancel()
            (ended,) = await asyncio.gather(beating, return_exceptions=True)
            await heart.store.close()
            if isinstance(ended, Exception):
                raise ended

    asyncio.run(bounded())


def test_submits_that_come_together_share_a_commit(tmp_path: Path) -> None:
    async def scenario(heart: Heart) -> None:
        before = heart.trouble.commits
        answers = await heart.submit_all(a_spec(str(number)) for number in range(500))
        assert answers == [f"id-{number}" for number in range(500)]
        assert heart.trouble.commits - before <= 3

    run(scenario, tmp_path / "db")


def test_what_was_answered_is_there_after_a_new_start(tmp_path: Path) -> None:
    async def first(heart: Heart) -> None:
        await heart.submit_all(a_spec(str(number)) for number in range(20))

    async def second(heart: Heart) -> None:
        await heart.loop.beating.wait()
        assert heart.loop.world is not None
        assert len(heart.loop.world.jobs) == 20
        assert CheckEnvironment(compute_environment="ce") in heart.effects

    run(first, tmp_path / "db")
    run(second, tmp_path / "db", fresh=False)


def test_a_repeated_submit_is_the_same_job_also_after_it_has_ended(tmp_path: Path) -> None:
    async def scenario(heart: Heart) -> None:
        (failed,) = await heart.submit_all([a_spec("failed", token="t")])
        assert heart.loop.world is not None
        job = heart.loop.world.jobs[JobId(str(failed))]
        stop = JobStopped(job_id=job.job_id, reason="no longer wanted", terminate=True)
        await heart.inbox.offer(stop)
        assert job.job_id not in heart.loop.world.jobs
        assert await heart.submit_all([a_spec("again", token="t")]) == [failed]

    run(scenario, tmp_path / "db")


def test_a_try_whose_successor_has_ended_is_found_to_be_too_late(tmp_path: Path) -> None:
    async def scenario(heart: Heart) -> None:
        task = {"task_key": "d|r|t|-1"}
        older, younger = {"task_instance": "1", **task}, {"task_instance": "2", **task}
        await heart.submit_all([a_spec("second", token="b", try_number=2, **younger)])
        stop = JobStopped(job_id=JobId("id-second"), reason="enough", terminate=True)
        await heart.inbox.offer(stop)
        (late,) = await heart.submit_all([a_spec("first", token="a", try_number=1, **older)])
        assert isinstance(late, Rejected)
        assert "overtaken by a later one" in late.message
        made_again = a_spec("again", token="c", try_number=1, **task, task_instance="3")
        assert await heart.submit_all([made_again]) == ["id-again"]
        stop = JobStopped(job_id=JobId("id-again"), reason="enough", terminate=True)
        await heart.inbox.offer(stop)
        by_a_slow_clock = a_spec("next", token="d", try_number=2, **older)
        assert await heart.submit_all([by_a_slow_clock]) == ["id-next"]

    run(scenario, tmp_path / "db")


def test_a_dependency_that_has_left_the_world_is_looked_up(tmp_path: Path) -> None:
    async def scenario(heart: Heart) -> None:
        await heart.submit_all([a_spec("first")])
        await heart.inbox.offer(
            JobStopped(job_id=JobId("id-first"), reason="enough", terminate=True)
        )
        dependent = a_spec("second", depends_on=(Dependency(job_id=JobId("id-first")),))
        assert await heart.submit_all([dependent]) == ["id-second"]
        (job,) = await heart.store.ask(lambda store: store.find_jobs([JobId("id-second")]))
        assert job.status_reason == "Dependent Job failed"
        unknown = a_spec("third", depends_on=(Dependency(job_id=JobId("nobody")),))
        (refused,) = await heart.submit_all([unknown])
        assert isinstance(refused, Rejected)

    run(scenario, tmp_path / "db")


def test_a_beat_that_cannot_be_kept_never_happened(tmp_path: Path) -> None:
    async def scenario(heart: Heart) -> None:
        heart.trouble.failures = [StoreError("No space is left.")]
        (refused,) = await heart.submit_all([a_spec("lost")])
        assert isinstance(refused, Rejected)
        assert refused.code == "ServerException"
        assert "No space is left" in refused.message
        await heart.loop.settled()
        assert heart.loop.world is not None
        assert not heart.loop.world.jobs
        assert await heart.submit_all([a_spec("kept")]) == ["id-kept"]
        assert heart.loop.trouble is None

    run(scenario, tmp_path / "db")


def test_what_a_cluster_told_is_not_lost_with_a_beat(tmp_path: Path) -> None:
    async def scenario(heart: Heart) -> None:
        heart.trouble.failures = [StoreError("No space is left.")] * 3
        checked = EnvironmentChecked(name="ce", status="INVALID", status_reason="no such subnet")
        heart.inbox.tell([checked])
        while isinstance((await heart.submit_all([a_spec("after")]))[0], Rejected):
            assert heart.loop.trouble is not None
        assert heart.loop.world is not None
        assert heart.loop.world.compute_environments["ce"].status == "INVALID"

    run(scenario, tmp_path / "db")


def test_what_the_store_does_not_take_is_refused_and_nothing_else(tmp_path: Path) -> None:
    async def scenario(heart: Heart) -> None:
        heart.trouble.unstorable = "bad"
        heart.inbox.tell([EnvironmentChecked(name="ce", status="INVALID", status_reason="none")])
        names = ["a", "b", "bad", "c"]
        answers = await heart.submit_all(a_spec(name) for name in names)
        assert [answer for answer in answers if not isinstance(answer, Rejected)] == [
            "id-a",
            "id-b",
            "id-c",
        ]
        assert isinstance(answers[2], Rejected)
        assert (answers[2].code, answers[2].message) == (
            "ClientException",
            "This cannot be kept: no index takes that",
        )
        await heart.loop.settled()
        world = heart.loop.world
        assert world is not None
        assert set(world.jobs) == {"id-a", "id-b", "id-c"}
        assert world.compute_environments["ce"].status == "INVALID"
        assert await heart.submit_all([a_spec("after")]) == ["id-after"]
        assert heart.loop.trouble is None

    run(scenario, tmp_path / "db")


def test_a_beat_that_is_bad_by_itself_is_the_fault_of_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1 what the store does not take comes of the beat, twice 2 whoever asked may ask again, what was told is not lost."""
    left = ["with letters", "without"]

    def spoilt(world: World, facts: Sequence[Fact], now: int, settings: StepSettings) -> Outcome:
        outcome = step(world, facts, now, settings)
        if left and (len(left) == 1 or JobSubmitted in map(type, facts)):
            left.pop()
            outcome.changes.jobs_added = [a_job("bad")]
        return outcome

    async def scenario(heart: Heart) -> None:
        monkeypatch.setattr("airflow_eksbatch.service.loop.step", spoilt)
        heart.trouble.unstorable = "bad"
        heart.inbox.tell([EnvironmentChecked(name="ce", status="INVALID", status_reason="none")])
        answers = await heart.submit_all([a_spec("a"), a_spec("b")])
        assert [getattr(answer, "code", answer) for answer in answers] == ["ServerException"] * 2
        assert await heart.submit_all([a_spec("a")]) == ["id-a"]
        assert heart.loop.world is not None
        assert heart.loop.world.compute_environments["ce"].status == "INVALID"
        assert not left

    run(scenario, tmp_path / "db")


def test_what_was_told_and_cannot_be_kept_is_left_out_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def scenario(heart: Heart) -> None:
        heart.trouble.unstorable = "bad"
        heart.inbox.tell([JobSubmitted(spec=a_spec("bad"))])
        assert await heart.submit_all([a_spec("a")]) == ["id-a"]

    run(scenario, tmp_path / "db")
    assert "JobSubmitted" in capsys.readouterr().out


def test_who_waits_for_another_try_when_the_service_stops_is_told(tmp_path: Path) -> None:
    async def scenario(heart: Heart) -> None:
        here = asyncio.get_running_loop()
        heart.trouble.unstorable = "bad"
        heart.trouble.then = lambda: here.call_soon_threadsafe(heart.loop.stop)
        answers = await heart.submit_all([a_spec("a"), a_spec("bad")])
        assert [getattr(answer, "code", answer) for answer in answers] == ["ServerException"] * 2

    run(scenario, tmp_path / "db")


def test_a_machine_that_was_faster_than_the_answer_to_its_launch_outlives_a_beat(
    tmp_path: Path,
) -> None:
    """1 its cluster tells of it by its instance 2 a beat is not kept, and the world is made anew 3 its launch is told."""
    node = a_node("n1", status=NodeStatus.REQUESTED, requested_at=time.time_ns() // 1_000_000)
    store = sqlite_store(tmp_path / "db")
    store.open()
    store.commit(Changes(compute_environments=[an_environment()], nodes=[node]))
    store.close()

    async def scenario(heart: Heart) -> None:
        now = heart.clock()
        joined = NodeReady(
            node_id=NodeId("i-1"), node_name="ip-1", allocatable=node.allocatable, at=now
        )
        heart.inbox.tell([joined])
        await give_it_a_queue(heart, "other")
        heart.trouble.failures = [StoreError("No space is left.")]
        (refused,) = await heart.submit_all([a_spec("lost")])
        assert isinstance(refused, Rejected)
        heart.inbox.tell([InstanceLaunched(node_id=node.node_id, instance_id="i-1", at=now)])
        while isinstance((await heart.submit_all([a_spec("kept")]))[0], Rejected):
            assert heart.loop.trouble is not None
        assert heart.loop.world is not None
        assert heart.loop.world.nodes[node.node_id].status is NodeStatus.READY

    run(scenario, tmp_path / "db", fresh=False)


def test_who_lost_the_lease_stops_beating(tmp_path: Path) -> None:
    async def scenario(heart: Heart) -> None:
        heart.trouble.failures = [Fenced("Another service has taken over.")]
        (refused,) = await heart.submit_all([a_spec("lost")])
        assert isinstance(refused, Rejected)

    with pytest.raises(Fenced):
        run(scenario, tmp_path / "db")


def test_readers_never_see_what_is_not_committed(tmp_path: Path) -> None:
    async def scenario(heart: Heart) -> None:
        seen: list[bool] = []

        async def look() -> None:
            await heart.loop.settled()
            world = heart.loop.world
            assert world is not None
            ids = list(world.jobs)
            seen.append(len(await heart.store.ask(lambda s: s.find_jobs(ids))) == len(ids))

        submits = heart.submit_all(a_spec(str(number)) for number in range(200))
        await asyncio.gather(submits, *(look() for _ in range(50)))
        assert seen == [True] * 50

    run(scenario, tmp_path / "db")


def test_after_the_load_a_standby_waits_no_longer_than_the_lease(tmp_path: Path) -> None:
    """A service that is killed at once leaves the lease of its load, which is much longer, behind."""

    async def scenario(heart: Heart) -> None:
        await heart.submit_all([a_spec("first")])
        in_eleven_s = Clock()() + 11_000
        taken = await heart.store.ask(lambda s: s.take_lease("another", in_eleven_s, 10))
        assert taken is not None

    run(scenario, tmp_path / "db")


# ---- the clock

S = 1_000_000_000


class Hands:
    """A wall clock that may be set, and a steady one."""

    def __init__(self) -> None:
        self.wall, self.steady = 1_000 * S, 7 * S

    def pass_s(self, seconds: float) -> None:
        self.wall += int(seconds * S)
        self.steady += int(seconds * S)


def test_time_follows_the_wall_clock_and_never_runs_backwards() -> None:
    hands = Hands()
    clock = Clock(lambda: hands.wall, lambda: hands.steady)
    hands.pass_s(5)
    assert (clock(), clock.ahead_ms()) == (1_005_000, 0)
    hands.wall += 60 * S
    assert clock() == 1_065_000
    hands.wall -= 10 * S
    assert (clock(), clock.ahead_ms()) == (1_065_000, 10_000)
    hands.pass_s(4)
    assert (clock(), clock.ahead_ms()) == (1_067_000, 8_000), "it goes on, slowly"
    hands.pass_s(16)
    assert (clock(), clock.ahead_ms()) == (1_075_000, 0), "and they agree again"
    hands.wall -= 3_600 * S
    clock.set_back()
    assert clock() == hands.wall // 1_000_000


def test_a_clock_that_was_ahead_and_is_set_right_holds_nothing_up(tmp_path: Path) -> None:
    """Time goes on from what is right, as after a new start, and callers see nothing of it."""

    async def scenario(heart: Heart) -> None:
        await heart.submit_all([a_spec("first")])
        heart.wall_ahead_ns = 3_600 * S
        await heart.submit_all([a_spec("ahead")])
        assert heart.clock() > time.time_ns() // 1_000_000 + 3_500_000
        ahead = heart.loop.world
        heart.wall_ahead_ns = 0
        heart.inbox.wake()
        while heart.loop.world in (ahead, None):
            await asyncio.sleep(0.01)
        assert await heart.submit_all([a_spec("right")]) == ["id-right"]
        assert heart.clock.ahead_ms() == 0
        assert heart.loop.world is not None
        assert set(heart.loop.world.jobs) == {"id-first", "id-ahead", "id-right"}
        assert heart.loop.trouble is None

    run(scenario, tmp_path / "db")
