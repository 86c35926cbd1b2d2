"""Who waits for whom: plain, SEQUENTIAL and N_TO_N dependencies."""

from __future__ import annotations

from airflow_eksbatch.core.model import ranges
from airflow_eksbatch.core.model.job import DependencyType, Job, JobId, JobSpec
from airflow_eksbatch.core.model.ranges import EMPTY, Ranges


def is_sequential(spec: JobSpec) -> bool:
    return any(entry.type is DependencyType.SEQUENTIAL for entry in spec.depends_on)


def awaited_wholes(spec: JobSpec) -> list[JobId]:
    """Jobs that must succeed as a whole before any index may run."""
    return [entry.job_id for entry in spec.depends_on if entry.type is DependencyType.PLAIN]


def awaited(job: Job) -> set[JobId]:
    """Everybody whose end, or whose children's ends, it may have to hear of."""
    found = {*job.waits_for, *(entry.job_id for entry in job.spec.depends_on if entry.job_id)}
    if job.follows is not None:
        found.add(job.follows)
    return found


def awaited_pairs(spec: JobSpec) -> list[JobId]:
    """Arrays whose child i must succeed before our child i may run."""
    return [entry.job_id for entry in spec.depends_on if entry.type is DependencyType.N_TO_N]


def ready_indices(job: Job) -> Ranges:
    """Pending indices that nothing holds back any more."""
    if job.waits_for or job.follows is not None or not job.pending:
        return EMPTY
    ready = job.pending
    for members in job.matched.values():
        ready = ranges.intersect(ready, members)
    if is_sequential(job.spec):
        first = job.pending[0][0]
        may_go = first == 0 or ranges.contains(job.succeeded, first - 1)
        ready = ranges.intersect(ready, ((first, first + 1),)) if may_go else EMPTY
    return ready


def doomed_indices(job: Job, awaited: JobId | None, failed: Ranges) -> Ranges:
    """Pending indices that can never run once `failed` indices of `awaited` (None: the job itself) failed."""
    if awaited is None:
        if not is_sequential(job.spec) or not failed:
            return EMPTY
        first = min(start for start, _ in failed)
        return ranges.intersect(job.pending, ((first + 1, max(first + 1, job.spec.size)),))
    if awaited in job.matched:
        return ranges.intersect(job.pending, failed)
    return job.pending
