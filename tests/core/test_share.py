"""Fair share: weights, decay, what counts as use, and what computeReservation holds back."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_eksbatch.core.engine.facts import JobSubmitted
from airflow_eksbatch.core.model import limits
from airflow_eksbatch.core.model.errors import Rejected
from airflow_eksbatch.core.model.job import Dependency, JobId
from airflow_eksbatch.core.model.share import ShareUsage
from airflow_eksbatch.core.planner.planning import make_plan
from airflow_eksbatch.core.planner.reservation import active_shares
from tests.build import (
    M5,
    NOW,
    BuiltWorld,
    a_job,
    a_node,
    a_policy,
    a_queue,
    a_spec,
    a_world,
    an_environment,
    an_offering,
)
from tests.core.stage import Stage

WEIGHTS: dict[str, Any] = {"team*": 0.5, "teamA": 0.25, "other": 2.0}
quick = settings(max_examples=100, derandomize=True, deadline=None)


def fair(*nouns: Any, **policy: Any) -> BuiltWorld:
    offerings = policy.pop("offerings", M5)
    return a_world(a_policy(**policy), a_queue(policy="fair"), *nouns, offerings=offerings)


def placed_by_share(world: BuiltWorld, now: int = NOW) -> Counter[str]:
    counts: Counter[str] = Counter()
    for placement in make_plan(world, now, 60).placements:
        counts[placement.job_class.share] += placement.count
    return counts


def a_big_node(vcpus: int) -> object:
    return a_node("n1", offering=an_offering(vcpus=vcpus, memory_mib=1_000_000, pods=1_000))


# ---- weights


def test_the_most_exact_entry_gives_the_weight() -> None:
    policy = a_policy(**WEIGHTS)
    assert [policy.weight_of(s) for s in ("teamA", "teamB", "other", "x")] == [0.25, 0.5, 2.0, 1.0]


def test_equal_shares_get_equal_parts() -> None:
    world = fair(
        a_big_node(10), a_job(size=100, share="a"), a_job(size=100, share="b"), a=1.0, b=1.0
    )
    assert placed_by_share(world) == {"a": 5, "b": 5}


def test_a_weight_factor_of_an_eighth_gets_eight_times_as_much() -> None:
    world = fair(
        a_big_node(90), a_job(size=200, share="a"), a_job(size=200, share="b"), a=1.0, b=0.125
    )
    assert placed_by_share(world) == {"a": 10, "b": 80}


def test_vcpus_count_not_jobs() -> None:
    world = fair(
        a_big_node(12), a_job(size=9, share="a", vcpus=3), a_job(size=99, share="b", vcpus=1)
    )
    assert placed_by_share(world) == {"a": 2, "b": 6}


def test_a_share_that_used_much_lately_waits_for_one_that_did_not() -> None:
    used = ShareUsage(queue="queue", share="a", vcpu_s=600.0 * 10, updated_at=NOW)
    world = fair(used, a_big_node(4), a_job(size=9, share="a"), a_job(size=9, share="b"))
    assert placed_by_share(world) == {"b": 4}
    assert placed_by_share(world, NOW + 3_600_000) == {"a": 2, "b": 2}


def test_what_a_share_runs_now_counts_at_once() -> None:
    world = fair(a_big_node(6), a_job("old", size=9, share="a"), a_job(size=9, share="b"))
    world.with_running(world.jobs["old"], "n1", 4)  # type: ignore[index]
    assert placed_by_share(world) == {"b": 2}


def test_room_that_nobody_else_wants_goes_to_whoever_wants_it() -> None:
    world = fair(a_big_node(10), a_job(size=100, share="a"), a_job(size=2, share="b"))
    assert placed_by_share(world) == {"a": 8, "b": 2}


def test_no_share_starves_under_a_steady_stream_of_the_favoured_one() -> None:
    """A backfill with a bad weight beside a share that always has more work: it still gets its part."""
    stage = Stage(fair(a_big_node(4), today=0.1, history=1.0))
    stage.submit("history", size=40, share="history")
    for beat in range(60):
        stage.submit(f"today-{beat}", size=4, share="today")
        stage.wait(10)
        stage.run()
        stage.end_all()
    served = stage.jobs["history"].succeeded
    assert 10 <= sum(stop - start for start, stop in served) <= 40


# ---- decay


def test_use_fades_with_the_decay_time_and_never_below_zero() -> None:
    usage = ShareUsage(queue="q", share="a", vcpu_s=6_000.0, updated_at=0)
    assert usage.mean_vcpus(0, 600) == pytest.approx(10)
    assert usage.mean_vcpus(600_000, 600) == pytest.approx(10 / 2.718281828)
    assert 0 <= usage.mean_vcpus(10**9, 600) < 1e-6


def test_a_share_that_always_runs_four_vcpus_has_used_four_on_average() -> None:
    usage = ShareUsage(queue="q", share="a", running_cpu_m=4_000, updated_at=0)
    assert usage.mean_vcpus(10**8, 600) == pytest.approx(4)


def test_zero_decay_means_ten_minutes() -> None:
    assert a_policy(decay_s=0).decay_s == 600
    assert a_policy(decay_s=7_200).decay_s == 7_200


@quick
@given(
    st.lists(st.tuples(st.integers(0, 500_000), st.integers(0, 8_000)), max_size=8),
    st.integers(0, 500_000),
)
def test_looking_often_does_not_change_the_books(steps: list[tuple[int, int]], end: int) -> None:
    """Bringing usage up to date at any moment in between gives the same as doing it once."""
    often = ShareUsage(queue="q", share="a")
    once = ShareUsage(queue="q", share="a")
    now = 0
    for passed, running in steps:
        for at in (now + passed // 3, now + passed // 2):
            often.bring_to(at, 600)
        now += passed
        for usage in (often, once):
            usage.bring_to(now, 600)
            usage.running_cpu_m = running
    assert often.mean_vcpus(now + end, 600) == pytest.approx(once.mean_vcpus(now + end, 600))


def test_facts_that_come_out_of_order_do_not_turn_time_back() -> None:
    usage = ShareUsage(queue="q", share="a", vcpu_s=100.0, updated_at=1_000)
    usage.bring_to(500, 600)
    assert (usage.vcpu_s, usage.updated_at) == (100.0, 1_000)


# ---- computeReservation


@pytest.mark.parametrize(
    ("reservation", "shares", "placed"),
    [(50, 1, 50), (50, 2, 75), (50, 3, 87), (25, 1, 75), (25, 2, 93), (0, 1, 100), (99, 1, 1)],
)
def test_the_part_held_back_is_the_reservation_to_the_power_of_active_shares(
    reservation: int, shares: int, placed: int
) -> None:
    jobs = [a_job(size=500, share=f"s{n}") for n in range(shares)]
    world = fair(an_environment(max_vcpus=100), a_big_node(100), *jobs, reservation=reservation)
    assert placed_by_share(world).total() == placed


def test_nothing_is_bought_for_what_may_not_run() -> None:
    world = fair(an_environment(max_vcpus=64), a_job(size=500, share="a"), reservation=50)
    plan = make_plan(world, NOW, 60)
    assert sum(launch.count * launch.offering.vcpus for launch in plan.launches) == 32
    assert sum(plan.unplaced.values()) == 500


def test_a_share_that_arrives_finds_room_that_was_held_back_for_it() -> None:
    world = fair(an_environment(max_vcpus=8), a_big_node(8), reservation=50)
    stage = Stage(world)
    stage.submit("a", size=100, share="a")
    assert len(stage.job("a").running) == 4
    stage.submit("b", size=100, share="b")
    assert len(stage.job("b").running) == 2
    assert len(stage.job("a").running) == 4


def test_what_runs_already_counts_against_what_may_be_used() -> None:
    world = fair(an_environment(max_vcpus=8), a_big_node(8), reservation=50)
    stage = Stage(world)
    stage.submit("a", size=100, share="a")
    stage.run()
    stage.step()
    assert len(stage.job("a").running) == 4
    stage.end("a", 0)
    assert len(stage.job("a").running) == 4


def test_a_job_larger_than_all_that_is_left_runs_when_the_queue_is_empty() -> None:
    world = fair(an_environment(max_vcpus=8), a_big_node(8), reservation=90)
    stage = Stage(world)
    stage.submit("a", vcpus=8, share="a")
    stage.submit("b", vcpus=8, share="a")
    assert stage.status("a") == "STARTING"
    stage.run()
    stage.end("a")
    assert stage.status("b") == "STARTING"


def a_wide_job_beside_a_stream(stage: Stage, minutes: int) -> None:
    """Sixteen of a vCPU run at all times; each minute four end, and there are always more of them."""
    stage.submit("first", size=16, share="today")
    stage.join()
    stage.run()
    stage.submit("wide", vcpus=8, share="today", priority=9)
    stage.submit("stream", size=1_000, share="today")
    for minute in range(minutes):
        over = [a for a in stage.world.attempts.values() if a.job_id != "wide"][:4]
        stage.wait(60, *(stage.ended(a.job_id, a.index) for a in over))
        stage.join()
        stage.run()
        if stage.job("wide").running:
            assert minute * 60 >= limits.RESERVE_AFTER_S
            return


@pytest.mark.parametrize("reservation", [50, 80])
def test_a_job_wider_than_what_others_leave_is_not_passed_for_ever(reservation: int) -> None:
    """At 80 per cent it is wider than all that is left, and starts when nothing else of its queue runs."""
    stage = Stage(fair(an_environment(max_vcpus=32), reservation=reservation))
    a_wide_job_beside_a_stream(stage, minutes=20)
    assert stage.job("wide").running
    stage.end("wide")
    assert stage.job("stream").running


def test_what_is_kept_for_one_is_bought_for_it_before_others() -> None:
    """The other share comes first and is young: it gets what is left beside the eight that are kept."""
    world = fair(an_environment(max_vcpus=16), a_big_node(4), reservation=50)
    world.with_running(a_job("r", vcpus=4, share="b"), "n1")
    world.with_(a_job("young", size=50, share="a"), a_job("wide", vcpus=8, share="b"))
    later = NOW + limits.RESERVE_AFTER_S * 1000
    world.jobs[JobId("young")].runnable_at = later
    assert bought_for(world, NOW) == {1_000: 8}
    assert bought_for(world, later) == {8_000: 1}


def bought_for(world: BuiltWorld, now: int) -> Counter[int]:
    counts: Counter[int] = Counter()
    for launch in make_plan(world, now, 60).launches:
        for shape, number in launch.load:
            counts[shape.cpu_m] += number * launch.count
    return counts


def test_nothing_is_kept_for_a_job_that_no_node_could_hold() -> None:
    world = fair(an_environment(max_vcpus=8), a_big_node(8), reservation=50)
    world.with_(a_job(vcpus=64, share="a", priority=9), a_job(size=9, share="a"))
    later = NOW + limits.RESERVE_AFTER_S * 1000
    assert placed_by_share(world, later) == {"a": 4}


def test_a_share_stays_active_until_its_decay_time_is_over() -> None:
    stage = Stage(fair(a_big_node(8), reservation=50))
    stage.submit("a", share="a")
    stage.run()
    stage.end("a")
    queue = stage.world.queues["queue"]
    assert active_shares(stage.world, queue, stage.now + 599_000) == {"a"}
    assert active_shares(stage.world, queue, stage.now + 601_000) == set()


def test_a_share_with_a_pending_job_is_active() -> None:
    stage = Stage(fair(a_big_node(8), reservation=50))
    stage.submit("a", share="a")
    stage.submit("b", share="b", depends_on=(Dependency(job_id=JobId("a")),))
    assert active_shares(stage.world, stage.world.queues["queue"], NOW) == {"a", "b"}


def test_a_queue_has_at_most_five_hundred_active_shares() -> None:
    stage = Stage(fair(offerings=()))
    news = [a_spec(share=f"s{n}") for n in range(limits.ACTIVE_SHARES_MAX)]
    stage.step(*(JobSubmitted(spec=spec) for spec in news))
    with pytest.raises(Rejected, match="500 active shares"):
        stage.submit("one-more", share="new")
    stage.submit("known", share="s7")
    stage.cancel(news[0].job_id)
    stage.submit("now", share="new")


def test_a_reservation_holds_nothing_back_from_other_queues() -> None:
    world = fair(
        an_environment(max_vcpus=8),
        a_big_node(8),
        a_queue("fifo"),
        a_job(size=100, share="a"),
        a_job(size=100, queue="fifo"),
        reservation=50,
    )
    counts = placed_by_share(world)
    assert counts.total() == 8
