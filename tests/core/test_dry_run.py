"""A submit that is only tried: the answer of a real one, and nothing comes of it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from airflow_eksbatch.core.engine.facts import JobSubmitted
from airflow_eksbatch.core.model.compute_environment import Market
from airflow_eksbatch.core.model.errors import Rejected
from airflow_eksbatch.core.model.job import Dependency, JobId, MultiNode
from airflow_eksbatch.core.world.where import ZONE
from airflow_eksbatch.core.world.world import World
from tests.build import a_node, a_queue, a_spec, a_world, an_offering
from tests.core.stage import Stage

CHEAP = an_offering("c5.large", vcpus=2, memory_mib=4_096, market=Market.SPOT, price=0.02)
DEAR = an_offering("m5.large", vcpus=2, memory_mib=8_192, price=0.096)


def tried(stage: Stage, job_id: str = "new", **fields: Any) -> str:
    """What is said of it; no step may leave anything behind."""
    outcome = stage.step(JobSubmitted(spec=a_spec(job_id, **fields), dry_run=True))
    assert outcome.changes.is_empty
    assert not outcome.effects
    (answer,) = outcome.answers
    assert isinstance(answer, list)
    return "\n".join(map(str, answer))


def a_world_for_sale() -> World:
    return a_world(offerings=(CHEAP, DEAR))


def test_it_says_what_it_asks_for_where_it_may_go_and_what_that_costs() -> None:
    stage = Stage(a_world_for_sale())
    told = tried(stage, vcpus=1, memory_mib=512)
    assert "It asks for 1 vCPUs, 512 MiB." in told
    assert "may launch nodes for it" in told
    assert "cheapest instance that holds it is c5.large/us-east-1a/SPOT, at 0.0200 USD" in told
    assert "It is the first in job queue queue." in told
    assert "m5.large" in tried(stage, memory_mib=5_000)


def test_it_says_which_nodes_have_room_and_who_is_before_it() -> None:
    stage = Stage(a_world(a_node("n1")))
    assert "1 ready node with room for" in tried(stage)
    for number in range(9):
        stage.submit(f"j{number}", vcpus=2)
    told = tried(stage)
    assert "In job queue queue 7 runnable jobs are older" in told


def test_it_says_for_whom_it_would_wait() -> None:
    stage = Stage(a_world(a_node("n1")))
    stage.submit("first")
    told = tried(stage, depends_on=(Dependency(job_id=JobId("first")),))
    assert "It would first wait for first (first, STARTING)." in told


def test_of_a_multi_node_job_it_says_what_keeps_its_nodes_from_starting_together() -> None:
    told = tried(Stage(a_world_for_sale()), multi_node=MultiNode(nodes=3, pods=((0, b"{}"),)))
    assert "on each node" in told


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
        Stage(world).step(JobSubmitted(spec=a_spec(**fields), dry_run=only)).answers[0]
        for only in (True, False)
    ]
    assert all(isinstance(refusal, Rejected) for refusal in refusals), refusals
    assert str(refusals[0]) == str(refusals[1])


def test_a_task_that_is_tried_is_neither_a_repeat_nor_a_later_try() -> None:
    """Of the task's own live job, which goes on."""
    stage = Stage(a_world(a_node("n1")))
    known: dict[str, Any] = {"task_key": "dag|run|task|-1", "token": "token"}
    stage.submit("first", try_number=1, **known)
    assert "It asks for" in tried(stage, try_number=2, **known)
    assert stage.status("first") == "STARTING"
    again = stage.give(JobSubmitted(spec=a_spec("second", try_number=1, **known)))
    assert again == "first"
    assert msgspec.to_builtins(stage.world.totals)["jobs"] == 1
