"""A quota of the namespace that is used up: jobs wait without cost, are tried again, and say why."""

from __future__ import annotations

from typing import Literal

from airflow_eksbatch.core.engine.effects import CheckEnvironment, CreatePod, LaunchNode
from airflow_eksbatch.core.engine.facts import EnvironmentChecked, PodRefused
from airflow_eksbatch.core.model import limits
from airflow_eksbatch.core.model.job import JobId
from airflow_eksbatch.core.model.node import NodeStatus
from airflow_eksbatch.core.model.retry import (
    Cause,
    EvaluateOnExit,
    RetryAction,
    RetryStrategy,
)
from airflow_eksbatch.core.planner.explain import explain
from tests.build import a_node, a_queue, a_world, an_environment
from tests.core.stage import Stage

WORDS = "exceeded quota: jobs, requested: pods=1, used: pods=1, limited: pods=1"


def a_stage() -> Stage:
    return Stage(a_world(a_node("n1"), a_node("n2")))


def refuse(stage: Stage, job_id: str, index: int = 0) -> None:
    """The API server's no to its pod."""
    pod = stage.live(job_id, index).pod_name
    stage.step(PodRefused(pod=pod, at=stage.now, reason=WORDS, quota=True))


def test_a_job_waits_for_the_quota_and_is_tried_again_after_a_while() -> None:
    stage = a_stage()
    stage.submit("a")
    refuse(stage, "a")
    assert stage.status("a") == "RUNNABLE"
    assert all(node.is_open for node in stage.world.nodes.values())
    stage.wait(limits.QUOTA_REST_S - 1)
    assert stage.of(CreatePod) == []
    stage.wait(1)
    assert [effect.pod for effect in stage.of(CreatePod)] == ["a-0-2"]
    stage.run()
    stage.end("a")
    assert stage.status("a") == "SUCCEEDED"


def test_waiting_for_a_quota_never_fails_a_job_and_costs_no_attempt() -> None:
    """However often, whatever its retry strategy says; and a lost node afterwards is free as ever."""
    stage = a_stage()
    exit_all = EvaluateOnExit(action=RetryAction.EXIT, on_status_reason="*")
    stage.submit("a", retry=RetryStrategy(attempts=1, evaluate_on_exit=(exit_all,)))
    stage.submit("b")
    for _ in range(limits.FREE_RETRIES_MAX + 5):
        refuse(stage, "a")
        refuse(stage, "b")
        stage.wait(limits.QUOTA_REST_S_MAX)
    assert stage.world.totals.retries == stage.world.totals.free_retries == 0
    stage.run()
    stage.end("b", cause=Cause.PLATFORM, exit_code=None, status_reason="Host EC2 terminated.")
    assert stage.status("b") != "FAILED"
    stage.end("a")
    assert stage.status("a") == "SUCCEEDED"


def test_it_is_asked_again_ever_more_rarely_until_a_pod_is_taken() -> None:
    stage = a_stage()
    stage.submit("a")
    rests: list[int] = []
    for _ in range(7):
        refuse(stage, "a")
        full = stage.world.full["ce"]
        rests.append((full.until - full.since) // 1000)
        stage.wait(rests[-1])
    assert rests == [10, 20, 40, 80, 160, 300, 300]
    stage.run()
    assert not stage.world.full_times


def test_a_pod_that_ends_gives_room_and_the_next_is_tried_before_its_time() -> None:
    stage = a_stage()
    stage.submit("first")
    stage.run()
    stage.submit("a")
    for _ in range(4):
        refuse(stage, "a")
        stage.wait((stage.world.full["ce"].until - stage.now) / 1000)
    refuse(stage, "a")
    stage.wait(limits.QUOTA_REST_S)
    assert stage.of(CreatePod) == []
    stage.end("first")
    stage.wait(limits.QUOTA_FREED_S)
    assert len(stage.of(CreatePod)) == 1


def test_many_ends_are_not_as_many_tries() -> None:
    stage = a_stage()
    stage.submit("first")
    stage.run()
    stage.submit("a")
    refuse(stage, "a")
    stage.end("first")
    stage.wait(limits.QUOTA_FREED_S)
    assert stage.of(CreatePod) == []
    stage.wait(limits.QUOTA_REST_S - limits.QUOTA_FREED_S)
    assert len(stage.of(CreatePod)) == 1


def test_no_instance_is_bought_for_what_the_quota_does_not_let_in() -> None:
    stage = Stage(a_world())
    stage.submit("a")
    stage.join()
    refuse(stage, "a")
    stage.submit("b")
    assert stage.of(LaunchNode) == []


def test_the_next_environment_of_the_queue_takes_the_job() -> None:
    world = a_world(
        an_environment("other"),
        a_queue("queue", "ce", "other"),
        a_node("n1"),
        a_node("n2", environment="other"),
    )
    stage = Stage(world)
    stage.submit("a")
    assert stage.live("a").node_id == "n1"
    refuse(stage, "a")
    assert stage.live("a").node_id == "n2"


def test_it_is_told_stopped_while_it_waits() -> None:
    stage = a_stage()
    stage.submit("a")
    refuse(stage, "a")
    stage.terminate("a", reason="enough")
    assert stage.status("a") == "FAILED"


def test_explain_says_that_the_quota_is_used_up_and_when_it_is_tried_again() -> None:
    stage = a_stage()
    stage.submit("a")
    refuse(stage, "a")
    sentences = explain(stage.world, stage.world.jobs[JobId("a")], stage.now + 3_000)
    assert sentences[0] == "It has been RUNNABLE for 3 s."
    assert sentences[1] == (
        f"Namespace batch of compute environment ce has no room under its quota ({WORDS}): "
        "it is tried again in 7 s, or when a pod there has ended."
    )


# ---- a namespace that takes no pods at all

GONE = 'namespaces "batch" not found'


def refuse_for_good(stage: Stage, job_id: str) -> None:
    pod = stage.live(job_id).pod_name
    stage.step(PodRefused(pod=pod, at=stage.now, reason=GONE, quota=True, unusable=True))


def check(stage: Stage, status: Literal["VALID", "INVALID"]) -> None:
    stage.step(EnvironmentChecked(name="ce", status=status, status_reason="as the adapter says"))


def test_jobs_of_a_namespace_that_is_gone_wait_and_its_environment_is_checked() -> None:
    """1. refused; 2. INVALID: looked at ever more rarely, no pod, no instance, and those that are there are given back;
    3. the namespace is back, and so is an instance.
    """
    stage = a_stage()
    stage.submit("a")
    refuse_for_good(stage, "a")
    assert stage.status("a") == "RUNNABLE"
    for rest_s in (10, 20, 40):
        assert stage.of(CheckEnvironment) == [CheckEnvironment(compute_environment="ce")]
        check(stage, "INVALID")
        stage.submit(f"b{rest_s}")
        assert stage.of(CreatePod) == stage.of(LaunchNode) == []
        stage.wait(rest_s)
    assert {node.status for node in stage.world.nodes.values()} == {NodeStatus.TERMINATING}
    check(stage, "VALID")
    stage.wait(80)
    assert stage.of(LaunchNode)


def test_explain_says_that_the_namespace_takes_no_pods() -> None:
    stage = a_stage()
    stage.submit("a")
    refuse_for_good(stage, "a")
    sentences = explain(stage.world, stage.world.jobs[JobId("a")], stage.now + 3_000)
    assert sentences[1] == (
        f"Namespace batch of compute environment ce takes no pods ({GONE}): "
        "it is looked at again in 7 s."
    )
