"""Nouns to rows and back; pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
from msgspec.structs import force_setattr

from airflow_eksbatch.core.model.job import Attempt, Job, JobEvent, JobId, JobSpec, JobStatus, Tries
from airflow_eksbatch.core.model.node import Node
from airflow_eksbatch.core.model.ranges import EMPTY, ONE, Ranges
from airflow_eksbatch.core.model.resources import NO_BILL, Bill
from airflow_eksbatch.core.world.books import Entry
from airflow_eksbatch.core.world.changes import NOUNS
from airflow_eksbatch.store.port import AccessKey, Rights

Row = dict[str, Any]


class JobState(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The part of a job that changes, under short names: it is written at every change."""

    pending: Ranges = msgspec.field(name="p", default=EMPTY)
    runnable: Ranges = msgspec.field(name="r", default=EMPTY)
    succeeded: Ranges = msgspec.field(name="s", default=EMPTY)
    failed: Ranges = msgspec.field(name="f", default=EMPTY)
    running: dict[int, int] = msgspec.field(name="n", default_factory=dict)
    tries: dict[int, Tries] = msgspec.field(name="t", default_factory=dict)
    waits_for: frozenset[JobId] = msgspec.field(name="w", default=frozenset())
    matched: dict[JobId, Ranges] = msgspec.field(name="m", default_factory=dict)
    follows: JobId | None = msgspec.field(name="fo", default=None)
    runnable_at: int | None = msgspec.field(name="ra", default=None)
    runnable_again_at: int | None = msgspec.field(name="rb", default=None)
    stop_reason: str | None = msgspec.field(name="sr", default=None)
    first_stop_reason: str | None = msgspec.field(name="sf", default=None)
    child_stops: dict[int, str] = msgspec.field(name="cs", default_factory=dict)
    cancelled_children: Ranges = msgspec.field(name="cc", default=EMPTY)
    terminated_children: Ranges = msgspec.field(name="xc", default=EMPTY)
    cancelled: bool = msgspec.field(name="c", default=False)
    terminated: bool = msgspec.field(name="x", default=False)
    status_reason: str | None = msgspec.field(name="y", default=None)
    started_at: int | None = msgspec.field(name="sa", default=None)
    stopped_at: int | None = msgspec.field(name="so", default=None)
    main_ended: Attempt | None = msgspec.field(name="me", default=None)
    bill: Bill = msgspec.field(name="b", default=NO_BILL)


# Fields of a specification that are equal in many jobs.
_ALIKE = ("queue", "definition", "share", "resources", "pod", "retry")
STATE_FIELDS = JobState.__struct_fields__
_encode = msgspec.msgpack.Encoder().encode
_decode_spec = msgspec.msgpack.Decoder(JobSpec).decode
_decode_state = msgspec.msgpack.Decoder(JobState).decode
attempt_from = msgspec.msgpack.Decoder(Attempt).decode
node_from = msgspec.msgpack.Decoder(Node).decode
event_from = msgspec.msgpack.Decoder(JobEvent).decode


def state_row(job: Job) -> Row:
    """What an update of a job writes; keys are bind names."""
    state = JobState(**{name: getattr(job, name) for name in STATE_FIELDS})
    return {
        "b_job_id": job.job_id,
        "status": _status(job).value,
        "stopped_at": job.stopped_at,
        "state": _encode(state),
        "nano_usd": job.bill.total.nano_usd,
    }


def job_row(job: Job) -> Row:
    """The whole row of a new job."""
    spec, row = job.spec, state_row(job)
    row["job_id"] = row.pop("b_job_id")
    return row | {
        "seq": spec.seq,
        "name": spec.name,
        "queue": spec.queue,
        "definition": spec.definition,
        "share": spec.share,
        "created_at": spec.created_at,
        "token": spec.token,
        "task_key": spec.task_key,
        "spec": _encode(spec),
    }


def _status(job: Job) -> JobStatus:
    """Enough for lists of finished jobs; the status of a live one is told by the world."""
    if job.is_finished:
        return job.end_status
    return JobStatus.PENDING if job.is_array or job.pending else JobStatus.RUNNABLE


def jobs_from(found: Iterable[Sequence[Any]]) -> Iterator[Job]:
    """Jobs from rows of specification and state.

    Many jobs say the same: what is equal is kept once, which halves the memory of a million small ones and is most of it
    where pod properties are long.
    """
    kept: dict[Any, Any] = {}
    nothing: dict[str, str] = {}
    for spec_body, state_body in found:
        spec, state = _decode_spec(spec_body), _decode_state(state_body)
        for name in _ALIKE:
            value = getattr(spec, name)
            first = kept.setdefault(value, value)
            if first is not value:
                force_setattr(spec, name, first)
        for name in ("parameters", "tags"):
            if not getattr(spec, name):
                force_setattr(spec, name, nothing)
        yield _job_from(spec, state)


def _job_from(spec: JobSpec, decoded: JobState) -> Job:
    return Job(
        spec=spec,
        pending=decoded.pending,
        runnable=ONE if decoded.runnable == ONE else decoded.runnable,
        succeeded=decoded.succeeded,
        failed=decoded.failed,
        running=decoded.running,
        tries=decoded.tries,
        waits_for=decoded.waits_for,
        matched=decoded.matched,
        follows=decoded.follows,
        runnable_at=decoded.runnable_at,
        runnable_again_at=decoded.runnable_again_at,
        stop_reason=decoded.stop_reason,
        first_stop_reason=decoded.first_stop_reason,
        child_stops=decoded.child_stops,
        cancelled_children=decoded.cancelled_children,
        terminated_children=decoded.terminated_children,
        cancelled=decoded.cancelled,
        terminated=decoded.terminated,
        status_reason=decoded.status_reason,
        started_at=decoded.started_at,
        stopped_at=decoded.stopped_at,
        main_ended=decoded.main_ended,
        bill=NO_BILL if decoded.bill == NO_BILL else decoded.bill,
    )


def attempt_row(attempt: Attempt) -> Row:
    return {
        "job_id": attempt.job_id,
        "idx": attempt.index,
        "number": attempt.number,
        "live": attempt.end is None,
        "body": _encode(attempt),
    }


def node_row(node: Node) -> Row:
    return {
        "node_id": node.node_id,
        "compute_environment": node.compute_environment,
        "ended_at": node.ended_at,
        "body": _encode(node),
    }


def event_row(event: JobEvent) -> Row:
    return {"seq": event.seq, "time": event.time, "job_id": event.job_id, "body": _encode(event)}


def cost_row(entry: Entry) -> Row:
    account, cost = entry.account, entry.cost
    return {
        "hour": entry.hour,
        "compute_environment": account.compute_environment,
        "market": account.market.value,
        "use_of": account.use.value,
        "queue": account.queue,
        "share": account.share,
        "dag": account.dag,
        "nano_usd": cost.nano_usd,
        "instance_ms": cost.instance_ms,
        "vcpu_ms": cost.vcpu_ms,
    }


def noun_row(kind: str, name: str, noun: msgspec.Struct) -> Row:
    return {"kind": kind, "name": name, "body": _encode(noun)}


def noun_from(kind: str, body: bytes) -> Any:
    return msgspec.msgpack.decode(body, type=NOUNS[kind])


def meta_row(key: str, value: msgspec.Struct | int) -> Row:
    return {"key": key, "body": _encode(value)}


def key_row(key: AccessKey, secret: str) -> Row:
    return {
        "access_key": key.access_key,
        "secret": secret,
        "note": key.note,
        "created_at": key.created_at,
        "role": key.rights.role,
        "queues": ",".join(key.rights.queues),
    }


def key_from(row: Mapping[Any, Any]) -> AccessKey:
    return AccessKey(
        access_key=row["access_key"],
        note=row["note"],
        created_at=row["created_at"],
        rights=rights_from(row),
    )


def rights_from(row: Mapping[Any, Any]) -> Rights:
    """Those of a row from before there were any are all."""
    if "role" not in row:
        return Rights()
    return Rights(role=row["role"], queues=tuple(filter(None, row["queues"].split(","))))
