"""How fast EC2 is asked: a few at once, then at its rate, and slower when it says so."""

from __future__ import annotations

import asyncio

import pytest

from airflow_eksbatch.cloud.aws import client as aws_module
from airflow_eksbatch.cloud.aws.client import Pace


class Clock:
    """Time that passes only where somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(aws_module.time, "monotonic", clock.monotonic)
    monkeypatch.setattr(aws_module.asyncio, "sleep", clock.sleep)
    return clock


def taken(pace: Pace, clock: Clock, number: int) -> list[float]:
    """When each of so many requests went out, from now."""
    began, times = clock.now, []

    async def take() -> None:
        for _ in range(number):
            await pace.take()
            times.append(round(clock.now - began, 3))

    asyncio.run(take())
    return times


def test_a_burst_goes_at_once_and_the_rest_at_the_rate(clock: Clock) -> None:
    pace = Pace(3, 2.0)
    assert taken(pace, clock, 7) == [0, 0, 0, 0.5, 1, 1.5, 2]


def test_who_asked_nothing_for_a_while_may_burst_again(clock: Clock) -> None:
    pace = Pace(3, 2.0)
    taken(pace, clock, 5)
    clock.now += 60
    assert taken(pace, clock, 4) == [0, 0, 0, 0.5]


def test_throttling_empties_the_bucket_and_stops_it_for_a_while(clock: Clock) -> None:
    pace = Pace(3, 2.0)
    pace.slow_down(10)
    pace.slow_down(5)
    assert taken(pace, clock, 3) == [10.5, 11, 11.5]
