"""What holds for every world, not only for those somebody thought of."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_eksbatch.core.model import ranges
from airflow_eksbatch.core.model.job import MultiNode
from airflow_eksbatch.core.model.node import NodeId
from airflow_eksbatch.core.model.resources import Resources
from airflow_eksbatch.core.model.retry import (
    AttemptEnd,
    Cause,
    EvaluateOnExit,
    RetryAction,
    RetryStrategy,
    decide_retry,
)
from airflow_eksbatch.core.model.share import ShareUsage
from airflow_eksbatch.core.planner.check import check_plan
from airflow_eksbatch.core.planner.plan import Plan
from airflow_eksbatch.core.planner.planning import make_plan
from airflow_eksbatch.core.world.job_class import JobClass
from airflow_eksbatch.core.world.world import World
from tests.build import NOW, a_job, a_node, a_policy, a_queue, a_world, an_amount, an_environment
from tests.core.stage import Stage

# Times are a benchmark's matter; a slow machine must not fail a property.
relaxed = settings(deadline=None, max_examples=150)

index_sets = st.sets(st.integers(0, 60), max_size=40)


def as_ranges(members: set[int]) -> ranges.Ranges:
    found = ranges.EMPTY
    for index in members:
        found = ranges.add(found, index)
    return found


@relaxed
@given(index_sets, index_sets)
def test_ranges_are_sets(left: set[int], right: set[int]) -> None:
    a, b = as_ranges(left), as_ranges(right)
    for ours, theirs in (
        (ranges.union(a, b), left | right),
        (ranges.minus(a, b), left - right),
        (ranges.intersect(a, b), left & right),
    ):
        assert list(ranges.indices(ours)) == sorted(theirs)
        assert ranges.count(ours) == len(theirs)
        assert all(first[1] < second[0] for first, second in itertools.pairwise(ours))


@relaxed
@given(index_sets, st.integers(0, 50))
def test_taking_from_ranges_takes_the_lowest(members: set[int], limit: int) -> None:
    taken, rest = ranges.take(as_ranges(members), limit)
    assert taken == sorted(members)[:limit]
    assert list(ranges.indices(rest)) == sorted(members)[limit:]


amounts = st.builds(
    an_amount, st.sampled_from((0.25, 0.5, 1, 2, 3.75)), st.integers(1, 9000), pods=st.just(1)
)
rooms = st.builds(
    an_amount,
    st.sampled_from((0.5, 1.93, 4, 7.91)),
    st.integers(0, 33_000),
    pods=st.integers(0, 30),
)


@relaxed
@given(amounts, rooms)
def test_as_many_fit_as_are_counted_and_not_one_more(shape: Resources, room: Resources) -> None:
    count = shape.count_in(room)
    assert shape.times(count).fits(room) or not count
    assert not shape.times(count + 1).fits(room)


patterns = st.sampled_from((None, "*", "Host EC2*", "137", "1*", "OOM*"))
rules = st.builds(
    EvaluateOnExit,
    action=st.sampled_from(RetryAction),
    on_status_reason=patterns,
    on_reason=patterns,
    on_exit_code=patterns,
)
strategies = st.builds(
    RetryStrategy,
    attempts=st.integers(1, 10),
    evaluate_on_exit=st.lists(rules, max_size=5).map(tuple),
)
ends = st.builds(
    AttemptEnd,
    cause=st.sampled_from(Cause),
    exit_code=st.sampled_from((None, 1, 137)),
    reason=st.sampled_from((None, "OOMKilled")),
    status_reason=st.sampled_from(
        ("Host EC2 (instance i-1) terminated.", "Essential container in task exited")
    ),
)


@relaxed
@given(strategies, ends, st.integers(0, 9), st.booleans())
def test_no_job_is_charged_more_attempts_than_it_may_have(
    strategy: RetryStrategy, end: AttemptEnd, charged: int, free_left: bool
) -> None:
    verdict = decide_retry(strategy, end, charged_before=charged, free_left=free_left)
    if verdict.again and verdict.charged:
        assert charged + 1 < strategy.attempts
    if end.cause in (Cause.TIMEOUT, Cause.STOPPED):
        assert not verdict.again
    if end.cause is Cause.WAITING:
        assert (verdict.again, verdict.charged) == (True, False)
    elif not verdict.charged:
        assert end.cause is Cause.PLATFORM
        assert free_left


@relaxed
@given(st.lists(st.tuples(st.integers(0, 900), st.integers(-4, 4)), max_size=30))
def test_use_of_a_share_is_never_negative_and_fades_to_nothing(
    moves: list[tuple[int, int]],
) -> None:
    usage, now = ShareUsage(queue="q", share="s", updated_at=NOW), NOW
    for seconds, cpus in moves:
        now += seconds * 1000
        usage.bring_to(now, 600)
        usage.running_cpu_m = max(0, usage.running_cpu_m + cpus * 1000)
        assert usage.vcpu_s >= 0
    usage.running_cpu_m = 0
    assert usage.mean_vcpus(now + 100 * 600 * 1000, 600) < 1e-6


# ---- whole plans


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """Two environments, a fair and a FIFO queue, some nodes, some of them working, and jobs of all shapes."""
    world = a_world(
        an_environment("ce", max_vcpus=draw(st.integers(2, 64))),
        an_environment("more", max_vcpus=draw(st.integers(0, 32))),
        a_policy("fair", reservation=draw(st.sampled_from((0, 0, 40))), today=0.1),
        a_queue("fair", "ce", "more", policy="fair"),
        a_queue("queue", "ce", priority=draw(st.integers(0, 3))),
    )
    world.with_offerings("more", *world.offerings["ce"])
    for number in range(draw(st.integers(0, 6))):
        environment = draw(st.sampled_from(("ce", "more")))
        world.with_(a_node(f"n{number}", environment=environment))
    for number in range(draw(st.integers(0, 12))):
        queue = draw(st.sampled_from(("fair", "queue")))
        count = draw(st.sampled_from((0, 0, 0, 2, 3)))
        multi_node = MultiNode(nodes=count, pods=((0, b"{}"),)) if count else None
        job = a_job(
            f"j{number}",
            queue=queue,
            size=None if multi_node else draw(st.sampled_from((None, 2, 30))),
            multi_node=multi_node,
            vcpus=draw(st.sampled_from((0.25, 1, 2, 3, 9))),
            memory_mib=draw(st.sampled_from((64, 1024, 9000, 70_000))),
            share=draw(st.sampled_from(("today", "backfill"))) if queue == "fair" else "",
            priority=draw(st.integers(0, 2)),
        )
        world.with_(job)
        for node in list(world.nodes.values()):
            fits = job.runnable and not count and job.spec.resources.fits(node.free)
            if fits and node.compute_environment == "ce" and draw(st.booleans()):
                world.with_running(job, node.node_id)
    world.check_indexes()
    return world


@relaxed
@given(worlds())
def test_every_plan_passes_its_check_and_is_made_again_alike(world: World) -> None:
    plan = make_plan(world, NOW, 60.0)
    check_plan(world, plan, NOW)
    assert make_plan(world, NOW, 60.0) == plan
    world.check_indexes()


@relaxed
@given(worlds())
def test_nobody_waits_for_room_that_is_there(world: World) -> None:
    """Where nothing is held back, what is left over fits no open node of its queue's environments."""
    plan = make_plan(world, NOW, 60.0)
    free = free_after(world, plan)
    for job_class in plan.unplaced:
        queue = world.queues[job_class.queue]
        if job_class.nodes:
            continue
        if queue.policy is not None and world.policies[queue.policy].compute_reservation:
            continue
        for node_id, room in free.items():
            if world.nodes[NodeId(node_id)].compute_environment in queue.compute_environments:
                assert not job_class.shape.fits(room), f"{job_class} fits {node_id} with {room}"


def free_after(world: World, plan: Plan) -> dict[str, Resources]:
    free = {
        str(node.node_id): node.free
        for node in world.nodes.values()
        if node.is_open and plan.claims.get(node.node_id) is None
    }
    for placement in plan.placements:
        used = placement.job_class.shape.times(placement.count)
        if placement.node_id in free:
            free[placement.node_id] = free[placement.node_id].minus(used)
    return free


def is_sold(world: World, job_class: JobClass) -> bool:
    """Whether an environment of its queue may have what one of these needs; the last machine may pass the maximum."""
    machines = max(1, job_class.nodes)
    return any(
        job_class.shape.fits(offering.allocatable)
        and (machines - 1) * offering.vcpus < world.compute_environments[name].max_vcpus
        for name in world.queues[job_class.queue].compute_environments
        for offering in world.offerings[name]
    )


@settings(deadline=None, max_examples=60)
@given(worlds())
def test_whatever_some_instance_can_hold_ends_and_nothing_is_left(world: World) -> None:
    """Played to the end: every launch succeeds, every pod takes a second. What nobody sells waits for ever."""
    stage = Stage(world, idle_s=30)
    for _ in range(400):
        stage.wait(1, *stage.what_follows())
        may_run = any(is_sold(world, line.job_class) for line in world.lines.values())
        if not may_run and not world.attempts and not world.nodes:
            break
    assert not any(is_sold(world, line.job_class) for line in world.lines.values())
    assert world.attempts == {}
    assert world.nodes == {}
