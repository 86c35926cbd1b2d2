"""Why is my job not running: the sentences that people read."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_eksbatch.core.engine.facts import InstanceLaunched, NodeClosed
from airflow_eksbatch.core.model import limits
from airflow_eksbatch.core.model.compute_environment import Market
from airflow_eksbatch.core.model.job import Dependency, DependencyType, Job, JobId
from airflow_eksbatch.core.model.node import NodeStatus
from airflow_eksbatch.core.model.retry import RetryStrategy
from airflow_eksbatch.core.planner.explain import explain, explain_child, why_stuck
from airflow_eksbatch.core.planner.words import listed, number_of, roughly, span
from airflow_eksbatch.core.world.where import ZONE
from airflow_eksbatch.core.world.world import World
from tests.build import (
    NOW,
    a_job,
    a_node,
    a_policy,
    a_queue,
    a_world,
    an_environment,
    an_offering,
)
from tests.core.stage import Stage

SPOT = an_offering("m5.large", vcpus=2, memory_mib=8_192, market=Market.SPOT, price=0.03)


def why(world: World, job_id: str, now: int = NOW) -> str:
    return "\n".join(explain(world, world.jobs[JobId(job_id)], now))


def on(job_id: str, kind: DependencyType = DependencyType.PLAIN) -> tuple[Dependency, ...]:
    return (Dependency(job_id=JobId(job_id), type=kind),)


# ---- ended and placed


def test_a_job_that_has_ended_is_said_to_have() -> None:
    stage = Stage(a_world(a_node("n1")))
    stage.submit("a")
    stage.run()
    stage.end("a", exit_code=1, reason="Error")
    assert explain(stage.world, stage.jobs["a"], NOW) == [
        "It has ended and is FAILED: Essential container in task exited."
    ]


def test_a_placed_job_names_its_node_and_what_is_awaited() -> None:
    stage = Stage(a_world(a_node("n1")))
    stage.submit("a")
    assert why(stage.world, "a", NOW + 5_000) == (
        "It was placed 5 s ago on node n1 (ce); the cluster has not shown its pod yet."
    )
    stage.seen("a-0-1")
    assert "its containers are starting" in why(stage.world, "a")
    stage.run()
    assert why(stage.world, "a", NOW + 90_000) == (
        "It has been RUNNING for 1 min 30 s on node n1 (ce), attempt 1."
    )
    stage.terminate("a", reason="enough")
    assert "is being ended: enough" in why(stage.world, "a")


def test_an_array_is_summed_up() -> None:
    stage = Stage(a_world(a_node("n1"), offerings=()))
    stage.submit("a", size=10)
    stage.run()
    stage.end("a", 0)
    stage.end("a", 1, exit_code=1)
    text = why(stage.world, "a")
    assert "Of 10 children 4 starting or running, 1 succeeded, 1 failed, 4 runnable." in text
    assert "2 children starting." in text


# ---- pending


def test_a_pending_job_names_the_jobs_it_waits_for() -> None:
    stage = Stage(a_world(offerings=()))
    for name in "abcd":
        stage.submit(name)
    dependencies = tuple(Dependency(job_id=JobId(name)) for name in "abcd")
    stage.submit("z", depends_on=dependencies)
    assert why(stage.world, "z") == (
        "It waits for 4 jobs to succeed: a (a, RUNNABLE), b (b, RUNNABLE), c (c, RUNNABLE) and 1 more."
    )


def test_child_by_child_dependencies_say_how_far_the_other_array_is() -> None:
    stage = Stage(a_world(a_node("n1")))
    stage.submit("a", size=3)
    stage.submit("b", size=3, depends_on=on("a", DependencyType.N_TO_N))
    stage.run()
    stage.end("a", 0)
    assert "Child i waits for child i of array a (a, PENDING): 1 of 3 have succeeded." in why(
        stage.world, "b"
    )


def test_a_sequential_array_says_who_is_next() -> None:
    stage = Stage(a_world(a_node("n1")))
    stage.submit("a", size=3, depends_on=(Dependency(type=DependencyType.SEQUENTIAL),))
    assert "child 1 waits for 0 (placed)" in why(stage.world, "a")


# ---- room


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"state": "DISABLED"}, "ce is DISABLED: nothing new is placed there."),
        (
            {"status": "INVALID", "status_reason": "no rights"},
            "is INVALID and launches no nodes: no rights",
        ),
        ({"status": "CREATING"}, "is CREATING and launches no nodes"),
        ({"managed": False}, "ce is unmanaged: none of its nodes has 1 vCPUs, 1024 MiB free."),
        ({"max_vcpus": 0}, "ce is full: its nodes have 0 of at most 0 vCPUs"),
        ({}, "ce has 0 of at most 64 vCPUs and may launch nodes for it."),
    ],
)
def test_each_environment_says_why_it_has_no_room(environment: dict[str, Any], words: str) -> None:
    world = a_world(an_environment(**environment), a_job("a"))
    assert words in why(world, "a")


def test_a_full_environment_gives_its_numbers() -> None:
    world = a_world(an_environment(max_vcpus=4), a_node("n1"), a_job("a", vcpus=2))
    world.with_running(a_job("r", vcpus=3), "n1")
    assert "full: its nodes have 4 of at most 4 vCPUs, and none has 2 vCPUs, 1024 MiB free." in why(
        world, "a"
    )


def test_a_job_too_large_for_every_type_is_told_how_large_they_get() -> None:
    text = why(a_world(a_job("a", vcpus=64)), "a")
    assert "No instance type of compute environment ce can hold 64 vCPUs, 1024 MiB" in text
    assert "m5.2xlarge, has 8 vCPUs, 32768 MiB for jobs." in text


def test_an_environment_whose_types_are_not_known_says_so() -> None:
    assert "are not known yet" in why(a_world(a_job("a"), offerings=()), "a")


def test_refusals_are_named_with_the_time_they_are_remembered() -> None:
    world = a_world(a_job("a"), offerings=(SPOT,))
    world.refused_until[SPOT.pool] = NOW + 170_000
    text = why(world, "a")
    assert "The cloud has no capacity for it in ce: m5.large/us-east-1a/SPOT was refused" in text
    assert "asked again in 2 min 50 s" in text
    assert "may launch nodes for it." in why(world, "a", NOW + 170_000)


def test_a_partly_refused_environment_still_says_what_is_not_asked_for() -> None:
    world = a_world(a_job("a"), offerings=(SPOT, an_offering()))
    world.refused_until[SPOT.pool] = NOW + 60_000
    text = why(world, "a")
    assert "may launch nodes for it. Not asked for: m5.large/us-east-1a/SPOT" in text


def test_nodes_on_their_way_are_counted_from_the_first_request() -> None:
    stage = Stage(a_world())
    stage.submit("a", size=20)
    stage.wait(10)
    node_id = next(iter(stage.world.nodes))
    stage.step(InstanceLaunched(node_id=node_id, instance_id="i", at=stage.now))
    number = len(stage.world.nodes)
    assert f"{number_of(number, 'node')} large enough" in why(stage.world, "a", stage.now)
    assert "being launched in ce, the first asked for 10 s ago." in why(stage.world, "a", stage.now)
    stage.step(NodeClosed(node_id=node_id, reason="the node is not ready", at=stage.now))
    text = why(stage.world, "a", stage.now)
    assert "asked for 10 s ago; 1 joined and not ready yet (the node is not ready)." in text


def test_environments_are_told_in_the_order_of_the_queue() -> None:
    world = a_world(
        an_environment("b"), an_environment("a"), a_queue("queue", "b", "a"), a_job("j")
    )
    text = why(world, "j")
    assert text.index("environment b") < text.index("environment a")


def test_a_disabled_queue_is_said_to_serve_what_is_in_it() -> None:
    assert "takes no new jobs; those in it still run" in why(
        a_world(a_queue(state="DISABLED"), a_job("a")), "a"
    )


def test_a_queue_that_is_gone_is_said_to_be() -> None:
    world = a_world(a_job("a"))
    world.delete("job_queue", "queue")
    assert "queue does not exist any more" in why(world, "a")


# ---- in the words of AWS


def stuck(world: World, job_id: str, now: int = NOW) -> str | None:
    return why_stuck(world, world.class_of(world.jobs[JobId(job_id)]), now)


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"state": "DISABLED"}, "ACTION_REQUIRED - Compute environment ce is DISABLED"),
        (
            {"status": "INVALID", "status_reason": "no rights"},
            "ACTION_REQUIRED - Compute environment ce is INVALID and launches no nodes: no rights",
        ),
        (
            {"max_vcpus": 0},
            "MISCONFIGURATION:COMPUTE_ENVIRONMENT_MAX_RESOURCE - Compute environment ce is full",
        ),
        ({"managed": False}, "UNDETERMINED - Compute environment ce is unmanaged"),
    ],
)
def test_what_keeps_a_job_from_ever_being_placed_begins_as_aws_says_it(
    environment: dict[str, Any], words: str
) -> None:
    world = a_world(an_environment(**environment), a_job("a"))
    assert (stuck(world, "a") or "").startswith(words)


def test_a_job_that_no_type_can_hold_or_no_pool_has_is_stuck() -> None:
    world = a_world(a_job("large", vcpus=64), a_job("a"), offerings=(SPOT,))
    assert (stuck(world, "large") or "").startswith("MISCONFIGURATION:JOB_RESOURCE_REQUIREMENT - ")
    assert stuck(world, "a") is None
    world.refused_until[SPOT.pool] = NOW + 60_000
    assert (stuck(world, "a") or "").startswith(
        "CAPACITY:INSUFFICIENT_INSTANCE_CAPACITY - The cloud has no capacity for it in ce: m5.large"
    )
    assert stuck(world, "a", NOW + 60_000) is None


@pytest.mark.parametrize("status", ["CREATING", "UPDATING"])
def test_a_job_that_waits_for_what_comes_by_itself_is_not_stuck(status: str) -> None:
    """1 an environment being made 2 types not listed yet 3 nodes full of others' jobs 4 a node on its way."""
    assert stuck(a_world(an_environment(status=status), a_job("a")), "a") is None
    assert stuck(a_world(a_job("a"), offerings=()), "a") is None
    full = a_world(an_environment(max_vcpus=4), a_node("n1"), a_job("a", vcpus=2))
    full.with_running(a_job("r", vcpus=4), "n1")
    assert stuck(full, "a") is None
    coming = a_world(a_node("n1", status=NodeStatus.LAUNCHED), a_job("a"), offerings=(SPOT,))
    coming.refused_until[SPOT.pool] = NOW + 60_000
    assert stuck(coming, "a") is None


def test_a_job_is_stuck_only_if_all_environments_are_in_its_way() -> None:
    """The nearest to going away gives the first word, and each has its sentence."""
    off, small = an_environment("off", state="DISABLED"), an_environment("small")
    world = a_world(off, small, a_queue("queue", "off", "small"), a_job("a"))
    world.with_offerings("small", SPOT)
    assert stuck(world, "a") is None
    world.refused_until[SPOT.pool] = NOW + 60_000
    text = stuck(world, "a") or ""
    assert text.startswith("CAPACITY:INSUFFICIENT_INSTANCE_CAPACITY - Compute environment off is")
    assert "The cloud has no capacity for it in small" in text


# ---- rooms that are kept


def test_a_large_job_hears_which_node_is_kept_for_it_and_a_small_one_for_whom() -> None:
    world = a_world(a_node("n1"), offerings=())
    world.with_running(a_job("r", vcpus=2), "n1")
    world.with_(a_job("large", vcpus=4), a_job("small", vcpus=1))
    later = NOW + limits.RESERVE_AFTER_S * 1000
    assert "so node n1 takes no other work until one fits there" in why(world, "large", later)
    assert "n1 has room for it and is kept free for large (large), which needs 4 vCPUs" in why(
        world, "small", later
    )
    assert "1 ready node with room" in why(world, "small")


def test_which_node_goes_for_a_larger_one_is_said_to_both() -> None:
    large = an_offering("m5.4xlarge", vcpus=16, memory_mib=65_536)
    world = a_world(
        an_environment(max_vcpus=8), a_node("n1"), a_node("n2"), offerings=(an_offering(), large)
    )
    world.with_running(a_job("r", vcpus=3), "n1").with_running(a_job("q", vcpus=2), "n2")
    world.with_(a_job("wide", vcpus=12), a_job("small", vcpus=2))
    later = NOW + limits.RESERVE_AFTER_S * 1000
    assert (
        "no node here could hold one, so node n2 takes no new work and goes when it is empty, to leave room for a "
        "larger one: 2 vCPUs, 15360 MiB of 4 vCPUs, 16384 MiB are free."
    ) in why(world, "wide", later)
    assert "n2 has room for it and is kept free for wide (wide), which needs 12 vCPUs" in why(
        world, "small", later
    )


def test_a_node_is_kept_for_a_job_only_where_it_may_run() -> None:
    world = a_world(
        a_node("n1"), a_node("n2", offering=an_offering(zone="us-east-1b")), offerings=()
    )
    world.with_running(a_job("r", vcpus=3), "n1").with_running(a_job("q", vcpus=1), "n2")
    world.with_(a_job("large", vcpus=4, tags={ZONE: "us-east-1a"}))
    later = NOW + limits.RESERVE_AFTER_S * 1000
    assert "so node n1 takes no other work until one fits there" in why(world, "large", later)


def test_a_reservation_for_shares_to_come_gives_its_numbers() -> None:
    world = a_world(
        an_environment(max_vcpus=8),
        a_policy(reservation=50),
        a_queue(policy="fair"),
        a_node("n1", offering=an_offering(vcpus=8)),
    )
    world.with_running(a_job("r", size=8, share="a"), "n1", 4)
    assert (
        "Scheduling policy fair holds back 4 vCPUs for shares that are not active yet "
        "(computeReservation 50, 1 share active): 0 vCPUs are left for this job queue."
    ) in why(world, "r")


def test_whom_a_queue_keeps_its_headroom_for_is_named() -> None:
    world = a_world(
        an_environment(max_vcpus=16),
        a_policy(reservation=50),
        a_queue(policy="fair"),
        a_node("n1", offering=an_offering(vcpus=4)),
    )
    world.with_running(a_job("r", vcpus=2, share="x"), "n1")
    world.with_(a_job("wide", vcpus=8, share="x"), a_job("small", share="x"))
    assert "vCPUs are kept for" not in why(world, "small")
    later = NOW + limits.RESERVE_AFTER_S * 1000
    assert (
        "Jobs of its size have waited long, so of what the policy leaves 8 vCPUs are kept for the "
        "next of them."
    ) in why(world, "wide", later)
    assert (
        "Of what the policy leaves 8 vCPUs are kept for wide (wide), which comes first and has waited long."
    ) in why(world, "small", later)


# ---- turns


def test_queues_that_are_served_before_are_named() -> None:
    world = a_world(a_queue("urgent", priority=9), a_job("a"), a_job(size=5, queue="urgent"))
    assert "Served before job queue queue (priority 1): urgent (priority 9, 5 runnable)." in why(
        world, "a"
    )


def test_shares_that_are_ahead_are_named_with_their_use_and_weight() -> None:
    world = a_world(a_policy(today=0.1, history=1.0), a_queue(policy="fair"), a_node("n1"))
    world.with_running(a_job("r", vcpus=4, share="history"), "n1")
    world.with_(a_job(size=3, share="today"), a_job("h", share="history"))
    text = why(world, "h")
    assert (
        "By fair share 1 share go first: today (0 vCPUs lately x weight 0.1 = 0), 3 runnable"
        in text
    )
    assert "its own is history (4 vCPUs lately x weight 1 = 4)" in text


def test_the_number_of_jobs_in_front_is_told() -> None:
    world = a_world(a_job(size=7), a_job("a"), a_job("later"), offerings=())
    assert "In job queue queue 7 runnable jobs are older" in why(world, "a")
    first = a_world(a_job("a"), offerings=())
    assert "It is the first in job queue queue." in why(first, "a")


def a_stream(**queue: str) -> Stage:
    """Four at a time, a minute each, for five minutes: of an array of a hundred, and of what comes behind it."""
    stage = Stage(a_world(a_policy(), a_queue(**queue), a_node("n1"), offerings=()))
    stage.submit("wide", size=100, vcpus=1, share="x")
    stage.submit("behind", vcpus=1, share="x")
    stage.submit("beside", size=30, vcpus=1, share="y")
    for _ in range(5):
        ends = [stage.ended("wide", index) for index in sorted(stage.job("wide").running)]
        others = [stage.ended("beside", index) for index in sorted(stage.job("beside").running)]
        stage.wait(60, *ends, *others)
    return stage


def test_when_its_turn_may_come_is_told_by_the_pace_at_which_others_began() -> None:
    """1. four at once, and 20 after the first whole minute 2. 76 are left."""
    stage = a_stream()
    text = why(stage.world, "behind", stage.now)
    assert "In job queue queue 76 runnable jobs are older or of higher priority." in text
    assert (
        "In 4 min 20 s 20 jobs have begun there: at that pace its turn comes in about 16 min."
        in text
    )
    wide = why(stage.world, "wide", stage.now)
    assert "at that pace the last of its children begins in about 16 min." in wide
    beside = why(stage.world, "beside", stage.now)
    assert (
        "its turn comes in about 17 min and the last of its children begins in about 23 min."
        in beside
    )


def test_a_child_of_an_array_tells_its_own_place_and_not_that_of_the_array() -> None:
    """24 have begun; of "beside" none has, and the whole of "wide" is before it."""
    stage = a_stream()
    wide, beside = stage.job("wide"), stage.job("beside")

    def of(job: Job, index: int) -> str:
        return "\n".join(explain_child(stage.world, job, index, stage.now))

    assert "It has been RUNNABLE for" in of(wide, 90)
    assert "In job queue queue 66 runnable jobs are older" in of(wide, 90)
    assert "at that pace its turn comes in about 14 min." in of(wide, 90)
    assert "children" not in of(wide, 90)
    assert "It is the first in job queue queue." in of(wide, 24)
    assert "In job queue queue 82 runnable jobs are older" in of(beside, 5)
    running = min(wide.running)
    assert of(wide, running).startswith("It was placed")


def test_a_child_that_waits_for_others_tells_that() -> None:
    stage = Stage(a_world(offerings=()))
    stage.submit("a", size=3, depends_on=(Dependency(type=DependencyType.SEQUENTIAL),))
    assert "child 1 waits for 0" in "\n".join(
        explain_child(stage.world, stage.job("a"), 2, stage.now)
    )


def test_with_shares_the_pace_is_that_of_its_share() -> None:
    stage = a_stream(policy="fair")
    text = why(stage.world, "behind", stage.now)
    assert "In 4 min 20 s 10 jobs have begun there" in text
    assert "In share x 86 runnable jobs" in text
    assert "at that pace its turn comes in about 37 min." in text


def test_no_pace_is_told_of_few_that_began_nor_of_long_ago_nor_where_nothing_begins() -> None:
    stage = a_stream()
    assert "at that pace" not in why(stage.world, "behind", stage.now + 20 * 60_000)
    stage.world.put_compute_environment(an_environment(state="DISABLED"))
    assert "at that pace" not in why(stage.world, "behind", stage.now)
    young = Stage(a_world(a_node("n1"), offerings=()))
    young.submit("wide", size=100, vcpus=1)
    young.wait(90)
    assert "at that pace" not in why(young.world, "wide", young.now)


def test_a_share_counts_higher_priority_first_and_leaves_other_shares_out() -> None:
    world = a_world(a_policy(), a_queue(policy="fair"), a_job("a", share="x"), offerings=())
    world.with_(a_job(size=4, share="x", priority=5), a_job(size=9, share="y"))
    assert "In share x 4 runnable jobs are older or of higher priority." in why(world, "a")


def test_a_job_that_runs_again_says_what_it_has_cost() -> None:
    stage = Stage(a_world(a_node("n1"), offerings=()))
    stage.submit("a", retry=RetryStrategy(attempts=3))
    stage.run()
    stage.lose("n1")
    assert "RUNNABLE again after 1 attempt, of which 0 count against the 3" in why(stage.world, "a")


def test_nothing_is_changed_by_asking() -> None:
    stage = Stage(a_world(a_node("n1"), offerings=()))
    stage.submit("a", size=9)
    why(stage.world, "a")
    assert stage.world.take_changes().is_empty
    stage.world.check_indexes()


# ---- words


@pytest.mark.parametrize(
    ("ms", "text"),
    [(-5, "0 s"), (999, "0 s"), (59_000, "59 s"), (60_000, "1 min"), (90_000, "1 min 30 s"),
     (3_660_000, "1 h 1 min"), (90_000_000, "1 d 1 h")],
)  # fmt: skip
def test_spans_are_told_in_their_two_largest_units(ms: int, text: str) -> None:
    assert span(ms) == text


@pytest.mark.parametrize(
    ("ms", "text"),
    [(0, "0 s"), (299_000, "4 min 59 s"), (329_000, "5 min"), (331_000, "6 min"),
     (5 * 3_600_000 - 1, "5 h"), (6 * 3_600_000 + 60_000, "6 h"), (6 * 86_400_000 + 60_000, "6 d")],
)  # fmt: skip
def test_estimates_are_no_more_exact_than_they_can_be(ms: int, text: str) -> None:
    assert roughly(ms) == text


def test_long_lists_are_cut() -> None:
    assert listed(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"
    assert listed(["a"]) == "a"
    assert number_of(1, "child", "children") == "1 child"
