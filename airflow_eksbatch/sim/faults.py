"""What may go wrong, how often, and the dice that decide it: one seed, one history."""

from __future__ import annotations

import enum
import random

import msgspec

from airflow_eksbatch.sim.timeline import Timeline


class CrashLine(enum.StrEnum):
    """Where in the beat the process dies, or (COMMIT) only the store's answer does."""

    BEFORE_STEP = "before step"
    BEFORE_COMMIT = "after step, before commit"
    COMMIT = "commit fails"
    BEFORE_ANSWERS = "after commit, before answers"
    BEFORE_EFFECTS = "after answers, before effects"
    AMID_EFFECTS = "after some effects"


class Faults(msgspec.Struct, frozen=True, kw_only=True):
    """Rates are chances from 0 to 1. Nothing goes wrong in a world of defaults."""

    lost: float = 0.0
    """Of each message of a watch."""
    doubled: float = 0.0
    late: float = 0.0
    late_s: float = 60.0
    """At most so late; later messages overtake it."""
    crash: float = 0.0
    """Of each beat."""
    down_s: float = 20.0
    """A crashed service is back within this."""
    refused: float = 0.0
    """Of each launch: InsufficientInstanceCapacity."""
    unanswered: float = 0.0
    """Of each launch: the cloud says "later", however often it is asked."""
    never_joins: float = 0.0
    """Of each instance."""
    dies: float = 0.0
    """Of each instance: its node goes silent, and what runs there goes on."""
    reclaimed: float = 0.0
    """Of each Spot instance."""
    without_notice: float = 0.0
    """Of each reclaim."""
    recommended: float = 0.0
    """Of each Spot instance: soon after its launch a rebalance is recommended."""
    lifetime_s: float = 900.0
    """Reclaims, deaths and vanishings come within this."""
    pod_refused: float = 0.0
    """Of each pod: turned away by its node."""
    pod_beyond_quota: float = 0.0
    """Of each pod: its namespace has no room under its quota."""
    pod_stuck: float = 0.0
    """Of each pod: it cannot start, and its cluster says so in the end."""
    address_late: float = 0.0
    """Of each pod: it is said to run before anybody knows where."""
    pod_deleted: float = 0.0
    """Of each pod: somebody else deletes it."""
    pressed: float = 0.0
    """Of each instance: its node closes itself for a while."""
    daemons_cpu_m: int = 0
    """What DaemonSets take of each node; no estimate knows of it."""
    calm_after_s: float = float("inf")
    """From then on nothing goes wrong any more: what is asked of liveness begins here."""


class Chance:
    """All that is random in one simulated life."""

    def __init__(self, seed: int, faults: Faults, timeline: Timeline) -> None:
        self.faults = faults
        self._dice = random.Random(seed)
        self._timeline = timeline

    def strikes(self, rate: float) -> bool:
        """Whether a fault of this rate happens now."""
        calm = self._timeline.elapsed_s >= self.faults.calm_after_s
        return bool(rate) and not calm and self._dice.random() < rate

    def ms(self, least_s: float, most_s: float) -> int:
        """A time between these."""
        return round(self._dice.uniform(least_s, most_s) * 1000)

    def coin(self) -> bool:
        return self._dice.random() < 0.5

    def delays(self, usual_ms: int) -> list[int]:
        """When a message of a watch arrives, in ms from now: once, as a rule."""
        if self.strikes(self.faults.lost):
            return []
        times = 2 if self.strikes(self.faults.doubled) else 1
        return [
            self.ms(0, self.faults.late_s) if self.strikes(self.faults.late) else usual_ms
            for _ in range(times)
        ]

    def crash_line(self) -> CrashLine | None:
        """Where this beat ends, if it does not end well."""
        if not self.strikes(self.faults.crash):
            return None
        return self._dice.choice(list(CrashLine))
