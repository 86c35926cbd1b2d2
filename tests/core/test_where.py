"""Jobs that may not run everywhere: zone, architecture, type; and Spot only so often, or so long."""

from __future__ import annotations

import msgspec
import pytest

from airflow_eksbatch.core.engine.effects import LaunchNode
from airflow_eksbatch.core.engine.facts import OfferingsListed
from airflow_eksbatch.core.engine.step import derive_effects
from airflow_eksbatch.core.model import limits
from airflow_eksbatch.core.model.compute_environment import Market
from airflow_eksbatch.core.model.errors import Rejected
from airflow_eksbatch.core.model.node import NodeId, Offering
from airflow_eksbatch.core.model.retry import RetryStrategy
from airflow_eksbatch.core.planner.explain import explain
from airflow_eksbatch.core.world.where import (
    ARCHITECTURE,
    INSTANCE_TYPE,
    ON_DEMAND_AFTER,
    ON_DEMAND_BY,
    ZONE,
)
from tests.build import NOW, BuiltWorld, a_node, a_queue, a_world, an_environment, an_offering
from tests.core.stage import Stage, loaded

A = an_offering("m5.xlarge", zone="us-east-1a", price=0.1)
B = an_offering("m5.xlarge", zone="us-east-1b", price=0.2)
BIG = an_offering("m5.2xlarge", zone="us-east-1b", vcpus=8, memory_mib=32_768, price=0.5)
SPOT = an_offering("c5.xlarge", market=Market.SPOT, price=0.05)
NEXT_SPOT = an_offering("m4.xlarge", market=Market.SPOT, price=0.06)


def arm(offering: Offering) -> Offering:
    return msgspec.structs.replace(offering, instance_type="m6g.xlarge", architecture="arm64")


def on_both_markets(*, spot_first: bool = True) -> BuiltWorld:
    names = ("spot", "ce") if spot_first else ("ce", "spot")
    spot = an_environment("spot", market=Market.SPOT)
    world = a_world(spot, a_queue("queue", *names), offerings=(A, B, BIG))
    return world.with_offerings("spot", SPOT)


def asked(stage: Stage) -> list[str]:
    return [effect.offering.pool for effect in stage.of(LaunchNode)]


def why(stage: Stage, job_id: str) -> str:
    return " ".join(explain(stage.world, stage.job(job_id), stage.now))


def lose_home(stage: Stage, job_id: str = "a", index: int = 0) -> None:
    stage.run()
    stage.lose(stage.live(job_id, index).node_id)


# ---- zone, architecture, type


@pytest.mark.parametrize(
    ("tags", "pool"),
    [
        ({}, A.pool),
        ({ZONE: "us-east-1b"}, B.pool),
        ({INSTANCE_TYPE: "m5.2xlarge"}, BIG.pool),
        ({ZONE: "us-east-1b", INSTANCE_TYPE: "m5.2xlarge"}, BIG.pool),
        ({ARCHITECTURE: "arm64"}, arm(A).pool),
        ({ARCHITECTURE: "amd64"}, A.pool),
        ({"team": "weather"}, A.pool),
    ],
)
def test_what_is_bought_and_where_it_runs_is_what_the_tags_ask_for(
    tags: dict[str, str], pool: str
) -> None:
    stage = Stage(a_world(offerings=(A, B, BIG, arm(A))))
    stage.submit("a", vcpus=4, tags=tags)
    assert asked(stage) == [pool]
    stage.step()
    assert asked(stage) == []
    stage.join()
    node = stage.world.nodes[stage.live("a").node_id]
    assert node.offering.pool == pool


def test_free_room_elsewhere_is_no_room_for_it() -> None:
    """And nobody else is kept from it."""
    stage = Stage(a_world(a_node("there", offering=A), offerings=(A, B)))
    stage.submit("a", vcpus=1, tags={ZONE: "us-east-1b"})
    assert asked(stage) == [B.pool]
    stage.submit("b", vcpus=1)
    assert (stage.status("a"), stage.status("b")) == ("RUNNABLE", "STARTING")
    assert "It runs only on nodes that are in zone us-east-1b, as its tags say." in why(stage, "a")


def test_jobs_that_are_choosy_and_jobs_that_are_not_share_what_is_bought_for_both() -> None:
    stage = Stage(a_world(offerings=(A, B)))
    stage.submit("a", vcpus=1, size=6, tags={ZONE: "us-east-1b"})
    stage.submit("b", vcpus=1, size=6)
    for _ in range(5):
        stage.join()
    assert stage.world.lines == {}
    zones = [node.offering.zone for node in stage.world.nodes.values()]
    assert sorted(zones) == ["us-east-1a", "us-east-1b", "us-east-1b"]


def test_a_node_with_room_that_fits_is_used_tightest_first() -> None:
    world = a_world(
        a_node("wide", offering=BIG),
        a_node("tight", offering=B),
        a_node("other", offering=A),
        offerings=(A, B, BIG),
    )
    stage = Stage(world)
    stage.submit("a", vcpus=3, size=3, tags={ZONE: "us-east-1b"})
    stage.run()
    homes = [attempt.node_id for attempt in stage.world.attempts.values()]
    assert sorted(homes) == ["tight", "wide", "wide"]


# ---- what is refused


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({ZONE: "us-east-1f"}, "has nodes that are in zone us-east-1f"),
        ({INSTANCE_TYPE: "p5.48xlarge"}, "has nodes that are p5.48xlarge"),
        ({ARCHITECTURE: "sparc"}, "must be amd64 or arm64, not 'sparc'"),
        ({ON_DEMAND_AFTER: "twice"}, "must be a number of times"),
        ({ON_DEMAND_AFTER: "-1"}, "must be a number of times"),
        ({ON_DEMAND_BY: "tomorrow"}, "must be a time with its offset"),
        ({ON_DEMAND_BY: "2026-11-25T18:00:00"}, "must be a time with its offset"),
    ],
)
def test_tags_that_ask_for_what_is_nowhere_are_refused_and_say_why(
    tags: dict[str, str], words: str
) -> None:
    stage = Stage(a_world(offerings=(A, B)))
    with pytest.raises(Rejected, match=words):
        stage.submit("a", tags=tags)
    assert stage.world.jobs == {}


def test_on_demand_needs_an_environment_that_is() -> None:
    world = a_world(an_environment(market=Market.SPOT), offerings=(SPOT,))
    with pytest.raises(Rejected, match="has nodes that are On-Demand"):
        Stage(world).submit("a", tags={ON_DEMAND_AFTER: "2"})


def test_what_is_not_known_yet_is_no_reason_to_refuse() -> None:
    stage = Stage(a_world(offerings=()))
    stage.submit("a", tags={ZONE: "us-east-1b"})
    stage.step(OfferingsListed(compute_environment="ce", offerings=(A, B)))
    assert asked(stage) == [B.pool]


# ---- On-Demand after so many losses


def test_a_job_that_spot_took_so_often_runs_on_demand() -> None:
    stage = Stage(on_both_markets().with_offerings("spot", SPOT, NEXT_SPOT))
    stage.submit("a", vcpus=4, tags={ON_DEMAND_AFTER: "2"})
    for offering in (SPOT, NEXT_SPOT):
        assert asked(stage) == [offering.pool]
        stage.join()
        lose_home(stage)
    assert asked(stage) == [A.pool]
    text = why(stage, "a")
    assert (
        "On-Demand, since it was lost with its node 2 times (eksbatch/on-demand-after: 2)" in text
    )
    stage.join()
    stage.run()
    stage.end("a")
    assert stage.status("a") == "SUCCEEDED"
    assert stage.world.lines.on_demand_only == set()


def test_one_that_was_lost_before_its_place_in_line_was_passed_does_not_come_back_to_it() -> None:
    spot = (a_node(name, environment="spot", offering=SPOT) for name in ("s1", "s2"))
    stage = Stage(on_both_markets().with_(*spot), idle_s=1e6)
    stage.world.offerings.clear()
    stage.submit("x", vcpus=4)
    stage.submit("y", vcpus=4)
    stage.run()
    stage.submit("a", vcpus=4, tags={ON_DEMAND_AFTER: "1"})
    stage.submit("b", vcpus=4)
    stage.end("x")
    stage.lose(stage.live("a").node_id)
    assert stage.world.lines.on_demand_only == {"a"}
    stage.end("y")
    assert [attempt.job_id for attempt in stage.world.attempts.values()] == ["b"]


def test_others_go_on_where_it_is_cheap() -> None:
    stage = Stage(on_both_markets().with_offerings("spot", SPOT, NEXT_SPOT))
    stage.submit("a", vcpus=4, tags={ON_DEMAND_AFTER: "1"})
    stage.submit("b", vcpus=4, tags={ON_DEMAND_AFTER: "3"})
    stage.submit("c", vcpus=4)
    stage.join()
    for job in ("a", "b", "c"):
        lose_home(stage, job)
    assert stage.world.lines.on_demand_only == {"a"}
    stage.join()
    markets = {job: stage.world.nodes[stage.live(job).node_id].offering.market for job in "abc"}
    assert markets == {"a": Market.ON_DEMAND, "b": Market.SPOT, "c": Market.SPOT}


def test_failures_of_its_own_are_no_losses() -> None:
    stage = Stage(on_both_markets())
    stage.submit("a", vcpus=4, tags={ON_DEMAND_AFTER: "1"}, retry=RetryStrategy(attempts=3))
    stage.join()
    stage.run()
    stage.end("a", exit_code=1)
    assert stage.world.lines.on_demand_only == set()


def test_of_an_array_all_that_waits_goes_with_the_child_that_was_lost_so_often() -> None:
    stage = Stage(on_both_markets())
    stage.submit("a", vcpus=4, size=3, tags={ON_DEMAND_AFTER: "1"})
    stage.join()
    lose_home(stage, index=1)
    assert asked(stage) == [A.pool]
    assert len(stage.job("a").running) == 2


def test_never_on_spot_is_after_none() -> None:
    stage = Stage(on_both_markets())
    stage.submit("a", vcpus=4, tags={ON_DEMAND_AFTER: "0"})
    assert asked(stage) == [A.pool]


def test_a_crash_forgets_no_loss() -> None:
    stage = Stage(on_both_markets())
    stage.submit("a", vcpus=4, tags={ON_DEMAND_AFTER: "1"})
    stage.join()
    stage.world.offerings.clear()
    lose_home(stage)
    stage.world.lines.on_demand_only.clear()
    stage.world.lines.clear()
    stage.world.lines.line_of(stage.job("a")).enter(stage.job("a"))
    stage.world.lines.line_of(stage.job("a")).count = 1
    derive_effects(stage.world, stage.now, stage.settings)
    stage.step(OfferingsListed(compute_environment="spot", offerings=(SPOT,)))
    assert asked(stage) == []
    stage.step(OfferingsListed(compute_environment="ce", offerings=(A,)))
    assert asked(stage) == [A.pool]


# ---- On-Demand by a time


def test_from_its_time_on_a_job_that_waits_is_bought_for_on_demand() -> None:
    """Before that it waits for Spot, which is not to be had."""
    at = "2023-11-14T23:13:20+00:00"  # An hour from now
    world = on_both_markets()
    stage = Stage(world)
    world.offerings["spot"] = ()
    world.offerings["ce"] = (A,)
    world.with_(an_environment(max_vcpus=0))
    stage.submit("a", vcpus=4, tags={ON_DEMAND_BY: at})
    world.with_(an_environment())
    world.offerings["spot"] = (SPOT,)
    stage.now = NOW + 3_599_000
    stage.step()
    assert asked(stage) == [SPOT.pool]
    stage.wait(1)
    assert asked(stage) == [A.pool]
    assert f"On-Demand, since {at} (eksbatch/on-demand-by)" in why(stage, "a")


@pytest.mark.parametrize("restart", [False, True])
def test_who_is_off_spot_is_not_placed_with_those_it_stood_in_line_with(restart: bool) -> None:
    """The oldest of all, but what is free on Spot is for the others; and On-Demand it takes its own turn."""
    spot, ours = a_node("s1", environment="spot", offering=SPOT), a_node("d1", offering=A)
    stage = Stage(on_both_markets().with_(spot, ours), idle_s=1e6)
    stage.world.offerings.clear()
    stage.submit("x", vcpus=4, size=2)
    stage.run()
    stage.submit("weary", vcpus=2, size=2, tags={ON_DEMAND_BY: "2023-11-14T23:13:20Z"})
    for name in "abcd":
        stage.submit(name, vcpus=2)
    if restart:
        stage.now = NOW + 3_600_000
        stage = loaded(stage)
    stage.wait(3_600)
    on_spot, on_demand = (0, 1) if stage.live("x", 0).node_id == "s1" else (1, 0)
    stage.end("x", on_spot)
    homes = {(a.job_id, a.node_id) for a in stage.world.attempts.values() if a.job_id != "x"}
    assert homes == {("a", "s1"), ("b", "s1")}
    stage.end("x", on_demand)
    assert {stage.live("weary", index).node_id for index in (0, 1)} == {"d1"}


def test_what_runs_on_spot_at_its_time_is_left_alone() -> None:
    stage = Stage(on_both_markets())
    stage.submit("a", vcpus=4, tags={ON_DEMAND_BY: "2023-11-14T23:13:20Z"})
    stage.join()
    stage.run()
    stage.wait(7_200)
    assert stage.status("a") == "RUNNING"
    stage.lose(stage.live("a").node_id)
    assert asked(stage) == [A.pool]


def test_a_starving_job_gets_a_node_that_it_may_use_kept_free() -> None:
    world = a_world(a_node("n1", offering=A), a_node("n2", offering=B), offerings=())
    stage = Stage(world)
    for number in range(2):
        stage.submit(f"small-{number}", vcpus=2, tags={ZONE: f"us-east-1{'ab'[number]}"})
    stage.run()
    stage.submit("large", vcpus=4, tags={ZONE: "us-east-1b"})
    stage.wait(limits.RESERVE_AFTER_S)
    stage.submit("late", vcpus=2)
    assert stage.live("late").node_id == NodeId("n1")
