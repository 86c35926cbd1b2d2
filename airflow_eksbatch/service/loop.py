"""The beat: facts in, step, commit, answers, effects; the one place where time passes for the world."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple

import msgspec

from airflow_eksbatch.core.engine.effects import Effect, Outcome
from airflow_eksbatch.core.engine.facts import ClockTicked, Fact, JobSubmitted
from airflow_eksbatch.core.engine.step import derive_effects, step
from airflow_eksbatch.core.engine.turn import StepSettings
from airflow_eksbatch.core.model.compute_environment import ComputeEnvironment
from airflow_eksbatch.core.model.errors import Rejected
from airflow_eksbatch.core.model.job import Ended, Job, JobId
from airflow_eksbatch.core.world.world import World
from airflow_eksbatch.floor.clock import Backoff
from airflow_eksbatch.service.broadcast import Broadcast
from airflow_eksbatch.service.inbox import Inbox, Letter, unavailable
from airflow_eksbatch.service.lease import CLOCK
from airflow_eksbatch.service.store_thread import StoreThread
from airflow_eksbatch.service.telemetry import Telemetry
from airflow_eksbatch.store.port import Fenced, Store, StoreError, Unstorable

NS = 1_000_000
# Less than this is caught up with within seconds, and no deadline here is shorter.
SET_BACK_MS = 5_000


class BeatSettings(msgspec.Struct, frozen=True, kw_only=True):
    interval_s: float = 0.02
    """At least this long from one beat to the next: submits that come meanwhile share a commit."""
    facts_max: int = 2_000
    """Facts in one beat: bounds its length and the size of its transaction."""
    rest_s: float = 10.0
    """At most this long without a beat, so that a clock that was set is noticed."""
    check_indexes: bool = False
    """Check the world after every step: for tests, slow."""


class Clock:
    """Epoch milliseconds that never run backwards: while the wall clock is behind, they go at half the speed of a steady one.

    One that was set back by an hour would take two to catch up with, and meanwhile each timeout comes an hour early: the loop
    does not wait for that.
    """

    def __init__(
        self,
        wall: Callable[[], int] = time.time_ns,
        steady: Callable[[], int] = lambda: time.clock_gettime_ns(CLOCK),
    ) -> None:
        self._wall, self._steady = wall, steady
        self._lock = threading.Lock()
        self._last, self._looked_at = wall(), steady()

    def __call__(self) -> int:
        with self._lock:
            steady = self._steady()
            slow = self._last + (steady - self._looked_at) // 2
            self._last, self._looked_at = max(self._wall(), slow), steady
            return self._last // NS

    def ahead_ms(self) -> int:
        """How far the wall clock is behind."""
        return max(0, self() - self._wall() // NS)

    def set_back(self) -> None:
        """To the wall clock: for somebody who remembers nothing of what it told."""
        with self._lock:
            self._last, self._looked_at = self._wall(), self._steady()


class Kept(NamedTuple):
    """What only the store knows of the jobs that submits are about."""

    ends: dict[JobId, Ended]
    """Dependencies."""
    earlier: dict[str, JobId]
    """By token."""
    newest: dict[str | None, Job]
    """By task key."""


class Loop:
    """Owns the world. Between step and commit nobody may look at it."""

    def __init__(
        self,
        *,
        store: StoreThread,
        inbox: Inbox,
        broadcast: Broadcast,
        telemetry: Telemetry,
        clock: Clock,
        hold_lease: Callable[[], AbstractAsyncContextManager[None]],
        step_settings: StepSettings,
        settings: BeatSettings,
    ) -> None:
        self._store = store
        self._inbox = inbox
        self._broadcast = broadcast
        self._telemetry = telemetry
        self._clock = clock
        self._step_settings = step_settings
        self._settings = settings
        self._again: deque[list[Letter]] = deque()
        """Beats to come, of letters of one that the store did not take: none of them, then each alone."""
        self._early: dict[str, list[object]] = {}
        self._settled = asyncio.Event()
        self._stopping = False
        self._wake_at: int | None = None
        self._hold_lease = hold_lease
        self.start_effects: Callable[[Sequence[Effect]], None] = lambda effects: None
        """Set by the wiring: the performer needs the inbox, and this needs the performer."""
        self.world: World | None = None
        self.beating = asyncio.Event()
        """Set by the first committed beat."""
        self.trouble: str | None = "starting"
        """Why the service is not ready, or None."""

    @property
    def is_settled(self) -> bool:
        """Whether the world shows only what is committed."""
        return self._settled.is_set()

    async def settled(self) -> None:
        """Until it does."""
        while not self._settled.is_set():
            await self._settled.wait()

    def find_environment(self, name: str) -> ComputeEnvironment | None:
        """A compute environment as it is now."""
        return None if self.world is None else self.world.compute_environments.get(name)

    async def run(self) -> None:
        """Load, then beat until `stop`. Raises Fenced, and whatever is a bug."""
        try:
            await self._run()
        finally:
            for letter in self._let_go():
                letter.answer(unavailable("The service is stopping."))

    async def _run(self) -> None:
        await self._load()
        backoff, failures = Backoff(first_s=0.1, most_s=2.0), 0
        while not (self._stopping and not self._inbox and not self._again):
            began = time.monotonic()
            try:
                if self._clock.ahead_ms() > SET_BACK_MS:
                    await self._go_back()
                await self._beat()
                failures = 0
            except Fenced:
                raise
            except StoreError as error:
                failures += 1
                self._pause(f"the database cannot be used: {error}")
                self._telemetry.store_failed("commit", str(error))
                if self._stopping:
                    return
                await asyncio.sleep(backoff.after(failures))
                await self._load()
                continue
            await self._rest(began)

    def stop(self) -> None:
        """Beat until the inbox is empty, then return from `run`."""
        self._stopping = True
        self._inbox.wake()

    async def _rest(self, began: float) -> None:
        """Wait for a fact or the next deadline, but never shorter than the interval."""
        if self._again:
            return
        left_s = self._settings.interval_s - (time.monotonic() - began)
        await asyncio.sleep(max(0.0, left_s))
        if self._stopping:
            return
        rest_s = self._settings.rest_s
        if self._wake_at is not None:
            rest_s = min(rest_s, (self._wake_at - self._clock()) / 1000)
        await self._inbox.wait(rest_s)

    async def _beat(self) -> None:
        is_trial = bool(self._again)
        letters = self._again.popleft() if is_trial else self._inbox.drain(self._settings.facts_max)
        try:
            await self._turn(letters)
        except StoreError as error:
            if not isinstance(error, Unstorable):
                self._give_back(letters, error)
            elif not is_trial:
                self._again.extend([[], *([letter] for letter in letters)])
            elif letters:
                self._blame(letters[0], error)
            else:  # It is the beat itself: all letters are innocent
                self._give_back(letters, error)
            raise
        except BaseException:
            # Whoever waits to read is let go, and finds that there is no world.
            self.world = None
            self._settled.set()
            for letter in [*letters, *self._let_go()]:
                letter.answer(unavailable("The service failed at this and starts again."))
            raise

    def _blame(self, letter: Letter, error: Unstorable) -> None:
        """The store took a beat without it. What nobody waits for is left out too, or no beat would ever be kept again."""
        self._telemetry.unstorable(type(letter.fact).__name__, str(error))
        letter.answer(Rejected(f"This cannot be kept: {error}"))

    def _give_back(self, letters: list[Letter], error: StoreError) -> None:
        """Callers are told to come again; what clusters and clouds have told comes first in the next beat."""
        letters = [*letters, *self._let_go()]
        for letter in letters:
            letter.answer(unavailable(f"The database cannot be written now: {error}"))
        self._inbox.give_back(letters)

    def _let_go(self) -> list[Letter]:
        """The letters that were to be tried again."""
        letters = [letter for beat in self._again for letter in beat]
        self._again.clear()
        return letters

    async def _turn(self, letters: list[Letter]) -> None:
        """One beat, its lines in the only order that a crash cannot hurt."""
        facts = await self._enrich([letter.fact for letter in letters])
        world, now = self.world, self._clock()
        assert world is not None
        self._settled.clear()
        began = time.monotonic()
        outcome = step(world, facts or [ClockTicked()], now, self._step_settings)
        stepped = time.monotonic()
        if self._settings.check_indexes:
            world.check_indexes()
        if not outcome.changes.is_empty:
            await self._store.commit(lambda store: store.commit(outcome.changes))
        self._early = world.joins.early()
        self._settled.set()
        committed = time.monotonic()
        self._wake_at = outcome.wake_at
        self.trouble = None
        self.beating.set()
        for letter, answer in zip(letters, outcome.answers, strict=False):
            letter.answer(answer)
        self._finish(outcome)
        self._telemetry.beat(facts, outcome, stepped - began, committed - stepped)

    def _finish(self, outcome: Outcome) -> None:
        """It has happened: now it may be told and done."""
        self.start_effects(outcome.effects)
        self._broadcast.publish(outcome.changes.events)

    async def _enrich(self, facts: list[Fact]) -> list[Fact]:
        """Add to submits what only the store knows: dependencies and earlier submits that have ended."""
        assert self.world is not None
        jobs, by_token = self.world.jobs, self.world.job_by_token
        submits = [fact for fact in facts if isinstance(fact, JobSubmitted)]
        awaited = {
            dependency.job_id
            for fact in submits
            for dependency in fact.spec.depends_on
            if dependency.job_id and dependency.job_id not in jobs
        }
        tokens = {
            fact.spec.token
            for fact in submits
            if fact.spec.token and fact.spec.token not in by_token
        }
        tasks = {
            fact.spec.task_key
            for fact in submits
            if fact.spec.task_key
            and fact.spec.task_instance
            and fact.spec.task_key not in self.world.job_by_task
        }
        if not awaited and not tokens and not tasks:
            return facts

        def look(store: Store) -> Kept:
            newest = store.find_task_jobs(tasks) if tasks else {}
            return Kept(
                store.find_ends(awaited) if awaited else {},
                store.find_tokens(tokens) if tokens else {},
                {job.spec.task_key: job for job in store.find_jobs(newest.values())},
            )

        kept = await self._store.commit(look)
        if not any(kept):
            return facts
        return [_enriched(fact, kept) if isinstance(fact, JobSubmitted) else fact for fact in facts]

    def _pause(self, trouble: str) -> None:
        """What memory has is not true any more."""
        self._settled.clear()
        self.world = None
        self.trouble = trouble

    async def _go_back(self) -> None:
        """The clock was ahead and is right now. As after a new start: no world lives to see time run backwards."""
        trouble = f"the clock was set back by {self._clock.ahead_ms() / 1000:.0f} s"
        self._telemetry.log.warning(f"{trouble}: the state is read anew")
        self._pause(trouble)
        self._clock.set_back()
        await self._load()

    async def _load(self) -> None:
        """Make the world from the store, however long the store takes to be there again.

        The lease is held through it; that it can be written also shows that the store takes commits again.
        """
        backoff, failures = Backoff(first_s=0.1, most_s=5.0), 0
        while True:
            try:
                async with self._hold_lease():
                    world = await self._store.ask(load_world)
                break
            except Fenced:
                raise
            except StoreError as error:
                failures += 1
                self.trouble = f"the database cannot be read: {error}"
                self._telemetry.store_failed("load", str(error))
                if self._stopping:
                    raise
                await asyncio.sleep(backoff.after(failures))
        # What lives long is not looked through again and again by the garbage collector.
        gc.collect()
        gc.freeze()
        # Clusters do not tell it again: their watches go on.
        world.joins.recall(self._early)
        self._broadcast.start_at(world.counters.event_seq)
        self.start_effects(derive_effects(world, self._clock(), self._step_settings))
        self.world, self._wake_at = world, self._clock()
        self._settled.set()


def load_world(store: Store) -> World:
    """The world as it is stored. The garbage collector would double the time of a million jobs and free nothing."""
    gc.disable()
    try:
        return World(store.load())
    finally:
        gc.enable()


def _enriched(fact: JobSubmitted, kept: Kept) -> JobSubmitted:
    spec = fact.spec
    newest = kept.newest.get(spec.task_key)
    return msgspec.structs.replace(
        fact,
        dependency_ends={
            d.job_id: kept.ends[d.job_id] for d in spec.depends_on if d.job_id in kept.ends
        },
        earlier_job=kept.earlier.get(spec.token) if spec.token else None,
        newest=newest.spec if newest else None,
    )
