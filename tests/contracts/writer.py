"""A process to be killed: commits job after job with all that belongs to it, and says each number once it is kept.

python -m tests.contracts.writer DATABASE-URL
"""

from __future__ import annotations

import sys

from airflow_eksbatch.core.world.changes import Changes, Counters, Totals
from airflow_eksbatch.service.settings import Settings
from airflow_eksbatch.service.wiring import make_store
from airflow_eksbatch.store.port import JobQuery, Store
from tests.contracts.nouns import a_live_job, an_attempt, an_event, finished

MOST = 10_000
"""More than anybody lets it write."""


def changes(number: int) -> Changes:
    """Job `number` begins, the one before it ends."""
    job, before = a_live_job(number), a_live_job(number - 1)
    return Changes(
        jobs_added=[job],
        jobs=[finished(before)] if number > 1 else [],
        attempts=[an_attempt(job), an_attempt(before, ended=True)],
        events=[an_event(number, job.job_id)],
        totals=Totals(jobs=number),
        counters=Counters(job_seq=number, event_seq=number),
    )


def check(store: Store, *, at_least: int) -> None:
    """All jobs up to some number are there, whole, and this number is not less than was said."""
    snapshot = store.load()
    last = snapshot.counters.job_seq
    assert last >= at_least, f"{at_least} was acknowledged, {last} is there"
    assert snapshot.totals.jobs == snapshot.counters.event_seq == last
    assert [job.spec.seq for job in snapshot.jobs] == [last]
    assert [attempt.job_id for attempt in snapshot.attempts] == [snapshot.jobs[0].job_id]
    listed = [job.spec.seq for job in store.list_jobs(JobQuery(limit=MOST))]
    assert listed == list(range(last, 0, -1))
    assert [event.seq for event in store.events_since(0, MOST)] == list(range(1, last + 1))


def main(url: str) -> None:
    store = make_store(Settings(database=url))
    store.open()
    first = store.load().counters.job_seq + 1
    for number in range(first, MOST):
        store.commit(changes(number))
        print(number, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
