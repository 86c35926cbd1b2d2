"""Nodes for multi-node jobs: all at once or none, alike and alone, reserved and given up, and why one waits."""

from __future__ import annotations

import msgspec
import pytest

from airflow_eksbatch.core.engine.effects import CreatePod, LaunchNode
from airflow_eksbatch.core.engine.facts import (
    InstanceGone,
    InstanceLaunched,
    JobSubmitted,
    LaunchRefused,
)
from airflow_eksbatch.core.model import limits
from airflow_eksbatch.core.model.job import JobStatus
from airflow_eksbatch.core.model.node import NodeId
from airflow_eksbatch.core.model.resources import Resources
from airflow_eksbatch.core.planner.explain import explain, why_stuck
from tests.build import (
    a_policy,
    a_queue,
    a_spec,
    a_world,
    an_environment,
    an_offering,
)
from tests.core.multi_node import (
    LARGE,
    LARGE_B,
    a_running,
    a_stage,
    end_others,
    live,
    nodes,
    ready,
    refused,
    run_main,
    waited_long,
)
from tests.core.stage import Stage

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


def all_but_one(stage: Stage) -> tuple[list[NodeId], str]:
    """A job whose first request for machines is granted, and the second, for the last one, refused; those that are ready,
    and their pool.
    """
    stage.submit("mpi", multi_node=nodes(limits.LAUNCH_TOGETHER_MAX + 1))
    *lot, last = stage.of(LaunchNode)
    news = [InstanceLaunched(node_id=e.node_id, instance_id="i", at=stage.now) for e in lot]
    joined = [stage.ready(stage.world.nodes[effect.node_id]) for effect in lot]
    no = LaunchRefused(node_id=last.node_id, code="c", message="none", at=stage.now)
    stage.step(*news, *joined, no)
    return [effect.node_id for effect in lot], last.offering.pool


def test_what_is_refused_is_had_elsewhere_and_the_rest_given_up() -> None:
    stage = a_stage(offerings=(LARGE, LARGE_B))
    first, pool = all_but_one(stage)
    assert {effect.offering.pool for effect in stage.of(LaunchNode)} == {
        o.pool for o in (LARGE, LARGE_B) if o.pool != pool
    }
    assert len(stage.of(LaunchNode)) == len(first) + 1
    assert not any(stage.world.nodes[node_id].reserved_for for node_id in first)
    stage.join()
    assert stage.status("mpi") is JobStatus.STARTING


def test_what_cannot_become_complete_is_everybodys() -> None:
    """All but one are there, and nobody sells another: others work on them rather than nobody."""
    stage = a_stage()
    first, _ = all_but_one(stage)
    stage.submit("small")
    assert stage.live("small").node_id in first


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


@pytest.mark.parametrize("quota", [False, True])
def test_what_is_refused_to_several_at_once_is_still_sold_one_by_one(quota: bool) -> None:
    """And the more often it is refused the longer it is before they are asked for again."""
    stage = a_stage()
    stage.submit("mpi", multi_node=nodes(3))
    for wait_s in (limits.REFUSAL_S, 2 * limits.REFUSAL_S):
        assert [effect.all_or_none for effect in stage.of(LaunchNode)] == [True] * 3
        stage.step(*refused(stage, quota=quota))
        assert not stage.plan.launches
        stage.wait(wait_s - 1)
        assert not stage.plan.launches
        stage.wait(1)
    stage.step(*refused(stage, quota=quota))
    text = " ".join(explain(stage.world, stage.job("mpi"), stage.now))
    assert (
        "So many at once were refused and are asked for again: m5.large/us-east-1a/EC2 in 12 min."
        in text
    )
    stuck = why_stuck(stage.world, stage.world.class_of(stage.job("mpi")), stage.now) or ""
    assert stuck.startswith("CAPACITY:INSUFFICIENT_INSTANCE_CAPACITY - ")
    stage.submit("small")
    assert [launch.count for launch in stage.plan.launches] == [1]


def test_several_that_are_refused_are_asked_for_elsewhere() -> None:
    stage = a_stage(offerings=(LARGE, LARGE_B))
    stage.submit("mpi", multi_node=nodes(3))
    zones = []
    for _ in range(2):
        (launch,) = stage.plan.launches
        zones.append(launch.offering.zone)
        stage.step(*refused(stage))
    assert sorted(zones) == ["us-east-1a", "us-east-1b"]
    assert not stage.plan.launches


def test_one_that_is_missing_is_asked_for_though_several_were_refused() -> None:
    stage = a_stage()
    stage.submit("mpi", multi_node=nodes(3))
    stage.step(*refused(stage))
    stage.submit("small", size=2, vcpus=2)
    stage.join()
    stage.run()
    stage.step(stage.ended("small", 0), stage.ended("small", 1))
    assert [(launch.count, launch.reserved_for) for launch in stage.plan.launches] == [(1, "mpi")]


def test_an_environment_on_trial_buys_one_machine_for_it() -> None:
    stage = a_stage()
    stage.world.never_joined["ce"] = limits.NEVER_JOINED_MAX
    stage.submit("mpi", multi_node=nodes(3))
    assert sum(launch.count for launch in stage.plan.launches) == 1
    stage.wait(1)
    assert not stage.plan.launches, "the first has not joined yet"
    stage.join()
    assert sum(launch.count for launch in stage.plan.launches) == 2


def test_a_trial_goes_on_though_the_job_has_some_of_its_machines() -> None:
    """1. two of three are reserved for it 2. the third is refused, and others of the environment have not joined."""
    stage = a_stage(*ready(2))
    stage.submit("mpi", multi_node=nodes(3))
    (third,) = stage.of(LaunchNode)
    stage.world.never_joined["ce"] = limits.NEVER_JOINED_MAX
    stage.step(LaunchRefused(node_id=third.node_id, code="c", message="none", at=stage.now))
    stage.wait(3600)
    assert sum(launch.count for launch in stage.plan.launches) == 1
    stage.join()
    assert len(live(stage, "mpi")) == 3


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


def test_machines_of_the_minimum_make_way_for_those_that_count_for_it() -> None:
    """Its minimum and its maximum are the same, and all of it is too small."""
    big = an_offering("m5.xlarge", vcpus=4, memory_mib=16_384)
    world = a_world(offerings=(LARGE, big))
    stage = Stage(world.with_(an_environment(min_vcpus=8, max_vcpus=8)))
    stage.step()
    stage.join()
    assert [node.offering.instance_type for node in stage.world.nodes.values()] == ["m5.large"] * 4
    waited_long(stage, "mpi", multi_node=nodes(2), vcpus=3)
    small = [retirement.node_id for retirement in stage.plan.retirements]
    assert len(small) == 3, "the last of its own may pass the maximum"
    for node_id in small:
        assert not stage.plan.launches
        stage.step(InstanceGone(node_id=node_id, at=stage.now, reason="ended"))
    (launch,) = stage.plan.launches
    assert (launch.offering.instance_type, launch.count) == ("m5.xlarge", 2)
    stage.join()
    assert len(live(stage, "mpi")) == 2


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
