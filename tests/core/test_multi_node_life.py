"""The life of a multi-node job: its main node speaks for all, and it pays for whole machines."""

from __future__ import annotations

import msgspec
import pytest

from airflow_eksbatch.core.engine.effects import CreatePod, DeletePod, LaunchNode
from airflow_eksbatch.core.engine.facts import (
    NodeLost,
    PodEnded,
    PodRunning,
    PodStuck,
    SpotInterrupted,
)
from airflow_eksbatch.core.model import limits
from airflow_eksbatch.core.model.job import Dependency, JobId, JobStatus, MultiNode
from airflow_eksbatch.core.model.node import NodeId, NodeStatus
from airflow_eksbatch.core.model.retry import NOT_THERE, RetryStrategy
from airflow_eksbatch.core.world.books import Use
from tests.core.multi_node import (
    LARGE,
    MAIN,
    a_running,
    a_stage,
    end_others,
    live,
    nodes,
    refuse,
    run_main,
)
from tests.core.stage import loaded

# ---- the life of one


def test_the_other_nodes_begin_when_the_main_one_runs_and_know_where_it_is() -> None:
    stage = a_stage()
    stage.submit("mpi", multi_node=nodes(4, main=2))
    stage.join()
    (main,) = stage.of(CreatePod)
    assert main.environment["AWS_BATCH_JOB_ID"] == "mpi#2"
    assert main.environment["AWS_BATCH_JOB_NODE_INDEX"] == "2"
    assert "AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS" not in main.environment
    stage.step(PodRunning(pod=main.pod, at=stage.now))
    assert not stage.of(CreatePod), "it has no address yet"
    others = run_main(stage, "mpi")
    told = [pod.environment for pod in others]
    assert sorted(t["AWS_BATCH_JOB_NODE_INDEX"] for t in told) == ["0", "1", "3"]
    for one in told:
        assert one["AWS_BATCH_JOB_ID"] == f"mpi#{one['AWS_BATCH_JOB_NODE_INDEX']}"
        assert one["AWS_BATCH_JOB_MAIN_NODE_INDEX"] == "2"
        assert one["AWS_BATCH_JOB_NUM_NODES"] == "4"
        assert one["AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS"] == MAIN
    assert not run_main(stage, "mpi"), "asked for once"


def test_each_node_runs_the_pod_of_its_range() -> None:
    stage = a_stage()
    ranges = MultiNode(nodes=4, main=3, pods=((0, b'{"a":1}'), (1, b'{"b":1}'), (3, b'{"c":1}')))
    stage.submit("mpi", multi_node=ranges, pod=b'{"c":1}')
    stage.join()
    (main,) = stage.of(CreatePod)
    others = run_main(stage, "mpi")
    pods = {x.environment["AWS_BATCH_JOB_NODE_INDEX"]: x.pod_properties for x in (main, *others)}
    assert pods == {"0": b'{"a":1}', "1": b'{"b":1}', "2": b'{"b":1}', "3": b'{"c":1}'}


def test_its_end_is_its_main_nodes_when_nothing_of_it_runs_any_more() -> None:
    stage = a_stage()
    stage.submit("after", depends_on=())
    a_running(stage, "mpi", 3)
    stage.end("mpi")
    assert len(stage.of(DeletePod)) == 2
    assert stage.status("mpi") is JobStatus.RUNNING
    end_others(stage, "mpi")
    assert stage.status("mpi") is JobStatus.SUCCEEDED
    assert stage.story("mpi") == ["RUNNABLE", "STARTING", "RUNNING", "SUCCEEDED"]
    assert stage.world.totals.succeeded == 1
    assert stage.events[-1].exit_code == 0


def test_how_another_node_ends_means_nothing() -> None:
    stage = a_stage()
    a_running(stage, "mpi", 3)
    stage.end("mpi", 1, exit_code=1)
    assert not stage.of(DeletePod)
    assert stage.status("mpi") is JobStatus.RUNNING
    stage.end("mpi", 2)
    stage.end("mpi")
    assert stage.status("mpi") is JobStatus.SUCCEEDED


def test_who_waits_for_it_waits_for_its_main_nodes_success_alone() -> None:
    stage = a_stage()
    a_running(stage, "mpi", 2)
    stage.submit("next", depends_on=(Dependency(job_id=JobId("mpi")),))
    stage.end("mpi", 1, exit_code=1)
    stage.end("mpi")
    assert stage.status("mpi") is JobStatus.SUCCEEDED
    assert stage.status("next") is JobStatus.STARTING


def test_the_end_of_another_node_is_no_charged_attempt() -> None:
    stage = a_stage()
    _, other = a_running(stage, "mpi", 2)
    stage.end("mpi", 1, exit_code=1)
    assert not other.charged


def test_a_main_node_that_failed_takes_all_of_them_into_the_next_attempt() -> None:
    stage = a_stage()
    a_running(stage, "mpi", 3, retry=RetryStrategy(attempts=2))
    stage.end("mpi", 2, exit_code=1)
    stage.end("mpi", exit_code=7)
    assert stage.status("mpi") is JobStatus.RUNNING
    end_others(stage, "mpi")
    assert stage.status("mpi") is JobStatus.STARTING, "on the nodes that it left"
    (main,) = stage.of(CreatePod)
    assert main.environment["AWS_BATCH_JOB_ATTEMPT"] == "2"
    others = run_main(stage, "mpi")
    assert {pod.environment["AWS_BATCH_JOB_ATTEMPT"] for pod in others} == {"2"}
    stage.run()
    stage.end("mpi", exit_code=8)
    end_others(stage, "mpi")
    assert stage.status("mpi") is JobStatus.FAILED
    assert stage.events[-1].exit_code == 8
    assert stage.world.totals.failed == 1
    assert stage.world.totals.retries == 1


def test_a_lost_main_node_costs_no_attempt() -> None:
    stage = a_stage()
    main, *_ = a_running(stage, "mpi", 2)
    stage.lose(main.node_id, reclaimed=False)
    end_others(stage, "mpi")
    stage.join()
    assert stage.status("mpi") is JobStatus.STARTING
    (pod,) = stage.of(CreatePod)
    assert pod.environment["AWS_BATCH_JOB_ATTEMPT"] == "1"


def test_another_node_lost_while_it_runs_is_its_own_affair() -> None:
    stage = a_stage()
    _, other = a_running(stage, "mpi", 2)
    stage.lose(other.node_id)
    assert stage.status("mpi") is JobStatus.RUNNING
    assert not stage.of(DeletePod)


def test_a_node_lost_before_it_began_has_all_of_them_begin_again_for_free() -> None:
    stage = a_stage()
    stage.submit("mpi", multi_node=nodes(2))
    stage.join()
    other = stage.live("mpi", 1)
    stage.lose(other.node_id, reclaimed=False)
    assert [effect.pod for effect in stage.of(DeletePod)] == ["mpi-0-1"]
    stage.step(PodEnded(pod=stage.live("mpi").pod_name, at=stage.now, end=NOT_THERE))
    assert stage.status("mpi") is JobStatus.RUNNABLE
    stage.join()
    assert stage.of(CreatePod)[0].environment["AWS_BATCH_JOB_ATTEMPT"] == "1"


def test_a_node_that_kubelets_turn_away_has_all_of_them_begin_again_for_free() -> None:
    stage = a_stage()
    stage.submit("mpi", multi_node=nodes(2))
    stage.join()
    run_main(stage, "mpi")
    refuse(stage, "mpi", 1, "OutOfcpu")
    main = stage.live("mpi")
    assert main.stopping is not None
    stage.end("mpi", exit_code=0)
    assert stage.status("mpi") in (JobStatus.RUNNABLE, JobStatus.STARTING)
    assert not stage.job("mpi").tries or stage.job("mpi").tries[0].charged == 0


def test_a_node_that_cannot_start_fails_the_attempt_whatever_the_main_node_says() -> None:
    stage = a_stage()
    stage.submit("mpi", multi_node=nodes(2))
    stage.join()
    run_main(stage, "mpi")
    stuck = PodStuck(pod=stage.live("mpi", 1).pod_name, at=stage.now, reason="ImagePullBackOff")
    stage.step(stuck)
    stage.step(PodEnded(pod=stage.live("mpi", 1).pod_name, at=stage.now, end=NOT_THERE))
    stage.end("mpi", exit_code=0)
    assert stage.status("mpi") is JobStatus.FAILED
    assert stage.jobs["mpi"].status_reason == "Task failed to start"
    end = stage.attempts["mpi-0-1"].end
    assert end is not None
    assert end.reason == "ImagePullBackOff"


def test_a_short_life_of_another_node_is_told_by_its_end_alone() -> None:
    stage = a_stage()
    stage.submit("mpi", multi_node=nodes(2))
    stage.join()
    run_main(stage, "mpi")
    stage.end("mpi", 1, exit_code=3)
    assert stage.live("mpi").stopping is None


def test_the_timeout_is_the_main_nodes() -> None:
    stage = a_stage()
    stage.submit("mpi", multi_node=nodes(2), timeout_s=100)
    stage.join()
    run_main(stage, "mpi")
    stage.wait(50)
    stage.run()
    stage.wait(51)
    assert [effect.pod for effect in stage.of(DeletePod)] == ["mpi-0-1"]
    stage.end("mpi", exit_code=143)
    end_others(stage, "mpi")
    assert stage.jobs["mpi"].status_reason == "Job attempt duration exceeded timeout"


@pytest.mark.parametrize("when", ["waiting", "starting", "main runs", "running"])
def test_terminate_ends_all_of_it(when: str) -> None:
    stage = a_stage()
    stage.submit("mpi", multi_node=nodes(3), retry=RetryStrategy(attempts=5))
    if when != "waiting":
        stage.join()
    if when in ("main runs", "running"):
        run_main(stage, "mpi")
    if when == "running":
        stage.run()
    stage.terminate("mpi")
    if when != "waiting":
        assert len(stage.of(DeletePod)) == 3
        stage.step(*(stage.ended("mpi", a.index, exit_code=143) for a in live(stage, "mpi")))
    assert stage.jobs["mpi"].status_reason == "enough"
    assert stage.status("mpi") is JobStatus.FAILED
    assert not any(node.reserved_for for node in stage.world.nodes.values())


def test_one_node_cannot_be_ended_alone() -> None:
    stage = a_stage()
    a_running(stage, "mpi", 2)
    stage.terminate("mpi", 1)
    assert not stage.of(DeletePod)


def test_what_was_stopped_for_the_next_attempt_can_still_be_terminated() -> None:
    stage = a_stage()
    a_running(stage, "mpi", 2, retry=RetryStrategy(attempts=5))
    stage.end("mpi", exit_code=7)
    stage.terminate("mpi")
    end_others(stage, "mpi")
    assert stage.status("mpi") is JobStatus.FAILED


def test_a_main_node_that_never_ran_has_no_pods_to_stop() -> None:
    """The other pods were never asked for: they end with it, and nobody is asked."""
    stage = a_stage()
    stage.submit("mpi", multi_node=nodes(3))
    stage.join()
    refuse(stage, "mpi", 0, "invalid", permanent=True)
    assert not stage.of(DeletePod)
    assert stage.status("mpi") is JobStatus.FAILED
    assert stage.jobs["mpi"].status_reason == "invalid"


def test_a_quota_that_is_used_up_is_a_wait() -> None:
    stage = a_stage()
    stage.submit("mpi", multi_node=nodes(2))
    stage.join()
    refuse(stage, "mpi", 0, "exceeded quota", quota=True)
    assert stage.status("mpi") is JobStatus.RUNNABLE
    assert stage.job("mpi").tries[1].waited == 1
    stage.wait(3600)
    assert stage.status("mpi") is JobStatus.STARTING


def test_a_quota_that_ends_at_another_node_is_a_free_attempt_of_all() -> None:
    """Not a wait: the main node did begin, and waits have no end."""
    stage = a_stage()
    stage.submit("mpi", multi_node=nodes(2))
    stage.join()
    run_main(stage, "mpi")
    refuse(stage, "mpi", 1, "exceeded quota", quota=True)
    stage.end("mpi", exit_code=143)
    tries = stage.job("mpi").tries[0]
    assert (tries.charged, tries.waited, tries.lost) == (0, 0, 1)


def test_a_spot_notice_for_another_node_ends_that_one_only() -> None:
    stage = a_stage()
    _, other = a_running(stage, "mpi", 2)
    stage.step(SpotInterrupted(node_id=other.node_id, at=stage.now))
    assert not stage.plan.launches, "its nodes are bought when it runs again, if it does"
    stage.wait(110)
    assert {effect.pod for effect in stage.of(DeletePod)} == {other.pod_name}


def test_a_crash_at_any_moment_forgets_nothing() -> None:
    stage = a_stage()
    stage.submit("mpi", multi_node=nodes(3, main=1), retry=RetryStrategy(attempts=2))
    stage = loaded(stage)
    assert len(stage.of(LaunchNode)) == 3
    stage.join()
    stage = loaded(stage)
    assert [effect.pod for effect in stage.of(CreatePod)] == ["mpi-0-1"]
    run_main(stage, "mpi")
    stage = loaded(stage)
    assert [effect.pod for effect in stage.of(CreatePod)] == ["mpi-1-1", "mpi-2-1"]
    stage.run()
    stage.end("mpi", exit_code=1)
    stage = loaded(stage)
    assert {effect.pod for effect in stage.of(DeletePod)} == {"mpi-1-1", "mpi-2-1"}
    end_others(stage, "mpi")
    assert stage.status("mpi") is JobStatus.STARTING
    assert stage.live("mpi").number == 2


# ---- money and numbers


def test_it_pays_for_whole_machines() -> None:
    stage = a_stage()
    stage.submit("mpi", multi_node=nodes(2), vcpus=0.25)
    stage.join()
    run_main(stage, "mpi")
    stage.run()
    stage.wait(3600)
    stage.end("mpi")
    stage.world.books.take()
    end_others(stage, "mpi")
    price = round(2 * LARGE.price_usd_hour * 1e9)
    assert stage.jobs["mpi"].bill.total.nano_usd == pytest.approx(price, abs=2)


def test_it_counts_as_one_job() -> None:
    stage = a_stage()
    a_running(stage, "mpi", 3)
    assert stage.world.totals.jobs == 1


def test_a_lost_node_of_the_cluster_is_given_back_and_all_begin_again() -> None:
    stage = a_stage()
    main, other = a_running(stage, "mpi", 2)
    stage.step(NodeLost(node_id=main.node_id, at=stage.now, reason="unreachable"))
    assert stage.world.nodes[main.node_id].status is NodeStatus.TERMINATING
    assert stage.status("mpi") is JobStatus.RUNNING, "it may still run there"
    stage.lose(main.node_id, reclaimed=False)
    end_others(stage, "mpi")
    assert stage.job("mpi").tries[0].charged == 0
    assert NodeId(other.node_id) in stage.world.nodes


def test_limits_of_a_beat_do_not_split_it() -> None:
    """More nodes than are bought in a beat come over several, and are kept until all are there."""
    count = limits.LAUNCHES_PER_BEAT_MAX + 3
    stage = a_stage(max_vcpus=10 * count)
    stage.submit("mpi", multi_node=nodes(count))
    assert len(stage.world.nodes) == limits.LAUNCHES_PER_BEAT_MAX
    stage.join()
    assert not stage.plan.placements
    stage.join()
    assert len(live(stage, "mpi")) == count


def test_the_account_is_the_jobs() -> None:
    stage = a_stage()
    a_running(stage, "mpi", 2)
    stage.world.books.take()
    stage.wait(600)
    stage.end("mpi")
    end_others(stage, "mpi")
    uses = {entry.account.use for entry in stage.world.books.take()}
    assert uses <= {Use.JOBS, Use.IDLE, Use.BOOT}


def test_specs_come_back_from_the_store_as_they_were() -> None:
    spec = MultiNode(nodes=3, main=2, pods=((0, b"{}"),))
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(spec), type=MultiNode)
    assert again == spec
    assert [spec.renumbered(i) for i in range(3)] == [2, 1, 0]
