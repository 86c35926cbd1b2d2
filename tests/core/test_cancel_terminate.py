"""CancelJob ends what waits; TerminateJob also what runs. Neither comes back, and repeats are harmless."""

from __future__ import annotations

import pytest

from airflow_eksbatch.core.engine.effects import CreatePod, DeletePod
from airflow_eksbatch.core.engine.facts import PodRefused, PodsListed
from airflow_eksbatch.core.model.job import Dependency, JobId
from airflow_eksbatch.core.model.retry import RetryStrategy
from tests.build import a_node, a_world
from tests.core.stage import Stage

FIVE = RetryStrategy(attempts=5)


def a_stage() -> Stage:
    return Stage(a_world(a_node("n1"), offerings=()))


@pytest.mark.parametrize("terminate", [False, True])
def test_a_runnable_job_fails_at_once_with_the_reason_given(terminate: bool) -> None:
    stage = Stage(a_world(offerings=()))
    stage.submit("a")
    (stage.terminate if terminate else stage.cancel)("a", reason="changed my mind")
    job = stage.jobs["a"]
    assert stage.status("a") == "FAILED"
    assert job.status_reason == "changed my mind"
    assert (job.cancelled, job.terminated) == (not terminate, terminate)
    assert stage.world.lines == {}


def test_a_pending_job_fails_at_once_too() -> None:
    stage = a_stage()
    stage.submit("a")
    stage.submit("b", depends_on=(Dependency(job_id=JobId("a")),))
    stage.cancel("b")
    assert stage.status("b") == "FAILED"
    stage.run()
    stage.end("a")
    assert stage.status("b") == "FAILED"


def test_cancelling_what_is_placed_does_nothing() -> None:
    stage = a_stage()
    stage.submit("a")
    stage.cancel("a")
    assert stage.status("a") == "STARTING"
    stage.run()
    stage.cancel("a")
    assert stage.of(DeletePod) == []
    stage.end("a")
    assert stage.status("a") == "SUCCEEDED"
    assert not stage.jobs["a"].cancelled


def test_a_terminated_job_gets_sigterm_and_fails_when_its_pod_has_ended() -> None:
    stage = a_stage()
    stage.submit("a", retry=FIVE)
    stage.run()
    stage.terminate("a", reason="enough")
    assert [effect.pod for effect in stage.of(DeletePod)] == ["a-0-1"]
    assert stage.status("a") == "RUNNING"
    stage.end("a", exit_code=143)
    job = stage.jobs["a"]
    assert (stage.status("a"), job.status_reason, job.terminated) == ("FAILED", "enough", True)


def test_the_first_reason_stays_and_repeats_are_harmless() -> None:
    stage = a_stage()
    stage.submit("a")
    stage.run()
    stage.terminate("a", reason="first")
    stage.terminate("a", reason="second")
    stage.end("a", exit_code=143)
    assert stage.jobs["a"].status_reason == "first"
    stage.terminate("a")
    stage.cancel("nobody")


def test_a_job_between_two_attempts_can_be_cancelled() -> None:
    stage = a_stage()
    stage.submit("other", vcpus=4)
    stage.submit("a", vcpus=4, retry=FIVE)
    stage.end("other")
    stage.submit("next", vcpus=4)
    stage.run()
    stage.end("a", exit_code=1)
    stage.run()
    stage.lose("n1")
    assert stage.status("a") == "RUNNABLE"
    stage.cancel("a")
    assert stage.status("a") == "FAILED"
    assert stage.jobs["a"].tries == {}


def test_cancelling_an_array_lets_its_running_children_finish_but_not_retry() -> None:
    stage = a_stage()
    stage.submit("a", size=6, retry=FIVE)
    stage.run()
    stage.cancel("a")
    assert stage.job("a").failed == ((4, 6),)
    stage.end("a", 0)
    stage.end("a", 1, exit_code=1)
    stage.end("a", 2)
    stage.end("a", 3)
    job = stage.jobs["a"]
    assert job.succeeded == ((0, 1), (2, 4))
    assert job.failed == ((1, 2), (4, 6))
    assert job.status_reason == "not needed"


def test_a_later_stop_leaves_the_reason_of_what_the_first_has_ended() -> None:
    stage = a_stage()
    stage.submit("a", size=6)
    stage.run()
    stage.cancel("a", 5, reason="alone")
    stage.cancel("a", reason="first")
    stage.terminate("a", reason="second")
    reasons = [stage.job("a").reason_of_stop(index) for index in (4, 5)]
    assert reasons == ["first", "alone"]
    for index in range(4):
        stage.end("a", index, exit_code=143)
    assert stage.jobs["a"].status_reason == "second"


def test_a_job_stopped_before_there_was_a_first_reason_keeps_the_one_it_has() -> None:
    stage = a_stage()
    stage.submit("a", size=6)
    stage.run()
    stage.cancel("a", reason="first")
    stage.job("a").first_stop_reason = None
    stage.terminate("a", reason="second")
    assert stage.job("a").reason_of_stop(4) == "first"


def test_terminating_an_array_ends_what_waits_and_what_runs() -> None:
    stage = a_stage()
    stage.submit("a", size=6)
    stage.run()
    stage.terminate("a")
    assert len(stage.of(DeletePod)) == 4
    assert stage.status("a") == "PENDING"
    for index in range(4):
        stage.end("a", index, exit_code=143)
    assert stage.status("a") == "FAILED"
    assert stage.jobs["a"].status_reason == "enough"


def test_terminating_one_child_leaves_its_siblings_alone() -> None:
    stage = a_stage()
    stage.submit("a", size=4, retry=FIVE)
    stage.run()
    stage.terminate("a", 2)
    assert [effect.pod for effect in stage.of(DeletePod)] == ["a-2-1"]
    stage.end("a", 2, exit_code=143)
    assert stage.job("a").failed == ((2, 3),)
    stage.end("a", 1, exit_code=1)
    assert stage.live("a", 1).number == 2
    stage.run()
    stage.end_all()
    assert stage.status("a") == "FAILED"
    assert not stage.jobs["a"].terminated


@pytest.mark.parametrize("index", [-1, 4, 10_000])
def test_a_child_that_does_not_exist_is_nobody(index: int) -> None:
    stage = a_stage()
    stage.submit("a", size=4)
    stage.terminate("a", index)
    assert stage.of(DeletePod) == []


def test_a_terminated_child_does_not_come_back_when_its_node_turns_it_away() -> None:
    stage = a_stage()
    stage.submit("a", size=2, retry=FIVE)
    stage.terminate("a", 0)
    pod = stage.live("a").pod_name
    stage.step(PodRefused(pod=pod, at=stage.now, reason="OutOfcpu"))
    assert stage.job("a").failed == ((0, 1),)
    assert stage.of(CreatePod) == []


def test_a_terminated_job_does_not_come_back_when_its_host_is_lost_or_its_pod_vanishes() -> None:
    stage = a_stage()
    stage.submit("a", retry=FIVE)
    stage.submit("b", size=2, retry=FIVE)
    stage.run()
    stage.terminate("a")
    stage.terminate("b", 0)
    stage.wait(5)
    stage.step(
        PodsListed(
            compute_environment="ce", pods=frozenset({stage.live("a").pod_name}), at=stage.now
        )
    )
    assert stage.job("b").failed == ((0, 1),)
    stage.lose("n1")
    assert stage.status("a") == "FAILED"
    assert stage.job("b").runnable == ((1, 2),)
