"""What instances cost, asked over HTTP: it adds up while jobs come and go, by whatever it is asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest

from tests.api.asking import Raw
from tests.service.running import RunningService, a_definition

HOUR_MS = 3_600_000


@pytest.fixture
def ended(service: RunningService, batch: Any, queue: str) -> str:
    """A job that has cost something."""
    definition = a_definition(batch, "sleep", "0.5")
    job_id = str(batch.submit_job(jobName="job", jobQueue=queue, jobDefinition=definition)["jobId"])
    service.wait_for_ends({job_id})
    return job_id


def costs(service: RunningService, by: str, **asked: int) -> dict[str, Any]:
    more = "".join(f"&{name}={value}" for name, value in asked.items())
    return service.get(f"/v1/eksbatch/costs?by={by}{more}")


@pytest.mark.parametrize("by", ["queue", "share", "dag", "environment", "market", "hour"])
def test_rows_add_up_to_the_total_in_every_view(
    service: RunningService, ended: str, by: str
) -> None:
    found = costs(service, by)
    for market in ("onDemand", "spot", "total"):
        rows = sum(row[market]["nanoUsd"] for row in found["rows"])
        assert rows == found["total"][market]["nanoUsd"]
    total = found["total"]
    assert total["total"]["nanoUsd"] == total["onDemand"]["nanoUsd"] + total["spot"]["nanoUsd"] > 0
    assert {row["use"] for row in found["rows"]} == {"JOBS", "IDLE", "BOOT"}


def test_all_that_environments_cost_is_in_the_accounts(service: RunningService, ended: str) -> None:
    """Both are read while instances live; what is told later is not less."""
    earlier = service.get("/v1/eksbatch/summary")
    found = costs(service, "environment")
    later = service.get("/v1/eksbatch/summary")
    usd = found["total"]["total"]["usd"]
    assert earlier["price_usd"] - 1e-6 <= usd <= later["price_usd"] + 1e-6
    seconds = found["total"]["total"]["instanceSeconds"]
    assert earlier["instance_seconds"] - 1 <= seconds <= later["instance_seconds"] + 1


def test_a_queue_has_what_its_jobs_cost_and_a_job_says_it(
    service: RunningService, queue: str, ended: str
) -> None:
    found = service.get(f"/v1/eksbatch/jobs/{ended}")
    cost = found["cost"]["total"]
    assert cost == found["cost"]["onDemand"] == found["attempts"][0]["cost"]
    assert cost["nanoUsd"] > 0
    assert cost["vcpuHours"] > 0
    (row,) = [r for r in costs(service, "queue")["rows"] if r.get("jobQueue") == queue]
    assert row["total"] == cost
    (row,) = [r for r in costs(service, "job", limit=1_000)["rows"] if r["jobId"] == ended]
    assert (row["jobName"], row["status"], row["total"]) == ("job", "SUCCEEDED", cost)
    last = service.get(f"/v1/eksbatch/jobs/{ended}/explain")["sentences"][-1]
    assert last.startswith(f"It has cost {cost['usd']:.6f} USD")
    assert found["story"][-1]["cost"] == cost
    assert all("cost" not in event for event in found["story"][:-1])


def test_a_job_that_runs_costs_more_and_more(
    service: RunningService, batch: Any, queue: str
) -> None:
    definition = a_definition(batch, "sleep", "900")
    job_id = batch.submit_job(jobName="long", jobQueue=queue, jobDefinition=definition)["jobId"]
    service.wait_for(lambda e: e["jobId"] == job_id and e["status"] == "RUNNING")

    def told() -> list[int]:
        (row,) = [r for r in costs(service, "queue")["rows"] if r.get("jobQueue") == queue]
        (one,) = [r for r in costs(service, "job", limit=1_000)["rows"] if r["jobId"] == job_id]
        return [row["total"]["nanoUsd"], one["total"]["nanoUsd"]]

    first, second = told(), told()
    assert all(0 < before < after for before, after in zip(first, second, strict=True))
    sentences = service.get(f"/v1/eksbatch/jobs/{job_id}/explain")["sentences"]
    assert sentences[-1].endswith("so far.")
    batch.terminate_job(jobId=job_id, reason="enough")


def test_an_array_costs_what_its_children_do(
    service: RunningService, batch: Any, queue: str
) -> None:
    made = batch.submit_job(
        jobName="wide", jobQueue=queue, jobDefinition=a_definition(batch, "sleep", "0.2"),
        arrayProperties={"size": 3},
    )  # fmt: skip
    array = made["jobId"]
    service.wait_for_ends({array})
    whole = service.get(f"/v1/eksbatch/jobs/{array}")["cost"]["total"]
    each = [service.get(f"/v1/eksbatch/jobs/{array}:{n}")["cost"]["total"] for n in range(3)]
    assert whole["nanoUsd"] == sum(cost["nanoUsd"] for cost in each)
    assert all(cost["nanoUsd"] > 0 for cost in each)


def test_a_dag_has_what_its_tasks_cost(
    service: RunningService, raw: Raw, batch: Any, queue: str, unique: Callable[[str], str]
) -> None:
    dag = unique("sales")
    token = quote(f"{dag}|run|task|-1", safe="") + "|1"
    body = {"jobName": "t", "jobQueue": queue, "jobDefinition": a_definition(batch, "true")}
    reply = raw("POST", "/v1/submitjob", json.dumps(body).encode(), {"x-eksbatch-token": token})
    assert reply.status == 200, reply.body
    made = json.loads(reply.body)
    service.wait_for_ends({made["jobId"]})
    (row,) = [r for r in costs(service, "dag")["rows"] if r.get("dagId") == dag]
    assert row["total"] == service.get(f"/v1/eksbatch/jobs/{made['jobId']}")["cost"]["total"]


def test_a_time_without_instances_cost_nothing(service: RunningService, ended: str) -> None:
    found = costs(service, "queue", since=HOUR_MS + 5, until=3 * HOUR_MS)
    assert (found["since"], found["until"]) == (HOUR_MS, 3 * HOUR_MS)
    assert (found["rows"], found["total"]["total"]["nanoUsd"]) == ([], 0)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("by=moon", "job, queue, share, dag, environment, market, hour"),
        ("since=x", "whole number"),
        ("since=7200000&until=3600000", "must be before"),
    ],
)
def test_what_cannot_be_told_is_refused_with_what_can(raw: Raw, asked: str, words: str) -> None:
    reply = raw("GET", f"/v1/eksbatch/costs?{asked}")
    assert reply.status == 400
    assert words in reply.message


def test_metrics_count_what_instances_and_jobs_cost(
    service: RunningService, queue: str, ended: str
) -> None:
    text = service.get("/metrics")
    values = {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
        for line in text.splitlines()
        if not line.startswith("#")
    }
    place = 'compute_environment="on-demand",market="on-demand"'
    paid = values[f"eksbatch_instance_cost_usd_total{{{place}}}"]
    by_job = values[f'eksbatch_job_cost_usd_total{{{place},queue="{queue}"}}']
    assert 0 < by_job <= paid
    cost = service.get(f"/v1/eksbatch/jobs/{ended}")["cost"]["total"]["usd"]
    assert by_job == pytest.approx(cost)
    assert f"eksbatch_price_usd_per_hour{{{place}}}" in values
