"""attemptDurationSeconds: per attempt, from RUNNING on, SIGTERM first, and never a retry."""

from __future__ import annotations

import pytest

from airflow_eksbatch.core.engine.effects import DeletePod
from airflow_eksbatch.core.engine.facts import PodEnded
from airflow_eksbatch.core.engine.step import derive_effects
from airflow_eksbatch.core.model import limits
from airflow_eksbatch.core.model.retry import AttemptEnd, Cause, RetryStrategy
from tests.build import a_node, a_world
from tests.core.stage import Stage


def a_stage() -> Stage:
    return Stage(a_world(a_node("n1")))


def test_the_clock_starts_when_the_attempt_runs_not_when_it_was_placed() -> None:
    stage = a_stage()
    stage.submit("a", timeout_s=60)
    stage.wait(50)
    stage.run()
    stage.wait(59)
    assert stage.of(DeletePod) == []
    stage.wait(1)
    assert [(effect.pod, effect.grace_s) for effect in stage.of(DeletePod)] == [("a-0-1", 30)]
    assert stage.status("a") == "RUNNING"


def test_a_timed_out_job_fails_without_a_retry_whatever_its_exit_code() -> None:
    stage = a_stage()
    stage.submit("a", timeout_s=60, retry=RetryStrategy(attempts=5))
    stage.run()
    stage.wait(60)
    stage.end("a", exit_code=0)
    assert stage.status("a") == "FAILED"
    assert stage.jobs["a"].status_reason == "Job attempt duration exceeded timeout"


def test_every_attempt_has_its_own_clock() -> None:
    stage = a_stage()
    stage.submit("a", timeout_s=60, retry=RetryStrategy(attempts=2))
    stage.run()
    stage.wait(50)
    stage.end("a", exit_code=1)
    stage.run()
    stage.wait(50)
    assert stage.of(DeletePod) == []
    stage.wait(10)
    assert [effect.pod for effect in stage.of(DeletePod)] == ["a-0-2"]


def test_every_child_has_its_own_clock() -> None:
    stage = a_stage()
    stage.submit("a", size=2, vcpus=4, timeout_s=60)
    stage.run()
    stage.wait(30)
    stage.end("a", 0)
    stage.run()
    stage.wait(59)
    assert stage.of(DeletePod) == []
    stage.wait(1)
    assert [effect.pod for effect in stage.of(DeletePod)] == ["a-1-1"]


def test_an_end_in_time_makes_the_deadline_meaningless() -> None:
    stage = a_stage()
    stage.submit("a", timeout_s=60)
    stage.run()
    stage.wait(59)
    stage.end("a")
    stage.wait(10)
    assert stage.of(DeletePod) == []
    assert stage.status("a") == "SUCCEEDED"


def test_an_end_that_is_not_reported_is_asked_for_again() -> None:
    stage = a_stage()
    stage.submit("a", timeout_s=60)
    stage.run()
    stage.wait(60)
    stage.wait(limits.GRACE_S + limits.POD_SEEN_S_MAX)
    assert [effect.pod for effect in stage.of(DeletePod)] == ["a-0-1"]


def test_a_job_without_a_timeout_may_run_for_ever() -> None:
    stage = a_stage()
    stage.submit("a")
    stage.run()
    stage.wait(10_000_000)
    assert stage.status("a") == "RUNNING"
    assert stage.of(DeletePod) == []


def end_that_is_told_late(after_s: float, exit_code: int, *, restarted: bool = False) -> Stage:
    """Timeout 3,600 s; from minute 50 to 70 nobody hears anything; it ended so long after its start."""
    stage = a_stage()
    stage.submit("a", timeout_s=3_600, retry=RetryStrategy(attempts=2))
    stage.run()
    began, pod = stage.now, stage.live("a").pod_name
    if restarted:
        stage.now += 4_200_000
        stage.world.deadlines.clear()
        derive_effects(stage.world, stage.now, stage.settings)
        stage.step()
    else:
        stage.wait(4_200)
    assert stage.live("a").stopping is not None
    end = AttemptEnd(cause=Cause.EXITED, exit_code=exit_code)
    stage.step(PodEnded(pod=pod, at=began + int(after_s * 1000), end=end))
    return stage


@pytest.mark.parametrize("restarted", [True, False])
def test_a_success_in_time_counts_although_the_news_of_it_is_late(restarted: bool) -> None:
    stage = end_that_is_told_late(3_300, 0, restarted=restarted)
    assert (stage.status("a"), stage.jobs["a"].failed) == ("SUCCEEDED", ())
    assert stage.jobs["a"].status_reason == "Essential container in task exited"


def test_a_failure_in_time_may_be_tried_again() -> None:
    stage = end_that_is_told_late(3_300, 1)
    assert stage.live("a").number == 2


@pytest.mark.parametrize("after_s", [3_599, 3_600, 3_605])
def test_an_end_that_may_be_that_of_our_signal_is_the_timeout(after_s: float) -> None:
    """Clusters tell whole seconds, by clocks of their own."""
    stage = end_that_is_told_late(after_s, 0)
    assert stage.status("a") == "FAILED"
    assert stage.jobs["a"].status_reason == "Job attempt duration exceeded timeout"
