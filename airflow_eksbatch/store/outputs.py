"""Outputs of pods that are gone, in the database: whichever service leads next has them, and their pods may go.

Of each its last part is kept, compressed; of all of them the youngest, as long as the jobs.
"""

from __future__ import annotations

import contextlib
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from sqlalchemy import Connection, Engine, delete, func, select
from sqlalchemy.exc import SQLAlchemyError

from airflow_eksbatch.floor.clock import now_ms
from airflow_eksbatch.store import schema
from airflow_eksbatch.store.sql import Explain, Insert

# Databases are dearer than disks, are backed up and replicated: less than a directory holds.
OUTPUT_BYTES_MAX = 1024**2
ALL_BYTES_MAX = 1024**3
# What a row takes beside its body, generously: it bounds the number of rows, too.
ROW_BYTES = 1024
# So many names are known without asking; what is older is asked for by nobody.
NAMES_MAX = 100_000
TABLE = schema.outputs.c
TAKEN = func.length(TABLE.body) + ROW_BYTES


class StoredOutputs:
    """The `Outputs` of cluster/outputs.py; any thread may call. The database's trouble is an OSError with a sentence.

    `may_keep`: whether this service leads; one that was stopped meanwhile does not know better than the next.
    """

    def __init__(
        self,
        engine: Engine,
        insert: Insert,
        explain: Explain,
        may_keep: Callable[[], bool],
        *,
        output_bytes_max: int = OUTPUT_BYTES_MAX,
        all_bytes_max: int = ALL_BYTES_MAX,
    ) -> None:
        self._engine = engine
        self._insert = insert(schema.outputs).on_conflict_do_nothing()
        self._explain = explain
        self._may_keep = may_keep
        self._output_bytes_max = output_bytes_max
        self._all_bytes_max = all_bytes_max
        self._lock = threading.Lock()
        self._names: dict[str, None] = {}
        self._all_bytes: int | None = None
        """None until the first is kept."""

    def open(self) -> None:
        """Quick, because a service that takes over waits for it; a database that is away now is looked at later."""
        with contextlib.suppress(OSError), self._connection() as connection:
            self._find_names(connection)

    def has(self, pod: str) -> bool:
        return pod in self._names

    def keep(self, pod: str, output: Path) -> None:
        """It is durable when this returns; what is there already stays as it is."""
        if not self._may_keep():
            raise OSError("This service may not lead any more.")
        try:
            with output.open("rb") as source:
                dropped = max(0, output.stat().st_size - self._output_bytes_max)
                source.seek(dropped)
                body = zlib.compress(source.read(self._output_bytes_max))
        except FileNotFoundError:
            return
        row = {"pod": pod, "kept_at": now_ms(), "dropped": dropped, "body": body}
        with self._connection() as connection:
            connection.execute(self._insert, row)
            with self._lock:
                self._names[pod] = None
                if len(self._names) > NAMES_MAX:
                    del self._names[next(iter(self._names))]
                if self._all_bytes is None:
                    self._find_names(connection)
                    self._all_bytes = _sum(connection)
                else:
                    self._all_bytes += len(body) + ROW_BYTES
                if self._all_bytes > self._all_bytes_max:
                    self._drop_oldest(connection)
                    self._all_bytes = _sum(connection)
        output.unlink(missing_ok=True)

    def read(self, pod: str, offset: int, limit: int) -> tuple[bytes, int] | None:
        with self._connection() as connection:
            found = connection.execute(
                select(TABLE.dropped, TABLE.body).where(TABLE.pod == pod)
            ).first()
        if found is None:
            return None
        text = zlib.decompress(found.body)
        size = found.dropped + len(text)
        first = max(found.dropped, size + offset if offset < 0 else min(offset, size))
        part = text[first - found.dropped :][:limit]
        return part, first + len(part)

    def close(self) -> None:
        self._engine.dispose()

    @contextlib.contextmanager
    def _connection(self) -> Iterator[Connection]:
        try:
            with self._engine.connect() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise OSError(self._explain(error)) from error

    def _find_names(self, connection: Connection) -> None:
        youngest = select(TABLE.pod).order_by(TABLE.kept_at.desc()).limit(NAMES_MAX)
        names = list(connection.scalars(youngest))
        self._names = {**dict.fromkeys(reversed(names)), **self._names}

    def _drop_oldest(self, connection: Connection) -> None:
        """Make room with a margin, so that this long look is rare."""
        younger = func.sum(TAKEN).over(order_by=(TABLE.kept_at.desc(), TABLE.pod))
        each = select(TABLE.pod, younger.label("bytes")).subquery()
        too_old = select(each.c.pod).where(each.c.bytes > self._all_bytes_max * 0.8)
        connection.execute(delete(schema.outputs).where(TABLE.pod.in_(too_old)))


def _sum(connection: Connection) -> int:
    """How much there is; PostgreSQL knows the length of a body without reading it."""
    return int(connection.scalar(select(func.sum(TAKEN))) or 0)
