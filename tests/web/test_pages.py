"""What a page shows, from rows alone."""

from __future__ import annotations

import pytest

from airflow_eksbatch.web import pages

NOW = 1_800_000_000_000


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.04, "0 s"),
        (0.4, "0.4 s"),
        (9.96, "10 s"),
        (42, "42 s"),
        (119, "119 s"),
        (180, "3 min"),
        (9_000, "2.5 h"),
        (400_000, "4.63 d"),
    ],
)
def test_spans_are_said_as_people_say_them(seconds: float, words: str) -> None:
    assert pages.span(seconds) == words


def test_moments_are_relative_with_the_exact_one_at_hand() -> None:
    assert pages.ago(NOW, NOW) == "now"
    assert pages.ago(NOW + 5_000, NOW) == "now", "clocks of two machines differ a little"
    assert pages.ago(NOW - 90_000, NOW) == "90 s ago"
    assert pages.ago(None, NOW) == pages.clock(None) == ""
    assert pages.clock(NOW) == "2027-01-15 08:00:00 UTC"


def test_money_and_memory_have_as_many_digits_as_matter() -> None:
    assert [pages.money(usd) for usd in (0, 0.00613, 12.5, 1234.5)] == [
        "$0.0000", "$0.0061", "$12.50", "$1,234.50"
    ]  # fmt: skip
    assert [pages.mib(number) for number in (128, 1024, 61_440)] == ["128 MiB", "1 GiB", "60 GiB"]


def test_one_job_among_a_million_is_still_seen_in_a_bar() -> None:
    failed, done = pages.bars({"SUCCEEDED": 999_999, "FAILED": 1})[::-1]
    assert (failed["count"], failed["percent"]) == (1, 0.5)
    assert done["percent"] > 99
    assert pages.bars({}) == []


def test_a_node_is_as_full_as_the_fuller_of_its_two_resources() -> None:
    row = {
        "used_vcpus": 1,
        "allocatable_vcpus": 4,
        "used_memory_mib": 900,
        "allocatable_memory_mib": 1000,
    }
    assert pages.fill_percent(row) == 90
    assert pages.fill_percent({**row, "allocatable_vcpus": 0, "allocatable_memory_mib": 0}) == 0


def a_cost(nano_usd: int) -> dict[str, float]:
    return {"nanoUsd": nano_usd, "usd": nano_usd / 1e9, "instanceSeconds": 1.0, "vcpuHours": 1.0}


def test_an_hour_is_a_bar_of_what_it_was_paid_for() -> None:
    """Two hours of three: one for Spot jobs and idle time, one half as dear."""
    hour, free = pages.HOUR_MS, a_cost(0)
    spot, idle, boot = a_cost(60), a_cost(40), a_cost(50)
    rows = [
        {"hour": 0, "use": "JOBS", "onDemand": free, "spot": spot, "total": spot},
        {"hour": 0, "use": "IDLE", "onDemand": idle, "spot": free, "total": idle},
        {"hour": 2 * hour, "use": "BOOT", "onDemand": boot, "spot": free, "total": boot},
    ]
    chart = pages.cost_chart({"since": 0, "until": 2 * hour + 1, "rows": rows})
    shown = [(bar["css"], bar["x"], bar["y"], bar["height"]) for bar in chart["bars"]]
    third = pages.CHART_WIDTH / 3
    assert shown == [
        ("paid-spot", 0, 64, 96),
        ("paid-idle", 0, 0, 64),
        ("paid-boot", 2 * third, 80, 80),
    ]
    assert pages.cost_chart({"since": 0, "until": hour, "rows": []})["bars"] == []


@pytest.mark.parametrize(
    ("told", "shown"),
    [(None, ""), (["odd"], ""), ({"dag_id": "d", "run_id": 1, "task_id": "t"}, "d / 1 / t")],
)
def test_a_job_shows_the_task_behind_it_if_it_was_told_of_one(told: object, shown: str) -> None:
    detail = {"jobDefinition": "arn:/d:1", "dependsOn": []}
    cost = {"total": {"instanceSeconds": 0}}
    assert pages.facts({"job": detail, "airflow": told, "cost": cost})["Airflow"] == shown
