"""Submits per second over HTTP with signatures, one large array, start-up from a million live jobs, memory of each.

Run it: python tests/benchmarks/bench_submit.py [--jobs 20000] [--live 1000000] [--out FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from airflow_eksbatch.core.model import ranges  # noqa: E402
from airflow_eksbatch.core.model.compute_environment import ComputeEnvironment  # noqa: E402
from airflow_eksbatch.core.model.job import Job, JobId, JobSpec  # noqa: E402
from airflow_eksbatch.core.model.job_queue import JobQueue  # noqa: E402
from airflow_eksbatch.core.model.resources import Resources  # noqa: E402
from airflow_eksbatch.core.world.changes import Changes, Counters, Totals  # noqa: E402
from airflow_eksbatch.store.sqlite import sqlite_store  # noqa: E402
from tests.service.running import RunningService, a_definition, submit  # noqa: E402

CONNECTIONS = 64
ROWS_AT_ONCE = 20_000


# ---- submits over HTTP


def signed_submits(url: str, definition: str, keys: Credentials, count: int) -> Iterator[bytes]:
    """Whole HTTP requests, signed as boto3 signs them."""
    host = url.removeprefix("http://")
    for number in range(count):
        body = json.dumps(
            {
                "jobName": f"bench-{number}",
                "jobQueue": "default",
                "jobDefinition": definition,
                "shareIdentifier": "backfill",
            }
        ).encode()
        headers = {"Content-Type": "application/json", "amz-sdk-invocation-id": str(uuid.uuid4())}
        request = AWSRequest("POST", f"{url}/v1/submitjob", data=body, headers=headers)
        SigV4Auth(keys, "batch", "us-east-1").add_auth(request)
        lines = [f"{name}: {value}" for name, value in request.headers.items()]
        head = "\r\n".join(["POST /v1/submitjob HTTP/1.1", f"Host: {host}", *lines])
        yield f"{head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


async def one_connection(
    host: str, port: int, requests: Iterator[bytes], waits: list[float]
) -> None:
    """Send the next request as soon as the last one was answered."""
    reader, writer = await asyncio.open_connection(host, port)
    for request in requests:
        began = time.perf_counter()
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        body = await reader.readexactly(length)
        assert head.startswith(b"HTTP/1.1 200"), head + body
        waits.append(time.perf_counter() - began)
    writer.close()


async def send_all(url: str, requests: Sequence[bytes]) -> dict[str, Any]:
    host, _, port = url.removeprefix("http://").partition(":")
    waits: list[float] = []
    shared = iter(requests)
    began = time.perf_counter()
    await asyncio.gather(
        *(one_connection(host, int(port), shared, waits) for _ in range(CONNECTIONS))
    )
    took = time.perf_counter() - began
    waits.sort()
    return {
        "submits": len(waits),
        "seconds": round(took, 2),
        "submits_per_s": round(len(waits) / took),
        "p50_ms": round(waits[len(waits) // 2] * 1000, 1),
        "p99_ms": round(waits[int(len(waits) * 0.99)] * 1000, 1),
    }


def bench_submits(home: Path, count: int) -> dict[str, Any]:
    keys = make_keys(home)
    # Capacity for nothing: what is measured is accepting, not running.
    service = RunningService(home, "--auth", "sigv4", "--launch-delay-s", "3600").start()
    try:
        batch = service.batch(keys.access_key, keys.secret_key)
        definition = a_definition(batch, "true")
        requests = list(signed_submits(service.url, definition, keys, count))
        process = psutil.Process(service.process.pid if service.process else 0)
        before, cpu = process.memory_info().rss, sum(process.cpu_times()[:2])
        result = asyncio.run(send_all(service.url, requests))
        result["service_cpu_s"] = round(sum(process.cpu_times()[:2]) - cpu, 2)
        result["bytes_per_live_job"] = (process.memory_info().rss - before) // count
        result["array_of_10000_ms"] = bench_array(batch, definition)
        return result
    finally:
        service.end()


def bench_array(batch: Any, definition: str) -> float:
    """The best of five: one SubmitJob of 10,000 children."""
    waits = []
    for number in range(5):
        began = time.perf_counter()
        submit(batch, definition, f"array-{number}", arrayProperties={"size": 10_000})
        waits.append(time.perf_counter() - began)
    return round(min(waits) * 1000, 1)


def make_keys(home: Path) -> Credentials:
    home.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "airflow_eksbatch.cli", "keys", "create", "--json"]
    made = subprocess.run(
        [*command, "--home", str(home)], check=True, capture_output=True, text=True, cwd=ROOT
    )
    key = json.loads(made.stdout)
    return Credentials(key["accessKeyId"], key["secretAccessKey"])


# ---- start-up


def live_jobs(count: int) -> Iterator[Job]:
    pod = b'{"containers":[{"image":"busybox","command":["true"]}]}'
    shapes = [Resources(cpu_m=250 * n, memory_mib=512, pods=1) for n in range(1, 51)]
    for seq in range(1, count + 1):
        spec = JobSpec(
            job_id=JobId(str(uuid.UUID(int=seq))),
            name=f"job-{seq}",
            queue="default",
            definition="shell:1",
            resources=shapes[seq % 50],
            pod=pod,
            share="backfill",
            token=f"dag|run|task|{seq}|1",
            task_key=f"dag|run|task|{seq}",
            created_at=1,
            seq=seq,
        )
        yield Job(spec=spec, runnable=ranges.ONE)


def fill(home: Path, count: int) -> None:
    """A database in which so many jobs wait for a compute environment that is switched off."""
    home.mkdir(parents=True, exist_ok=True)
    store = sqlite_store(home / "eksbatch.db")
    store.open()
    environment = ComputeEnvironment(
        name="off", arn="arn:off", uuid="0" * 8, state="DISABLED", max_vcpus=1
    )
    queue = JobQueue(name="default", arn="arn:default", compute_environments=("off",))
    totals, counters = Totals(jobs=count), Counters(job_seq=count)
    store.commit(
        Changes(
            compute_environments=[environment], queues=[queue], totals=totals, counters=counters
        )
    )
    batch: list[Job] = []
    for job in live_jobs(count):
        batch.append(job)
        if len(batch) == ROWS_AT_ONCE:
            store.commit(Changes(jobs_added=batch))
            batch = []
    store.commit(Changes(jobs_added=batch))
    store.close()


def bench_start(home: Path, count: int) -> dict[str, Any]:
    fill(home, count)
    service = RunningService(home)
    try:
        began = time.perf_counter()
        service.start()
        took = time.perf_counter() - began
        rss = psutil.Process(service.process.pid if service.process else 0).memory_info().rss
        return {
            "live_jobs": count,
            "seconds_to_ready": round(took, 1),
            "rss_mib": rss >> 20,
            "file_mib": (home / "eksbatch.db").stat().st_size >> 20,
        }
    finally:
        service.end()


def conditions() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "connections": CONNECTIONS,
        "client": "one process on the same machine, requests signed beforehand",
        "database": "SQLite, WAL, synchronous=FULL",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--jobs", type=int, default=20_000)
    parser.add_argument("--live", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        result = {
            "conditions": conditions(),
            "submit": bench_submits(Path(directory) / "submit", given.jobs),
            "empty_start": bench_start(Path(directory) / "empty", 0),
            "start": bench_start(Path(directory) / "start", given.live),
        }
    text = json.dumps(result, indent=2)
    print(text)
    if given.out is not None:
        given.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
