"""The cheapest mix of machines: everything is served, nothing is over-full, and the price is near the least there can be."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from airflow_eksbatch.core.model.node import Offering
from airflow_eksbatch.core.model.resources import NOTHING, Resources
from airflow_eksbatch.core.planner.mix.cheapest import Mix, cheapest_mix, not_outdone
from airflow_eksbatch.core.planner.provision import worth
from tests.build import M5, an_amount, an_offering

Shapes = dict[Resources, int]
COMPUTE = an_offering("c5.4xlarge", vcpus=16, memory_mib=32_768, price=0.68)
GENERAL = an_offering("m5.4xlarge", vcpus=16, memory_mib=65_536, price=0.768)
MEMORY = an_offering("r5.4xlarge", vcpus=16, memory_mib=131_072, price=1.008)
GPU = an_offering("g4dn.xlarge", gpu=1, memory_mib=16_384, price=0.526)
ALL = (*M5, COMPUTE, GENERAL, MEMORY, GPU)


def mix_of(offerings: tuple[Offering, ...], wanted: Shapes) -> Mix:
    return cheapest_mix(offerings, wanted, {shape: worth(shape) for shape in wanted})


def price_of(mix: Mix) -> float:
    return sum(offering.price_usd_hour * machines for offering, _, machines in mix.parts)


def types_of(mix: Mix) -> dict[str, float]:
    return {offering.instance_type: round(number, 3) for offering, _, number in mix.parts}


# ---- by example


def test_equal_jobs_get_the_machine_on_which_one_costs_least() -> None:
    assert types_of(mix_of(ALL, {an_amount(4, 8_192): 8})) == {"c5.4xlarge": 2}
    assert types_of(mix_of(ALL, {an_amount(2, 16_384): 16})) == {"r5.4xlarge": 2}


def test_jobs_of_opposite_kinds_share_machines_that_suit_both() -> None:
    """Apart they would cost 2 x 0.68 for the thin and 4 x 1.008 for the fat."""
    thin, fat = an_amount(7, 4_096), an_amount(1, 28_672)
    mix = mix_of((GENERAL,), {thin: 8, fat: 8})
    assert price_of(mix) == pytest.approx(4 * 0.768)
    assert [load for _, load, _ in mix.parts] == [{thin: 2, fat: 2}]


def test_kinds_that_do_not_suit_each_other_get_machines_of_their_own() -> None:
    mix = mix_of((COMPUTE, MEMORY), {an_amount(4, 8_192): 40, an_amount(2, 16_384): 40})
    assert types_of(mix) == {"c5.4xlarge": 10, "r5.4xlarge": 5}


def test_only_jobs_with_gpus_go_to_machines_with_gpus_when_those_cost_more() -> None:
    mix = mix_of(ALL, {an_amount(1, gpu=1): 3, an_amount(1, 1_024): 64})
    for offering, load, _ in mix.parts:
        assert (offering is GPU) == any(shape.gpu for shape in load)


def test_a_worth_is_what_one_more_job_would_cost() -> None:
    shape = an_amount(4, 8_192)
    assert mix_of(ALL, {shape: 8}).worths[shape] == pytest.approx(0.68 / 4)


def test_what_another_outdoes_at_the_same_price_is_not_looked_at() -> None:
    worse = an_offering("m4.4xlarge", vcpus=16, memory_mib=60_000, price=0.8)
    assert not_outdone([worse, GENERAL, MEMORY]) == [GENERAL, MEMORY]


def test_a_machine_that_costs_nothing_is_taken() -> None:
    free = an_offering("free", price=0.0)
    assert price_of(mix_of((free, GENERAL), {an_amount(1): 8, an_amount(2): 4})) == 0


# ---- always

quick = settings(max_examples=40, derandomize=True, deadline=None)
amounts = st.builds(
    an_amount,
    st.sampled_from([0.25, 0.5, 1, 2, 4, 8]),
    st.sampled_from([512, 1_024, 3_000, 8_192, 20_000, 60_000]),
)
demands = st.dictionaries(amounts, st.integers(1, 400), min_size=1, max_size=12)


@quick
@given(demands)
def test_every_job_is_served_and_no_machine_holds_more_than_it_has(wanted: Shapes) -> None:
    served = dict.fromkeys(wanted, 0.0)
    for offering, load, machines in mix_of(ALL, wanted).parts:
        total = NOTHING
        for shape, count in load.items():
            total = total.plus(shape.times(count))
            served[shape] += count * machines
        assert total.fits(offering.allocatable)
    assert all(served[shape] >= count - 1e-6 for shape, count in wanted.items())


@quick
@given(demands)
def test_a_mix_costs_no_more_than_each_kind_alone_and_no_less_than_jobs_in_pieces(
    wanted: Shapes,
) -> None:
    mix = mix_of(ALL, wanted)
    alone = sum(
        count
        * min(o.price_usd_hour / n for o in ALL if (n := min(count, s.count_in(o.allocatable))))
        for s, count in wanted.items()
    )
    cpu_m = sum(shape.cpu_m * count for shape, count in wanted.items())
    memory_mib = sum(shape.memory_mib * count for shape, count in wanted.items())
    cpu_price = min(o.price_usd_hour / o.allocatable.cpu_m for o in ALL)
    memory_price = min(o.price_usd_hour / o.allocatable.memory_mib for o in ALL)
    assert price_of(mix) <= alone * (1 + 1e-9)
    assert price_of(mix) >= max(cpu_m * cpu_price, memory_mib * memory_price) * (1 - 1e-9)


@quick
@given(demands)
def test_worths_add_up_to_the_price(wanted: Shapes) -> None:
    mix = mix_of(ALL, wanted)
    total = sum(mix.worths[shape] * count for shape, count in wanted.items())
    assert math.isclose(total, price_of(mix), rel_tol=1e-6)


@quick
@given(demands)
def test_the_same_demand_gets_the_same_mix(wanted: Shapes) -> None:
    assert mix_of(ALL, wanted) == mix_of(ALL[::-1], dict(wanted))


@quick
@given(demands, st.integers(2, 9))
def test_many_times_the_jobs_cost_at_most_as_many_times_as_much(
    wanted: Shapes, factor: int
) -> None:
    """More jobs leave more choice, never less."""
    assume(all(count >= 64 for count in wanted.values()))
    many = mix_of(ALL, {shape: count * factor for shape, count in wanted.items()})
    assert price_of(many) <= price_of(mix_of(ALL, wanted)) * factor * 1.02
