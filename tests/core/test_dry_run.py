"""A submit that is only tried: the answer of a real one, and nothing comes of it."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_eksbatch.core.engine.facts import JobSubmitted, JobTried
from airflow_eksbatch.core.model.compute_environment import Market
from airflow_eksbatch.core.model.errors import Rejected
from airflow_eksbatch.core.model.job import (
    Dependency,
    DependencyType,
    Ended,
    Job,
    JobId,
    MultiNode,
)
from airflow_eksbatch.core.planner.explain import explain_new
from airflow_eksbatch.core.world.where import ON_DEMAND_AFTER, ON_DEMAND_BY, ZONE
from airflow_eksbatch.core.world.world import World
from tests.build import (
    Noun,
    a_node,
    a_policy,
    a_queue,
    a_spec,
    a_world,
    an_environment,
    an_offering,
)
from tests.core.stage import Stage

CHEAP = an_offering("c5.large", vcpus=2, memory_mib=4_096, market=Market.SPOT, price=0.02)
DEAR = an_offering("m5.large", vcpus=2, memory_mib=8_192, price=0.096)
GOOD = Ended(succeeded=True)
BAD = Ended(succeeded=False, array_size=3, failed=((1, 2),))


def tried(stage: Stage, job_id: str = "new", **fields: Any) -> str:
    """What is said of it; nothing of it may be left behind."""
    ends = fields.pop("dependency_ends", {})
    outcome = stage.step(JobTried(spec=a_spec(job_id, **fields), dependency_ends=ends))
    assert outcome.changes.is_empty
    assert not outcome.effects
    (answer,) = outcome.answers
    assert isinstance(answer, Job), answer
    told = explain_new(stage.world, answer, stage.now)
    stage.world.check_indexes()
    return "\n".join(told)


def a_world_for_sale(*nouns: Noun) -> World:
    return a_world(*nouns, offerings=(CHEAP, DEAR))


def after(job_id: str, kind: DependencyType = DependencyType.PLAIN) -> dict[str, Any]:
    return {"depends_on": (Dependency(job_id=JobId(job_id), type=kind),)}


def test_it_says_what_it_asks_for_and_where_it_may_go() -> None:
    told = tried(Stage(a_world_for_sale()), vcpus=1, memory_mib=512)
    assert "It asks for 1 vCPUs, 512 MiB." in told
    assert "may launch nodes for it" in told
    assert "It is the first in job queue queue." in told
    off = a_world_for_sale(an_environment(status="INVALID", status_reason="No role."))
    assert "ce is INVALID and launches no nodes: No role." in tried(Stage(off))


def test_it_says_which_nodes_have_room_and_who_is_before_it() -> None:
    stage = Stage(a_world(a_node("n1")))
    assert "1 ready node with room for" in tried(stage)
    for number in range(9):
        stage.submit(f"j{number}", vcpus=2)
    assert "In job queue queue 7 runnable jobs are older" in tried(stage)


def test_what_waits_for_others_is_said_to_and_not_to_have_its_turn() -> None:
    stage = Stage(a_world())
    stage.submit("first")
    stage.submit("array", size=3)
    for told, awaited in (
        (tried(stage, **after("first")), "It waits for 1 job to succeed: first"),
        (
            tried(stage, size=3, **after("array", DependencyType.N_TO_N)),
            "Child i waits for child i",
        ),
    ):
        assert awaited in told
        assert "It is the first" not in told
    sequence = tried(stage, size=3, **after("", DependencyType.SEQUENTIAL))
    assert "child 1 waits for 0" in sequence


def test_what_waits_for_a_failure_is_said_to_fail() -> None:
    stage = Stage(a_world(a_node("n1")))
    told = tried(stage, size=3, **after("gone"), dependency_ends={JobId("gone"): BAD})
    assert "It would fail at once" in told
    assert "first in job queue" not in told
    pairs = after("gone", DependencyType.N_TO_N)
    told = tried(stage, size=3, **pairs, dependency_ends={JobId("gone"): BAD})
    assert "1 of its children would fail at once" in told
    assert "Child i waits" not in told
    stage = Stage(a_world())
    stage.submit("array", size=3)
    stage.cancel("array", 1)
    told = tried(stage, size=3, **after("array", DependencyType.N_TO_N))
    assert "1 of its children would fail at once" in told


def test_tags_that_mean_on_demand_by_now_are_heeded() -> None:
    on_spot = a_node("n1", offering=CHEAP)
    stage = Stage(a_world_for_sale(on_spot))
    assert "ready node with room" in tried(stage)
    for tags in ({ON_DEMAND_AFTER: "0"}, {ON_DEMAND_BY: "2020-01-01T00:00:00Z"}):
        told = tried(stage, tags=tags)
        assert "It runs only on nodes that are On-Demand" in told
        assert "ready node with room" not in told


def test_its_own_share_counts_as_active_where_some_is_held_back_for_others() -> None:
    """Of 8 vCPUs half is held back while one share is active, a quarter while two are."""
    policy = a_policy(reservation=50, one=1, two=1)
    stage = Stage(
        a_world(
            policy, a_queue(policy="fair"), an_environment(max_vcpus=8), a_node("n1"), a_node("n2")
        )
    )
    stage.submit("a", vcpus=4, share="one")
    stage.run()
    assert "holds back" not in tried(stage, vcpus=2, share="two")
    assert "holds back 4 vCPUs" in tried(stage, vcpus=2, share="one")


def test_of_a_multi_node_job_it_says_what_all_of_its_nodes_need() -> None:
    multi_node = MultiNode(nodes=3, pods=((0, b"{}"),))
    told = tried(Stage(a_world_for_sale()), multi_node=multi_node)
    assert "on each of 3 nodes" in told
    assert "It needs 3 nodes at once" in told


@pytest.mark.parametrize(
    ("queue", "fields"),
    [
        ({"state": "DISABLED"}, {}),
        ({}, {"queue": "there-is-none"}),
        ({}, {"depends_on": (Dependency(job_id=JobId("gone")),)}),
        ({}, {"tags": {ZONE: "nowhere"}}),
    ],
)
def test_what_a_submit_is_refused_for_a_dry_run_is(
    queue: dict[str, Any], fields: dict[str, Any]
) -> None:
    world = a_world(a_queue(**queue))
    refusals = [
        Stage(world).step(fact(spec=a_spec(**fields))).answers[0]
        for fact in (JobTried, JobSubmitted)
    ]
    assert all(isinstance(refusal, Rejected) for refusal in refusals), refusals
    assert str(refusals[0]) == str(refusals[1])


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"size": 3},
        {"size": 3, **after("", DependencyType.SEQUENTIAL)},
        after("first"),
        {"size": 3, **after("array", DependencyType.N_TO_N)},
        {"size": 3, **after("array")},
        {**after("gone"), "dependency_ends": {JobId("gone"): BAD}},
        {**after("gone"), "dependency_ends": {JobId("gone"): GOOD}},
        {
            "size": 3,
            **after("gone", DependencyType.N_TO_N),
            "dependency_ends": {JobId("gone"): BAD},
        },
        {
            "size": 3,
            "depends_on": (
                Dependency(job_id=JobId("gone"), type=DependencyType.N_TO_N),
                Dependency(type=DependencyType.SEQUENTIAL),
            ),
            "dependency_ends": {JobId("gone"): BAD},
        },
    ],
)
def test_the_job_that_is_tried_is_the_one_that_a_submit_makes(fields: dict[str, Any]) -> None:
    stage = Stage(a_world(offerings=()))
    stage.submit("first")
    stage.submit("array", size=3)
    stage.cancel("array", 1)
    ends = fields.pop("dependency_ends", {})
    facts = [
        fact(spec=a_spec("new", **fields), dependency_ends=ends)
        for fact in (JobTried, JobSubmitted)
    ]
    told, _ = stage.step(*facts).answers
    assert isinstance(told, Job)
    made = stage.jobs["new"]
    for name in ("pending", "runnable", "failed", "waits_for", "matched"):
        assert getattr(told, name) == getattr(made, name), name
