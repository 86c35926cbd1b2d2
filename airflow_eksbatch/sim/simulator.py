"""The beat of the service under virtual time: the same step, a ledger for a store, and crashes between any two lines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec

from airflow_eksbatch.core.engine import effects, facts
from airflow_eksbatch.core.engine.effects import Outcome
from airflow_eksbatch.core.engine.step import derive_effects, step
from airflow_eksbatch.core.engine.turn import StepSettings
from airflow_eksbatch.core.model.errors import Rejected
from airflow_eksbatch.core.model.node import Offering
from airflow_eksbatch.core.world.world import World
from airflow_eksbatch.sim.cloud import SimCloud
from airflow_eksbatch.sim.cluster import SimCluster
from airflow_eksbatch.sim.faults import Chance, CrashLine, Faults
from airflow_eksbatch.sim.ledger import Ledger
from airflow_eksbatch.sim.timeline import Timeline

# A caller whose call failed, or whose answer was lost, asks again.
REPEAT_S = 1.0
Told = Callable[[object], None]


class SimSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Times of the simulated outside, in seconds; ranges are drawn from."""

    seed: int = 1
    interval_s: float = 0.02
    call_s: tuple[float, float] = (0.005, 0.2)
    """An effect's way to the outside and back."""
    watch_s: float = 0.05
    look_every_s: float = 10.0
    launch_s: tuple[float, float] = (40.0, 90.0)
    pod_start_s: tuple[float, float] = (0.5, 3.0)
    idle_s: float = 60.0
    is_checked: bool = False
    """Count the world, every plan and the ledger again at every beat."""


class Letter(msgspec.Struct, frozen=True, kw_only=True):
    fact: facts.Fact
    answer: Told | None = None
    """Set where a caller waits; news of a watch has none."""


class Simulator:
    """One life. What is told by a watch may be lost on the way; a caller asks until it is answered."""

    def __init__(
        self,
        offerings: Mapping[str, Sequence[Offering]],
        faults: Faults | None = None,
        settings: SimSettings | None = None,
        capacity: Mapping[str, int] | None = None,
    ) -> None:
        self.settings = settings or SimSettings()
        self.timeline = Timeline()
        self.chance = Chance(self.settings.seed, faults or Faults(), self.timeline)
        self.ledger = Ledger()
        self.cluster = SimCluster(
            self.timeline,
            self.chance,
            lambda fact: self._hear([fact]),
            pod_start_s=self.settings.pod_start_s,
        )
        self.cloud = SimCloud(
            self.timeline,
            self.chance,
            lambda fact: self._hear([fact]),
            self.cluster,
            launch_s=self.settings.launch_s,
            capacity=capacity,
        )
        self.world: World | None = World()
        self.beats = 0
        self.crashes = 0
        self.listeners: list[Callable[[Outcome], None]] = []
        """They hear what was committed, before any caller does."""
        self.on_start: Callable[[], None] = lambda: None
        self.offerings = dict(offerings)
        self._step_settings = StepSettings(
            idle_s=self.settings.idle_s, check_plans=self.settings.is_checked
        )
        self._inbox: list[Letter] = []
        self._life = 0
        self._beat_at: int | None = None
        self._lanes: dict[str, int] = {}
        self._refusals: dict[effects.Key, facts.Fact] = {}
        self._is_looking = False

    # ---- what callers do

    def ask(self, fact: facts.Fact, answer: Told = lambda _: None) -> None:
        """Offer a fact now, and again until it is answered, whatever happens to the service meanwhile."""
        answered = False

        def heard(given: object) -> None:
            nonlocal answered
            if not answered and not (isinstance(given, Rejected) and given.code == "Unavailable"):
                answered = True
                answer(given)

        def offer() -> None:
            if not answered:
                self._deliver(Letter(fact=fact, answer=heard))
                self.timeline.after(_ms(REPEAT_S), offer)

        offer()

    def ask_at(self, at_s: float, fact: facts.Fact, answer: Told = lambda _: None) -> None:
        """The same, so long after the beginning."""
        self.timeline.after(_ms(at_s), lambda: self.ask(fact, answer))

    def crash(self) -> None:
        """Kill it now, between two beats."""
        if self.world is not None:
            self._crash()

    # ---- time

    def run(self, until: Callable[[], bool], limit_s: float) -> bool:
        """Let things happen until it is so; False when the time is up first."""
        if not self._is_looking:
            self._is_looking = True
            self._look()
        while not until():
            at = self.timeline.next_at
            if at is None or self.timeline.elapsed_s > limit_s:
                return until()
            self.timeline.run_next()
        return True

    @property
    def is_quiet(self) -> bool:
        """Nothing lives any more, and the service knows it."""
        world = self.world
        return (
            world is not None
            and not world.jobs
            and not world.nodes
            and not self.cloud.live
            and not self.cluster.live_pods
        )

    # ---- the beat

    def _deliver(self, letter: Letter) -> None:
        if self.world is not None:
            self._inbox.append(letter)
            self._beat_after(_ms(self.settings.interval_s))

    def _beat_after(self, ms: int) -> None:
        """At most one beat is on its way; an earlier one replaces it."""
        at = self.timeline.now + max(0, ms)
        if self._beat_at is None or at < self._beat_at:
            self._beat_at = at
            self.timeline.after(ms, lambda: self._beat_if_due(at))

    def _beat_if_due(self, at: int) -> None:
        if self._beat_at == at and self.world is not None:
            self._beat_at = None
            self._beat(self.world, self.chance.crash_line())

    def _beat(self, world: World, line: CrashLine | None) -> None:
        """The lines of service/loop.py, each with the crash before it."""
        letters, self._inbox = self._inbox, []
        if line is CrashLine.BEFORE_STEP:
            return self._crash()
        news = [self._enriched(world, letter.fact) for letter in letters] or [facts.ClockTicked()]
        self.beats += 1
        outcome = step(world, news, self.timeline.now, self._step_settings)
        if self.settings.is_checked:
            world.check_indexes()
        if line is CrashLine.BEFORE_COMMIT:
            return self._crash()
        if line is CrashLine.COMMIT:
            return self._fail_commit(letters)
        if not outcome.changes.is_empty:
            self.ledger.commit(outcome.changes)
        if self.settings.is_checked:
            difference = self.ledger.difference(world)
            assert difference is None, difference
        for listener in self.listeners:
            listener(outcome)
        if outcome.wake_at is not None:
            self._beat_after(outcome.wake_at - self.timeline.now)
        if line is CrashLine.BEFORE_ANSWERS:
            return self._crash()
        for letter, answer in zip(letters, outcome.answers, strict=False):
            if letter.answer is not None:
                letter.answer(answer)
        if line is CrashLine.BEFORE_EFFECTS:
            return self._crash()
        kept = len(outcome.effects) // 2 if line is CrashLine.AMID_EFFECTS else None
        self._perform(outcome.effects[:kept])
        if line is CrashLine.AMID_EFFECTS:
            self._crash()
        return None

    def _enriched(self, world: World, fact: facts.Fact) -> facts.Fact:
        """What only the store knows: dependencies and earlier submits that have ended."""
        if not isinstance(fact, facts.JobSubmitted):
            return fact
        awaited = [
            d.job_id for d in fact.spec.depends_on if d.job_id and d.job_id not in world.jobs
        ]
        token = fact.spec.token
        earlier = self.ledger.find_tokens([token]) if token else {}
        return msgspec.structs.replace(
            fact,
            dependency_ends=self.ledger.find_ends(awaited),
            earlier_job=earlier.get(token) if token else None,
        )

    def _fail_commit(self, letters: list[Letter]) -> None:
        """The store said no: memory is thrown away; callers are told, news is kept."""
        for letter in letters:
            if letter.answer is not None:
                letter.answer(Rejected("The database cannot be written now.", "Unavailable"))
        self._inbox = [letter for letter in letters if letter.answer is None] + self._inbox
        self._load()

    def _crash(self) -> None:
        """kill -9: memory, the inbox and every call under way are gone."""
        self.crashes += 1
        self.world, self._inbox, self._beat_at = None, [], None
        self._life += 1
        self._lanes.clear()
        self._refusals.clear()
        self.timeline.after(self.chance.ms(0.1, self.chance.faults.down_s), self._restart)

    def _restart(self) -> None:
        self.on_start()
        self._load()
        self._look_once()

    def _load(self) -> None:
        world = World(self.ledger.snapshot())
        wanted = derive_effects(world, self.timeline.now, self._step_settings)
        self.world = world
        if self.settings.is_checked:
            world.check_indexes()
        self._perform(wanted)
        self._beat_after(0)

    # ---- the outside

    def _hear(self, news: Sequence[facts.Fact]) -> None:
        """A message of a watch, or a full look: on time, late, twice, or never. The dead hear nothing."""
        life = self._life
        for ms in self.chance.delays(_ms(self.settings.watch_s)):
            self.timeline.after(ms, lambda: self._deliver_in(life, news))

    def _deliver_in(self, life: int, news: Sequence[facts.Fact]) -> None:
        if life == self._life:
            for fact in news:
                self._deliver(Letter(fact=fact))

    def _perform(self, wanted: Sequence[effects.Effect]) -> None:
        """Calls for one pod or one node arrive in the order they were made, as the performer's lanes keep it."""
        life, now = self._life, self.timeline.now
        for effect in wanted:
            there_ms, back_ms = (self.chance.ms(*self.settings.call_s) // 2 for _ in range(2))
            is_ordered = isinstance(effect, effects.PodEffect | effects.NodeEffect)
            lane = effect.name if is_ordered else ""
            at = self._lanes[lane] = max(self._lanes.get(lane, 0), now + there_ms)
            self.timeline.after(at - now, lambda e=effect, ms=back_ms: self._act(life, e, ms))

    def _act(self, life: int, effect: effects.Effect, back_ms: int) -> None:
        """A call that is under way when its caller dies never arrives, or its answer does not."""
        if life != self._life:
            return
        key = effect.key
        answers = [self._refusals[key]] if key in self._refusals else self._answers_of(effect)
        for answer in answers:
            if isinstance(answer, facts.PodRefused | facts.LaunchRefused):
                self._refusals[key] = answer  # no stays no, as in service/performer.py
            self.timeline.after(back_ms, lambda fact=answer: self._deliver_in(life, [fact]))

    def _answers_of(self, effect: effects.Effect) -> list[facts.Fact]:
        match effect:
            case effects.CreatePod():
                answer = self.cluster.create_pod(effect)
            case effects.DeletePod():
                answer = self.cluster.delete_pod(effect)
            case effects.ForgetPod():
                answer = self.cluster.forget_pod(effect)
            case effects.LaunchNode():
                answer = self.cloud.launch(effect)
            case effects.TerminateNode():
                answer = self.cloud.terminate(effect)
            case effects.TerminateStray():
                answer = self.cloud.terminate_stray(effect)
            case effects.CheckEnvironment(compute_environment=name):
                there = self.world.compute_environments.get(name) if self.world else None
                return [
                    facts.OfferingsListed(
                        compute_environment=name,
                        offerings=tuple(self.offerings.get(name, ())),
                        made_from=there,
                    ),
                    facts.EnvironmentChecked(
                        name=name,
                        status="VALID",
                        status_reason="ComputeEnvironment Healthy",
                        made_from=there,
                    ),
                ]
            case _:
                return []
        return [answer] if answer is not None else []

    def _look(self) -> None:
        """Full looks from time to time heal whatever was lost."""
        self._look_once()
        self.timeline.after(_ms(self.settings.look_every_s), self._look)

    def _look_once(self) -> None:
        if self.world is None:
            return
        for name in sorted(self.world.compute_environments):
            self._hear([*self.cluster.look(name), *self.cloud.look(name)])


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
