"""Flight recorder: the facts and effects of every beat as JSON lines, when asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from airflow_eksbatch.core.engine.effects import Effect
from airflow_eksbatch.core.engine.facts import Fact


class Recorder:
    """Two files, the newer one first: when it is full it takes the place of the older one."""

    def __init__(self, path: Path, bytes_max: int) -> None:
        self._path = path
        self._bytes_max = bytes_max
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab")

    def record(self, now: int, facts: Sequence[Fact], effects: Sequence[Effect]) -> None:
        line = {"now": now, "facts": _named(facts), "effects": _named(effects)}
        self._file.write(msgspec.json.encode(line) + b"\n")
        if self._file.tell() > self._bytes_max:
            self._turn_over()

    def close(self) -> None:
        self._file.close()

    def _turn_over(self) -> None:
        self._file.close()
        self._path.replace(self._path.with_name(self._path.name + ".1"))
        self._file = self._path.open("ab")


def _named(members: Sequence[Fact | Effect]) -> list[tuple[str, Fact | Effect]]:
    return [(type(member).__name__, member) for member in members]
