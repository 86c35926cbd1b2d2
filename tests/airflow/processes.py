"""Child processes of a test: own session, output to a file, ended by their own ids and with what they started."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import psutil

POLL_S = 0.1
Answer = TypeVar("Answer")


class Gone(Exception):
    """A child ended, or did not come up in time; the message carries the end of its log."""


class Child:
    """One process in a session of its own: Ctrl-C reaches only who started it, and that one ends it."""

    def __init__(
        self, name: str, command: Sequence[str], *, env: Mapping[str, str], log: Path, cwd: Path
    ) -> None:
        self.name = name
        self.log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                env=dict(env),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.process = psutil.Process(self._process.pid)

    @property
    def pid(self) -> int:
        return self._process.pid

    def check(self) -> None:
        """Raise Gone if it has ended, which it never should by itself."""
        if (code := self._process.poll()) is not None:
            raise Gone(f"{self.name} ended with exit code {code}:\n{self.last_lines()}")

    def last_lines(self, count: int = 25) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-count:])

    def wait(self) -> int:
        return self._process.wait()


def stop_children(children: Iterable[Child], grace_s: float = 15.0) -> None:
    """End them and everything they started."""
    children = list(children)
    stop_all([child.process for child in children], grace_s)
    for child in children:
        child.wait()


def stop_all(processes: Sequence[psutil.Process], grace_s: float = 15.0) -> None:
    """End these and everything they started: politely, then not. psutil knows a reused pid."""
    family = [one for process in processes for one in _with_descendants(process)]
    for process in processes:
        _signal(process.terminate)
    _, stubborn = psutil.wait_procs(list(processes), timeout=grace_s)
    left = [one for one in (*family, *stubborn) if one.is_running()]
    for process in left:
        _signal(process.kill)
    psutil.wait_procs(left, timeout=grace_s)


def _with_descendants(process: psutil.Process) -> list[psutil.Process]:
    try:
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _signal(send: Callable[[], None]) -> None:
    try:
        send()
    except psutil.NoSuchProcess:
        return


def wait_for(
    what: str,
    look: Callable[[], Answer | None],
    *,
    within_s: float,
    children: Sequence[Child] = (),
    poll_s: float = POLL_S,
) -> Answer:
    """The first answer that is not None, False or empty; a child that ends ends the wait at once."""
    until = time.monotonic() + within_s
    while True:
        if answer := look():
            return answer
        for child in children:
            child.check()
        if time.monotonic() > until:
            ends = "\n".join(f"--- {one.name}:\n{one.last_lines()}" for one in children)
            raise Gone(f"waited {within_s:.0f} s for {what}\n{ends}")
        time.sleep(poll_s)
