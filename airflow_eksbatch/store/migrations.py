"""Numbered steps from one schema to the next, forward only; each runs in the transaction that counts it.

A step is frozen with its release, so it says its SQL itself instead of asking `schema`, which moves on.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from sqlalchemy import Connection, inspect, select

from airflow_eksbatch.store import schema
from airflow_eksbatch.store.port import NewerSchema

FIRST = """
CREATE TABLE eksbatch_meta (key TEXT NOT NULL PRIMARY KEY, body {bytes} NOT NULL);
CREATE TABLE eksbatch_jobs (
    job_id TEXT NOT NULL PRIMARY KEY, seq BIGINT NOT NULL UNIQUE, name TEXT NOT NULL, queue TEXT NOT NULL,
    definition TEXT NOT NULL, share TEXT NOT NULL, status TEXT NOT NULL, created_at BIGINT NOT NULL,
    stopped_at BIGINT, token TEXT, task_key TEXT, spec {bytes} NOT NULL, state {bytes} NOT NULL
);
CREATE INDEX eksbatch_jobs_live ON eksbatch_jobs (seq) WHERE stopped_at IS NULL;
CREATE INDEX eksbatch_jobs_queue ON eksbatch_jobs (queue, seq);
CREATE INDEX eksbatch_jobs_token ON eksbatch_jobs (token) WHERE token IS NOT NULL;
CREATE INDEX eksbatch_jobs_task ON eksbatch_jobs (task_key, seq) WHERE task_key IS NOT NULL;
CREATE INDEX eksbatch_jobs_stopped ON eksbatch_jobs (stopped_at) WHERE stopped_at IS NOT NULL;
CREATE TABLE eksbatch_attempts (
    job_id TEXT NOT NULL, idx INTEGER NOT NULL, number INTEGER NOT NULL, live BOOLEAN NOT NULL,
    body {bytes} NOT NULL, PRIMARY KEY (job_id, idx, number)
);
CREATE INDEX eksbatch_attempts_live ON eksbatch_attempts (job_id) WHERE live;
CREATE TABLE eksbatch_nodes (
    node_id TEXT NOT NULL PRIMARY KEY, compute_environment TEXT NOT NULL, ended_at BIGINT, body {bytes} NOT NULL
);
CREATE INDEX eksbatch_nodes_live ON eksbatch_nodes (node_id) WHERE ended_at IS NULL;
CREATE TABLE eksbatch_nouns (
    kind TEXT NOT NULL, name TEXT NOT NULL, body {bytes} NOT NULL, PRIMARY KEY (kind, name)
);
CREATE TABLE eksbatch_events (
    seq BIGINT NOT NULL PRIMARY KEY, time BIGINT NOT NULL, job_id TEXT NOT NULL, body {bytes} NOT NULL
);
CREATE INDEX eksbatch_events_job ON eksbatch_events (job_id, seq);
CREATE TABLE eksbatch_keys (access_key TEXT NOT NULL PRIMARY KEY, secret TEXT NOT NULL, note TEXT NOT NULL);
CREATE TABLE eksbatch_leases (
    name TEXT NOT NULL PRIMARY KEY, owner TEXT NOT NULL, fence BIGINT NOT NULL, until BIGINT NOT NULL
)
"""
BYTES = {"sqlite": "BLOB", "postgresql": "BYTEA"}


def create_first(connection: Connection) -> None:
    """Version 1: the tables as they were when the first jobs were kept."""
    for statement in FIRST.format(bytes=BYTES[connection.dialect.name]).split(";"):
        connection.exec_driver_sql(statement)


COSTS = """
ALTER TABLE eksbatch_jobs ADD COLUMN nano_usd BIGINT NOT NULL DEFAULT 0;
CREATE TABLE eksbatch_costs (
    hour BIGINT NOT NULL, compute_environment TEXT NOT NULL, market TEXT NOT NULL, use_of TEXT NOT NULL,
    queue TEXT NOT NULL, share TEXT NOT NULL, dag TEXT NOT NULL,
    nano_usd BIGINT NOT NULL, instance_ms BIGINT NOT NULL, vcpu_ms BIGINT NOT NULL,
    PRIMARY KEY (hour, compute_environment, market, use_of, queue, share, dag)
)
"""


def add_costs(connection: Connection) -> None:
    """Version 2: what instances cost, by the hour and by who paid; sums so far become whole numbers."""
    for statement in COSTS.split(";"):
        connection.exec_driver_sql(statement)
    mine = schema.meta.c.key == "totals"
    body = connection.execute(select(schema.meta.c.body).where(mine)).scalar()
    if body is not None:
        totals = msgspec.msgpack.decode(body)
        usd = totals.pop("price_usd", {})
        totals["nano_usd"] = {name: round(price * 1_000_000_000) for name, price in usd.items()}
        connection.execute(
            schema.meta.update().where(mine).values(body=msgspec.msgpack.encode(totals))
        )


OUTPUTS = """
CREATE TABLE eksbatch_outputs (
    pod TEXT NOT NULL PRIMARY KEY, kept_at BIGINT NOT NULL, dropped BIGINT NOT NULL, body {bytes} NOT NULL
);
CREATE INDEX eksbatch_outputs_kept ON eksbatch_outputs (kept_at, pod)
"""


def add_outputs(connection: Connection) -> None:
    """Version 3: the outputs of pods that are gone, for whichever service leads next."""
    for statement in OUTPUTS.format(bytes=BYTES[connection.dialect.name]).split(";"):
        connection.exec_driver_sql(statement)


def add_key_times(connection: Connection) -> None:
    """Version 4: when access keys were made; 0 where nobody has noted it."""
    connection.exec_driver_sql(
        "ALTER TABLE eksbatch_keys ADD COLUMN created_at BIGINT NOT NULL DEFAULT 0"
    )


def add_key_rights(connection: Connection) -> None:
    """Version 5: what access keys may do; those there are did everything."""
    for column in ("role TEXT NOT NULL DEFAULT 'admin'", "queues TEXT NOT NULL DEFAULT ''"):
        connection.exec_driver_sql(f"ALTER TABLE eksbatch_keys ADD COLUMN {column}")


STEPS: tuple[Callable[[Connection], None], ...] = (
    create_first,
    add_costs,
    add_outputs,
    add_key_times,
    add_key_rights,
)
"""STEPS[n] leads from version n to n + 1. A released step is never changed."""


def version_of(connection: Connection) -> int:
    """The schema version of a database; 0 for an empty one."""
    if not inspect(connection).has_table(schema.meta.name):
        return 0
    body = connection.execute(
        select(schema.meta.c.body).where(schema.meta.c.key == "schema_version")
    ).scalar()
    return 0 if body is None else msgspec.msgpack.decode(body, type=int)


def migrate(connection: Connection) -> int:
    """Bring the database forward; how many steps that took. Raises NewerSchema."""
    version = version_of(connection)
    if version > len(STEPS):
        raise NewerSchema(
            f"The database has schema version {version}, this release knows up to {len(STEPS)}: "
            "start the newer release that wrote it, or restore a backup."
        )
    for step in STEPS[version:]:
        step(connection)
    key, body = "schema_version", msgspec.msgpack.encode(len(STEPS))
    if version < len(STEPS):
        connection.execute(schema.meta.delete().where(schema.meta.c.key == key))
        connection.execute(schema.meta.insert().values(key=key, body=body))
    return len(STEPS) - version
