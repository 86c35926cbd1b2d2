"""Way is made for who has waited long: for the older of two, where it is shortest, and of a minimum not in vain."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from airflow_eksbatch.core.engine.facts import (
    Fact,
    InstanceLaunched,
    LaunchRefused,
    NodeClosed,
    NodeReady,
    PodEnded,
)
from airflow_eksbatch.core.model import limits
from airflow_eksbatch.core.model.node import NodeId
from airflow_eksbatch.core.world.world import World
from tests.build import a_node, a_policy, a_queue, a_world, an_environment, an_offering
from tests.core.multi_node import nodes
from tests.core.stage import Stage

L2 = an_offering("m5.large", vcpus=2, memory_mib=8_192)
L4 = an_offering("m5.xlarge", vcpus=4, memory_mib=16_384, price=0.2)
L8 = an_offering("m5.2xlarge", vcpus=8, memory_mib=32_768, price=0.4)
RUN_S = 600
BEAT_S = 10


class Life:
    """Beats of ten seconds. A job runs for ten minutes, or as long as `runs_s` says; some types are refused."""

    def __init__(
        self, world: World, *, runs_s: Mapping[str, int] | None = None, refused: str = ""
    ) -> None:
        self.stage = Stage(world)
        self.begun: list[str] = []
        """Jobs in the order in which they were first placed."""
        self.bought: list[str] = []
        """Types, with what was refused."""
        self.short_s = 0
        """How long less than minvCpus was there, or on its way."""
        self._runs_s = runs_s or {}
        self._refused = refused

    def go(self, seconds: int) -> None:
        for _ in range(seconds // BEAT_S):
            self.stage.wait(BEAT_S, *self._news())
            for attempt in self.stage.world.attempts.values():
                if attempt.job_id not in self.begun:
                    self.begun.append(attempt.job_id)
            for launch in self.stage.plan.launches:
                self.bought += [launch.offering.instance_type] * launch.count
            world = self.stage.world
            self.short_s += BEAT_S * any(
                world.vcpus[name] < environment.min_vcpus
                for name, environment in world.compute_environments.items()
            )

    def _news(self) -> list[Fact]:
        stage, news, refused = self.stage, list[Fact](), set[NodeId]()
        for fact in stage.what_follows():
            match fact:
                case InstanceLaunched(node_id=n) | NodeReady(node_id=n) if (
                    stage.world.nodes[n].offering.instance_type == self._refused
                ):
                    refused.add(n)
                case PodEnded(pod=pod):
                    attempt = stage.world.attempts[pod]
                    runs_s = self._runs_s.get(attempt.job_id, RUN_S)
                    if stage.now - (attempt.started_at or stage.now) >= runs_s * 1000:
                        news.append(fact)
                case _:
                    news.append(fact)
        return news + [
            LaunchRefused(node_id=n, code="c", message="none", at=stage.now) for n in refused
        ]


# ---- the older first


def test_younger_jobs_of_several_nodes_do_not_take_what_is_kept_for_an_older_one() -> None:
    """It needs four of two vCPUs, they need two of four each: they would come one after the other for ever."""
    world = a_world(offerings=(L2, L4)).with_(an_environment(max_vcpus=8))
    life = Life(world.with_(a_node("x0", offering=L4), a_node("x1", offering=L4)))
    life.stage.submit("a0", vcpus=4, multi_node=nodes(2))
    life.stage.submit("b", vcpus=2, multi_node=nodes(4))
    for number in range(1, 5):
        life.stage.submit(f"a{number}", vcpus=4, multi_node=nodes(2))
    life.go(3_600)
    assert life.begun[:3] == ["a0", "b", "a1"]


@pytest.mark.parametrize("minimum", [0, 8])
def test_an_older_wide_job_and_younger_ones_of_several_nodes_do_not_make_way_in_turn(
    minimum: int,
) -> None:
    world = a_world(offerings=(L4, L8)).with_(an_environment(max_vcpus=8, min_vcpus=minimum))
    life = Life(world)
    life.stage.submit("m0", vcpus=4, multi_node=nodes(2))
    life.go(60)
    life.stage.submit("wide", vcpus=8)
    for number in range(1, 4):
        life.stage.submit(f"m{number}", vcpus=4, multi_node=nodes(2))
    life.go(3_600)
    assert life.begun[:3] == ["m0", "wide", "m1"]
    assert life.bought.count("m5.2xlarge") == 1


@pytest.mark.parametrize("vcpus", [4, 8])
def test_a_younger_wide_job_does_not_send_away_what_is_kept_for_an_older_one(vcpus: int) -> None:
    """1. one of its two nodes is empty after 15 minutes and stays 2. the other after 40."""
    world = a_world(offerings=(L4, L8)).with_(an_environment(max_vcpus=8))
    world.with_(a_node("x", offering=L4), a_node("y", offering=L4))
    life = Life(world, runs_s={"a": 900, "b": 2_400})
    life.stage.submit("a", vcpus=2.5)
    life.stage.submit("b", vcpus=3.5)
    life.go(30)
    life.stage.submit("mpi", vcpus=4, multi_node=nodes(2))
    life.go(10)
    life.stage.submit("wide", vcpus=vcpus)
    life.go(2_500)
    assert life.begun == ["a", "b", "mpi"]
    assert not life.bought


@pytest.mark.parametrize("minimum", [0, 8])
def test_what_a_reservation_leaves_is_kept_for_an_older_one_while_it_has_no_nodes_yet(
    minimum: int,
) -> None:
    """Of 8 vCPUs 5.6 may be used, and it may have its 8 only while its queue runs nothing."""
    world = a_world(offerings=(L2, L4)).with_(
        a_policy("fair", reservation=30),
        a_queue(policy="fair"),
        an_environment(max_vcpus=8, min_vcpus=minimum),
    )
    life = Life(world)
    small = {"vcpus": 2.0, "memory_mib": 6_000, "share": "x"}
    for number in range(3):
        life.stage.submit(f"first-{number}", **small)
    life.go(30)
    life.stage.submit("mpi", vcpus=4, multi_node=nodes(2), share="x")
    for number in range(12):
        life.stage.submit(f"younger-{number}", **small)
    life.go(2 * 3_600)
    assert next(name for name in life.begun if not name.startswith("first")) == "mpi"
    assert life.bought.count("m5.xlarge") == 2


# ---- where it is shortest


@pytest.mark.parametrize("several", [False, True])
def test_way_is_made_where_no_job_is_waited_for(several: bool) -> None:
    """In the first environment a job runs for days, in the second the machine of the minimum is idle."""
    world = a_world(offerings=(L2, L4, L8)).with_(
        an_environment(max_vcpus=4),
        an_environment("more", max_vcpus=4, min_vcpus=4),
        a_queue("queue", "ce", "more"),
        a_node("n1", offering=L4),
        a_node("n2", offering=L4, environment="more"),
    )
    world.with_offerings("more", L2, L4, L8)
    life = Life(world, runs_s={"long": 10 * 86_400})
    life.stage.submit("long", vcpus=3)
    life.go(30)
    if several:
        life.stage.submit("large", vcpus=1.5, multi_node=nodes(2))
    else:
        life.stage.submit("large", vcpus=8)
    life.go(limits.RESERVE_AFTER_S + 120)
    assert life.begun == ["long", "large"]


# ---- a minimum


def test_the_machines_of_a_minimum_make_way_for_less_than_it() -> None:
    """What is missing of it then is bought anew. One of 16 vCPUs for three of 4, and four of 2 for three of 2 and one of 4."""
    large = an_offering("c5.4xlarge", vcpus=16, memory_mib=32_768)
    few = a_world(offerings=(L4, large)).with_(an_environment(max_vcpus=16, min_vcpus=16))
    life = Life(few.with_(a_node("b", offering=large)))
    life.stage.submit("mpi", vcpus=3, multi_node=nodes(3))
    life.go(limits.RESERVE_AFTER_S + 120)
    assert life.begun == ["mpi"]
    alike = a_world(offerings=(L2, L4)).with_(an_environment(max_vcpus=10, min_vcpus=10))
    life = Life(alike.with_(*(a_node(offering=one) for one in (L2, L2, L2, L4))))
    life.stage.submit("mpi", vcpus=2, memory_mib=1_000, multi_node=nodes(4))
    life.go(limits.RESERVE_AFTER_S + 120)
    assert life.begun == ["mpi"]
    life.go(3_600)
    assert life.stage.world.vcpus["ce"] >= 10


def test_closed_machines_go_along_with_those_of_a_minimum_that_make_way() -> None:
    world = a_world(offerings=(L2, L4)).with_(an_environment(min_vcpus=8, max_vcpus=8))
    stage = Stage(world.with_(*(a_node(f"n{n}", offering=L2) for n in range(4))), idle_s=600)
    for number in range(4):
        stage.submit(f"j{number}", vcpus=1.5)
    stage.run()
    stage.submit("wide", vcpus=4)
    stage.wait(limits.RESERVE_AFTER_S + 1)
    closed = (NodeId("n2"), NodeId("n3"))
    stage.step(*(NodeClosed(node_id=n, reason="cordoned", at=stage.now) for n in closed))
    jobs = {attempt.node_id: attempt.job_id for attempt in stage.world.attempts.values()}
    stage.step(*(stage.ended(jobs[NodeId(n)]) for n in ("n0", "n2", "n3")))
    assert {r.node_id for r in stage.plan.retirements} == {"n0", *closed}


def test_a_minimum_is_not_given_up_again_and_again_for_what_is_refused() -> None:
    """There is a larger type, but it must not pass the maximum while a smaller one is sold."""
    small = an_offering("c5.xlarge", vcpus=4, memory_mib=8_192, price=0.17)
    right = an_offering("r5.xlarge", vcpus=4, memory_mib=32_768, price=0.25)
    larger = an_offering("r5.2xlarge", vcpus=8, memory_mib=65_536, price=0.5)
    world = a_world(offerings=(small, right, larger))
    world.with_(an_environment(max_vcpus=4, min_vcpus=4), a_node("c", offering=small))
    life = Life(world, refused="r5.xlarge")
    life.stage.submit("wide", vcpus=2, memory_mib=20_000)
    life.go(limits.EXCHANGE_AGAIN_S)
    assert life.bought == ["r5.xlarge", "c5.xlarge"]
    assert not life.short_s
    life.go(limits.EXCHANGE_AGAIN_S)
    assert life.bought.count("c5.xlarge") == 2, "hours later it is tried again"
