"""Job classes: what is alike for planning is counted, not listed."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping

import msgspec

from airflow_eksbatch.core.model import ranges
from airflow_eksbatch.core.model.job import Job, JobId, JobSpec
from airflow_eksbatch.core.model.resources import Resources
from airflow_eksbatch.core.world.where import Where, where_of


class JobClass(msgspec.Struct, frozen=True, kw_only=True):
    """All that can change where and when a job runs. A field the planner reads must be here."""

    queue: str
    share: str
    priority: int
    shape: Resources
    where: Where | None = None
    """Which nodes it may run on; None for any."""
    nodes: int = 0
    """So many nodes each of them needs at once, all of one pool and to itself; 0 for what is no multi-node job."""
    turned_away: bool = False
    """Kubelets refused them on several nodes: they are tried again now and then (world/trials.py)."""

    @property
    def without_refusals(self) -> JobClass:
        """The class they had before."""
        return msgspec.structs.replace(self, turned_away=False) if self.turned_away else self


def class_of(spec: JobSpec, *, on_demand: bool, turned_away: bool = False) -> JobClass:
    """The class of a job."""
    return JobClass(
        queue=spec.queue,
        share=spec.share,
        priority=spec.priority,
        shape=spec.resources,
        where=where_of(spec.tags, on_demand=on_demand),
        nodes=spec.multi_node.nodes if spec.multi_node is not None else 0,
        turned_away=turned_away,
    )


class ClassLine:
    """The runnable jobs of one class, oldest first.

    A retried job keeps its place by age, so it comes back near the front (AWS puts retries at the front).
    """

    def __init__(self, job_class: JobClass) -> None:
        self.job_class = job_class
        self.count = 0
        """Runnable indices in this class."""
        self._entries: list[tuple[int, JobId]] = []
        self._start = 0
        self._members: set[JobId] = set()

    @property
    def jobs(self) -> int:
        """How many jobs people see in that: a multi-node one is one."""
        return self.count // max(1, self.job_class.nodes)

    def enter(self, job: Job) -> None:
        """Put a job with runnable indices in line; one that stands there already keeps its place."""
        if job.job_id in self._members:
            return
        self._members.add(job.job_id)
        entry = (job.spec.seq, job.job_id)
        if not self._entries or entry > self._entries[-1]:
            self._entries.append(entry)
        else:
            insort(self._entries, entry, lo=self._start)

    def remove(self, job: Job) -> None:
        """It is of another class now. (Who only has nothing runnable is dropped on the way instead.)"""
        if job.job_id in self._members:
            self._members.discard(job.job_id)
            entry = (job.spec.seq, job.job_id)
            del self._entries[bisect_left(self._entries, entry, lo=self._start)]

    def head(self, jobs: Mapping[JobId, Job]) -> Job | None:
        """The oldest job with a runnable index; those that left are dropped on the way."""
        while self._start < len(self._entries):
            job_id = self._entries[self._start][1]
            job = jobs.get(job_id)
            if job is not None and job.runnable:
                return job
            self._members.discard(job_id)
            self._start += 1
            self._compact()
        return None

    def first(self, number: int, jobs: Mapping[JobId, Job]) -> list[Job]:
        """The oldest jobs in line, at most `number`."""
        self.head(jobs)
        found: list[Job] = []
        for _, job_id in self._entries[self._start :]:
            job = jobs.get(job_id)
            if job is not None and job.runnable:
                found.append(job)
            if len(found) >= number:
                break
        return found

    def standing(self) -> list[JobId]:
        """Everybody in line, oldest first, with those that left and were not passed yet."""
        return [job_id for _, job_id in self._entries[self._start :]]

    def ahead_of(self, seq: int, jobs: Mapping[JobId, Job], look_at: int) -> int:
        """Runnable jobs older than this age; only the first `look_at` jobs in line are looked at."""
        self.head(jobs)
        stop = min(bisect_left(self._entries, (seq,), lo=self._start), self._start + look_at)  # type: ignore[arg-type]
        ahead = (jobs.get(job_id) for _, job_id in self._entries[self._start : stop])
        indices = sum(ranges.count(job.runnable) for job in ahead if job is not None)
        return indices // max(1, self.job_class.nodes)

    def _compact(self) -> None:
        if self._start > 1024 and self._start * 2 > len(self._entries):
            del self._entries[: self._start]
            self._start = 0


class Lines(dict[JobClass, ClassLine]):
    """Who waits, by class; an empty line goes, so that classes of the past cost nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.on_demand_only: set[JobId] = set()
        """Jobs that Spot has taken often enough."""
        self.turned_away: set[JobId] = set()

    def class_of(self, job: Job) -> JobClass:
        job_id = job.job_id
        return class_of(
            job.spec,
            on_demand=job_id in self.on_demand_only,
            turned_away=job_id in self.turned_away,
        )

    def line_of(self, job: Job) -> ClassLine:
        """The line its runnable indices stand in."""
        job_class = self.class_of(job)
        line = self.get(job_class)
        if line is None:
            line = self[job_class] = ClassLine(job_class)
        return line

    def enter(self, job: Job, number: int) -> None:
        """So many more of its indices stand in line."""
        if number:
            line = self.line_of(job)
            line.count += number
            line.enter(job)

    def leave(self, job: Job, number: int) -> None:
        """So many left its line."""
        if number:
            line = self.line_of(job)
            line.count -= number
            if not line.count:
                del self[line.job_class]

    def change_class(self, job: Job, alike: set[JobId], *, joins: bool) -> None:
        """It joins or leaves a set that its class depends on, and changes lines at its place by age."""
        if (job.job_id in alike) != joins:
            waiting = ranges.count(job.runnable)
            self.leave(job, waiting)
            # Also where it has nothing runnable now: it would stand there again with what becomes runnable later.
            if (line := self.get(self.class_of(job))) is not None:
                line.remove(job)
            if joins:
                alike.add(job.job_id)
            else:
                alike.discard(job.job_id)
            self.enter(job, waiting)

    def forget(self, job_id: JobId) -> None:
        self.on_demand_only.discard(job_id)
        self.turned_away.discard(job_id)


class LineWalk:
    """A plan's way along a line: it takes and sees who is next, and the line stays as it is."""

    def __init__(self, line: ClassLine, jobs: Mapping[JobId, Job]) -> None:
        self.line = line
        self.taken = 0
        self._jobs = jobs
        line.head(jobs)
        self._position = line._start  # pyright: ignore[reportPrivateUsage]
        self._entries = line._entries  # pyright: ignore[reportPrivateUsage]
        self._taken_here = 0

    def seq(self) -> int | None:
        """Age of the oldest job that is left, or None."""
        if self.taken >= self.line.count:
            return None
        while not self._left_here():
            self._position += 1
            self._taken_here = 0
        return self._entries[self._position][0]

    @property
    def job(self) -> Job:
        """Whose age that is."""
        assert self.seq() is not None, "nobody is left"
        return self._jobs[self._entries[self._position][1]]

    def advance(self, number: int) -> None:
        """Take so many, oldest first."""
        self.taken += number
        if self.taken >= self.line.count:
            return
        while number:
            here = min(number, self._left_here())
            self._taken_here += here
            number -= here
            if number:
                self._position += 1
                self._taken_here = 0

    def _left_here(self) -> int:
        job = self._jobs.get(self._entries[self._position][1])
        if job is None:
            return 0
        members = job.runnable
        number = members[0][1] - members[0][0] if len(members) == 1 else ranges.count(members)
        return number - self._taken_here
