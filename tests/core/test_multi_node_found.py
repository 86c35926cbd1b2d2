"""Multi-node jobs in random lives: what hung, or bought for ever, once."""

from __future__ import annotations

import pytest

from airflow_eksbatch.core.engine.effects import CreatePod, DeletePod
from airflow_eksbatch.core.engine.facts import (
    Fact,
    InstanceGone,
    InstanceLaunched,
    JobSubmitted,
    PodEnded,
    PodRefused,
)
from airflow_eksbatch.core.engine.views import summary
from airflow_eksbatch.core.model import limits
from airflow_eksbatch.core.model.job import Dependency, JobId, JobStatus
from airflow_eksbatch.core.model.node import NodeStatus
from airflow_eksbatch.core.model.retry import NOT_THERE
from airflow_eksbatch.core.planner.explain import explain
from tests.build import (
    a_spec,
)
from tests.core.multi_node import (
    a_fair_stage,
    a_running,
    a_stage,
    nodes,
    refused,
    waited_long,
)
from tests.core.stage import Stage

# ---- found by random lives: what hung, or bought for ever


def play_on(stage: Stage, minutes: int = 24 * 60) -> int:
    """A beat a minute while all goes well outside; how many machines were bought."""
    bought = 0
    for _ in range(minutes):
        stage.wait(60, *stage.what_follows())
        bought += sum(launch.count for launch in stage.plan.launches)
        if not stage.world.jobs:
            break
    return bought


def test_an_older_one_that_comes_late_takes_what_a_younger_one_has_complete() -> None:
    stage = a_stage(max_vcpus=5)
    stage.submit("first", vcpus=0.25)
    stage.join()
    stage.submit("a", multi_node=nodes(2), depends_on=(Dependency(job_id=JobId("first")),))
    stage.run()
    stage.submit("b", multi_node=nodes(2))
    stage.end_all()
    play_on(stage, 60)
    assert not stage.world.jobs


def test_what_is_saved_for_one_is_not_passed_by_anothers_last_machine() -> None:
    """Both have waited long while nothing was sold, and the maximum holds one of them at a time."""
    stage = a_stage(max_vcpus=6)
    stage.submit("mpi", multi_node=nodes(3))
    stage.submit("plain", vcpus=2)
    for _ in range(20):
        stage.wait(30, *refused(stage))
    assert play_on(stage) <= 4
    assert not stage.world.jobs


def test_machines_of_the_minimum_are_used_whomever_they_were_bought_for() -> None:
    stage = a_fair_stage(max_vcpus=4, min_vcpus=4)
    stage.submit("before", vcpus=2, size=2, share="s")
    stage.join()
    stage.run()
    stage.end_all()
    stage.submit("mpi", vcpus=2, multi_node=nodes(2), share="s")
    assert stage.status("mpi") is JobStatus.STARTING


@pytest.mark.parametrize("min_vcpus", [0, 4])
def test_machines_bought_for_others_are_had_by_one_or_by_them(min_vcpus: int) -> None:
    """It is of higher priority and has waited long when they join."""
    stage = a_fair_stage(max_vcpus=4, min_vcpus=min_vcpus)
    stage.submit("small", share="s", vcpus=2, size=2)
    stage.wait(1)
    stage.submit("mpi", share="s", vcpus=2, priority=5, multi_node=nodes(2))
    stage.wait(limits.RESERVE_AFTER_S + 1)
    stage.join()
    assert play_on(stage) <= 4
    assert not stage.world.jobs


def test_a_pool_that_has_too_few_is_asked_ever_more_rarely() -> None:
    """Three of four are granted each time: an hour costs a few machines, not one every minute."""
    stage = a_stage()
    stage.submit("mpi", multi_node=nodes(4))
    granted = 0
    for _ in range(6 * 60):
        news: list[Fact] = []
        there = sum(node.launched_at is not None for node in stage.world.nodes.values())
        for node in stage.world.nodes.values():
            if node.status is NodeStatus.TERMINATING:
                news.append(InstanceGone(node_id=node.node_id, at=stage.now, reason="ended"))
            elif node.status is NodeStatus.LAUNCHED:
                news.append(stage.ready(node))
            elif node.status is NodeStatus.REQUESTED and there < 3:
                there, granted = there + 1, granted + 1
                news.append(
                    InstanceLaunched(node_id=node.node_id, instance_id=f"i-{granted}", at=stage.now)
                )
        stage.wait(10, *news, *(r for r in refused(stage) if r.node_id not in told_of(news)))
    assert granted <= 18, "three each time, after rests that double"


def told_of(news: list[Fact]) -> set[str]:
    return {fact.node_id for fact in news if isinstance(fact, InstanceLaunched)}


def test_a_reservation_for_other_shares_keeps_room_for_all_of_its_nodes() -> None:
    stage = a_fair_stage(reservation=50, max_vcpus=16)
    stage.submit("busy", share="s", vcpus=2)
    stage.join()
    stage.submit("mpi", share="s", vcpus=2, multi_node=nodes(4))
    for number in range(100):
        stage.submit(f"younger-{number}", share="s", vcpus=2, size=2)
        stage.wait(30, *stage.what_follows())
        if "mpi" not in stage.world.jobs:
            break
    assert "mpi" not in stage.world.jobs


def test_nothing_is_bought_or_kept_for_one_whose_share_has_enough() -> None:
    stage = a_fair_stage(reservation=50, max_vcpus=16)
    stage.submit("busy", share="s", vcpus=2)
    stage.join()
    stage.run()
    specs = (
        a_spec("a", share="s", vcpus=2, multi_node=nodes(3), priority=1),
        a_spec("b", share="s", vcpus=2, multi_node=nodes(3)),
    )
    stage.step(*(JobSubmitted(spec=spec) for spec in specs))
    assert {node.reserved_for for node in stage.world.nodes.values()} == {None, "a"}
    stage.join()
    assert stage.status("a") is JobStatus.STARTING
    assert not any(node.reserved_for == "b" for node in stage.world.nodes.values())


@pytest.mark.parametrize("refused_index", [0, 1])
def test_kubelets_that_turn_it_away_fail_it_in_the_end(refused_index: int) -> None:
    stage = a_stage()
    stage.submit("mpi", multi_node=nodes(3))
    began = 0
    for _ in range(3 * 60 * 3):
        news: list[Fact] = []
        for node in stage.world.nodes.values():
            if node.status is NodeStatus.REQUESTED:
                launched = InstanceLaunched(node_id=node.node_id, instance_id="i", at=stage.now)
                news += [launched, stage.ready(node)]
        for attempt in stage.world.attempts.values():
            if attempt.stopping is not None:
                news.append(PodEnded(pod=attempt.pod_name, at=stage.now, end=NOT_THERE))
            elif attempt.index == refused_index and stage.is_asked_for(attempt):
                refusal = PodRefused(pod=attempt.pod_name, at=stage.now, reason="OutOfmemory")
                news.append(refusal)
            elif attempt.status is JobStatus.STARTING and stage.is_asked_for(attempt):
                began += attempt.index == 0
                news.append(stage.running(attempt))
        stage.wait(20, *news)
        if not stage.world.jobs:
            break
    assert stage.jobs["mpi"].status_reason == "Task failed to start"
    assert began <= 20, "with its program begun a few times, not a hundred"


def test_one_whose_main_node_has_ended_counts_as_running() -> None:
    stage = a_stage()
    a_running(stage, "mpi", 3)
    stage.end("mpi")
    counts = summary(stage.world, stage.now)["jobs"]
    assert isinstance(counts, dict)
    assert (counts["RUNNING"], counts["PENDING"]) == (1, 0)


def test_nodes_that_take_no_younger_work_are_told_to_those_who_wait() -> None:
    stage = a_stage(max_vcpus=6)
    stage.submit("before", size=3, vcpus=1)
    stage.join()
    stage.run()
    waited_long(stage, "mpi", multi_node=nodes(3), vcpus=2)
    stage.submit("younger", vcpus=1)
    text = " ".join(explain(stage.world, stage.job("younger"), stage.now))
    assert "kept free for mpi (mpi)" in text


@pytest.mark.parametrize("order", [1, -1])
def test_what_ends_in_the_moment_in_which_it_would_begin_is_not_begun(order: int) -> None:
    stage = a_stage()
    stage.submit("mpi", multi_node=nodes(2))
    stage.join()
    lost = InstanceGone(node_id=stage.live("mpi", 1).node_id, at=stage.now, reason="it failed")
    stage.step(*[stage.running(stage.live("mpi")), lost][::order])
    assert not stage.of(CreatePod)
    assert [effect.pod for effect in stage.of(DeletePod)] == ["mpi-0-1"]
