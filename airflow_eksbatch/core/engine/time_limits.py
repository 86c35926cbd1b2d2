"""jobStateTimeLimitActions: what has been RUNNABLE for too long, stuck for the same reason, is cancelled.

Queues that have such limits are looked at every minute: AWS calls their times approximate, too. Since when jobs are stuck
is known to the service that runs; after a restart they have the whole time again.
"""

from __future__ import annotations

from airflow_eksbatch.core.engine.on_jobs import stop_job
from airflow_eksbatch.core.engine.turn import Turn
from airflow_eksbatch.core.model import limits
from airflow_eksbatch.core.model.job_queue import JobQueue
from airflow_eksbatch.core.model.node import NodeStatus
from airflow_eksbatch.core.planner.explain_room import may_take, stuck_by
from airflow_eksbatch.core.world.job_class import ClassLine, JobClass
from airflow_eksbatch.core.world.trials import Stuck

CANCELED = "Canceled by JobStateTimeLimit action due to reason: "


def look_for_stuck(turn: Turn, name: str) -> None:
    """One queue: who is stuck, since when, and whose time is over."""
    trials, queue = turn.world.trials, turn.world.queues.get(name)
    if trials.stuck_look_at.get(name, 0) > turn.now:
        return  # It is looked at then: this one is left from an update.
    trials.stuck_look_at.pop(name, None)
    lines = [
        line
        for line in turn.world.lines.values()
        if line.job_class.queue == name and line.count and queue and queue.time_limits
    ]
    classes = {line.job_class for line in lines}
    for job_class in [c for c in trials.stuck if c.queue == name and c not in classes]:
        del trials.stuck[job_class]
    if queue is None or not queue.time_limits:
        return
    for line in lines:
        note_stuck(turn, queue, line.job_class)
        cancel_overdue(turn, queue, line)
    trials.stuck_look_at[name] = turn.now + limits.STUCK_LOOK_S * 1000
    turn.world.wake_at(trials.stuck_look_at[name], "stuck", name)


def note_stuck(turn: Turn, queue: JobQueue, job_class: JobClass) -> None:
    """A pool that is asked once more is no end of the wait; an instance that was granted is, and so is a second look."""
    stuck, known = turn.world.trials.stuck, turn.world.trials.stuck.get(job_class)
    reason = stuck_by(turn.world, job_class, turn.now)
    if reason is not None:
        if known is None or known.reason != reason:
            stuck[job_class] = Stuck(reason=reason, since=turn.now)
        elif known.paused:
            stuck[job_class] = Stuck(reason=reason, since=known.since)
    elif known is not None:
        granted = any(
            node.status is not NodeStatus.REQUESTED
            and may_take(turn.world, queue, node, job_class.shape, job_class.where)
            for node in turn.world.nodes.values()
        )
        if granted or known.paused:
            del stuck[job_class]
        else:
            stuck[job_class] = Stuck(reason=known.reason, since=known.since, paused=True)


def cancel_overdue(turn: Turn, queue: JobQueue, line: ClassLine) -> None:
    """Jobs that have waited for the whole time of their reason, since they last became RUNNABLE.

    Of an array that is all that waits, and its time begins when the last of it came: nothing is cancelled too early.
    """
    stuck = turn.world.trials.stuck.get(line.job_class)
    if stuck is None or stuck.paused:
        return
    for limit in queue.time_limits:
        before = turn.now - limit.max_time_s * 1000
        if limit.reason != stuck.reason or stuck.since > before:
            continue
        left = limits.ENDS_PER_BEAT_MAX  # the others at the next look
        for job in line.first(left, turn.world.jobs):
            if left > 0 and job.last_runnable_at <= before:
                left -= job.spec.size
                members, text = range(job.spec.size), CANCELED + limit.reason
                stop_job(turn, job, members, text, terminate=False)
