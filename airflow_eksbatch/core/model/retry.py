"""What follows the end of an attempt: run again, or fail (retryStrategy, evaluateOnExit)."""

from __future__ import annotations

import enum

import msgspec


class RetryAction(enum.StrEnum):
    RETRY = "RETRY"
    EXIT = "EXIT"


class EvaluateOnExit(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One rule: all given patterns must match; a trailing `*` matches any rest."""

    action: RetryAction
    on_status_reason: str | None = None
    on_reason: str | None = None
    on_exit_code: str | None = None


class RetryStrategy(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    attempts: int = 1
    evaluate_on_exit: tuple[EvaluateOnExit, ...] = ()


class Cause(enum.StrEnum):
    """Who ended an attempt; only `EXITED` is the container's own doing."""

    EXITED = "EXITED"
    PLATFORM = "PLATFORM"
    TIMEOUT = "TIMEOUT"
    STOPPED = "STOPPED"
    WAITING = "WAITING"
    """A quota has no room for it: it has not begun, and is no attempt as users count them."""


class AttemptEnd(msgspec.Struct, frozen=True, kw_only=True):
    """How one attempt ended, in the words that evaluateOnExit matches on."""

    cause: Cause
    exit_code: int | None = None
    reason: str | None = None
    status_reason: str = ""
    container: str = ""
    """Whose code and reason these are, as podProperties name it; empty if all ended well, or where nobody says."""

    @property
    def succeeded(self) -> bool:
        return self.cause is Cause.EXITED and self.exit_code == 0


# How attempts and instances end, in the words that rules match on; most of them are AWS's.
CONTAINER_EXITED = "Essential container in task exited"
TIMED_OUT = "Job attempt duration exceeded timeout"
DEPENDENCY_FAILED = "Dependent Job failed"
POD_DELETED = "Pod was deleted by somebody else"
NOT_THERE = AttemptEnd(cause=Cause.PLATFORM, status_reason="Pod is not there")
INSTANCE_TERMINATED = "Instance was terminated"
INSTANCE_UNKNOWN = "There is no such instance"


def host_ended(host: str) -> str:
    """Its machine ended under a pod; `host` is its name as people know it."""
    return f"Host EC2 (instance {host}) terminated."


def exited(exit_code: int, reason: str = "Error", container: str = "") -> AttemptEnd:
    """A container ended with this code; 128+n when signal n ended it."""
    return AttemptEnd(
        cause=Cause.EXITED,
        exit_code=exit_code,
        reason=reason,
        status_reason=CONTAINER_EXITED,
        container=container,
    )


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the index runs again, and whether the attempt that ended is counted against the user."""

    again: bool
    charged: bool


def matches(pattern: str | None, text: str) -> bool:
    """Whether a pattern of evaluateOnExit matches; no pattern matches everything."""
    if pattern is None:
        return True
    if pattern.endswith("*"):
        return text.startswith(pattern[:-1])
    return text == pattern


def first_action(strategy: RetryStrategy, end: AttemptEnd) -> RetryAction | None:
    """The action of the first rule that matches, or None."""
    exit_code = "" if end.exit_code is None else str(end.exit_code)
    for rule in strategy.evaluate_on_exit:
        if (
            matches(rule.on_status_reason, end.status_reason)
            and matches(rule.on_reason, end.reason or "")
            and matches(rule.on_exit_code, exit_code)
        ):
            return rule.action
    return None


def decide_retry(
    strategy: RetryStrategy, end: AttemptEnd, *, charged_before: int, free_left: bool
) -> Verdict:
    """Run again or fail.

    Cancelled, terminated and timed-out jobs never run again (AWS). What the platform did costs no attempt, unless
    a rule that names the status reason says EXIT; a catch-all `onReason: *` written for exit codes does not.
    """
    if end.cause is Cause.WAITING:
        return Verdict(again=True, charged=False)
    if end.cause in (Cause.TIMEOUT, Cause.STOPPED):
        return Verdict(again=False, charged=True)
    if end.cause is Cause.PLATFORM and free_left:
        named = RetryStrategy(
            evaluate_on_exit=tuple(r for r in strategy.evaluate_on_exit if r.on_status_reason)
        )
        if first_action(named, end) is not RetryAction.EXIT:
            return Verdict(again=True, charged=False)
    has_attempts = charged_before + 1 < strategy.attempts
    exits = first_action(strategy, end) is RetryAction.EXIT
    return Verdict(again=has_attempts and not exits, charged=True)
