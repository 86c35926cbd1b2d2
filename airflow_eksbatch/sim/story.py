"""What happened in a simulated life, in lines that people read: alike ones are counted, not repeated."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import msgspec

from airflow_eksbatch.core.engine.effects import Outcome
from airflow_eksbatch.core.model import ranges
from airflow_eksbatch.core.model.job import Attempt, Job, JobEvent, JobStatus
from airflow_eksbatch.core.model.node import Node, NodeStatus
from airflow_eksbatch.sim.ledger import Ledger
from airflow_eksbatch.sim.simulator import Simulator

# What happens again within this is the same line.
TOGETHER_S = 60.0
INSTANCE = re.compile(r" \(instance [^)]*\)")
NOT_TOLD = frozenset({JobStatus.SUBMITTED, JobStatus.STARTING})


class Happening(msgspec.Struct, kw_only=True):
    """`text` has a place for the number."""

    text: str
    first_s: float
    last_s: float
    count: int = 0

    @property
    def line(self) -> str:
        begin, end = moment(self.first_s), moment(self.last_s)
        when = begin if begin == end else f"{begin} - {end}"
        return f"{when:<17}  {self.text.format(n=self.count)}"


class Story:
    """Listens from the beginning; `lines` tells what is new."""

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator
        self._happenings: list[Happening] = []
        self._latest: dict[str, Happening] = {}
        self._statuses: dict[str, NodeStatus] = {}
        simulator.listeners.append(self.on_commit)
        simulator.on_start = lambda: self._note("the service is back")

    def lines(self) -> list[str]:
        told = [happening.line for happening in self._happenings]
        self._happenings, self._latest = [], {}
        return told

    def on_commit(self, outcome: Outcome) -> None:
        for event in outcome.changes.events:
            if event.status not in NOT_TOLD:
                self._note(text_of_event(event))
        for node in outcome.changes.nodes:
            before = self._statuses.get(node.node_id)
            self._statuses[node.node_id] = node.status
            text = text_of_node(node, before)
            if text:
                self._note(text)

    def _note(self, text: str) -> None:
        now_s = self._simulator.timeline.elapsed_s
        happening = self._latest.get(text)
        if happening is None or now_s - happening.last_s > TOGETHER_S:
            happening = Happening(text=text, first_s=now_s, last_s=now_s)
            self._happenings.append(happening)
            self._latest[text] = happening
        happening.last_s = now_s
        happening.count += 1


def text_of_event(event: JobEvent) -> str:
    tells_why = event.status_reason and event.status is not JobStatus.SUCCEEDED
    reason = f": {event.status_reason}" if tells_why else ""
    if event.exit_code:
        reason += f" (exit code {event.exit_code})"
    number = "" if event.index is None else " {n} x"
    return f"{plain(event.job_name)}{number} {event.status}{plain(reason)}"


def text_of_node(node: Node, before: NodeStatus | None) -> str | None:
    """None where a step of a node's life is not worth a line."""
    name = plain(f"{node.compute_environment}: ") + "{n} x " + plain(node.offering.instance_type)
    if node.status is before:
        return None
    match node.status:
        case NodeStatus.LAUNCHED:
            return f"{name} launched"
        case NodeStatus.READY:
            return f"{name} ready"
        case NodeStatus.TERMINATING:
            return f"{name} given back: {plain(node.reason or '')}"
        case NodeStatus.GONE if node.launched_at is None:
            code = (node.reason or "").partition(":")[0]
            return f"{plain(node.compute_environment)}: {{n}} launches refused: {plain(code)}"
        case NodeStatus.GONE if before is not NodeStatus.TERMINATING:
            return f"{name} gone: {plain(node.reason or '')}"
        case _:
            return None


def plain(text: str) -> str:
    """Without names of single machines, and safe to be formatted."""
    return INSTANCE.sub("", text).replace("{", "{{").replace("}", "}}")


def moment(seconds: float) -> str:
    """0:01:07, with days as hours."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


# ---- tables


def jobs_table(ledger: Ledger) -> list[str]:
    """All jobs there were, oldest first."""
    shown = (
        JobStatus.PENDING,
        JobStatus.RUNNABLE,
        JobStatus.STARTING,
        JobStatus.RUNNING,
        JobStatus.SUCCEEDED,
        JobStatus.FAILED,
    )
    jobs = {job.job_id: job for job in ledger.found(Job)}
    live = ledger.found(Attempt, live=True)
    placed = Counter((a.job_id, a.status) for a in live if jobs[a.job_id].leads(a.index))
    rows: list[Sequence[object]] = []
    for job in sorted(jobs.values(), key=lambda job: job.spec.seq):
        if job.main_ended is not None:
            placed[job.job_id, JobStatus.RUNNING] = 1
        counts = settled(job)
        for status in (JobStatus.STARTING, JobStatus.RUNNING):
            counts[status] = placed[job.job_id, status]
        rows.append((job.spec.name, job.spec.share, *(counts[status] or "" for status in shown)))
    return columns(("job", "share", *shown), rows)


def settled(job: Job) -> Counter[JobStatus]:
    """How many are not placed; a multi-node job is where its main node is, and has not ended before all nodes have."""
    members = {
        JobStatus.PENDING: job.pending,
        JobStatus.RUNNABLE: job.runnable,
        JobStatus.SUCCEEDED: job.succeeded if job.main_ended is None else ranges.EMPTY,
        JobStatus.FAILED: job.failed if job.main_ended is None else ranges.EMPTY,
    }
    if job.is_multi_node:
        main = ((0, 1),)
        members = {status: ranges.intersect(of, main) for status, of in members.items()}
    return Counter({status: ranges.count(of) for status, of in members.items()})


def nodes_table(ledger: Ledger) -> list[str]:
    """Live nodes, counted by compute environment."""
    shown = (NodeStatus.REQUESTED, NodeStatus.LAUNCHED, NodeStatus.READY, NodeStatus.TERMINATING)
    counts: dict[str, Counter[NodeStatus]] = {}
    vcpus = Counter[str]()
    for node in ledger.found(Node, live=True):
        counts.setdefault(node.compute_environment, Counter())[node.status] += 1
        vcpus[node.compute_environment] += node.offering.vcpus
    rows = [
        (name, vcpus[name], *(of[status] or "" for status in shown))
        for name, of in sorted(counts.items())
    ]
    return columns(("environment", "vCPUs", *shown), rows) if rows else []


def columns(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """The first column to the left, the others to the right; a column that is empty everywhere is left out."""
    kept = [i for i in range(len(heads)) if i == 0 or any(row[i] != "" for row in rows)]
    lines = [[str(line[i]) for i in kept] for line in (heads, *rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(kept))]
    return [
        "  ".join(
            text.rjust(width) if i else text.ljust(width)
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
