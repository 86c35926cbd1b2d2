"""How far two clocks are apart, and from when on that hurts; pure."""

from __future__ import annotations

import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime

import msgspec

from airflow_eksbatch.doctor.findings import Group

# A Date header has whole seconds: so much may lie between two clocks that agree.
TICK_S = 1.0
# AWS refuses signatures that are five minutes away from its own clock.
SIGV4_S = 300.0
# Far enough from that to be mended in time.
SIGV4_WARNING_S = 60.0
SYNC = "timedatectl set-ntp true    # or whatever sets this machine's clock"


class Skew(msgspec.Struct, frozen=True, kw_only=True):
    """Our clock less theirs, as far as one question and its answer can tell: between `least` and `most` seconds."""

    least: float
    most: float

    @property
    def certain_s(self) -> float:
        """How far they are apart at least; 0 when they may agree."""
        if self.least <= 0 <= self.most:
            return 0.0
        return min(abs(self.least), abs(self.most))

    def __str__(self) -> str:
        side = "ahead of" if self.least > 0 else "behind"
        return f"{self.certain_s:.0f} s {side}"


def skew_from(their_s: float, asked_s: float, answered_s: float, tick_s: float = TICK_S) -> Skew:
    """Theirs was read at some time between question and answer, and may be up to a tick later than it says."""
    return Skew(least=asked_s - their_s - tick_s, most=answered_s - their_s)


def skew_from_date(date: str, asked_s: float, answered_s: float) -> Skew | None:
    """None if the header is no date."""
    try:
        their_s = parsedate_to_datetime(date).timestamp()
    except ValueError:
        return None
    return skew_from(their_s, asked_s, answered_s)


class Stopwatch:
    """When a question was asked, by our clock."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self.asked_s = clock()

    def skew_to_date(self, date: str) -> Skew | None:
        """To a Date header, which may be missing."""
        return skew_from_date(date, self.asked_s, self._clock())

    def skew_to(self, their_s: float) -> Skew:
        return skew_from(their_s, self.asked_s, self._clock(), tick_s=0.0)


class Patience(msgspec.Struct, frozen=True, kw_only=True):
    """How far apart two clocks may be: from when on it is worth a warning, and when it is wrong."""

    warning_s: float
    wrong_s: float
    because: str
    """What goes wrong then, as the end of a sentence."""


def lease_patience(lease_s: int) -> Patience:
    """A lease is renewed after a third of its length, and taken over once its time has passed on the other's clock."""
    return Patience(
        warning_s=lease_s / 3,
        wrong_s=lease_s * 2 / 3,
        because=f"replicas lead in turn by a lease of {lease_s} s, read from their clocks",
    )


SIGV4 = Patience(
    warning_s=SIGV4_WARNING_S,
    wrong_s=SIGV4_S,
    because=f"requests whose signature is {SIGV4_S:.0f} s away are refused",
)


def judge_clock(group: Group, whose: str, skew: Skew | None, patience: Patience) -> None:
    """The finding `clock`."""
    if skew is None:
        group.unseen("clock", f"{whose} does not say what time it has.")
    elif skew.certain_s >= patience.wrong_s:
        group.wrong("clock", f"Our clock is {skew} that of {whose}: {patience.because}.", SYNC)
    elif skew.certain_s >= patience.warning_s:
        group.warn("clock", f"Our clock is {skew} that of {whose}: {patience.because}.", SYNC)
    else:
        group.ok("clock", f"Our clock and that of {whose} agree.")
