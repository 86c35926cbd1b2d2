"""Start-up from a million live jobs, memory of each, and jobs a second through store.commit, on SQLite and PostgreSQL.

Run it: python -m tests.benchmarks start [--jobs 1000000] [--profile] [--out FILE]

Kinds of live jobs: `plain` - a million jobs of one index each, of fifty shapes; `arrays` - the same number of indices in
arrays of a thousand, each with some that have ended, run or wait to run again. Each is loaded by a process of its own, as at the
start of the service: `load_s` until the store has given everything, `world_s` until the world with its indexes is made.
Commits: new jobs with their event and the counters, then the same jobs' next state with an attempt each.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import json
import pstats
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from airflow_eksbatch.core.model import ranges
from airflow_eksbatch.core.model.job import Attempt, Job, JobEvent, JobId, JobSpec, JobStatus, Tries
from airflow_eksbatch.core.model.node import NodeId
from airflow_eksbatch.core.model.resources import Resources
from airflow_eksbatch.core.world.changes import Changes, Counters
from airflow_eksbatch.service.loop import load_world
from airflow_eksbatch.service.settings import Settings
from airflow_eksbatch.service.wiring import make_store
from airflow_eksbatch.store.port import Store
from tests.benchmarks.conditions import conditions
from tests.build import a_queue, an_environment
from tests.contracts.databases import Database, running_postgres, sqlite_database

ROOT = Path(__file__).resolve().parents[2]
NOW = 1_770_000_000_000
ARRAY = 1_000
SHAPES = [Resources(cpu_m=250 * n, memory_mib=512 * n, pods=1) for n in range(1, 51)]
POD = json.dumps(
    {
        "serviceAccountName": "jobs",
        "containers": [
            {
                "image": "registry.example.com/team/transform:2026-11-25",
                "command": ["python", "-m", "transform", "--day", "2026-11-25", "--part", "17"],
                "env": [{"name": f"SETTING_{n}", "value": f"value-{n}"} for n in range(8)],
                "resources": {"requests": {"cpu": "1", "memory": "512Mi"}},
            }
        ],
    }
).encode()
ROWS_AT_ONCE = 20_000
BATCHES = (1, 100, 1_000)
COMMIT_JOBS = {1: 500, 100: 10_000, 1_000: 50_000}


# ---- what is stored


def a_spec(seq: int, **fields: Any) -> JobSpec:
    return JobSpec(
        job_id=JobId(str(uuid.UUID(int=seq << 64 | 0x8000 << 48 | seq))),
        name=f"transform-{seq}",
        queue="queue",
        definition="transform:3",
        resources=SHAPES[seq % len(SHAPES)],
        pod=POD,
        share="backfill",
        token=f"dag|scheduled__2026-11-25|transform|{seq}|1",
        task_key=f"dag|scheduled__2026-11-25|transform|{seq}",
        try_number=1,
        created_at=NOW + seq,
        seq=seq,
        **fields,
    )


def plain_jobs(count: int, first: int = 1) -> Iterator[Job]:
    for seq in range(first, first + count):
        yield Job(spec=a_spec(seq), runnable=ranges.ONE, runnable_at=NOW + seq)


def arrays(count: int) -> Iterator[Job]:
    """A tenth of the children has ended, every hundredth in between failed and waits to run again."""
    for seq in range(1, count // ARRAY + 1):
        again = ranges.union((), tuple((n, n + 1) for n in range(5, ARRAY // 10, 100)))
        done = ranges.minus(((0, ARRAY // 10),), again)
        yield Job(
            spec=a_spec(seq, array_size=ARRAY),
            succeeded=done,
            runnable=ranges.union(again, ((ARRAY // 10, ARRAY),)),
            tries={index: Tries(placed=1, charged=1) for index in ranges.indices(again)},
            runnable_at=NOW + seq,
        )


KINDS: dict[str, Callable[[int], Iterator[Job]]] = {"plain": plain_jobs, "arrays": arrays}


def in_pieces(jobs: Iterator[Job], size: int) -> Iterator[list[Job]]:
    piece: list[Job] = []
    for job in jobs:
        piece.append(job)
        if len(piece) == size:
            yield piece
            piece = []
    if piece:
        yield piece


def fill(database: Database, kind: str, count: int) -> float:
    """Seconds that it took."""
    store = database.open()
    began = time.perf_counter()
    store.commit(Changes(queues=[a_queue()], compute_environments=[an_environment()]))
    for piece in in_pieces(KINDS[kind](count), ROWS_AT_ONCE):
        last = piece[-1].spec.seq
        store.commit(Changes(jobs_added=piece, counters=Counters(job_seq=last)))
    store.close()
    return time.perf_counter() - began


# ---- start-up


def load(url: str) -> dict[str, Any]:
    """In this process: as the service does it, but the two halves timed apart."""
    store = make_store(Settings(database=url))
    store.open()
    process = psutil.Process()
    rss, cpu, began = process.memory_info().rss, time.process_time(), time.perf_counter()
    given: list[float] = []

    class Timed:
        """The store, with the moment at which everything was given."""

        def load(self) -> Any:
            snapshot = store.load()
            given.append(time.perf_counter())
            return snapshot

    world = load_world(Timed())  # type: ignore[arg-type]
    done = time.perf_counter()
    gc.collect()
    indices = sum(job.spec.size for job in world.jobs.values())
    used = process.memory_info().rss - rss
    return {
        "live_jobs": len(world.jobs),
        "live_indices": indices,
        "load_s": round(given[0] - began, 2),
        "world_s": round(done - given[0], 2),
        "total_s": round(done - began, 2),
        "cpu_s": round(time.process_time() - cpu, 2),
        "mib": used >> 20,
        "bytes_per_job": used // max(1, len(world.jobs)),
    }


def bench_load(database: Database, kind: str, count: int) -> dict[str, Any]:
    fill_s = fill(database, kind, count)
    command = [sys.executable, "-m", "tests.benchmarks.bench_start", "--load", database.url]
    told = subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True).stdout
    name = "sqlite" if database.is_sqlite else "postgresql"
    row = {"database": name, "kind": kind, "fill_s": round(fill_s, 1), **json.loads(told)}
    if database.is_sqlite:
        row["file_mib"] = database.file.stat().st_size >> 20
    return row


# ---- commits


def bench_commits(database: Database) -> Iterator[dict[str, Any]]:
    store, first = database.open(), 1
    for batch in BATCHES:
        count = COMMIT_JOBS[batch]
        jobs = list(in_pieces(plain_jobs(count, first), batch))
        first += count
        yield {
            "database": "sqlite" if database.is_sqlite else "postgresql",
            "batch": batch,
            "new_jobs_per_s": per_second(store, map(submitted, jobs), count),
            "started_jobs_per_s": per_second(store, map(started, jobs), count),
        }
    store.close()


def per_second(store: Store, changes: Iterator[Changes], count: int) -> int:
    made = list(changes)
    began = time.perf_counter()
    for each in made:
        store.commit(each)
    return round(count / (time.perf_counter() - began))


def submitted(jobs: list[Job]) -> Changes:
    events = [an_event(2 * job.spec.seq, job, JobStatus.RUNNABLE) for job in jobs]
    return Changes(jobs_added=jobs, events=events, counters=Counters(job_seq=jobs[-1].spec.seq))


def started(jobs: list[Job]) -> Changes:
    for job in jobs:
        job.runnable, job.running, job.started_at = ranges.EMPTY, {0: 1}, NOW
    attempts = [
        Attempt(
            job_id=job.job_id,
            index=0,
            number=1,
            charged_before=0,
            node_id=NodeId("node-000001-abcdefgh"),
            status=JobStatus.RUNNING,
            created_at=NOW,
            seen_at=NOW,
            started_at=NOW,
        )
        for job in jobs
    ]
    events = [an_event(2 * job.spec.seq + 1, job, JobStatus.RUNNING) for job in jobs]
    return Changes(jobs=jobs, attempts=attempts, events=events, counters=Counters(job_seq=1))


def an_event(seq: int, job: Job, status: JobStatus) -> JobEvent:
    return JobEvent(
        seq=seq,
        time=NOW,
        job_id=job.job_id,
        index=None,
        job_name=job.spec.name,
        job_queue="queue",
        status=status,
        task_key=job.spec.task_key,
    )


# ---- all of it


def profile(url: str) -> None:
    profiler = cProfile.Profile()
    profiler.runcall(load, url)
    pstats.Stats(profiler).sort_stats("tottime").print_stats(18)


def measure(directory: Path, count: int, *, profiled: bool) -> dict[str, Any]:
    starts: list[dict[str, Any]] = []
    commits: list[dict[str, Any]] = []

    def start(database: Database, kind: str) -> None:
        starts.append(show(bench_load(database, kind, count)))
        if profiled:
            profile(database.url)

    with running_postgres() as server:
        for kind in KINDS:
            start(sqlite_database(directory / f"{kind}.db"), kind)
        start(server.database(), "plain")
        for database in (sqlite_database(directory / "commits.db"), server.database()):
            commits += map(show, bench_commits(database))
    return {"start": starts, "commit": commits}


def show(row: dict[str, Any]) -> dict[str, Any]:
    print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--load", metavar="URL", help="only load this database, and tell as JSON")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.load:
        print(json.dumps(load(given.load)))
        return
    under = conditions(
        sqlite="file, WAL, synchronous=FULL",
        postgresql="18, from its wheel, on a Unix socket, fsync on, default settings",
        pod_bytes=len(POD),
        memory_mib=psutil.virtual_memory().total >> 20,
    )
    with tempfile.TemporaryDirectory() as directory:
        result = {
            "conditions": under,
            **measure(Path(directory), given.jobs, profiled=given.profile),
        }
    if given.out is not None:
        given.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
