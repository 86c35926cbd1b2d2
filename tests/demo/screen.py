"""Progress on the terminal: a live panel for people, a line every few seconds for logs."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

Json = dict[str, Any]
LINE_EVERY_S = 5.0
LIVE = ("PENDING", "RUNNABLE", "STARTING", "RUNNING")


def clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


class Screen:
    """Notes stay, progress is drawn over itself."""

    def __init__(self) -> None:
        self.console = Console(highlight=False, soft_wrap=True)
        self._began = time.monotonic()
        self._live: Live | None = None
        self._next_line = 0.0

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._began

    def note(self, sentence: str) -> None:
        self.console.print(f"[dim]{clock(self.elapsed_s):>5}[/dim]  {sentence}")

    def __enter__(self) -> Screen:
        if self.console.is_terminal:
            self._live = Live(console=self.console, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def show(self, progress: Progress) -> None:
        if self._live is not None:
            self._live.update(progress.panel(self.elapsed_s))
        elif self.elapsed_s >= self._next_line:
            self._next_line = self.elapsed_s + LINE_EVERY_S
            self.note(progress.line())


class Progress:
    """What to draw: runs, jobs by status, instances by compute environment, expected end."""

    def __init__(self, summary: Json, *, runs: tuple[int, int], jobs: int, since_s: float) -> None:
        self.jobs = summary["jobs"]
        self.environments = summary["compute_environments"]
        self.runs = runs
        self.expected_jobs = jobs
        self.left_s = self._left_s(since_s)

    def _left_s(self, since_s: float) -> float | None:
        """At the pace so far; nothing is said before a tenth is done."""
        done = self.jobs["SUCCEEDED"] / self.expected_jobs
        return since_s / done * (1 - done) if done > 0.1 else None

    def line(self) -> str:
        counts = ", ".join(f"{self.jobs[one]} {one}" for one in LIVE if self.jobs[one])
        done = f"{self.jobs['SUCCEEDED']} of {self.expected_jobs} jobs done"
        failed = f", {self.jobs['FAILED']} FAILED" if self.jobs["FAILED"] else ""
        machines = "; ".join(
            f"{e['computeEnvironment']} {_instances(e)}" for e in self.environments
        )
        return (
            f"{self.runs[0]} of {self.runs[1]} runs; {done}{failed}; {counts or 'nothing waits'}; "
            f"{machines}; {self._end()}"
        )

    def _end(self) -> str:
        return "" if self.left_s is None else f"expected end in {clock(self.left_s)}"

    def panel(self, elapsed_s: float) -> Group:
        table = Table.grid(padding=(0, 2))
        table.add_row("runs", _bar(*self.runs), f"{self.runs[0]} of {self.runs[1]} months")
        done = self.jobs["SUCCEEDED"]
        table.add_row("jobs", _bar(done, self.expected_jobs), f"{done} of {self.expected_jobs}")
        table.add_row("", "", "  ".join(f"{one} {self.jobs[one]}" for one in (*LIVE, "FAILED")))
        for one in self.environments:
            used, most = float(one["vcpus"]), float(one["maxvCpus"])
            table.add_row(one["computeEnvironment"], _bar(used, most), _instances(one))
        return Group(Text(""), table, Text(f"elapsed {clock(elapsed_s)}  {self._end()}"))


def _bar(done: float, total: float) -> ProgressBar:
    return ProgressBar(total=total, completed=done, width=40)


def _instances(environment: Json) -> str:
    number = sum(environment["instances"].values())
    vcpus = f"{environment['vcpus']:g} of {environment['maxvCpus']:g} vCPUs"
    return f"{number} instance{'' if number == 1 else 's'} ({vcpus})"
