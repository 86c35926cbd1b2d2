"""How an index moves through its life, and what its end means for others."""

from __future__ import annotations

import msgspec

from airflow_eksbatch.core.engine.setbacks import watch_spot
from airflow_eksbatch.core.engine.turn import News, Turn
from airflow_eksbatch.core.model import dependencies, limits, ranges
from airflow_eksbatch.core.model.job import (
    Attempt,
    Job,
    JobId,
    JobStatus,
    Tries,
    ended,
    pod_name,
)
from airflow_eksbatch.core.model.node import Node
from airflow_eksbatch.core.model.ranges import Ranges
from airflow_eksbatch.core.model.retry import (
    CONTAINER_EXITED,
    DEPENDENCY_FAILED,
    AttemptEnd,
    Cause,
    Verdict,
    decide_retry,
)

CHILD_FAILED = "Array Child Job failed"
MAIN_NODE_ENDED = "The main node of its multi-node parallel job has ended"


def start_attempt(turn: Turn, job: Job, index: int, node: Node) -> None:
    """An index drawn from RUNNABLE goes to a node."""
    before = job.tries.get(index, Tries())
    attempt = Attempt(
        job_id=job.job_id,
        index=index,
        number=before.placed + 1,
        charged_before=before.charged,
        waited_before=before.waited,
        node_id=node.node_id,
        node_name=node.node_name or "",
        created_at=turn.now,
    )
    turn.world.add_attempt(attempt, job.spec.resources, turn.now)
    if job.leads(index):
        turn.world.totals.retries += before.placed > before.waited
        turn.tell(job, JobStatus.STARTING, index=index, attempt=attempt)
    turn.create_pod(attempt, job, node)


def end_attempt(turn: Turn, attempt: Attempt, end: AttemptEnd, at: int) -> None:
    """An attempt is over: run the index again, or settle it."""
    job = turn.world.jobs[attempt.job_id]
    if not end.status_reason:
        end = msgspec.structs.replace(end, status_reason=CONTAINER_EXITED)
    verdict = judge(attempt, end, job)
    attempt.end = end
    # A start and an end are read from two clocks; a life never ends before it began.
    attempt.stopped_at = max(at, attempt.started_at or 0)
    attempt.charged = verdict.charged and job.leads(attempt.index)
    attempt.status = JobStatus.SUCCEEDED if end.succeeded else JobStatus.FAILED
    turn.world.end_attempt(attempt, turn.now)
    watch_idleness(turn, attempt)
    if job.is_multi_node:
        end_node(turn, job, attempt, at)
    elif verdict.again:
        run_again(turn, job, attempt, verdict)
    else:
        job.tries.pop(attempt.index, None)
        members = ((attempt.index, attempt.index + 1),)
        settle(
            turn,
            job,
            members,
            succeeded=end.succeeded,
            reason=end.status_reason,
            attempt=attempt,
        )


# ---- multi-node jobs


def end_node(turn: Turn, job: Job, attempt: Attempt, at: int) -> None:
    """With its main node the job ends, or is tried again, as soon as no other of its nodes runs any more.

    Another node's end is its own affair (AWS), unless it never began: then the main node would wait for it in vain.
    """
    assert attempt.end is not None
    job.tries.pop(attempt.index, None)
    if attempt.end.succeeded:
        job.succeeded = ranges.add(job.succeeded, attempt.index)
    else:
        job.failed = ranges.add(job.failed, attempt.index)
    turn.world.note_job(job)
    main = turn.main_of(job)
    if attempt.index == 0:
        job.main_ended = attempt
        stop_other_nodes(turn, job, attempt, at)
    elif main is not None and main.stopping is None and not has_run(attempt):
        cause = Cause.PLATFORM if attempt.end.cause is Cause.WAITING else attempt.end.cause
        note_stop(turn, main, msgspec.structs.replace(attempt.end, cause=cause))
        turn.delete_pod(main)
    if job.main_ended is not None and not job.running:
        conclude(turn, job, job.main_ended)


def stop_other_nodes(turn: Turn, job: Job, main: Attempt, at: int) -> None:
    """Before the main node runs their pods are not asked for: then there is nothing to stop."""
    for index, number in sorted(job.running.items()):
        attempt = turn.world.attempts[pod_name(job.job_id, index, number)]
        if main.address:
            stop_attempt(turn, attempt, Cause.STOPPED, MAIN_NODE_ENDED)
        else:
            end = AttemptEnd(cause=Cause.STOPPED, status_reason=MAIN_NODE_ENDED)
            end_attempt(turn, attempt, end, at)


def has_run(attempt: Attempt) -> bool:
    """A short life may be told by its end alone."""
    has_exited = attempt.end is not None and attempt.end.exit_code is not None
    return attempt.started_at is not None or has_exited


def conclude(turn: Turn, job: Job, main: Attempt) -> None:
    """No node runs any more: all of them together again, or never."""
    assert main.end is not None
    job.main_ended = None
    verdict = judge(main, main.end, job)
    if verdict.again:
        job.succeeded = job.failed = ranges.EMPTY
        run_again(turn, job, main, verdict)
    else:
        turn.world.totals.succeeded += main.end.succeeded
        turn.world.totals.failed += not main.end.succeeded
        finish(turn, job, main.end.status_reason, main)


def judge(attempt: Attempt, end: AttemptEnd, job: Job) -> Verdict:
    """Whether it runs again; nothing does that the caller has stopped."""
    if end.succeeded or job.stop_reason is not None:
        return Verdict(again=False, charged=True)
    free = attempt.number - 1 - attempt.charged_before - attempt.waited_before
    return decide_retry(
        job.spec.retry,
        end,
        charged_before=attempt.charged_before,
        free_left=free < limits.FREE_RETRIES_MAX,
    )


def run_again(turn: Turn, job: Job, attempt: Attempt, verdict: Verdict) -> None:
    """Back to RUNNABLE, in its old place by age."""
    charged = attempt.charged_before + verdict.charged
    waits = attempt.end is not None and attempt.end.cause is Cause.WAITING
    waited = attempt.waited_before + waits
    tries = Tries(placed=attempt.number, charged=charged, waited=waited)
    one = ((attempt.index, attempt.index + 1),)
    members = ranges.whole(job.spec.size) if job.is_multi_node else one
    job.tries.update(dict.fromkeys(ranges.indices(members), tries))
    turn.world.totals.free_retries += not (verdict.charged or waits)
    watch_spot(turn, job)
    job.runnable_again_at = turn.now
    turn.world.make_runnable(job, members)
    reason = attempt.end.status_reason if attempt.end else None
    turn.tell(job, JobStatus.RUNNABLE, index=attempt.index, reason=reason, attempt=attempt)


def watch_idleness(turn: Turn, attempt: Attempt) -> None:
    """Look again when the node it left has been empty for its grace."""
    node = turn.world.nodes.get(attempt.node_id)
    if node is not None and node.idle_since is not None:
        turn.wake_in(turn.idle_s(node), "idle", node.node_id)


def release_ready(turn: Turn, job: Job) -> None:
    """Make runnable what nothing holds back any more.

    Children get no event of their own here: ten thousand would say what the parent's one says.
    """
    ready = dependencies.ready_indices(job)
    if not ready:
        return
    if job.runnable_at is None:
        job.runnable_at = turn.now
    else:
        job.runnable_again_at = turn.now
    turn.world.make_runnable(job, ready)
    if not job.is_array:
        turn.tell(job, JobStatus.RUNNABLE)


def settle(
    turn: Turn,
    job: Job,
    members: Ranges,
    *,
    succeeded: bool,
    reason: str | None,
    attempt: Attempt | None = None,
) -> None:
    """These indices, in no set at the moment, are finished; the last one finishes the job."""
    status = JobStatus.SUCCEEDED if succeeded else JobStatus.FAILED
    number = 1 if job.is_multi_node else ranges.count(members)
    totals = turn.world.totals
    if succeeded:
        job.succeeded = ranges.union(job.succeeded, members)
        totals.succeeded += number
    else:
        job.failed = ranges.union(job.failed, members)
        totals.failed += number
    turn.world.note_job(job)
    if job.is_array:
        for index in ranges.indices(members):
            turn.tell(job, status, index=index, reason=reason, attempt=attempt)
        turn.news.append(News(job=job, members=members, succeeded=succeeded))
    if job.is_finished and job.stopped_at is None:
        finish(turn, job, reason, attempt)


def follow_indices(turn: Turn, job: Job, members: Ranges, succeeded: bool) -> None:
    """SEQUENTIAL siblings and N_TO_N partners of finished indices go on, or fail with them."""
    if dependencies.is_sequential(job.spec):
        if succeeded:
            release_ready(turn, job)
        else:
            fail_pending(turn, job, dependencies.doomed_indices(job, None, members))
    for partner_id in sorted(turn.world.dependents.get(job.job_id, ())):
        partner = turn.world.jobs.get(partner_id)
        if partner is None or job.job_id not in partner.matched:
            continue
        if succeeded:
            partner.matched[job.job_id] = ranges.union(partner.matched[job.job_id], members)
            turn.world.note_job(partner)
            release_ready(turn, partner)
        else:
            doomed = dependencies.doomed_indices(partner, job.job_id, members)
            fail_pending(turn, partner, doomed)


def fail_pending(turn: Turn, job: Job, members: Ranges) -> None:
    """Pending indices fail because what they wait for did."""
    if members:
        job.pending = ranges.minus(job.pending, members)
        settle(turn, job, members, succeeded=False, reason=DEPENDENCY_FAILED)


def finish(turn: Turn, job: Job, reason: str | None, attempt: Attempt | None) -> None:
    """Every index is settled: the job as a whole has ended and leaves the world."""
    job.stopped_at = max(turn.now, job.started_at or 0)
    if job.is_array:
        reason = job.stop_reason or (CHILD_FAILED if job.failed else None)
        attempt = None
    job.status_reason = reason
    turn.tell(job, job.end_status, reason=reason, attempt=attempt)
    has_succeeded = job.end_status is JobStatus.SUCCEEDED
    turn.news.append(News(job=job, members=None, succeeded=has_succeeded))


def wake_dependents(turn: Turn) -> None:
    """Tell everybody who waits of all that has ended, until nothing more follows.

    A worklist and no recursion: a chain of dependencies may be longer than any stack.
    """
    while turn.news:
        news = turn.news.popleft()
        if news.members is not None:
            follow_indices(turn, news.job, news.members, news.succeeded)
            continue
        waiting = sorted(turn.world.dependents.get(news.job.job_id, ()))
        leave(turn, news.job)
        for dependent_id in waiting:
            dependent = turn.world.jobs.get(dependent_id)
            if dependent is None:
                continue
            if news.job.job_id == dependent.follows:
                follow_earlier_try(turn, dependent)
            if news.job.job_id in dependent.waits_for:
                follow_whole(turn, dependent, news.job.job_id, news.succeeded)


def leave(turn: Turn, job: Job) -> None:
    """A finished job leaves the world; facts of the same step may still ask for it."""
    turn.world.remove_job(job)
    turn.ended[job.job_id] = ended(job)
    if job.spec.token:
        turn.ended_by_token[job.spec.token] = job.job_id


def follow_earlier_try(turn: Turn, later: Job) -> None:
    """Whatever became of it, it does not run any more."""
    later.follows = None
    turn.world.note_job(later)
    release_ready(turn, later)


def follow_whole(turn: Turn, dependent: Job, awaited: JobId, succeeded: bool) -> None:
    """One plain dependency has ended."""
    dependent.waits_for = dependent.waits_for - {awaited}
    turn.world.note_job(dependent)
    if succeeded:
        release_ready(turn, dependent)
    else:
        fail_pending(turn, dependent, dependent.pending)


def stop_attempt(turn: Turn, attempt: Attempt, cause: Cause, reason: str) -> None:
    """Ask the cluster to end an attempt; the first reason given stays."""
    if attempt.stopping is None:
        note_stop(turn, attempt, AttemptEnd(cause=cause, status_reason=reason))
    turn.delete_pod(attempt)


def note_stop(turn: Turn, attempt: Attempt, end: AttemptEnd) -> None:
    """From now on this is how it ends."""
    attempt.stopping, attempt.stop_asked_at = end, turn.now
    turn.world.note_attempt(attempt)
