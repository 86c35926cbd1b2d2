"""Many simulated lives, each with faults of its own. `SEEDS=1000` lives more, `SEED=17` that one again."""

from __future__ import annotations

import os

import pytest

from airflow_eksbatch.sim.faults import Faults
from tests.simulation.draw import draw_faults
from tests.simulation.life import CALM_AFTER_S, live

SEED = os.environ.get("SEED")
SEEDS = [int(SEED)] if SEED else range(int(os.environ.get("SEEDS", "200")))


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_that_must_never_be_is(seed: int) -> None:
    try:
        live(seed, draw_faults(seed, CALM_AFTER_S))
    except AssertionError as error:
        pytest.fail(f"{error}\nreplay it: SEED={seed} make test T=tests/simulation/test_seeds.py")


@pytest.mark.parametrize("seed", range(8))
def test_the_same_seed_is_the_same_life(seed: int) -> None:
    first, second = (live(seed, draw_faults(seed, CALM_AFTER_S)) for _ in range(2))
    assert first.simulator.ledger.events == second.simulator.ledger.events
    assert first.simulator.beats == second.simulator.beats


@pytest.mark.parametrize("seed", range(300, 312))
def test_lost_late_doubled_news_and_crashes_change_no_result(seed: int) -> None:
    """Where nothing happens to machines, trouble on the way to us must not be seen in any end."""
    calm = live(seed, Faults())
    calm.check_bill()
    troubled = live(
        seed,
        Faults(lost=0.2, doubled=0.2, late=0.3, late_s=60, crash=0.05, calm_after_s=CALM_AFTER_S),
    )
    assert troubled.simulator.crashes > 0
    for job, spec in calm.specs.items():
        for index in range(spec.jobs):
            if calm.meant_result(spec, index) is not None and (job, index) in troubled.statuses:
                assert troubled.statuses[job, index] is calm.statuses[job, index]
