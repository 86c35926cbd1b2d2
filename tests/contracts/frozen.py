"""Databases as released versions wrote them: rows in tests/contracts/versions, never written anew.

`python -m tests.contracts.frozen` keeps the one of today's schema; do that once, when its release is made.
"""

from __future__ import annotations

import base64
import json
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from airflow_eksbatch.core.model.job import Tries
from airflow_eksbatch.core.model.job_definition import JobDefinition
from airflow_eksbatch.core.model.share import ShareUsage
from airflow_eksbatch.core.world.changes import Changes, Counters, Totals
from airflow_eksbatch.store.migrations import STEPS
from airflow_eksbatch.store.port import AccessKey
from tests.build import NOW, a_node, a_policy, a_queue, an_environment
from tests.contracts.databases import Database, sqlite_database
from tests.contracts.nouns import a_live_job, an_attempt, an_event, finished

VERSIONS = Path(__file__).with_name("versions")
BYTES = "base64:"


def some_of_everything() -> Changes:
    """An array of three with a child that runs and one that failed, a finished job, and what they stand on."""
    array = a_live_job(1, size=3, token="token", task_key="dag|run|task", pod=b'{"containers":[]}')
    array = msgspec.structs.replace(
        array,
        runnable=((2, 3),),
        failed=((0, 1),),
        running={1: 2},
        tries={1: Tries(placed=1, charged=1)},
    )
    return Changes(
        jobs_added=[array, finished(a_live_job(2), at=NOW + 5)],
        attempts=[an_attempt(array, 2, index=1), an_attempt(array, ended=True)],
        nodes=[a_node("node-000001-ce")],
        queues=[a_queue(policy="fair")],
        compute_environments=[an_environment()],
        policies=[a_policy(today=0.1)],
        definitions=[JobDefinition(name="work", revision=1, arn="arn", pod=b"{}")],
        usages=[ShareUsage(queue="queue", share="today", vcpu_s=12.5, updated_at=NOW)],
        events=[an_event(1, "job-000001"), an_event(2, "job-000002")],
        totals=Totals(jobs=4, succeeded=1, failed=1, nano_usd={"ce": 500_000_000}),
        counters=Counters(job_seq=2, event_seq=2, node=1),
    )


def put(database: Database, version: int) -> None:
    """An empty database becomes one of that version: its tables, and the rows that it wrote."""
    tables = json.loads((VERSIONS / f"{version}.json").read_text())
    with database.open_raw() as connection:
        for step in STEPS[:version]:
            step(connection)
        for table, rows in tables.items():
            for row in rows:
                names, marks = ", ".join(row), ", ".join(["%s"] * len(row))
                if database.is_sqlite:
                    marks = marks.replace("%s", "?")
                connection.exec_driver_sql(
                    f"INSERT INTO {table} ({names}) VALUES ({marks})",
                    tuple(map(_from_json, row.values())),
                )


def keep(version: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        database = sqlite_database(Path(directory) / "eksbatch.db")
        store = database.open()
        store.put_key(AccessKey(access_key="EKSBKEY", note="note", created_at=0), "secret")
        store.take_lease("somebody", NOW, 10)
        store.commit(some_of_everything())
        tables: dict[str, list[dict[str, Any]]] = {}
        for name, columns in database.columns().items():
            rows = database.rows()[name]
            tables[name] = [dict(zip(columns, map(_to_json, row), strict=True)) for row in rows]
        database.close()
    VERSIONS.mkdir(exist_ok=True)
    with (VERSIONS / f"{version}.json").open("x") as file:
        json.dump(tables, file, indent=1)
        file.write("\n")


def _to_json(value: Any) -> Any:
    return BYTES + base64.b64encode(value).decode() if isinstance(value, bytes) else value


def _from_json(value: Any) -> Any:
    if isinstance(value, str) and value.startswith(BYTES):
        return base64.b64decode(value.removeprefix(BYTES))
    return value


if __name__ == "__main__":
    keep(len(STEPS))
