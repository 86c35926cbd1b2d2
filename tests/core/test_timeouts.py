"""attemptDurationSeconds: per attempt, from RUNNING on, SIGTERM first, and never a retry."""

from __future__ import annotations

from airflow_eksbatch.core.engine.effects import DeletePod
from airflow_eksbatch.core.model import limits
from airflow_eksbatch.core.model.retry import RetryStrategy
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
