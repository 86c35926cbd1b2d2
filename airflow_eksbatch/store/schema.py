"""Tables and indexes, once for both databases.

Columns are what queries need; the noun itself is a msgpack blob beside them. A job's specification never changes and lies in
a column of its own, so a change of state writes only the small state.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    text,
)

VERSION = 4
metadata = MetaData()


def _index_where(condition: str, name: str, *columns: Column[Any]) -> None:
    """An index of the rows of which this is so."""
    Index(name, *columns, sqlite_where=text(condition), postgresql_where=text(condition))


meta = Table(
    "eksbatch_meta",
    metadata,
    Column("key", Text, primary_key=True),
    Column("body", LargeBinary, nullable=False),
)

jobs = Table(
    "eksbatch_jobs",
    metadata,
    Column("job_id", Text, primary_key=True),
    Column("seq", BigInteger, nullable=False, unique=True),
    Column("name", Text, nullable=False),
    Column("queue", Text, nullable=False),
    Column("definition", Text, nullable=False),
    Column("share", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("stopped_at", BigInteger),
    Column("token", Text),
    Column("task_key", Text),
    Column("spec", LargeBinary, nullable=False),
    Column("state", LargeBinary, nullable=False),
    Column("nano_usd", BigInteger, nullable=False, server_default=text("0")),
)
# Start-up reads the live ones; lists read one queue, newest first.
_index_where("stopped_at IS NULL", "eksbatch_jobs_live", jobs.c.seq)
Index("eksbatch_jobs_queue", jobs.c.queue, jobs.c.seq)
_index_where("token IS NOT NULL", "eksbatch_jobs_token", jobs.c.token)
_index_where("task_key IS NOT NULL", "eksbatch_jobs_task", jobs.c.task_key, jobs.c.seq)
_index_where("stopped_at IS NOT NULL", "eksbatch_jobs_stopped", jobs.c.stopped_at)

attempts = Table(
    "eksbatch_attempts",
    metadata,
    Column("job_id", Text, primary_key=True),
    Column("idx", Integer, primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("live", Boolean, nullable=False),
    Column("body", LargeBinary, nullable=False),
)
_index_where("live", "eksbatch_attempts_live", attempts.c.job_id)

nodes = Table(
    "eksbatch_nodes",
    metadata,
    Column("node_id", Text, primary_key=True),
    Column("compute_environment", Text, nullable=False),
    Column("ended_at", BigInteger),
    Column("body", LargeBinary, nullable=False),
)
_index_where("ended_at IS NULL", "eksbatch_nodes_live", nodes.c.node_id)

nouns = Table(
    "eksbatch_nouns",
    metadata,
    Column("kind", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("body", LargeBinary, nullable=False),
)

events = Table(
    "eksbatch_events",
    metadata,
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("time", BigInteger, nullable=False),
    Column("job_id", Text, nullable=False),
    Column("body", LargeBinary, nullable=False),
)
Index("eksbatch_events_job", events.c.job_id, events.c.seq)

# Sums by the hour; its key begins with what they are asked by.
costs = Table(
    "eksbatch_costs",
    metadata,
    Column("hour", BigInteger, primary_key=True, autoincrement=False),
    Column("compute_environment", Text, primary_key=True),
    Column("market", Text, primary_key=True),
    Column("use_of", Text, primary_key=True),
    Column("queue", Text, primary_key=True),
    Column("share", Text, primary_key=True),
    Column("dag", Text, primary_key=True),
    Column("nano_usd", BigInteger, nullable=False),
    Column("instance_ms", BigInteger, nullable=False),
    Column("vcpu_ms", BigInteger, nullable=False),
)

# What pods have said; written one by one, so it is no part of a commit.
outputs = Table(
    "eksbatch_outputs",
    metadata,
    Column("pod", Text, primary_key=True),
    Column("kept_at", BigInteger, nullable=False),
    Column("dropped", BigInteger, nullable=False),
    Column("body", LargeBinary, nullable=False),
)
# Who takes over reads the youngest names, and no bodies.
Index("eksbatch_outputs_kept", outputs.c.kept_at, outputs.c.pod)

keys = Table(
    "eksbatch_keys",
    metadata,
    Column("access_key", Text, primary_key=True),
    Column("secret", Text, nullable=False),
    Column("note", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False, server_default=text("0")),
    Column("role", Text, nullable=False, server_default=text("'admin'")),
    Column("queues", Text, nullable=False, server_default=text("''")),
)

leases = Table(
    "eksbatch_leases",
    metadata,
    Column("name", Text, primary_key=True),
    Column("owner", Text, nullable=False),
    Column("fence", BigInteger, nullable=False),
    Column("until", BigInteger, nullable=False),
)
