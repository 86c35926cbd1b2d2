"""`eksbatch simulate`: what people ask it, and what it answers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from airflow_eksbatch.cli import main


def simulate(capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    assert main(["simulate", "--json", *options]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_thousand_jobs_end_and_every_instance_is_given_back(
    capsys: pytest.CaptureFixture[str],
) -> None:
    answer = simulate(capsys, "--jobs", "1000:60:1:2048", "--env", "ce:EC2:64:m6i")
    assert answer["jobs"] == {"succeeded": 1000, "failed": 0, "attempts": 1000}
    # 64 vCPUs, less what a node keeps for itself, need at least 17 rounds of a minute.
    assert answer["ends_s"] > 17 * 60
    assert answer["empty_s"] >= answer["ends_s"]
    assert answer["series"][-1][1] == 0
    assert answer["price_usd"] > 0


def test_the_same_question_has_the_same_answer(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("--jobs", "200:30:1:1024", "--reclaimed", "0.5", "--seed", "7")
    assert simulate(capsys, *asked) == simulate(capsys, *asked)


def test_todays_run_does_not_wait_for_the_backfill(capsys: pytest.CaptureFixture[str]) -> None:
    answer = simulate(
        capsys,
        *("--env", "ce:EC2:32", "--weight", "today=0.1"),
        *("--jobs", "2000:60:1:1024:backfill", "--jobs", "20:30:1:1024:today:600"),
    )
    waits = {share: row["wait_p99_s"] for share, row in answer["shares"].items()}
    assert waits["today"] < 120 < waits["backfill"]


def test_what_if_spot_were_gone(capsys: pytest.CaptureFixture[str]) -> None:
    """Dearer or later, never both better."""
    jobs = ("--jobs", "500:120:1:2048")
    both = simulate(capsys, *jobs, "--env", "on-demand:EC2:16", "--env", "spot:SPOT:128")
    without = simulate(capsys, *jobs, "--env", "on-demand:EC2:16")
    assert both["ends_s"] < without["ends_s"]
    assert both["environments"]["spot"]["instances"] > 0


def test_reclaimed_machines_cost_no_job(capsys: pytest.CaptureFixture[str]) -> None:
    answer = simulate(
        capsys, "--jobs", "300:600:1:1024", "--env", "s:SPOT:64", "--reclaimed", "0.6"
    )
    assert answer["instances"]["reclaimed"] > 0
    assert answer["jobs"]["failed"] == 0
    assert answer["jobs"]["attempts"] > 300


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--jobs", "many"), "COUNT:RUN_S:VCPUS:MEMORY_MIB"),
        (("--jobs", "0:60:1:1024"), "above zero"),
        (("--jobs", "1:nan:1:1024"), "above zero"),
        (("--jobs", "1:60:1:1024:today:0:7"), "COUNT:RUN_S"),
        (("--env", "ce:EC2:8", "--env", "ce:EC2:8"), "two compute environments"),
        (("--weight", "today=nan"), "--weight today=nan"),
        (("--idle-s", "-1"), "--idle-s"),
        (("--env", "ce:EC2"), "MAX_VCPUS"),
        (("--env", "ce:EC2:8:m99"), "m99"),
        (("--weight", "today"), "SHARE=FACTOR"),
        (("--refused", "1"), "--refused"),
        (("--jobs", "1:60:1000:1024"), "No environment can hold"),
    ],
)
def test_a_scenario_that_cannot_be_is_one_sentence(
    capsys: pytest.CaptureFixture[str], options: tuple[str, str], said: str
) -> None:
    assert main(["simulate", *options]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1


def test_people_get_a_picture(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "--jobs", "100:60:1:1024"]) == 0
    said = capsys.readouterr().out
    assert "last job ends" in said
    assert "#" in said
