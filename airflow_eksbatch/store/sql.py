"""SqlStore: every query of the system, each with a name; the same for SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import starmap
from typing import Any, TypeVar

import msgspec
from sqlalchemy import (
    Connection,
    Engine,
    Select,
    Table,
    bindparam,
    delete,
    func,
    select,
    text,
    update,
)
from sqlalchemy.exc import DataError, SQLAlchemyError

from airflow_eksbatch.core.model.job import TERMINAL, Attempt, Ended, Job, JobEvent, JobId, ended
from airflow_eksbatch.core.world.books import Entry
from airflow_eksbatch.core.world.changes import NOUNS, Changes, Counters, Snapshot, Totals
from airflow_eksbatch.store import costs, rows, schema
from airflow_eksbatch.store.migrations import STEPS, migrate, version_of
from airflow_eksbatch.store.port import (
    AccessKey,
    Fenced,
    JobQuery,
    SigningKey,
    StoreError,
    StoreView,
    Unstorable,
)

LEASE = "beat"
IDS_AT_ONCE = 500
"""SQLite takes a bounded number of parameters in one statement."""
ROWS_AT_ONCE = 1_000
WRITES = "eksbatch_writes"
"""Execution option of a connection: whether its next transaction will write."""
FORGOTTEN = "events_forgotten"
"""The meta row of the newest event that was dropped."""

Insert = Callable[[Table], Any]
Explain = Callable[[Exception], str]
T = TypeVar("T")


class SqlStore:
    """One connection, used by one thread; `insert` makes the dialect's insert, which knows upserts.

    `lock` is said before migrations, `snapshot` before a load, `evict` before the lease of another is taken, where the
    database does not see to it by itself; `clock` asks what time it has (epoch ms), where it has its own.
    """

    def __init__(
        self,
        engine: Engine,
        insert: Insert,
        explain: Explain,
        *,
        lock: str | None = None,
        snapshot: str | None = None,
        evict: str | None = None,
        clock: str | None = None,
    ) -> None:
        self._engine = engine
        self._insert = insert
        self._explain = explain
        self._lock = lock
        self._snapshot = snapshot
        self._evict = evict
        self._clock = clock
        self._upserts = {table: _upsert(insert, table) for table in schema.metadata.sorted_tables}
        self._add_costs = costs.adding(insert)
        self._connection: Connection | None = None
        self._lease: tuple[str, int] | None = None

    def open(self) -> None:
        with self._transaction(writes=True) as connection:
            if self._lock is not None:
                connection.execute(text(self._lock))
            self._check_fence(connection)
            migrate(connection)

    def prepare(self) -> StoreView:
        view = self.look()
        if 0 < view.schema_version <= view.newest_version:
            return view
        self.open()
        return self.look()

    def look(self) -> StoreView:
        with self._transaction(writes=True) as connection:
            version, clock_ms = version_of(connection), self._clock_ms(connection)
            if not version:
                return StoreView(schema_version=0, newest_version=len(STEPS), clock_ms=clock_ms)
            # Changes nothing, and is refused where the lease could not be taken.
            connection.execute(update(schema.leases).where(text("1 = 0")).values(fence=0))
            lease = connection.execute(
                select(schema.leases.c.owner, schema.leases.c.until).where(
                    schema.leases.c.name == LEASE
                )
            ).first()
            kind = "compute_environment"
            bodies = connection.scalars(
                select(schema.nouns.c.body).where(schema.nouns.c.kind == kind)
            )
            return StoreView(
                schema_version=version,
                newest_version=len(STEPS),
                leader=lease.owner if lease else "",
                leads_until=lease.until if lease else 0,
                compute_environments=tuple(rows.noun_from(kind, body) for body in bodies),
                clock_ms=clock_ms,
            )

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._engine.dispose()

    @contextmanager
    def _transaction(self, *, writes: bool = False) -> Iterator[Connection]:
        """One transaction; every trouble of the database becomes a StoreError that says what to do."""
        try:
            if self._connection is None:
                self._connection = self._engine.connect()
            self._connection.execution_options(**{WRITES: writes})
            with self._connection.begin():
                yield self._connection
        except (SQLAlchemyError, msgspec.MsgspecError) as error:
            self._drop_connection()
            kind = Unstorable if _is_of_a_value(error) else StoreError
            raise kind(self._explain(error)) from error

    def _drop_connection(self) -> None:
        """A connection that failed may be half dead; the next call makes a new one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.invalidate()
                connection.close()
            except SQLAlchemyError:
                pass

    # ---- the beat

    def load(self) -> Snapshot:
        with self._transaction() as connection:
            if self._snapshot is not None:
                connection.execute(text(self._snapshot))
            nouns: dict[str, list[Any]] = {kind: [] for kind in NOUNS}
            for kind, body in connection.execute(select(schema.nouns.c.kind, schema.nouns.c.body)):
                nouns[kind].append(rows.noun_from(kind, body))
            meta = dict(
                connection.execute(select(schema.meta.c.key, schema.meta.c.body)).tuples().all()
            )
            with _many(connection, LIVE_JOBS) as found:
                jobs = list(rows.jobs_from(found))
            with _many(connection, LIVE_ATTEMPTS) as found:
                attempts = [rows.attempt_from(body) for (body,) in found]
            with _many(connection, LIVE_NODES) as found:
                nodes = [rows.node_from(body) for (body,) in found]
            return Snapshot(
                jobs=jobs,
                attempts=attempts,
                nodes=nodes,
                queues=nouns["job_queue"],
                compute_environments=nouns["compute_environment"],
                policies=nouns["scheduling_policy"],
                definitions=nouns["job_definition"],
                usages=nouns["share_usage"],
                totals=_decoded(meta.get("totals"), Totals),
                counters=_decoded(meta.get("counters"), Counters),
            )

    def commit(self, changes: Changes) -> None:
        with self._transaction(writes=True) as connection:
            self._check_fence(connection)
            self._put(connection, schema.jobs, map(rows.job_row, changes.jobs_added))
            if changes.jobs:
                connection.execute(_UPDATE_JOB, [rows.state_row(job) for job in changes.jobs])
            self._put(connection, schema.attempts, map(rows.attempt_row, changes.attempts))
            self._put(connection, schema.nodes, map(rows.node_row, changes.nodes))
            self._put(connection, schema.nouns, starmap(rows.noun_row, changes.nouns()))
            self._put(connection, schema.events, map(rows.event_row, changes.events))
            if changes.costs:
                connection.execute(self._add_costs, list(map(rows.cost_row, changes.costs)))
            for kind, name in changes.deleted:
                connection.execute(
                    delete(schema.nouns).where(
                        schema.nouns.c.kind == kind, schema.nouns.c.name == name
                    )
                )
            meta = {"totals": changes.totals, "counters": changes.counters}
            kept = (rows.meta_row(key, value) for key, value in meta.items() if value is not None)
            self._put(connection, schema.meta, kept)

    def _put(self, connection: Connection, table: Table, values: Iterable[rows.Row]) -> None:
        """Insert whole rows, or replace those that are there."""
        if values := list(values):
            connection.execute(self._upserts[table], values)

    def _check_fence(self, connection: Connection) -> None:
        """Nobody writes who has lost the lease; in the same transaction, so there is no gap."""
        if self._lease is None:
            return
        held = connection.execute(
            select(schema.leases.c.owner, schema.leases.c.fence)
            .where(schema.leases.c.name == LEASE)
            .with_for_update(read=True)
        ).first()
        if held is None or tuple(held) != self._lease:
            raise Fenced("Another service has taken over this database; this one stops writing.")

    # ---- looking for jobs

    def find_ends(self, job_ids: Iterable[JobId]) -> dict[JobId, Ended]:
        table = schema.jobs.c
        query = select(table.spec, table.state).where(table.stopped_at.is_not(None))
        found = self._by_ids(table.job_id, job_ids, query)
        return {job.job_id: ended(job) for job in rows.jobs_from(found)}

    def find_tokens(self, tokens: Iterable[str]) -> dict[str, JobId]:
        query = select(schema.jobs.c.token, schema.jobs.c.job_id)
        return {t: JobId(j) for t, j in self._by_ids(schema.jobs.c.token, tokens, query)}

    def find_task_jobs(self, task_keys: Iterable[str]) -> dict[str, JobId]:
        query = select(schema.jobs.c.task_key, schema.jobs.c.job_id).order_by(schema.jobs.c.seq)
        return {k: JobId(j) for k, j in self._by_ids(schema.jobs.c.task_key, task_keys, query)}

    def find_jobs(self, job_ids: Iterable[JobId]) -> list[Job]:
        query = select(schema.jobs.c.spec, schema.jobs.c.state)
        return list(rows.jobs_from(self._by_ids(schema.jobs.c.job_id, job_ids, query)))

    def _by_ids(self, column: Any, values: Iterable[str], query: Any) -> list[Any]:
        found: list[Any] = []
        with self._transaction() as connection:
            for some in _portions(sorted(set(values))):
                found.extend(connection.execute(query.where(column.in_(some))))
        return found

    def list_jobs(self, query: JobQuery) -> list[Job]:
        table = schema.jobs.c
        wanted = select(table.spec, table.state).order_by(table.seq.desc()).limit(query.limit)
        if query.queue is not None:
            wanted = wanted.where(table.queue == query.queue)
        if query.statuses:
            wanted = wanted.where(table.status.in_(query.statuses))
            if set(query.statuses) <= {status.value for status in TERMINAL}:
                wanted = wanted.where(table.stopped_at.is_not(None))
        if query.name is not None:
            wanted = wanted.where(_like(func.lower(table.name), query.name.lower()))
        if query.definition is not None:
            wanted = wanted.where(_definition_like(table.definition, query.definition))
        for value, condition in (
            (query.share, table.share == query.share),
            (query.created_before, table.created_at < (query.created_before or 0)),
            (query.created_after, table.created_at > (query.created_after or 0)),
            (query.before_seq, table.seq < (query.before_seq or 0)),
        ):
            if value is not None:
                wanted = wanted.where(condition)
        with self._transaction() as connection:
            return list(rows.jobs_from(connection.execute(wanted).tuples()))

    def find_attempts(
        self, job_ids: Iterable[JobId], indices: Collection[int] = ()
    ) -> list[Attempt]:
        table = schema.attempts.c
        query = select(table.body).order_by(table.job_id, table.idx, table.number)
        if indices:
            query = query.where(table.idx.in_(indices))
        return [rows.attempt_from(body) for (body,) in self._by_ids(table.job_id, job_ids, query)]

    # ---- money

    def sum_costs(self, since: int, until: int, by: Collection[str]) -> list[Entry]:
        with self._transaction() as connection:
            return costs.sums(connection, since, until, by)

    def costly_jobs(self, since: int, until: int, limit: int) -> list[Job]:
        with self._transaction() as connection:
            return costs.costly_jobs(connection, since, until, limit)

    # ---- events

    def events_since(self, seq: int, limit: int, job_id: JobId | None = None) -> list[JobEvent]:
        table = schema.events.c
        wanted = select(table.body).where(table.seq > seq).order_by(table.seq).limit(limit)
        if job_id is not None:
            wanted = wanted.where(table.job_id == job_id)
        with self._transaction() as connection:
            return [rows.event_from(body) for (body,) in connection.execute(wanted)]

    def first_event_seq(self) -> int:
        with self._transaction() as connection:
            forgotten = self._events_forgotten(connection)
            if forgotten:
                return forgotten + 1
            return connection.execute(select(func.min(schema.events.c.seq))).scalar() or 0

    def _events_forgotten(self, connection: Connection) -> int:
        body = connection.scalar(select(schema.meta.c.body).where(schema.meta.c.key == FORGOTTEN))
        return _decoded(body, int)

    def forget_before(self, time: int, limit: int) -> int:
        old = (
            select(schema.jobs.c.job_id)
            .where(schema.jobs.c.stopped_at < time)
            .order_by(schema.jobs.c.stopped_at)
            .limit(limit)
        )
        events = schema.events.c
        with self._transaction(writes=True) as connection:
            self._check_fence(connection)
            forgotten = self._events_forgotten(connection)
            job_ids = list(connection.execute(old).scalars())
            for some in _portions(job_ids):
                newest = select(func.max(events.seq)).where(events.job_id.in_(some))
                forgotten = max(forgotten, connection.scalar(newest) or 0)
                for table in (schema.attempts, schema.events, schema.jobs):
                    connection.execute(delete(table).where(table.c.job_id.in_(some)))
            if job_ids:
                self._put(connection, schema.meta, [rows.meta_row(FORGOTTEN, forgotten)])
            connection.execute(delete(schema.nodes).where(schema.nodes.c.ended_at < time))
            connection.execute(delete(schema.outputs).where(schema.outputs.c.kept_at < time))
            costs.forget_before(connection, time)
        return len(job_ids)

    # ---- keys and the lease

    def keys(self) -> dict[str, SigningKey]:
        # A standby reads them in the schema of whoever leads, which may be an older one.
        query = select(text("*")).select_from(schema.keys)
        with self._transaction() as connection:
            return {
                row["access_key"]: SigningKey(secret=row["secret"], rights=rows.rights_from(row))
                for row in connection.execute(query).mappings()
            }

    def list_keys(self) -> list[AccessKey]:
        keys = schema.keys.c
        query = select(keys.access_key, keys.note, keys.created_at, keys.role, keys.queues)
        with self._transaction() as connection:
            found = connection.execute(query.order_by(keys.created_at, keys.access_key))
            return [rows.key_from(row) for row in found.mappings()]

    def put_key(self, key: AccessKey, secret: str) -> None:
        with self._transaction(writes=True) as connection:
            self._put(connection, schema.keys, [rows.key_row(key, secret)])

    def delete_key(self, access_key: str) -> bool:
        with self._transaction(writes=True) as connection:
            gone = connection.execute(
                delete(schema.keys).where(schema.keys.c.access_key == access_key)
            )
            return gone.rowcount > 0

    def now(self) -> int | None:
        if self._clock is None:
            return None
        with self._transaction() as connection:
            return self._clock_ms(connection)

    def _clock_ms(self, connection: Connection) -> int | None:
        return None if self._clock is None else connection.execute(text(self._clock)).scalar_one()

    def take_lease(self, owner: str, now: int, seconds: int) -> int | None:
        nobody = {"name": LEASE, "owner": "", "fence": 0, "until": 0}
        the_lease = select(schema.leases).where(schema.leases.c.name == LEASE)
        with self._transaction(writes=True) as connection:
            # There must be a row to lock, or two that begin at once would both be the first.
            connection.execute(self._insert(schema.leases).on_conflict_do_nothing(), nobody)
            held = connection.execute(the_lease).one()
            is_others = held.owner != owner
            if is_others and held.until <= now and self._evict is not None:
                connection.execute(text(self._evict))
            # Somebody may be quicker, or have it within a commit yet: then it is tried again.
            held = connection.execute(the_lease.with_for_update(skip_locked=is_others)).first()
            if held is None or (held.owner != owner and held.until > now):
                return None
            fence = held.fence + (held.owner != owner)
            until = now + seconds * 1000
            row = {"name": LEASE, "owner": owner, "fence": fence, "until": until}
            self._put(connection, schema.leases, [row])
        self._lease = (owner, fence)
        return fence

    def lease_owner(self) -> str | None:
        with self._transaction() as connection:
            return connection.scalar(
                select(schema.leases.c.owner).where(schema.leases.c.name == LEASE)
            )


# Each has the condition of its partial index word for word, or SQLite would not use it.
LIVE_JOBS = select(schema.jobs.c.spec, schema.jobs.c.state).where(text("stopped_at IS NULL"))
LIVE_ATTEMPTS = select(schema.attempts.c.body).where(text("live"))
LIVE_NODES = select(schema.nodes.c.body).where(text("ended_at IS NULL"))
_UPDATE_JOB = (
    update(schema.jobs)
    .where(schema.jobs.c.job_id == bindparam("b_job_id"))
    .values(
        status=bindparam("status"),
        stopped_at=bindparam("stopped_at"),
        state=bindparam("state"),
        nano_usd=bindparam("nano_usd"),
    )
)


def _is_of_a_value(error: Exception) -> bool:
    """By SQL's classes of errors, where the driver tells them: 22 is data, 54 a limit of the server (what an index takes)."""
    state = getattr(getattr(error, "orig", None), "sqlstate", None) or ""
    return isinstance(error, DataError) or state[:2] in ("22", "54")


def _upsert(insert: Insert, table: Table) -> Any:
    """The statement that inserts a whole row, or replaces the one that is there."""
    statement = insert(table)
    keys = [column.name for column in table.primary_key]
    rest = {c.name: statement.excluded[c.name] for c in table.c if c.name not in keys}
    return statement.on_conflict_do_update(index_elements=keys, set_=rest)


@contextmanager
def _many(
    connection: Connection, query: Select[*tuple[Any, ...]]
) -> Iterator[Iterable[Sequence[Any]]]:
    """Rows as they come from the database: a million live jobs never lie here twice."""
    with connection.execute(query, execution_options={"yield_per": ROWS_AT_ONCE}) as found:
        yield found.tuples()


def _portions(values: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(values), IDS_AT_ONCE):
        yield values[start : start + IDS_AT_ONCE]


def _decoded(body: bytes | None, kind: type[T]) -> T:
    return kind() if body is None else msgspec.msgpack.decode(body, type=kind)


def _like(column: Any, pattern: str) -> Any:
    """Equality, or a prefix when it ends in `*`."""
    return _begins(column, pattern[:-1]) if pattern.endswith("*") else column == pattern


def _definition_like(column: Any, pattern: str) -> Any:
    """`name:revision` is one revision, `name` all of them, `name*` a prefix."""
    if pattern.endswith("*") or ":" in pattern:
        return _like(column, pattern)
    return _begins(column, f"{pattern}:")


def _begins(column: Any, prefix: str) -> Any:
    """Not LIKE: it would not tell upper from lower case in SQLite."""
    return func.substr(column, 1, len(prefix)) == prefix
