"""retryStrategy and evaluateOnExit as AWS Batch words them; what the platform did costs the user nothing."""

from __future__ import annotations

import pytest

from airflow_eksbatch.core.engine.effects import CreatePod
from airflow_eksbatch.core.model import limits
from airflow_eksbatch.core.model.retry import (
    AttemptEnd,
    Cause,
    RetryAction,
    RetryStrategy,
    Verdict,
    decide_retry,
    matches,
)
from tests.build import a_node, a_world
from tests.core.stage import Stage, rule

AGAIN = Verdict(again=True, charged=True)
FOR_FREE = Verdict(again=True, charged=False)
OVER = Verdict(again=False, charged=True)
IDIOM = (
    rule(RetryAction.RETRY, status_reason="Host EC2*"),
    rule(RetryAction.EXIT, reason="*"),
)


def exited(code: int, reason: str | None = None) -> AttemptEnd:
    return AttemptEnd(
        cause=Cause.EXITED,
        exit_code=code,
        reason=reason,
        status_reason="Essential container in task exited",
    )


HOST_LOST = AttemptEnd(cause=Cause.PLATFORM, status_reason="Host EC2 (instance i-1) terminated.")


def decide(end: AttemptEnd, *rules: object, attempts: int = 3, before: int = 0) -> Verdict:
    strategy = RetryStrategy(attempts=attempts, evaluate_on_exit=rules)  # type: ignore[arg-type]
    return decide_retry(strategy, end, charged_before=before, free_left=True)


@pytest.mark.parametrize(
    ("pattern", "text", "fits"),
    [
        (None, "anything", True),
        ("137", "137", True),
        ("13*", "137", True),
        ("13", "137", False),
        ("*", "", True),
        ("Host EC2*", "Host EC2 (instance i-1) terminated.", True),
        ("host ec2*", "Host EC2 (instance i-1) terminated.", False),
        ("a*b", "a*b", True),
        ("a*b", "axb", False),
    ],
)
def test_only_a_trailing_star_is_a_wildcard(pattern: str | None, text: str, fits: bool) -> None:
    assert matches(pattern, text) is fits


def test_without_rules_any_failure_runs_again_while_attempts_remain() -> None:
    assert decide(exited(1)) == AGAIN
    assert decide(exited(1), before=1) == AGAIN
    assert decide(exited(1), before=2) == OVER
    assert decide(exited(1), attempts=1) == OVER


def test_the_first_rule_that_matches_decides() -> None:
    retry, leave = rule(RetryAction.RETRY, exit_code="1"), rule(RetryAction.EXIT, exit_code="*")
    assert decide(exited(1), retry, leave) == AGAIN
    assert decide(exited(1), leave, retry) == OVER
    assert decide(exited(2), retry, leave) == OVER


def test_a_failure_that_no_rule_matches_runs_again() -> None:
    assert decide(exited(2), rule(RetryAction.EXIT, exit_code="1")) == AGAIN


def test_all_patterns_of_a_rule_must_match() -> None:
    both = rule(RetryAction.EXIT, exit_code="1", reason="OOMKilled")
    assert decide(exited(1, "Error"), both) == AGAIN
    assert decide(exited(1, "OOMKilled"), both) == OVER


def test_the_catch_all_on_reason_matches_an_end_without_a_reason() -> None:
    assert decide(exited(1, None), rule(RetryAction.EXIT, reason="*")) == OVER


def test_a_retry_rule_does_not_give_more_attempts_than_there_are() -> None:
    assert decide(exited(1), rule(RetryAction.RETRY, exit_code="1"), before=2) == OVER


@pytest.mark.parametrize("cause", [Cause.TIMEOUT, Cause.STOPPED])
def test_what_was_stopped_or_timed_out_never_runs_again(cause: Cause) -> None:
    end = AttemptEnd(cause=cause, exit_code=137, status_reason="Host EC2 lookalike")
    assert decide(end, rule(RetryAction.RETRY, status_reason="Host EC2*")) == OVER


def test_a_lost_host_costs_no_attempt_even_the_only_one() -> None:
    assert decide(HOST_LOST, attempts=1) == FOR_FREE
    assert decide(HOST_LOST, *IDIOM, attempts=1) == FOR_FREE


def test_the_idiom_retries_hosts_and_leaves_on_exit_codes() -> None:
    assert decide(HOST_LOST, *IDIOM) == FOR_FREE
    assert decide(exited(1), *IDIOM) == OVER


def test_a_catch_all_for_exit_codes_does_not_end_a_job_whose_host_was_lost() -> None:
    assert decide(HOST_LOST, rule(RetryAction.EXIT, reason="*")) == FOR_FREE


def test_a_rule_that_names_the_lost_host_may_say_exit() -> None:
    assert decide(HOST_LOST, rule(RetryAction.EXIT, status_reason="Host EC2*")) == OVER


def test_a_platform_that_never_stops_losing_a_job_is_charged_in_the_end() -> None:
    strategy = RetryStrategy(attempts=1)
    assert decide_retry(strategy, HOST_LOST, charged_before=0, free_left=False) == OVER


# ---- through the engine


def test_a_retry_runs_in_its_old_place_before_younger_jobs() -> None:
    stage = Stage(a_world(a_node("n1")))
    stage.submit("old", vcpus=4, retry=RetryStrategy(attempts=2))
    stage.submit("young", vcpus=4)
    stage.run()
    stage.end("old", exit_code=1)
    assert stage.live("old").number == 2
    assert stage.job("young").runnable


def test_attempts_are_told_apart_and_the_last_one_fails_the_job() -> None:
    stage = Stage(a_world(a_node("n1")))
    stage.submit("a", retry=RetryStrategy(attempts=2))
    for _ in range(2):
        stage.run()
        stage.end("a", exit_code=1, reason="Error")
    assert stage.story("a") == [
        *("RUNNABLE", "STARTING", "RUNNING"),
        *("RUNNABLE", "STARTING", "RUNNING", "FAILED"),
    ]
    assert [stage.attempts[f"a-0-{n}"].charged for n in (1, 2)] == [True, True]
    assert stage.jobs["a"].status_reason == "Essential container in task exited"
    assert stage.world.jobs == {}


def test_the_container_is_told_the_attempt_as_the_user_counts_it() -> None:
    stage = Stage(a_world(a_node("n1"), a_node("n2")))
    stage.submit("a", vcpus=4, retry=RetryStrategy(attempts=2))
    stage.run()
    stage.lose(stage.live("a").node_id)
    again = stage.of(CreatePod)[0]
    assert again.pod == "a-0-2"
    assert again.environment["AWS_BATCH_JOB_ATTEMPT"] == "1"


def test_free_retries_end_one_day() -> None:
    stage = Stage(a_world(a_node("n1"), offerings=()))
    stage.submit("a")
    for _ in range(limits.FREE_RETRIES_MAX + 1):
        stage.end("a", cause=Cause.PLATFORM, exit_code=None, status_reason="Host EC2 terminated.")
    assert stage.status("a") == "FAILED"
    assert stage.world.totals.attempts == limits.FREE_RETRIES_MAX + 1
