"""What instances cost and who pays: to the nano-dollar, by the hour, with idle and boot time in accounts of their own."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_eksbatch.core.engine.facts import InstanceGone, InstanceLaunched, NodeFound
from airflow_eksbatch.core.model.compute_environment import Market
from airflow_eksbatch.core.model.job import JobStatus
from airflow_eksbatch.core.model.node import SPOT_NOTICE, NodeId, Offering
from airflow_eksbatch.core.model.resources import FREE, Cost
from airflow_eksbatch.core.model.retry import Cause
from airflow_eksbatch.core.world import books
from airflow_eksbatch.core.world.books import HOUR_MS, WHOLE, Account, Entry, Use
from airflow_eksbatch.core.world.world import World
from tests.build import NOW, a_node, a_spec, a_world, an_amount, an_environment, an_offering
from tests.core.stage import Stage

# 0.36 USD an hour are 100,000 nano-dollars a second.
NANO_S = 100_000
PRICED = an_offering(price=0.36)
# Neither what it has nor its price divides by anything.
ODD = an_offering(vcpus=7, memory_mib=15_001, price=0.123457)


class Accounts(Stage):
    """A stage that adds up what every step notes, as a store does."""

    def __init__(self, world: World, **settings: Any) -> None:
        super().__init__(world, **settings)
        self.costs: dict[tuple[int, Account], Cost] = {}

    def step(self, *news: Any) -> Any:
        outcome = super().step(*news)
        self.add(outcome.changes.costs)
        return outcome

    def add(self, entries: list[Entry]) -> None:
        for entry in entries:
            key = (entry.hour, entry.account)
            self.costs[key] = self.costs.get(key, FREE).plus(entry.cost)

    def sums(self) -> dict[Use, Cost]:
        """By use, over all hours, with what lives owes."""
        sums: dict[Use, Cost] = {}
        owed = [((e.hour, e.account), e.cost) for e in books.owed(self.world, self.now)]
        for (_, account), cost in [*self.costs.items(), *owed]:
            sums[account.use] = sums.get(account.use, FREE).plus(cost)
        return sums

    def nano_usd(self) -> dict[Use, int]:
        return {use: cost.nano_usd for use, cost in self.sums().items()}

    def total(self) -> Cost:
        total = FREE
        for cost in self.sums().values():
            total = total.plus(cost)
        return total


def on_one_node(offering: Offering = PRICED, **fields: Any) -> Accounts:
    return Accounts(a_world(a_node("n1", offering=offering, **fields)))


# ---- who pays how much


def test_a_job_that_fills_a_node_pays_all_of_it_and_one_that_takes_half_pays_half() -> None:
    stage = on_one_node()
    stage.submit("half", vcpus=2, memory_mib=8_192)
    stage.run()
    stage.wait(10)
    assert stage.nano_usd() == {Use.JOBS: 5 * NANO_S, Use.IDLE: 5 * NANO_S}
    stage.submit("rest", vcpus=2, memory_mib=8_192)
    stage.run()
    stage.wait(10)
    assert stage.nano_usd() == {Use.JOBS: 15 * NANO_S, Use.IDLE: 5 * NANO_S}
    assert stage.sums()[Use.JOBS] == Cost(15 * NANO_S, 15_000, 60_000)


@pytest.mark.parametrize(
    ("amount", "part"),
    [
        # vCPU 9, GiB 1: the node has 4 x 9 + 16 = 52.
        (an_amount(1, 1024), WHOLE * 10 // 52),
        (an_amount(4, 0), WHOLE * 36 // 52),
        (an_amount(0, 16_384), WHOLE * 16 // 52),
        (an_amount(4, 16_384), WHOLE),
        (an_amount(0.25, 512), WHOLE * 11 // 208),
    ],
)
def test_a_vcpu_weighs_as_much_as_nine_gib(amount: Any, part: int) -> None:
    assert books.part_of(amount, a_node()) == part


def test_a_gpu_weighs_as_much_as_ten_vcpus() -> None:
    node = a_node(offering=an_offering(vcpus=8, memory_mib=0, gpu=1))
    assert books.part_of(an_amount(0, 0, 1), node) == WHOLE * 90 // 162
    assert books.part_of(an_amount(8, 0, 0), node) == WHOLE * 72 // 162


def test_pods_never_pay_for_more_than_there_is_whatever_becomes_of_the_room() -> None:
    """Others' pods had taken half of the node when the first was placed, and are gone when the second is."""
    stage = on_one_node(allocatable=an_amount(2, 8_192, pods=58))
    stage.submit("a", vcpus=2, memory_mib=8_192)
    node = stage.world.nodes[NodeId("n1")]
    assert node.given == WHOLE
    stage.step(stage.ready(node))
    stage.submit("b", vcpus=2, memory_mib=8_192)
    assert len(stage.world.pods_by_node[NodeId("n1")]) == 2
    assert node.given == WHOLE
    stage.wait(10)
    assert stage.nano_usd() == {Use.JOBS: 10 * NANO_S}


def test_what_came_before_a_node_was_ready_is_boot() -> None:
    stage = Accounts(a_world(offerings=(PRICED,)))
    stage.submit("a", vcpus=4, memory_mib=16_384)
    (node,) = stage.world.nodes.values()
    stage.wait(2, InstanceLaunched(node_id=node.node_id, instance_id="i", at=stage.now))
    assert stage.nano_usd() == {Use.BOOT: 2 * NANO_S}
    stage.wait(40, stage.ready(node))
    # It told of itself 40 s ago; until its pod was placed it idled.
    assert stage.nano_usd() == {Use.BOOT: 2 * NANO_S, Use.IDLE: 40 * NANO_S}
    stage.wait(5)
    assert stage.nano_usd()[Use.JOBS] == 5 * NANO_S


def test_a_launch_that_is_told_late_is_paid_for_from_its_own_time() -> None:
    """A full look saw the instance before the answer of its launch came."""
    stage = Accounts(a_world(offerings=(PRICED,)))
    stage.submit("a")
    (node,) = stage.world.nodes.values()
    launched = NOW - 500
    stage.step(InstanceLaunched(node_id=node.node_id, instance_id="i", at=NOW))
    stage.step(InstanceLaunched(node_id=node.node_id, instance_id="i", at=launched))
    stage.wait(1)
    assert stage.sums()[Use.BOOT].instance_ms == 1_500


def test_an_instance_costs_a_minute_at_least_and_ends_when_its_cloud_says() -> None:
    stage = on_one_node()
    stage.wait(20, InstanceGone(node_id=NodeId("n1"), at=NOW + 10_000, reason="ended"))
    assert stage.total() == Cost(60 * NANO_S, 60_000, 240_000)
    stage = on_one_node()
    stage.wait(300, InstanceGone(node_id=NodeId("n1"), at=NOW + 250_000, reason="ended"))
    assert stage.total() == Cost(250 * NANO_S, 250_000, 1_000_000)


def test_machines_of_others_have_no_least_time() -> None:
    stage = Accounts(a_world(an_environment(managed=False)))
    offering = msgspec.structs.replace(PRICED, price_usd_hour=0.0)
    found = NodeFound(
        node_id=NodeId("own"), compute_environment="ce", node_name="own", offering=offering,
        allocatable=offering.allocatable, at=NOW,
    )  # fmt: skip
    stage.step(found)
    stage.wait(10)
    stage.lose("own", reclaimed=False)
    assert stage.total() == Cost(0, 10_000, 40_000)


def test_pods_that_go_with_their_instance_pay_to_its_end_and_not_longer() -> None:
    stage = on_one_node()
    stage.submit("a", vcpus=4, memory_mib=16_384)
    stage.run()
    stage.wait(100, InstanceGone(node_id=NodeId("n1"), at=NOW + 90_000, reason="reclaimed"))
    assert stage.sums()[Use.JOBS].instance_ms == 90_000
    assert stage.total().instance_ms == 90_000


# ---- accounts


def test_costs_are_told_by_the_hour_in_which_they_arose() -> None:
    stage = on_one_node()
    stage.submit("a", vcpus=2, memory_mib=8_192, share="today", task_key="dag|run|task|-1")
    stage.run()
    left_s = (HOUR_MS - NOW % HOUR_MS) // 1000
    stage.wait(left_s + 3_600 + 10)
    stage.end("a")
    job = Account("ce", Market.ON_DEMAND, Use.JOBS, "queue", "today", "dag")
    idle = Account("ce", Market.ON_DEMAND, Use.IDLE)
    first = NOW // HOUR_MS
    spans_ms = {first: left_s * 1000, first + 1: HOUR_MS, first + 2: 10_000}
    assert {k: cost.instance_ms for k, cost in stage.costs.items()} == {
        **{(hour, job): ms // 2 for hour, ms in spans_ms.items()},
        **{(hour, idle): ms // 2 for hour, ms in spans_ms.items()},
    }


@pytest.mark.parametrize(
    ("key", "dag"),
    [("dag|run|task|-1", "dag"), ("d|r|t|with|bars|3", "d"), (None, ""), ("my-own-key", ""), ("a|b", "")],
)  # fmt: skip
def test_only_the_key_of_a_task_names_a_dag(key: str | None, dag: str) -> None:
    assert books.dag_of(a_spec(task_key=key)) == dag


def test_an_array_has_the_bill_of_all_its_children() -> None:
    stage = on_one_node()
    stage.submit("a", size=3, vcpus=1, memory_mib=4_096)
    stage.run()
    stage.wait(10)
    assert books.bill_of(stage.world, stage.job("a"), stage.now).total.instance_ms == 7_500
    stage.end("a", 0)
    stage.wait(10)
    stage.end("a", 1)
    stage.end("a", 2)
    bill = stage.jobs["a"].bill
    assert bill.on_demand.instance_ms == 2_500 + 5_000 + 5_000
    ended = [attempt.cost for attempt in stage.attempts.values()]
    assert sorted(cost.instance_ms for cost in ended) == [2_500, 5_000, 5_000]
    last = stage.events[-1]
    assert (last.status, last.cost) == (JobStatus.SUCCEEDED, bill.total)
    assert [event.cost for event in stage.events[:-1]] == [None] * (len(stage.events) - 1)


def test_a_job_that_ran_on_spot_and_on_demand_has_them_apart() -> None:
    spot = msgspec.structs.replace(PRICED, market=Market.SPOT, price_usd_hour=0.036)
    stage = Accounts(a_world(a_node("s", offering=spot)))
    stage.submit("a", vcpus=4, memory_mib=16_384)
    stage.run()
    stage.wait(10)
    stage.world.add_node(a_node("d", offering=PRICED, launched_at=stage.now))
    stage.world.close_node(stage.world.nodes[NodeId("s")], SPOT_NOTICE)
    stage.end("a", cause=Cause.PLATFORM, exit_code=137)
    stage.run()
    stage.wait(20)
    stage.end("a")
    bill = stage.jobs["a"].bill
    assert bill.spot.nano_usd == 10 * NANO_S // 10
    assert bill.on_demand.nano_usd == 20 * NANO_S


# ---- it adds up


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(1, 7_000), st.integers(1, 15_001), st.integers(0, 9_999_999)), max_size=12),
    st.integers(0, 9_999_999),
)  # fmt: skip
def test_whatever_runs_the_accounts_are_price_times_time(
    jobs: list[tuple[int, int, int]], rest_ms: int
) -> None:
    """Jobs come and go at odd moments on an odd node; nothing is lost between the hours."""
    stage = on_one_node(ODD)
    for number, (cpu_m, memory_mib, pause_ms) in enumerate(jobs):
        stage.submit(f"j{number}", vcpus=cpu_m / 1000, memory_mib=memory_mib)
        stage.now += pause_ms
        stage.run()
        if number % 3 == 2:
            stage.end_all()
    stage.now += rest_ms
    lived_ms = stage.now - NOW
    on_n1 = Counter(a.node_id for a in stage.attempts.values())
    assert set(on_n1) <= {"n1"}
    meant = Cost(123_457_000 * lived_ms // HOUR_MS, lived_ms, 7 * lived_ms)
    assert stage.total() == meant
    stage.end_all()
    lived_ms = max(60_000, lived_ms)
    stage.lose("n1", reclaimed=False)
    booked = FREE
    for (_, account), cost in stage.costs.items():
        assert account.use is not Use.IDLE or cost.nano_usd >= -len(jobs)
        booked = booked.plus(cost)
    assert booked == Cost(123_457_000 * lived_ms // HOUR_MS, lived_ms, 7 * lived_ms)
