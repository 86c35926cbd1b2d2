"""The process of a pod: its directory, its start, its life and its end.

A pod's directory holds `pod.json` (what was asked), `run` (the supervising script), `log` (output),
`work` (the processes' working directory), and later `pid` (the script's, its process group and
session), `exit` (the codes), `signal` (the last one we sent), `host` (its instance was ended).

The output is locked (flock) before the start, and the lock passes to the processes with their
standard output: it is free exactly when none of them is left, whatever happened to the service.
Recovery, with nobody else at work in the directory:
- `.new-*` was never a pod and `.old-*` is one no more: removed.
- `exit` is complete: it ended so.
- lock free, no `pid`: it never began, and nobody was told of it: removed, so it can be created.
- lock free, `pid`: it ended without a record: killed by us if `signal` says so, else lost.
- lock held: it runs. `pid` is the script's if its command line names this directory; if it is not,
  the script was killed alone, and what is left of its group is killed too.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from airflow_eksbatch.cluster.containers import (
    Container,
    end_of,
    read_codes,
    script_of,
)
from airflow_eksbatch.core.model.job import PodName
from airflow_eksbatch.core.model.node import NodeId
from airflow_eksbatch.core.model.retry import AttemptEnd, Cause, exited, host_ended

SHELL = "/bin/sh"
NEW, OLD = ".new-", ".old-"
LOST = "Pod was lost: its processes are gone and left no exit code"
NOT_BEGUN = "Pod could not begin: its directory cannot be written"
# Where no pidfd is to be had (macOS, or no file descriptors left) ends are looked for this often.
POLL_S = 0.2


class PodRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked, as `pod.json` keeps it."""

    pod: PodName
    compute_environment: str
    node_id: NodeId
    created_at: int
    programs: dict[str, str]
    """Container label -> what it runs, init containers first."""
    names: dict[str, str] = {}
    """Container label -> what podProperties call it."""

    @property
    def has_inits(self) -> bool:
        return "i0" in self.programs


class PodDirectory:
    """The files of one pod. Small reads and writes, made wherever they are needed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, name: str) -> str | None:
        try:
            return (self.path / name).read_text(errors="replace")
        except FileNotFoundError:
            return None

    def note(self, name: str, text: str) -> None:
        """A full disk must not keep us from killing what runs."""
        with contextlib.suppress(OSError):
            (self.path / name).write_text(text)

    def written_at(self, name: str) -> int | None:
        """When a file was written, in epoch milliseconds."""
        try:
            return (self.path / name).stat().st_mtime_ns // 1_000_000
        except FileNotFoundError:
            return None

    def record(self) -> PodRecord:
        return msgspec.json.decode((self.path / "pod.json").read_bytes(), type=PodRecord)

    def pid(self) -> int | None:
        text = self.read("pid")
        return int(text) if text and text.endswith("\n") else None

    def is_released(self) -> bool:
        """Whether no process of the pod is left."""
        with (self.path / "log").open("rb") as log:
            try:
                fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        return True

    def end(self, record: PodRecord) -> AttemptEnd | None:
        """How it ended by its own record."""
        codes = read_codes(self.read("exit") or "")
        if codes is None:
            return None
        not_started = frozenset((self.read("not-started") or "").split())
        return end_of(codes, record.programs, not_started, record.names)

    def end_without_record(self, status: int | None) -> AttemptEnd:
        """How it ended when the script could not say; `status` is the script's, if it was ours."""
        instance_id, sent = self.read("host"), self.read("signal")
        if instance_id:
            return AttemptEnd(cause=Cause.PLATFORM, status_reason=host_ended(instance_id))
        if sent:
            return exited(128 + int(sent))
        if status is not None and os.WIFSIGNALED(status):
            return exited(128 + os.WTERMSIG(status))
        began = self.pid() is not None
        return AttemptEnd(cause=Cause.PLATFORM, status_reason=LOST if began else NOT_BEGUN)

    def remove(self) -> None:
        """First it is no pod any more, then its files go."""
        old = self.path.with_name(OLD + self.path.name)
        os.rename(self.path, old)
        shutil.rmtree(old, ignore_errors=True)


def begin(
    pods: Path, record: PodRecord, containers: tuple[Container, ...], environ: Mapping[str, str]
) -> int:
    """Make the pod's directory and start it; returns the script's pid. Raises OSError."""
    directory = PodDirectory(pods / record.pod)
    new = pods / (NEW + record.pod)
    shutil.rmtree(new, ignore_errors=True)
    (new / "work").mkdir(parents=True)
    (new / "pod.json").write_bytes(msgspec.json.encode(record))
    (new / "run").write_text(script_of(containers, directory.path), encoding="utf-8")
    log = os.open(new / "log", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    try:
        fcntl.flock(log, fcntl.LOCK_EX)
        os.rename(new, directory.path)
        try:
            return _spawn(str(directory.path / "run"), log, environ)
        except OSError:
            directory.remove()
            raise
    finally:
        os.close(log)


def _spawn(script: str, log: int, environ: Mapping[str, str]) -> int:
    """A session of its own, so that signals reach all of it; Python's ignored signals are reset."""
    return os.posix_spawn(
        SHELL,
        [SHELL, script],
        environ,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, log, 1),
            (os.POSIX_SPAWN_DUP2, log, 2),
        ],
        setsid=True,
        setsigmask=[],
        setsigdef=[signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGHUP],
    )


def is_script(pid: int, directory: PodDirectory) -> bool | None:
    """Whether this process is the pod's script; None when there is no such process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        return False
    script = str(directory.path / "run")
    with contextlib.suppress(FileNotFoundError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
        # A zombie has no command line; nothing but a kernel thread could be mistaken for it.
        return not words or os.fsencode(script) in words.split(b"\0")
    ps = ["ps", "-ww", "-o", "command=", "-p", str(pid)]
    return script in subprocess.run(ps, capture_output=True, text=True, check=False).stdout


def signal_group(pid: int, number: int) -> None:
    """To the script and all that it started and that did not leave its session."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def _reap(pid: int) -> int | None:
    """The exit status of a child of ours that has ended."""
    try:
        ended, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return None
    return status if ended else None


OnEnd = Callable[[int | None], None]


class ProcessEnds:
    """Tells when processes end, with their status if they are ours: by pidfd, else by looking."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._pidfds: dict[int, int] = {}
        self._polled: dict[int, OnEnd] = {}
        self._poll: asyncio.Task[None] | None = None

    def watch(self, pid: int, on_end: OnEnd) -> None:
        """Call `on_end` once, never before this returns."""
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            self._loop.call_soon(on_end, None)
        except (AttributeError, OSError):
            self._polled[pid] = on_end
            if self._poll is None or self._poll.done():
                self._poll = asyncio.create_task(self._look(), name="process-ends")
        else:
            self._pidfds[pid] = pidfd
            self._loop.add_reader(pidfd, self._ended, pid, on_end)

    def close(self) -> None:
        for pidfd in self._pidfds.values():
            self._loop.remove_reader(pidfd)
            os.close(pidfd)
        self._pidfds.clear()
        if self._poll is not None:
            self._poll.cancel()

    def _ended(self, pid: int, on_end: OnEnd) -> None:
        pidfd = self._pidfds.pop(pid)
        self._loop.remove_reader(pidfd)
        os.close(pidfd)
        on_end(_reap(pid))

    async def _look(self) -> None:
        while self._polled:
            for pid in list(self._polled):
                status = _reap(pid)
                if status is not None or not _is_there(pid):
                    self._polled.pop(pid)(status)
            await asyncio.sleep(POLL_S)


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True
