"""Pods that kubelets turn away: first it may be the node, then it is the job, which waits and stands in nobody's way."""

from __future__ import annotations

from airflow_eksbatch.core.engine.effects import CreatePod, LaunchNode
from airflow_eksbatch.core.engine.facts import InstanceGone, PodRefused, PodRunning
from airflow_eksbatch.core.model import limits
from airflow_eksbatch.core.model.job import JobId
from airflow_eksbatch.core.model.node import NodeStatus
from airflow_eksbatch.core.model.retry import RetryStrategy
from airflow_eksbatch.core.planner.explain import explain
from tests.build import a_node, a_world, an_environment, an_offering
from tests.core.stage import Stage

WORDS = "OutOfcpu: Node didn't have enough resource: cpu, requested: 1200"
THREE = ("n1", "n2", "n3")


def a_stage(*nodes: str) -> Stage:
    return Stage(a_world(*(a_node(name) for name in nodes or THREE), offerings=()), idle_s=1e6)


def refuse(stage: Stage, *job_ids: str) -> int:
    """The kubelets' no to every pod of these jobs; how many there were."""
    pods = [a.pod_name for a in stage.world.attempts.values() if a.job_id in job_ids]
    if pods:
        stage.step(*(PodRefused(pod=pod, at=stage.now, reason=WORDS) for pod in pods))
    return len(pods)


def turn_away(stage: Stage, job_id: str = "bad") -> None:
    """By three nodes, one after the other."""
    for _ in THREE:
        refuse(stage, job_id)


def closed(stage: Stage) -> list[str]:
    return [node.node_id for node in stage.world.nodes.values() if node.closed is not None]


def pods_made(stage: Stage) -> list[str]:
    return [effect.pod for effect in stage.of(CreatePod)]


# ---- node or job


def test_a_node_is_left_alone_for_one_refusal_and_takes_work_again_when_it_was_the_job() -> None:
    stage = a_stage()
    stage.submit("bad")
    refuse(stage, "bad")
    refuse(stage, "bad")
    assert len(closed(stage)) == 2
    refuse(stage, "bad")
    assert closed(stage) == []
    assert stage.status("bad") == "RUNNABLE"
    stage.submit("good")
    assert pods_made(stage) == ["good-0-1"]


def test_one_node_that_says_no_again_and_again_is_believed_too() -> None:
    stage = a_stage("n1")
    stage.submit("bad")
    for _ in range(limits.TURNED_AWAY_TIMES - 1):
        refuse(stage, "bad")
        assert closed(stage) == ["n1"]
        stage.wait(limits.REFUSED_POD_PAUSE_S)
    refuse(stage, "bad")
    assert closed(stage) == []
    assert stage.of(CreatePod) == []


def test_refusals_of_one_wave_count_once_for_each_node() -> None:
    stage = a_stage("n1", "n2")
    stage.submit("bad", size=8)
    assert refuse(stage, "bad") == 8
    assert closed(stage) == ["n1", "n2"]
    assert stage.world.lines.turned_away == set()


def test_a_pod_of_the_class_that_runs_in_between_begins_the_count_anew() -> None:
    stage = a_stage()
    stage.submit("bad")
    for number in range(9):
        refuse(stage, "bad")
        stage.submit(f"good{number}")
        stage.step(PodRunning(pod=stage.live(f"good{number}").pod_name, at=stage.now))
        stage.end(f"good{number}")
        stage.wait(limits.REFUSED_POD_PAUSE_S)
        assert stage.live("bad")


# ---- what follows


def test_it_is_tried_ever_more_rarely_and_fails_in_the_end_with_the_kubelets_words() -> None:
    stage = a_stage()
    stage.submit("bad")
    turn_away(stage)
    rests: list[int] = []
    while "bad" in stage.world.jobs:
        (refusals,) = stage.world.trials.refusals.values()
        rests.append((refusals.until - stage.now) // 1000)
        stage.wait(rests[-1] - 1)
        assert pods_made(stage) == []
        stage.wait(1)
        assert refuse(stage, "bad") == 1
    assert rests == [30, 60, 120, 240, 300, 300, 300, 30]
    assert stage.status("bad") == "FAILED"
    last = stage.attempts["bad-0-11"]
    assert last.charged
    assert last.end is not None
    assert (last.end.status_reason, last.end.reason) == ("Task failed to start", WORDS)
    assert stage.world.totals.free_retries == 10


def test_its_retry_strategy_decides_then() -> None:
    stage = a_stage()
    stage.submit("bad", retry=RetryStrategy(attempts=3))
    turn_away(stage)
    while "bad" in stage.world.jobs:
        stage.wait(limits.TURNED_AWAY_S_MAX)
        refuse(stage, "bad")
    assert [a.charged for a in stage.attempts.values()].count(True) == 3


def test_one_that_is_taken_ends_the_wait_of_all() -> None:
    stage = a_stage()
    stage.submit("bad", size=20)
    refuse(stage, "bad")
    assert stage.world.lines.turned_away == {"bad"}
    stage.wait(limits.TURNED_AWAY_S)
    stage.step(PodRunning(pod=stage.live("bad", 0).pod_name, at=stage.now))
    assert stage.world.lines.turned_away == set()
    assert stage.world.trials.refusals == {}
    stage.run()
    stage.end_all()
    assert len(stage.job("bad").running) == 8


def test_nothing_is_charged_where_other_pods_run() -> None:
    """Something adds to the pods of both: a node takes three where we think of four."""
    stage = a_stage()
    stage.submit("first", size=9)
    stage.submit("bad", size=3)
    assert {len(pods) for pods in stage.world.pods_by_node.values()} == {4}
    stage.step(
        *(
            PodRunning(pod=a.pod_name, at=stage.now)
            for a in stage.world.attempts.values()
            if a.job_id == "first"
        )
    )
    for _ in range(40):
        stage.wait(limits.TURNED_AWAY_S_MAX)
        refuse(stage, "bad")
    assert stage.world.lines.turned_away == {"bad"}
    assert not any(attempt.charged for attempt in stage.attempts.values() if attempt.end)


def test_an_array_that_no_kubelet_takes_buys_few_instances_and_holds_nobody_up() -> None:
    """The first wave gets machines as any job; from then on one at a time."""
    world = a_world(an_environment(max_vcpus=64), offerings=(an_offering(),))
    stage = Stage(world)
    stage.submit("bad", size=100)
    bought = len(stage.of(LaunchNode))
    stage.join()
    for beat in range(600):
        stage.wait(5)
        refuse(stage, "bad")
        nodes = stage.world.nodes.values()
        ending = [n.node_id for n in nodes if n.status is NodeStatus.TERMINATING]
        stage.step(*(InstanceGone(node_id=n, at=stage.now, reason="ended") for n in ending))
        bought += len(stage.join())
        if beat == 60:
            stage.submit("good")
            stage.join()
            assert stage.live("good")
            stage.run()
            stage.end("good")
        if "bad" not in stage.world.jobs:
            break
    assert stage.status("bad") == "FAILED"
    assert bought <= 16 + limits.TURNED_AWAY_RESTS_MAX


def test_others_of_its_class_that_wait_behind_it_go_on_and_it_does_not() -> None:
    stage = a_stage()
    stage.submit("bad", size=50)
    for number in range(10):
        stage.submit(f"good{number}")
    assert refuse(stage, "bad") == 12
    placed = {attempt.job_id for attempt in stage.world.attempts.values()}
    assert placed == {f"good{number}" for number in range(10)}
    stage.wait(limits.TURNED_AWAY_S - 1)
    assert pods_made(stage) == []


def test_one_that_leaves_spot_meanwhile_is_tried_anew_and_the_others_of_its_class_wait_on() -> None:
    """What was said of it was said of another class: else nobody would take it back when a kubelet takes it."""
    stage = a_stage()
    stage.submit("bad", size=30)
    stage.submit("too")
    for _ in range(limits.TURNED_AWAY_TIMES):
        refuse(stage, "bad", "too")
        stage.wait(limits.REFUSED_POD_PAUSE_S)
    assert stage.world.lines.turned_away == {"bad", "too"}
    stage.world.keep_off_spot(stage.job("bad"))
    stage.world.check_indexes()
    assert stage.world.lines.turned_away == {"too"}
    stage.step()
    stage.run()
    stage.world.keep_off_spot(stage.job("bad"))
    assert [refusals.jobs for refusals in stage.world.trials.refusals.values()] == [{"too"}]
    assert len(stage.job("bad").running) == 12


def test_whoever_ends_meanwhile_is_forgotten() -> None:
    stage = a_stage()
    stage.submit("bad")
    turn_away(stage)
    stage.terminate("bad")
    assert stage.world.trials.refusals == {}
    assert stage.world.lines.turned_away == set()


# ---- in words


def test_explain_has_the_kubelets_words_and_when_it_is_tried_again() -> None:
    stage = a_stage()
    stage.submit("bad")
    turn_away(stage)
    sentences = explain(stage.world, stage.world.jobs[JobId("bad")], stage.now + 10_000)
    assert sentences[1] == (
        f"Nodes with room for it turn its pods away ({WORDS}): does something add to what they ask for? "
        "It is tried again in 20 s; an instance is bought for it only if no node is left that could hold it."
    )
