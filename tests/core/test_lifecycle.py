"""The life of a job through the engine: every step of it, and facts that come twice, late or for nobody."""

from __future__ import annotations

import pytest

from airflow_eksbatch.core.engine.effects import (
    CreatePod,
    DeletePod,
    ForgetPod,
    LaunchNode,
    TerminateNode,
)
from airflow_eksbatch.core.engine.facts import (
    JobSubmitted,
    PodEnded,
    PodRefused,
    PodRunning,
    PodSeen,
    PodsListed,
    PodStuck,
)
from airflow_eksbatch.core.model import limits
from airflow_eksbatch.core.model.errors import Rejected
from airflow_eksbatch.core.model.job import JobId, PodName
from airflow_eksbatch.core.model.retry import AttemptEnd, Cause, RetryStrategy
from tests.build import NOW, a_node, a_queue, a_spec, a_world
from tests.core.stage import Stage, loaded


def a_stage(nodes: int = 1) -> Stage:
    return Stage(a_world(*(a_node(f"n{n}") for n in range(1, nodes + 1))))


def test_a_job_goes_from_runnable_to_succeeded_and_leaves_the_world() -> None:
    """
    1. submitted: RUNNABLE and STARTING in the same beat, its pod is asked for
    2. the pod runs, then exits with 0
    3. the job is kept as SUCCEEDED, its room is free again, its pod may be dropped
    """
    stage = a_stage()
    stage.submit("a")
    assert [effect.pod for effect in stage.of(CreatePod)] == ["a-0-1"]
    stage.run()
    assert stage.status("a") == "RUNNING"
    stage.wait(5)
    stage.end("a")
    assert stage.story("a") == ["RUNNABLE", "STARTING", "RUNNING", "SUCCEEDED"]
    assert stage.of(ForgetPod)[0].pod == "a-0-1"
    job, node = stage.jobs["a"], stage.world.nodes[stage.attempts["a-0-1"].node_id]
    assert (job.started_at, job.stopped_at) == (NOW, NOW + 5_000)
    assert not stage.world.jobs
    assert not stage.world.lines
    assert node.free == node.allocatable


def test_a_job_waits_for_a_node_and_starts_when_it_joins() -> None:
    stage = Stage(a_world())
    stage.submit("a", vcpus=2)
    assert stage.status("a") == "RUNNABLE"
    (node_id,) = stage.join()
    assert stage.live("a").node_id == node_id


def test_the_pod_gets_what_aws_batch_tells_a_container() -> None:
    stage = a_stage()
    stage.submit("a", size=2)
    environment = stage.of(CreatePod)[1].environment
    assert environment == {
        "AWS_BATCH_JOB_ID": "a:1",
        "AWS_BATCH_JOB_ATTEMPT": "1",
        "AWS_BATCH_JQ_NAME": "queue",
        "AWS_BATCH_CE_NAME": "ce",
        "AWS_BATCH_JOB_KUBERNETES_NODE_UID": "n1",
        "AWS_BATCH_JOB_ARRAY_INDEX": "1",
        "AWS_BATCH_JOB_ARRAY_SIZE": "2",
    }


def test_an_array_succeeds_when_all_children_have() -> None:
    stage = a_stage()
    stage.submit("a", size=3)
    stage.run()
    stage.end("a", 2)
    stage.end("a", 0)
    assert stage.status("a") == "PENDING"
    stage.end("a", 1)
    assert stage.status("a") == "SUCCEEDED"
    assert stage.story("a") == ["PENDING", "SUCCEEDED"]
    assert stage.story("a", 1) == ["STARTING", "RUNNING", "SUCCEEDED"]


def test_an_array_fails_after_the_last_child_when_one_failed() -> None:
    stage = a_stage()
    stage.submit("a", size=3)
    stage.run()
    stage.end("a", 0, exit_code=1)
    assert stage.status("a") == "PENDING"
    stage.end_all()
    assert stage.status("a") == "FAILED"
    assert stage.jobs["a"].status_reason == "Array Child Job failed"


def test_an_array_of_ten_thousand_is_one_row_until_children_differ() -> None:
    stage = Stage(a_world(offerings=()))
    stage.submit("a", size=10_000)
    job = stage.job("a")
    assert job.runnable == ((0, 10_000),)
    assert len(stage.events) == 1


# ---- submits


def test_the_same_token_is_the_same_job() -> None:
    stage = a_stage()
    assert stage.submit("a", token="dag|run|task|-1|1") == "a"
    assert stage.submit("b", token="dag|run|task|-1|1") == "a"
    assert stage.world.totals.jobs == 1


def test_a_repeat_in_the_beat_in_which_the_first_one_ended_is_still_the_same_job() -> None:
    stage = a_stage()
    stage.submit("a", token="t")
    stage.run()
    again = JobSubmitted(spec=a_spec("b", token="t"))
    assert stage.step(stage.ended("a"), again).answers[1] == "a"
    assert stage.world.jobs == {}


def test_a_repeat_after_the_job_left_the_world_is_found_by_the_store() -> None:
    stage = a_stage()
    again = JobSubmitted(spec=a_spec("b", token="t"), earlier_job=JobId("a"))
    assert stage.give(again) == "a"


@pytest.mark.parametrize("queue", ["nowhere", "off"])
def test_an_unknown_or_disabled_queue_refuses_and_nothing_is_left_behind(queue: str) -> None:
    stage = Stage(a_world(a_queue("off", state="DISABLED")))
    with pytest.raises(Rejected, match=queue):
        stage.submit("a", queue=queue)
    assert stage.jobs == {}
    assert stage.events == []


# ---- facts that are doubled, late, or for nobody


def test_doubled_facts_change_nothing() -> None:
    stage = a_stage()
    stage.submit("a", retry=RetryStrategy(attempts=2))
    pod = stage.live("a").pod_name
    running = PodRunning(pod=pod, at=NOW)
    ended = PodEnded(pod=pod, at=NOW, end=AttemptEnd(cause=Cause.EXITED, exit_code=1))
    stage.step(PodSeen(pod=pod, at=NOW), PodSeen(pod=pod, at=NOW + 1), running, running)
    assert stage.attempts[pod].seen_at == NOW
    stage.step(ended, ended, running)
    assert stage.live("a").number == 2
    assert stage.world.totals.attempts == 2


def test_news_of_a_pod_that_nobody_asked_for_ends_it() -> None:
    stage = a_stage()
    stage.step(PodRunning(pod=PodName("ghost-0-1"), at=NOW))
    assert [effect.pod for effect in stage.of(DeletePod)] == ["ghost-0-1"]


def test_a_pod_that_was_never_seen_is_asked_for_again() -> None:
    stage = a_stage()
    stage.submit("a")
    stage.wait(limits.POD_SEEN_S_MAX)
    assert [effect.pod for effect in stage.of(CreatePod)] == ["a-0-1"]
    stage.seen("a-0-1")
    stage.wait(limits.POD_SEEN_S_MAX)
    assert stage.of(CreatePod) == []


def test_a_pod_missing_from_a_full_look_runs_again_for_free() -> None:
    stage = a_stage()
    stage.submit("a")
    stage.run()
    stage.wait(5)
    stage.step(PodsListed(compute_environment="ce", pods=frozenset(), at=stage.now))
    assert stage.live("a").number == 2
    assert stage.live("a").charged_before == 0


def test_a_look_that_began_before_the_pod_was_seen_says_nothing_about_it() -> None:
    stage = a_stage()
    stage.submit("a")
    stage.run()
    stage.step(PodsListed(compute_environment="ce", pods=frozenset(), at=NOW - 1))
    assert stage.live("a").number == 1


def test_a_pod_turned_away_goes_elsewhere_for_free_and_its_node_rests() -> None:
    stage = a_stage(nodes=2)
    stage.submit("a")
    first = stage.live("a").node_id
    refused = PodRefused(pod=stage.live("a").pod_name, at=NOW, reason="OutOfcpu")
    stage.step(refused)
    assert stage.live("a").node_id != first
    assert stage.world.nodes[first].is_paused
    stage.wait(limits.REFUSED_POD_PAUSE_S)
    assert stage.world.nodes[first].is_open


def test_a_pod_that_the_cluster_calls_invalid_fails_its_job_for_good() -> None:
    stage = a_stage()
    stage.submit("a", retry=RetryStrategy(attempts=5))
    pod = stage.live("a").pod_name
    stage.step(PodRefused(pod=pod, at=NOW, reason="spec.containers: bad", permanent=True))
    assert stage.status("a") == "FAILED"
    assert stage.jobs["a"].status_reason == "spec.containers: bad"


def test_a_pod_that_was_turned_away_is_dropped() -> None:
    stage = a_stage(nodes=2)
    stage.submit("a")
    pod = stage.live("a").pod_name
    stage.step(PodRefused(pod=pod, at=NOW, reason="OutOfcpu"))
    assert [effect.pod for effect in stage.of(ForgetPod)] == [pod]


def test_a_pod_that_cannot_start_is_ended_and_judged_like_any_failure() -> None:
    """1. its image is not there; 2. its pod is deleted; 3. the end is charged and says why."""
    stage = a_stage()
    stage.submit("a", retry=RetryStrategy(attempts=2))
    for number in (1, 2):
        attempt = stage.live("a")
        assert attempt.number == number
        stage.step(PodStuck(pod=attempt.pod_name, at=NOW, reason="ImagePullBackOff: no such image"))
        assert [effect.pod for effect in stage.of(DeletePod)] == [attempt.pod_name]
        stage.end("a", cause=Cause.PLATFORM, exit_code=None, status_reason="deleted")
    end = stage.attempts["a-0-2"].end
    assert stage.status("a") == "FAILED"
    assert end is not None
    assert (end.reason, end.status_reason) == (
        "ImagePullBackOff: no such image",
        "Task failed to start",
    )


def test_a_pod_that_runs_after_all_is_not_stuck() -> None:
    stage = a_stage()
    stage.submit("a")
    stage.run()
    stage.step(PodStuck(pod=stage.live("a").pod_name, at=NOW, reason="ImagePullBackOff"))
    assert stage.of(DeletePod) == []
    stage.end("a")
    assert stage.status("a") == "SUCCEEDED"


# ---- starting again


def test_after_a_crash_unseen_pods_are_asked_for_again_and_stopped_ones_ended_again() -> None:
    stage = a_stage()
    for name in ("unseen", "running", "stopped"):
        stage.submit(name)
    stage.step(*(PodRunning(pod=stage.live(n).pod_name, at=NOW) for n in ("running", "stopped")))
    stage.terminate("stopped")
    again = loaded(stage)
    assert [effect.pod for effect in again.of(CreatePod)] == ["unseen-0-1"]
    assert [effect.pod for effect in again.of(DeletePod)] == ["stopped-0-1"]


def test_after_a_crash_timeouts_idle_nodes_and_launches_still_come_due() -> None:
    stage = a_stage()
    stage.submit("a", timeout_s=100)
    stage.run()
    stage.submit("b", vcpus=8)
    again = loaded(stage)
    assert len(again.of(LaunchNode)) == 1
    again.wait(100)
    assert [effect.pod for effect in again.of(DeletePod)] == ["a-0-1"]
    again.end("a", exit_code=143)
    again.wait(60)
    assert [effect.node_id for effect in again.of(TerminateNode)] == ["n1"]
