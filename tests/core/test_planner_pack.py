"""Fitting: nothing over what a node has, tightest room first, and all that fits is placed."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_eksbatch.core.model.node import Node, NodeStatus
from airflow_eksbatch.core.model.resources import Resources
from airflow_eksbatch.core.planner.check import check_plan
from airflow_eksbatch.core.planner.pack import Floor
from airflow_eksbatch.core.planner.planning import make_plan
from tests.build import NOW, BuiltWorld, a_job, a_node, a_world, an_amount, an_offering

quick = settings(max_examples=80, derandomize=True, deadline=None)


def where(world: BuiltWorld) -> list[tuple[str, int]]:
    plan = make_plan(world, NOW, 60)
    check_plan(world, plan, NOW)
    return [(placement.node_id, placement.count) for placement in plan.placements]


def test_a_job_goes_where_it_leaves_the_least_over() -> None:
    world = a_world(a_node("large", offering=an_offering(vcpus=8)), a_node("small"), a_job(vcpus=3))
    assert where(world) == [("small", 1)]


def test_jobs_fill_one_node_before_they_open_another() -> None:
    world = a_world(*(a_node(f"n{n}") for n in range(3)), a_job(size=5))
    counts: dict[str, int] = {}
    for node_id, count in where(world):
        counts[node_id] = counts.get(node_id, 0) + count
    assert sorted(counts.values()) == [1, 4]


def test_memory_gpus_and_pod_slots_bind_as_cpu_does() -> None:
    gpu_node = a_node("gpu", offering=an_offering(gpu=2))
    assert where(a_world(gpu_node, a_job(gpu=1, vcpus=0.5, size=5))) in (
        [("gpu", 2)],
        [("gpu", 1)] * 2,
    )
    assert where(a_world(a_node("n1"), a_job(gpu=1))) == []
    tight = a_node("tight", allocatable=an_amount(64, 4_096, pods=3))
    assert sum(count for _, count in where(a_world(tight, a_job(memory_mib=1_024, size=9)))) == 3
    assert sum(count for _, count in where(a_world(tight, a_job(memory_mib=2_000, size=9)))) == 2


def test_a_node_that_shrank_below_what_it_runs_gets_nothing() -> None:
    world = a_world(a_node("n1", allocatable=an_amount(2, 1_000)))
    world.nodes["n1"].used = an_amount(3)  # type: ignore[index]
    world.set_allocatable(world.nodes["n1"], an_amount(2, 1_000, pods=5))  # type: ignore[index]
    world.with_(a_job())
    assert where(world) == []


def test_a_held_node_takes_nothing_wherever_this_plan_has_moved_it() -> None:
    floor = Floor()
    floor.add(an_amount(4, 4_096, pods=9), ["a", "b"])  # type: ignore[list-item]
    assert floor.fit(an_amount(1), 1) == [("a", 1)]
    floor.hold("a", an_amount(4, 4_096, pods=9))  # type: ignore[arg-type]
    assert floor.fit(an_amount(1), 9) == [("b", 4)]


def test_what_did_not_fit_is_not_tried_again_for_anything_as_large() -> None:
    floor = Floor()
    floor.add(an_amount(4, 4_096, pods=9), ["a"])  # type: ignore[list-item]
    assert floor.fit(an_amount(5), 1) == []
    assert floor.fit(an_amount(6, 8_000), 1) == []
    assert floor.fit(an_amount(4), 1) == [("a", 1)]


def a_kept_node(node_id: str = "n1") -> Node:
    """Bought for two large jobs and four small ones; half of a vCPU is left."""
    load = ((an_amount(1.5), 2), (an_amount(0.125), 4))
    return a_node(node_id, bought_for=load)


def test_a_new_node_first_holds_what_it_was_bought_for() -> None:
    thin = a_job("thin", seq=1, vcpus=0.5, size=4)
    large, small = a_job(seq=2, vcpus=1.5, size=2), a_job(seq=3, vcpus=0.125, size=4)
    coming = a_node("n2", status=NodeStatus.LAUNCHED, bought_for=((an_amount(0.5), 4),))
    world = a_world(a_kept_node(), coming, thin, large, small)
    plan = make_plan(world, NOW, 60)
    check_plan(world, plan, NOW)
    placed: Counter[int] = Counter()
    for placement in plan.placements:
        placed[placement.job_class.shape.cpu_m] += placement.count
    assert placed == {500: 1, 1_500: 2, 125: 4}
    assert plan.launches == []


def test_whoever_has_no_place_elsewhere_goes_in_turn_and_others_give_way() -> None:
    first, large = a_job("first", seq=1, vcpus=4), a_job(seq=2, vcpus=1.5, size=2)
    assert where(a_world(a_kept_node(), first, large)) == [("n1", 1)]


def test_a_node_is_not_kept_for_jobs_that_do_not_wait() -> None:
    assert where(a_world(a_kept_node(), a_job(size=4))) == [("n1", 4)]


shapes = st.builds(
    Resources,
    cpu_m=st.integers(1, 8).map(lambda n: n * 500),
    memory_mib=st.integers(1, 8).map(lambda n: n * 1_024),
    pods=st.just(1),
)


@quick
@given(
    st.lists(st.tuples(shapes, st.integers(1, 12)), min_size=1, max_size=8),
    st.lists(st.sampled_from([(2, 8_192), (4, 16_384), (8, 16_384)]), max_size=6),
)
def test_a_plan_is_safe_and_leaves_nobody_who_fits(
    jobs: list[tuple[Resources, int]], sizes: list[tuple[int, int]]
) -> None:
    world = a_world(
        *(
            a_node(
                f"n{number}",
                offering=an_offering(f"t{vcpus}-{memory}", vcpus=vcpus, memory_mib=memory, pods=20),
            )
            for number, (vcpus, memory) in enumerate(sizes)
        ),
        *(
            a_job(vcpus=shape.cpu_m / 1000, memory_mib=shape.memory_mib, size=count)
            for shape, count in jobs
        ),
    )
    plan = make_plan(world, NOW, 60)
    check_plan(world, plan, NOW)
    free = {node.node_id: node.free for node in world.nodes.values()}
    for placement in plan.placements:
        load = placement.job_class.shape.times(placement.count)
        free[placement.node_id] = free[placement.node_id].minus(load)
    for job_class, number in plan.unplaced.items():
        assert number > 0
        assert not any(job_class.shape.fits(room) for room in free.values())
