"""Does it hold? What the demo has to show, checked against what Airflow, the service and files say."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from tests.demo.place import CHART, RESULTS, ROOT
from tests.demo.play import CHART_DAG, DAG, DAYS, JOBS, MONTHS, TODAY, TODAY_DAYS, Play
from tests.demo.story import Fairness

Json = dict[str, Any]
PNG_BYTES_MIN = 10_000


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the verdict looks at, gathered once."""

    summary: Json
    fairness: Fairness
    hit: list[Json]
    """The story of every job whose machine was reclaimed."""
    tasks: list[Json]


def gather(play: Play) -> Evidence:
    jobs = {job_id: play.service.job(job_id) for job_id in play.story.parents()}
    of_today = {job_id for job_id, job in jobs.items() if _run(job) == (DAG, TODAY)}
    of_backfill = {
        job_id: job["job"]["arrayProperties"]["size"]
        for job_id, job in jobs.items()
        if (job["airflow"] or {}).get("run_type") == "backfill"
        and job["job"].get("arrayProperties")
    }
    return Evidence(
        summary=play.service.summary(),
        fairness=play.story.fairness(of_today, of_backfill),
        hit=[play.service.job(job_id) for job_id in sorted(play.story.hit_by_reclaim())],
        tasks=[task for dag in (DAG, CHART_DAG) for task in play.airflow.rest.task_instances(dag)],
    )


def _run(job: Json) -> tuple[str, str]:
    said = job["airflow"] or {}
    return said.get("dag_id", ""), said.get("run_id", "")


def objections(evidence: Evidence) -> list[str]:
    """Every promise that does not hold, as a sentence; empty is what we want."""
    checks = [
        *_check_results(),
        *_check_jobs(evidence.summary),
        *_check_capacity(evidence.summary),
        *_check_reclaim(evidence),
        *_check_fairness(evidence.fairness),
        *_check_tasks(evidence.tasks),
    ]
    return [sentence for holds, sentence in checks if not holds]


Checks = list[tuple[bool, str]]


def _check_results() -> Checks:
    files = sorted((RESULTS / "backfill").glob("*.json"))
    days = sum(json.loads(file.read_text())["days"] for file in files)
    is_chart = CHART.exists() and CHART.stat().st_size >= PNG_BYTES_MIN
    return [
        (len(files) == len(MONTHS), f"{len(files)} of {len(MONTHS)} months have a result"),
        (days == DAYS, f"the months hold {days} days, not {DAYS}"),
        (is_chart, f"there is no chart at {CHART}"),
    ]


def _check_jobs(summary: Json) -> Checks:
    jobs, wanted = summary["jobs"], JOBS + 1  # and the chart
    live = {k: n for k, n in jobs.items() if n and k not in ("submitted", "SUCCEEDED", "FAILED")}
    return [
        (jobs["FAILED"] == 0, f"{jobs['FAILED']} jobs FAILED"),
        (jobs["SUCCEEDED"] == wanted, f"{jobs['SUCCEEDED']} of {wanted} jobs SUCCEEDED"),
        (not live, f"jobs are left: {live}"),
    ]


def _check_capacity(summary: Json) -> Checks:
    launched = {e["computeEnvironment"]: e["launched"] for e in summary["compute_environments"]}
    instances = summary["instances"]
    return [
        (all(launched.values()), f"not every compute environment was used: {launched}"),
        (instances["overflow"] > 0, "nothing overflowed to Spot"),
        (instances["now"] == 0, f"{instances['now']} instances are left"),
        (summary["price_usd"] > 0, "the instances had no price"),
    ]


def _check_reclaim(evidence: Evidence) -> Checks:
    summary = evidence.summary
    charged = summary["retries"] - summary["free_retries"]
    ended_well = [job for job in evidence.hit if job["job"]["status"] == "SUCCEEDED"]
    again = [job for job in evidence.hit if len(job["attempts"]) > 1]
    return [
        (summary["reclaims"] > 0, "no Spot instance was reclaimed"),
        (bool(evidence.hit), "no job was hit by the reclaim"),
        (len(ended_well) == len(evidence.hit), "a job that lost its machine did not succeed"),
        (len(again) == len(evidence.hit), "a job that lost its machine shows no second attempt"),
        (charged == 0, f"{charged} attempts were charged although only a machine was lost"),
    ]


def _check_fairness(fair: Fairness) -> Checks:
    return [
        (fair.today == TODAY_DAYS, f"today's run started {fair.today} of {TODAY_DAYS} days"),
        (fair.waiting > 0, "nothing waited when today's run arrived"),
        (
            2 * fair.overtaken > fair.waiting,
            f"today's run overtook only {fair.overtaken} of {fair.waiting} waiting jobs",
        ),
        (fair.served_meanwhile > 0, "the backfill starved while today's run was there"),
    ]


def _check_tasks(tasks: list[Json]) -> Checks:
    wanted = 2 * (len(MONTHS) + 1) + 1
    ended = [task for task in tasks if task["state"] == "success"]
    on_worker = [task for task in tasks if task["pid"]]
    return [
        (len(ended) == wanted, f"{len(ended)} of {wanted} tasks succeeded"),
        (not on_worker, f"{len(on_worker)} tasks needed a worker"),
    ]


def report(evidence: Evidence) -> list[tuple[str, str]]:
    """The summary, in the service's own numbers."""
    summary, fair = evidence.summary, evidence.fairness
    jobs, instances = summary["jobs"], summary["instances"]
    wait = summary["submit_to_start_s"]
    return [
        ("Airflow tasks", f"{len(evidence.tasks)}, none of them on a worker"),
        ("jobs", f"{jobs['SUCCEEDED']} SUCCEEDED, {jobs['FAILED']} FAILED"),
        (
            "attempts",
            f"{summary['attempts']}; {summary['retries']} retries, "
            f"{summary['free_retries']} of them free",
        ),
        (
            "instances",
            f"{instances['launched']} launched, {instances['peak']} at peak, {instances['now']} left",
        ),
        *(
            (f"  {e['computeEnvironment']}", _environment(e))
            for e in summary["compute_environments"]
        ),
        ("overflow", f"{instances['overflow']} launches went on to the next environment"),
        (
            "Spot reclaims",
            f"{summary['reclaims']}; {len(evidence.hit)} jobs ran again, none charged",
        ),
        (
            "price",
            f"{summary['price_usd']:.4f} USD for {summary['instance_seconds']:.0f} instance-seconds",
        ),
        (
            "submit to start",
            f"p50 {wait['p50']:g} s, p99 {wait['p99']:g} s, most {wait['max']:g} s",
        ),
        (
            "run of today",
            f"its {fair.today} days all started {fair.last_start_s:.1f} s after they came, before "
            f"{fair.overtaken} of {fair.waiting} that waited; "
            f"{fair.served_meanwhile} of the backfill started in its {fair.life_s:.0f} s",
        ),
        ("chart", str(CHART.relative_to(ROOT))),
    ]


def _environment(environment: Json) -> str:
    return (
        f"{environment['launched']} launched, {environment['instance_seconds']:.0f} s, "
        f"{environment['price_usd']:.4f} USD"
    )
