"""What `/metrics` says that somebody would be woken by."""

from __future__ import annotations

from airflow_eksbatch.core.world.world import World
from airflow_eksbatch.service.telemetry import Telemetry
from tests.build import NOW, a_job, a_queue, a_world, an_environment


def page(world: World | None, *, ready: bool = True, leader: bool = True) -> set[str]:
    """The lines of metrics."""
    at = NOW + 90_000
    shown = Telemetry().exposition(
        world, now=at, ready=ready, leader=leader, inbox=0, undone=0, streams=0
    )
    return set(shown.decode().splitlines())


def test_an_environment_that_is_invalid_is_0() -> None:
    wrong = an_environment("wrong", status="INVALID", status_reason="no such subnet")
    new = an_environment("new", status="CREATING")
    assert page(a_world(wrong, new)) >= {
        'eksbatch_compute_environment_valid{compute_environment="ce"} 1.0',
        'eksbatch_compute_environment_valid{compute_environment="new"} 1.0',
        'eksbatch_compute_environment_valid{compute_environment="wrong"} 0.0',
    }


def test_the_job_that_waits_longest_is_told_for_each_queue() -> None:
    """Of two kinds of jobs that wait, the older one; a queue without any has a 0."""
    old = a_job("old", state={"runnable_at": NOW})
    young = a_job("young", vcpus=2, state={"runnable_at": NOW + 60_000})
    assert page(a_world(young, old, a_queue("empty"))) >= {
        'eksbatch_oldest_runnable_seconds{queue="queue"} 90.0',
        'eksbatch_oldest_runnable_seconds{queue="empty"} 0.0',
    }


def test_a_standby_is_ready_and_does_not_lead() -> None:
    assert page(None, leader=False) >= {"eksbatch_ready 1.0", "eksbatch_leader 0.0"}
    assert page(None, ready=False) >= {"eksbatch_ready 0.0", "eksbatch_leader 1.0"}
