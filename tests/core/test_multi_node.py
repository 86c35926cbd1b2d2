"""Multi-node parallel jobs: all nodes at once or none, each alone on its machine, and the main node speaks for all."""

from __future__ import annotations

import msgspec
import pytest

from airflow_eksbatch.core.engine.effects import CreatePod, DeletePod, LaunchNode
from airflow_eksbatch.core.engine.facts import (
    Fact,
    InstanceGone,
    InstanceLaunched,
    JobSubmitted,
    LaunchRefused,
    NodeLost,
    PodEnded,
    PodRefused,
    PodRunning,
    PodStuck,
    SpotInterrupted,
)
from airflow_eksbatch.core.engine.views import summary
from airflow_eksbatch.core.model import limits
from airflow_eksbatch.core.model.job import Attempt, Dependency, JobId, JobStatus, MultiNode
from airflow_eksbatch.core.model.node import Node, NodeId, NodeStatus
from airflow_eksbatch.core.model.resources import Resources
from airflow_eksbatch.core.model.retry import NOT_THERE, RetryStrategy
from airflow_eksbatch.core.planner.explain import explain, why_stuck
from airflow_eksbatch.core.world.books import Use
from tests.build import (
    NOW,
    a_node,
    a_policy,
    a_queue,
    a_spec,
    a_world,
    an_environment,
    an_offering,
)
from tests.core.stage import Stage, loaded

LARGE = an_offering("m5.large", vcpus=2, memory_mib=8_192)
LARGE_B = an_offering("m5.large", vcpus=2, memory_mib=8_192, zone="us-east-1b")
MAIN = "10.0.0.7"


def nodes(count: int, main: int = 0) -> MultiNode:
    return MultiNode(nodes=count, main=main, pods=((0, b"{}"),))


def a_stage(*ready: Node, max_vcpus: int = 64, offerings: object = (LARGE,)) -> Stage:
    world = a_world(offerings=offerings)  # type: ignore[arg-type]
    return Stage(world.with_(an_environment(max_vcpus=max_vcpus), *ready))


def ready(count: int, offering: object = LARGE) -> list[Node]:
    return [a_node(offering=offering) for _ in range(count)]  # type: ignore[arg-type]


def live(stage: Stage, job_id: str) -> list[Attempt]:
    """Its attempts, the main node's first."""
    running = stage.job(job_id).running
    return [stage.live(job_id, index) for index in sorted(running)]


def run_main(stage: Stage, job_id: str) -> list[CreatePod]:
    """Its main node runs, and the others are asked for."""
    main = stage.live(job_id)
    stage.step(PodRunning(pod=main.pod_name, at=stage.now, address=MAIN))
    return stage.of(CreatePod)


def a_running(stage: Stage, job_id: str, count: int, **fields: object) -> list[Attempt]:
    stage.submit(job_id, multi_node=nodes(count), **fields)
    stage.join()
    run_main(stage, job_id)
    stage.run()
    return live(stage, job_id)


def end_others(stage: Stage, job_id: str) -> None:
    """What was stopped after its main node has ended."""
    stage.step(
        *(
            stage.ended(job_id, attempt.index, exit_code=143)
            for attempt in live(stage, job_id)
            if attempt.stopping is not None
        )
    )


# ---- nodes: all or none


def test_nothing_of_it_is_placed_before_all_nodes_are_there() -> None:
    stage = a_stage(*ready(2))
    stage.submit("mpi", multi_node=nodes(3))
    assert not stage.plan.placements
    assert sum(launch.count for launch in stage.plan.launches) == 1, "two are there already"
    stage.join()
    assert len({attempt.node_id for attempt in live(stage, "mpi")}) == 3
    assert [effect.pod for effect in stage.of(CreatePod)] == ["mpi-0-1"], "the main node begins"


def test_nodes_that_wait_for_the_others_are_nobody_elses_and_stay() -> None:
    stage = a_stage(*ready(2), max_vcpus=6)
    stage.submit("mpi", multi_node=nodes(3))
    stage.submit("small", vcpus=0.25)
    stage.wait(120)
    assert not stage.plan.placements
    assert not stage.plan.retirements
    stage.join()
    assert len(live(stage, "mpi")) == 3
    stage.run()
    assert stage.status("small") is JobStatus.RUNNABLE, "its nodes have room, and are its own"


def test_its_nodes_are_everybodys_again_afterwards() -> None:
    stage = a_stage(*ready(2), max_vcpus=4)
    a_running(stage, "mpi", 2)
    stage.submit("small", vcpus=0.25)
    assert stage.status("small") is JobStatus.RUNNABLE
    stage.end("mpi")
    end_others(stage, "mpi")
    assert stage.status("small") is JobStatus.STARTING


def test_its_nodes_are_of_one_zone_and_one_type() -> None:
    other = an_offering("c5.large", vcpus=2, memory_mib=4_096)
    there = [*ready(2), *ready(2, LARGE_B), *ready(2, other)]
    stage = a_stage(*there, offerings=(LARGE, LARGE_B, other))
    stage.submit("mpi", multi_node=nodes(3))
    (launch,) = stage.plan.launches
    assert launch.count == 1
    stage.join()
    pools = {stage.world.nodes[a.node_id].offering.pool for a in live(stage, "mpi")}
    assert pools == {launch.offering.pool}


def test_all_of_it_is_bought_where_it_is_cheapest_together() -> None:
    """Two that are there, and one more of these, cost less than three of the cheaper ones."""
    cheap = an_offering("t3.large", vcpus=2, memory_mib=8_192, price=0.06)
    stage = a_stage(*ready(2), offerings=(LARGE, cheap))
    stage.submit("mpi", multi_node=nodes(3))
    assert [(x.offering.instance_type, x.count) for x in stage.plan.launches] == [("m5.large", 1)]


def test_a_maximum_that_does_not_hold_all_buys_none() -> None:
    stage = a_stage(max_vcpus=4)
    stage.submit("mpi", multi_node=nodes(4))
    assert not stage.plan.launches
    overflow = Stage(
        a_world(offerings=(LARGE,)).with_(
            an_environment(max_vcpus=4), an_environment("more"), a_queue("queue", "ce", "more")
        )
    )
    overflow.world.offerings["more"] = (LARGE,)
    overflow.submit("mpi", multi_node=nodes(4))
    (launch,) = overflow.plan.launches
    assert (launch.compute_environment, launch.count, launch.choice) == ("more", 4, 1)


def test_what_is_refused_is_had_elsewhere_and_the_rest_given_up() -> None:
    stage = a_stage(offerings=(LARGE, LARGE_B))
    stage.submit("mpi", multi_node=nodes(2))
    first, second = (effect.node_id for effect in stage.of(LaunchNode))
    pool = stage.world.nodes[first].offering.pool
    stage.step(
        InstanceLaunched(node_id=first, instance_id="i-1", at=stage.now),
        LaunchRefused(
            node_id=second, code="InsufficientInstanceCapacity", message="none", at=stage.now
        ),
    )
    assert {effect.offering.pool for effect in stage.of(LaunchNode)} == {
        o.pool for o in (LARGE, LARGE_B) if o.pool != pool
    }
    assert len(stage.of(LaunchNode)) == 2
    assert stage.world.nodes[first].reserved_for is None
    stage.join()
    assert stage.status("mpi") is JobStatus.STARTING


def test_what_cannot_become_complete_is_everybodys() -> None:
    """One of two is there, and nobody sells another: others work on it rather than nobody."""
    stage = a_stage()
    stage.submit("mpi", multi_node=nodes(2))
    first, second = (effect.node_id for effect in stage.of(LaunchNode))
    stage.submit("small")
    refusal = LaunchRefused(
        node_id=second, code="InsufficientInstanceCapacity", message="none", at=stage.now
    )
    launched = InstanceLaunched(node_id=first, instance_id="i-1", at=stage.now)
    stage.step(launched, stage.ready(stage.world.nodes[first]), refusal)
    stage.step()
    assert stage.live("small").node_id == first


def test_two_that_each_lack_one_node_do_not_wait_for_each_other() -> None:
    """Both have one of two, and the maximum allows no more: the older gets both."""
    stage = a_stage(max_vcpus=8)
    for name in ("a", "b"):
        stage.submit(name, multi_node=nodes(2))
    mine, lost = [n.node_id for n in stage.world.nodes.values() if n.reserved_for == "a"]
    others, also_lost = [n.node_id for n in stage.world.nodes.values() if n.reserved_for == "b"]
    stage.step(
        *(InstanceLaunched(node_id=n, instance_id=f"i-{n}", at=stage.now) for n in (mine, others)),
        *(stage.ready(stage.world.nodes[n]) for n in (mine, others)),
        *(
            LaunchRefused(node_id=n, code="VcpuLimitExceeded", message="", at=stage.now)
            for n in (lost, also_lost)
        ),
    )
    stage.step()
    assert {attempt.node_id for attempt in live(stage, "a")} == {mine, others}


def test_nodes_that_have_less_room_than_was_believed_are_not_waited_with() -> None:
    """DaemonSets take more of them than the estimate knew; larger ones are bought, and those are everybody's."""
    larger = an_offering("m5.xlarge", vcpus=4)
    stage = a_stage(offerings=(LARGE, larger))
    stage.submit("mpi", vcpus=2, multi_node=nodes(2))
    small = list(stage.world.nodes.values())
    assert {node.offering for node in small} == {LARGE}
    less = Resources(cpu_m=1_500, memory_mib=8_192, pods=58)
    stage.step(
        *(InstanceLaunched(node_id=n.node_id, instance_id="i-1", at=stage.now) for n in small),
        *(msgspec.structs.replace(stage.ready(n), allocatable=less) for n in small),
    )
    assert [node.reserved_for for node in small] == [None, None]
    stage.join()
    assert {stage.world.nodes[a.node_id].offering for a in live(stage, "mpi")} == {larger}


def test_what_one_claims_no_other_counts_on() -> None:
    stage = a_stage(*ready(3))
    stage.step(*(JobSubmitted(spec=a_spec(name, multi_node=nodes(4))) for name in ("a", "b")))
    assert len(stage.world.nodes) == 8
    reserved = [node.reserved_for for node in stage.world.nodes.values()]
    assert (reserved.count("a"), reserved.count("b")) == (4, 4)


def test_where_somebody_else_goes_in_this_plan_is_not_claimed() -> None:
    stage = a_stage(*ready(2))
    stage.step(
        *(JobSubmitted(spec=spec) for spec in (a_spec("small"), a_spec("mpi", multi_node=nodes(3))))
    )
    assert stage.status("small") is JobStatus.STARTING
    assert sum(launch.count for launch in stage.plan.launches) == 2


def test_what_is_being_bought_is_not_given_up_for_a_better_price() -> None:
    stage = a_stage()
    stage.submit("mpi", multi_node=nodes(2))
    first, second = (effect.node_id for effect in stage.of(LaunchNode))
    cheap = an_offering("t3.large", vcpus=2, memory_mib=8_192, price=0.001)
    stage.world.offerings["ce"] = (LARGE, cheap)
    stage.step(
        InstanceLaunched(node_id=first, instance_id="i-1", at=stage.now),
        InstanceGone(node_id=second, at=stage.now, reason="it failed to start"),
    )
    assert [effect.offering.instance_type for effect in stage.of(LaunchNode)] == ["m5.large"]


def test_what_was_begun_in_one_environment_is_finished_there() -> None:
    """The first was full; now it is not, and one of two in the second has failed."""
    world = a_world(offerings=(LARGE,)).with_(
        an_environment(max_vcpus=2), an_environment("more"), a_queue("queue", "ce", "more")
    )
    stage = Stage(world)
    world.offerings["more"] = (LARGE,)
    stage.submit("mpi", multi_node=nodes(2), vcpus=2)
    first, second = (effect.node_id for effect in stage.of(LaunchNode))
    stage.world.put_compute_environment(an_environment(max_vcpus=64))
    stage.step(
        InstanceLaunched(node_id=first, instance_id="i-1", at=stage.now),
        InstanceGone(node_id=second, at=stage.now, reason="it failed to start"),
    )
    assert [effect.compute_environment for effect in stage.of(LaunchNode)] == ["more"]


# ---- why it waits


def test_why_names_what_is_there_and_what_is_not() -> None:
    stage = a_stage(*ready(2), max_vcpus=6)
    stage.submit("mpi", multi_node=nodes(3))
    text = " ".join(explain(stage.world, stage.job("mpi"), stage.now))
    assert "It needs 3 nodes at once, each to itself, of one instance type in one zone." in text
    assert "2 are reserved for it, and 1 is on the way (m5.large/us-east-1a/EC2 of ce)." in text
    stage.join()
    text = " ".join(explain(stage.world, stage.job("mpi"), stage.now))
    assert "Its other nodes are reserved, and begin when the main node runs." in text
    run_main(stage, "mpi")
    stage.run()
    text = " ".join(explain(stage.world, stage.job("mpi"), stage.now))
    assert "Of its 2 other nodes 2 run." in text
    stage.end("mpi", 1, exit_code=1)
    text = " ".join(explain(stage.world, stage.job("mpi"), stage.now))
    assert "Of its 2 other nodes 1 runs, 1 has ended." in text
    stage.end("mpi")
    text = " ".join(explain(stage.world, stage.job("mpi"), stage.now))
    assert "Its main node has ended; 1 other node is being ended." in text


def test_why_says_that_a_maximum_is_too_small_for_all_of_them() -> None:
    stage = a_stage(max_vcpus=6)
    stage.submit("mpi", multi_node=nodes(5))
    text = " ".join(explain(stage.world, stage.job("mpi"), stage.now))
    assert "m5.large, have 10 vCPUs: more than its maximum of 6 allows." in text
    stuck = why_stuck(stage.world, stage.world.class_of(stage.job("mpi")), stage.now)
    assert stuck is not None
    assert stuck.startswith("MISCONFIGURATION:COMPUTE_ENVIRONMENT_MAX_RESOURCE")
    assert "more than its maximum of 6 allows" in stuck


def test_why_says_for_whom_nodes_take_no_younger_work() -> None:
    stage = a_stage(max_vcpus=6)
    stage.submit("before", size=3, vcpus=2)
    stage.join()
    stage.run()
    stage.submit("mpi", multi_node=nodes(3))
    text = " ".join(explain(stage.world, stage.job("mpi"), stage.now))
    assert "3 of its smallest that would do, m5.large, need more than the 0 vCPUs" in text
    stage.wait(limits.RESERVE_AFTER_S + 1, stage.ended("before", 0))
    text = " ".join(explain(stage.world, stage.job("mpi"), stage.now))
    assert "1 is reserved for it" in text
    assert "2 nodes take no younger work for it; 2 of them still work." in text


def test_an_environment_on_trial_buys_one_machine_for_it() -> None:
    stage = a_stage()
    stage.world.never_joined["ce"] = limits.NEVER_JOINED_MAX
    stage.submit("mpi", multi_node=nodes(3))
    assert sum(launch.count for launch in stage.plan.launches) == 1
    stage.wait(1)
    assert not stage.plan.launches, "the first has not joined yet"
    stage.join()
    assert sum(launch.count for launch in stage.plan.launches) == 2


def play(stage: Stage, job_id: str, **younger: float) -> int:
    """Beats of half a minute until it has succeeded, with younger jobs in each, one beat long; how many had ended by then."""
    for number in range(200):
        stage.submit(f"younger-{number}", size=8, **younger)
        stage.wait(30, *stage.what_follows())
        if job_id not in stage.world.jobs:
            assert stage.jobs[job_id].end_status is JobStatus.SUCCEEDED
            return stage.world.totals.succeeded
    raise AssertionError(f"{job_id} still waits, and {stage.world.totals.succeeded} others did not")


def test_younger_jobs_do_not_keep_it_waiting_for_ever() -> None:
    """The environment is always full, and there is always more."""
    stage = a_stage(max_vcpus=8)
    stage.submit("before", size=20, vcpus=1)
    stage.join()
    stage.submit("mpi", multi_node=nodes(3))
    assert play(stage, "mpi", vcpus=1) > 40, "others did not wait while it did"


def test_way_is_made_where_machines_are_too_small() -> None:
    """None of those there could hold one of its nodes: they go, and others are bought."""
    big = an_offering("m5.2xlarge", vcpus=8, memory_mib=32_768)
    stage = a_stage(max_vcpus=16, offerings=(LARGE, big))
    stage.submit("before", size=20, vcpus=1, memory_mib=6_000)
    stage.join()
    stage.submit("mpi", multi_node=nodes(2), vcpus=6)
    assert play(stage, "mpi", vcpus=1, memory_mib=6_000) > 30


def waited_long(stage: Stage, job_id: str, **fields: object) -> None:
    stage.submit(job_id, **fields)
    stage.wait(limits.RESERVE_AFTER_S + 1)


def test_nodes_that_become_empty_for_it_stay_until_all_are() -> None:
    stage = a_stage(max_vcpus=6)
    stage.submit("before", size=3, vcpus=2)
    stage.join()
    stage.run()
    waited_long(stage, "mpi", multi_node=nodes(3))
    stage.step(stage.ended("before", 0), stage.ended("before", 1))
    stage.submit("younger", size=2)
    stage.wait(3600)
    assert not stage.plan.placements
    assert len(stage.world.nodes) == 3, "idle for an hour, and waiting for the third"
    stage.end("before", 2)
    assert len(live(stage, "mpi")) == 3


def test_machines_that_are_in_the_way_go_when_empty_and_nobody_else_buys_their_room() -> None:
    big = an_offering("m5.2xlarge", vcpus=8, memory_mib=32_768)
    stage = a_stage(max_vcpus=16, offerings=(LARGE, big))
    stage.submit("before", size=8, vcpus=2, memory_mib=6_000)
    stage.join()
    stage.run()
    assert {node.offering.instance_type for node in stage.world.nodes.values()} == {"m5.large"}
    waited_long(stage, "mpi", multi_node=nodes(2), vcpus=6)
    stage.submit("younger", size=8, vcpus=2, memory_mib=6_000)
    in_the_way = [stage.live("before", index).node_id for index in range(5)]
    stage.step(*(stage.ended("before", index) for index in range(5)))
    assert {r.node_id for r in stage.plan.retirements} == set(in_the_way), "at once"
    for node_id in in_the_way:
        assert not stage.plan.launches
        stage.step(InstanceGone(node_id=node_id, at=stage.now, reason="ended"))
    (launch,) = stage.plan.launches
    assert (launch.offering.instance_type, launch.count) == ("m5.2xlarge", 2), "the last may pass"


def test_several_are_bought_for_at_once() -> None:
    stage = a_stage()
    for name in ("a", "b", "c"):
        stage.submit(name, multi_node=nodes(2))
    stage.join()
    assert all(stage.status(name) is JobStatus.STARTING for name in ("a", "b", "c"))
    assert len(stage.world.nodes) == 6


def test_whoever_is_cancelled_leaves_its_nodes_to_others() -> None:
    stage = a_stage()
    stage.submit("mpi", multi_node=nodes(2))
    stage.submit("small")
    stage.cancel("mpi")
    assert stage.jobs["mpi"].end_status is JobStatus.FAILED
    assert not any(node.reserved_for for node in stage.world.nodes.values())
    stage.join()
    assert stage.status("small") is JobStatus.STARTING
    stage.wait(3600)
    assert stage.plan.retirements


def test_unmanaged_nodes_are_used_if_enough_of_a_kind_are_there() -> None:
    world = a_world().with_(an_environment(managed=False), *ready(2))
    stage = Stage(world)
    stage.submit("mpi", multi_node=nodes(3))
    stage.wait(3600)
    assert stage.status("mpi") is JobStatus.RUNNABLE
    stage.submit("other", multi_node=nodes(2), vcpus=2)
    assert stage.status("other") is JobStatus.STARTING


def test_a_fair_share_queue_holds_back_for_it_as_for_others() -> None:
    """computeReservation leaves 8 of 16 vCPUs to one active share: two nodes of 2 at a time, four never."""
    world = a_world(offerings=(LARGE,)).with_(
        an_environment(max_vcpus=16),
        a_policy("fair", reservation=50),
        a_queue("queue", policy="fair"),
    )
    stage = Stage(world)
    stage.submit("busy", share="s", vcpus=2)
    stage.join()
    stage.submit("large", share="s", vcpus=2, multi_node=nodes(4))
    stage.submit("mpi", share="s", vcpus=2, multi_node=nodes(3))
    stage.submit("next", share="s", vcpus=2, multi_node=nodes(3))
    assert {node.reserved_for for node in stage.world.nodes.values()} == {None, "mpi"}


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
    stage.lose(main.node_id)
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
    stage.lose(other.node_id)
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
    refused = PodRefused(pod=stage.live("mpi", 1).pod_name, at=stage.now, reason="OutOfcpu")
    stage.step(refused)
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
    refused = PodRefused(
        pod=stage.live("mpi").pod_name, at=stage.now, reason="invalid", permanent=True
    )
    stage.step(refused)
    assert not stage.of(DeletePod)
    assert stage.status("mpi") is JobStatus.FAILED
    assert stage.jobs["mpi"].status_reason == "invalid"


def test_a_quota_that_is_used_up_is_a_wait() -> None:
    stage = a_stage()
    stage.submit("mpi", multi_node=nodes(2))
    stage.join()
    refused = PodRefused(
        pod=stage.live("mpi").pod_name, at=stage.now, reason="exceeded quota", quota=True
    )
    stage.step(refused)
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
    pod = stage.live("mpi", 1).pod_name
    stage.step(PodRefused(pod=pod, at=stage.now, reason="exceeded quota", quota=True))
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


def refused(stage: Stage) -> list[LaunchRefused]:
    return [
        LaunchRefused(node_id=n.node_id, code="InsufficientInstanceCapacity", message="", at=NOW)
        for n in stage.world.nodes.values()
        if n.status is NodeStatus.REQUESTED
    ]


def a_fair_stage(*, reservation: int = 0, **fields: object) -> Stage:
    environment = an_environment(**fields)  # type: ignore[arg-type]
    return Stage(
        a_world(offerings=(LARGE,)).with_(
            environment,
            a_policy("fair", reservation=reservation),
            a_queue("queue", policy="fair"),
        )
    )


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
