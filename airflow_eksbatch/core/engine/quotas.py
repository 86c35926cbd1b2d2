"""A namespace whose quota is used up: its jobs wait, and are tried again when room may have come, ever more rarely."""

from __future__ import annotations

from airflow_eksbatch.core.engine.effects import CheckEnvironment
from airflow_eksbatch.core.engine.turn import Turn
from airflow_eksbatch.core.model import limits
from airflow_eksbatch.core.model.compute_environment import NamespaceFull


def rest_namespace(turn: Turn, environment: str, reason: str, *, unusable: bool = False) -> None:
    """Nothing new goes to its nodes for a while, and none are bought; what comes meanwhile was on its way.

    One that takes no pods at all is checked, so that its environment says why.
    """
    full = turn.world.full.get(environment)
    if full is not None and (full.unusable or not unusable):
        return
    if unusable:
        turn.effects.append(CheckEnvironment(compute_environment=environment))
    times = turn.world.full_times[environment] + 1
    turn.world.full_times[environment] = times
    rest_s = limits.doubled(limits.QUOTA_REST_S, times, limits.QUOTA_REST_S_MAX)
    turn.world.full[environment] = NamespaceFull(
        since=turn.now, until=turn.now + rest_s * 1000, reason=reason, unusable=unusable
    )
    turn.wake_in(rest_s, "quota", environment)


def note_room(turn: Turn, environment: str) -> None:
    """A pod there has ended, which gives its part of the quota back; not each end is worth a new try."""
    full = turn.world.full.get(environment)
    if full is None:
        return
    at = max(turn.now + limits.QUOTA_FREED_S * 1000, full.since + limits.QUOTA_REST_S * 1000)
    if at < full.until:
        full.until = at
        turn.world.wake_at(at, "quota", environment)


def try_namespace(turn: Turn, environment: str) -> None:
    """Its time has come, unless that was of an earlier rest."""
    full = turn.world.full.get(environment)
    if full is None or full.until > turn.now:
        return
    del turn.world.full[environment]
    there = turn.world.compute_environments.get(environment)
    if full.unusable and there is not None and there.status == "INVALID":
        # The next check may find it whole again; until then a pod would only keep a node from being given back.
        rest_namespace(turn, environment, full.reason, unusable=True)


def forget_rests(turn: Turn, environment: str) -> None:
    """A pod was taken there: the next rest is a short one again."""
    if environment not in turn.world.full:
        turn.world.full_times.pop(environment, None)
