"""A file that grows and whose last part stays on disk: what is read of it goes by offsets in the whole.

The file keeps its length as its beginning is dropped (a hole), so whoever takes it over finds its last bytes
where they belong.
"""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

from airflow_eksbatch.cluster.outputs import OUTPUT_BYTES_MAX, read_part


class GrowingFile:
    """All calls block, so they are made on a thread; any thread may."""

    def __init__(self, path: Path, *, kept_bytes: int = OUTPUT_BYTES_MAX) -> None:
        self._path = path
        self._kept_bytes = kept_bytes
        self._dropped = 0
        self._lock = threading.Lock()

    def append(self, part: bytes) -> None:
        """Twice of what is kept may lie on disk, so that a byte is copied once at most."""
        with self._lock:
            with self._path.open("ab") as target:
                target.write(part)
                size = target.tell()
            if size - self._dropped >= 2 * self._kept_bytes:
                self._drop(size - self._kept_bytes)

    def read(self, offset: int, limit: int) -> tuple[bytes, int] | None:
        """Up to `limit` bytes from `offset` (negative: from the end), and the next offset; None: it was taken away."""
        with self._lock:
            try:
                size = self._path.stat().st_size
            except FileNotFoundError:
                return None
            first = max(self._dropped, size + offset if offset < 0 else offset)
            return read_part(self._path, first, limit)

    def _drop(self, first: int) -> None:
        partial = self._path.with_suffix(".cut")
        with self._path.open("rb") as source, partial.open("wb") as target:
            source.seek(first)
            target.seek(first)
            shutil.copyfileobj(source, target)
        os.replace(partial, self._path)
        self._dropped = first
