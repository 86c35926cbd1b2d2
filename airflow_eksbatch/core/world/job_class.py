"""Job classes: what is alike for planning is counted, not listed."""

from __future__ import annotations

from bisect import insort
from collections.abc import Mapping

import msgspec

from airflow_eksbatch.core.model import ranges
from airflow_eksbatch.core.model.job import Job, JobId, JobSpec
from airflow_eksbatch.core.model.resources import Resources


class JobClass(msgspec.Struct, frozen=True, kw_only=True):
    """All that can change where and when a job runs. A field the planner reads must be here."""

    queue: str
    share: str
    priority: int
    shape: Resources


def class_of(spec: JobSpec) -> JobClass:
    """The class of a job."""
    return JobClass(
        queue=spec.queue, share=spec.share, priority=spec.priority, shape=spec.resources
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

    def head_seq(self, jobs: Mapping[JobId, Job]) -> int | None:
        """Age of the oldest job in line, or None."""
        job = self.head(jobs)
        return None if job is None else job.spec.seq

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

    def seq_behind(self, taken: int, jobs: Mapping[JobId, Job]) -> int | None:
        """Age of the oldest job once `taken` indices are gone; None when that empties the line."""
        if taken >= self.count:
            return None
        if len(self._entries) - self._start == self.count:
            return self._entries[self._start + taken][0]
        for seq, job_id in self._entries[self._start :]:
            job = jobs.get(job_id)
            taken -= ranges.count(job.runnable) if job is not None else 0
            if taken < 0:
                return seq
        return self.head_seq(jobs)

    def _compact(self) -> None:
        if self._start > 1024 and self._start * 2 > len(self._entries):
            del self._entries[: self._start]
            self._start = 0
