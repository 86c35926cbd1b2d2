"""Outputs of pods that are gone: the last part of each, and of all of them the youngest."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Protocol

# Nobody reads more of one log than this; it keeps a runaway job from pushing out all others.
OUTPUT_BYTES_MAX = 16 * 1024**2
# A laptop's disk has this much to spare.
ALL_BYTES_MAX = 2 * 1024**3
# What a file takes on disk at least.
BLOCK_BYTES = 4096


class Outputs(Protocol):
    """All calls but `has` block, so they are made on a thread; they raise OSError while there is no room or no way."""

    def open(self) -> None:
        """Find again what is kept."""
        ...

    def has(self, pod: str) -> bool:
        """Whether its output was put away, as far as that is known here without asking."""
        ...

    def keep(self, pod: str, output: Path) -> None:
        """Take a file over, or its last part, for good: it is gone from where it was. Nothing is done if there is none."""
        ...

    def read(self, pod: str, offset: int, limit: int) -> tuple[bytes, int] | None:
        """Up to `limit` bytes from `offset` (negative: from the end) and the next offset; None: it is not here.

        Offsets are those of the whole output, even where its first part was dropped.
        """
        ...

    def close(self) -> None: ...


class OutputFiles:
    """A directory of files, for the services of one machine."""

    def __init__(
        self,
        directory: Path,
        *,
        output_bytes_max: int = OUTPUT_BYTES_MAX,
        all_bytes_max: int = ALL_BYTES_MAX,
    ) -> None:
        self._directory = directory
        self._output_bytes_max = output_bytes_max
        self._all_bytes_max = all_bytes_max
        self._all_bytes = 0

    def open(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        self._all_bytes = sum(_taken(size) for _, size, _ in self._files())

    def has(self, pod: str) -> bool:
        return self._file(pod).exists()

    def keep(self, pod: str, output: Path) -> None:
        kept = self._file(pod)
        if not output.exists():
            return
        kept.parent.mkdir(exist_ok=True)
        dropped = output.stat().st_size - self._output_bytes_max
        if dropped > 0:
            self._keep_end(output, kept, dropped)
        else:
            os.replace(output, kept)
        self._all_bytes += _taken(kept.stat().st_size)
        if self._all_bytes > self._all_bytes_max:
            self._drop_oldest()

    def read(self, pod: str, offset: int, limit: int) -> tuple[bytes, int] | None:
        kept = self._file(pod)
        try:
            dropped = int(kept.with_suffix(".dropped").read_text())
        except FileNotFoundError:
            dropped = 0
        return read_part(kept, offset, limit, dropped=dropped)

    def close(self) -> None:
        """Files need no end."""

    def _keep_end(self, output: Path, kept: Path, dropped: int) -> None:
        partial = kept.with_suffix(".new")
        with output.open("rb") as source, partial.open("wb") as target:
            source.seek(dropped)
            shutil.copyfileobj(source, target)
        kept.with_suffix(".dropped").write_text(str(dropped))
        os.replace(partial, kept)
        output.unlink()

    def _drop_oldest(self) -> None:
        """Make room with a margin, so that this long look is rare."""
        self._all_bytes = 0
        room = self._all_bytes_max * 0.8
        for _, size, file in sorted(self._files(), reverse=True):
            if self._all_bytes + _taken(size) <= room:
                self._all_bytes += _taken(size)
            else:
                room = 0
                file.unlink(missing_ok=True)
                file.with_suffix(".dropped").unlink(missing_ok=True)

    def _files(self) -> list[tuple[float, int, Path]]:
        """Age, size and place of every output."""
        found: list[tuple[float, int, Path]] = []
        for folder in os.scandir(self._directory):
            for entry in os.scandir(folder.path) if folder.is_dir() else ():
                if entry.name.endswith(".log"):
                    status = entry.stat()
                    found.append((status.st_mtime, status.st_size, Path(entry.path)))
        return found

    def _file(self, pod: str) -> Path:
        # Split by the first two digits of the job id: a flat folder of 100,000 is slow to list.
        return self._directory / pod[:2] / f"{pod}.log"


def _taken(size: int) -> int:
    return max(size, BLOCK_BYTES)


def read_part(file: Path, offset: int, limit: int, *, dropped: int = 0) -> tuple[bytes, int] | None:
    """Up to `limit` bytes from `offset` (negative: from the end), and the next offset."""
    try:
        with file.open("rb") as source:
            size = dropped + os.fstat(source.fileno()).st_size
            first = max(dropped, size + offset if offset < 0 else min(offset, size))
            source.seek(first - dropped)
            part = source.read(limit)
    except FileNotFoundError:
        return None
    return part, first + len(part)
