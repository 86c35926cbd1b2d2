"""Nouns with anything in them: strategies made from the fields of the structs, and small ones made by hand."""

from __future__ import annotations

import enum
import functools
import types
import typing
from typing import Any, TypeVar

import msgspec
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from airflow_eksbatch.core.model.job import Attempt, Job, JobEvent, JobId, JobStatus
from airflow_eksbatch.core.model.node import NodeId
from airflow_eksbatch.core.model.retry import AttemptEnd, Cause
from tests.build import NOW, a_job

S = TypeVar("S", bound=msgspec.Struct)
# What both databases keep in a column of text: the API lets nothing else in.
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
SMALL = st.integers(0, 2**31 - 1)


@functools.cache
def any_of(kind: Any) -> SearchStrategy[Any]:
    """Values of a field's type."""
    if kind in (str, int, bytes, bool, float, type(None)):
        plain: dict[Any, SearchStrategy[Any]] = {
            str: TEXT,
            int: SMALL,
            bytes: st.binary(max_size=12),
            bool: st.booleans(),
            float: st.floats(allow_nan=False),
            type(None): st.none(),
        }
        return plain[kind]
    if isinstance(kind, typing.NewType):
        return any_of(kind.__supertype__)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return st.one_of(*map(any_of, arguments))
    if origin is tuple and arguments[-1] is not Ellipsis:
        return st.tuples(*map(any_of, arguments))
    if origin is tuple:
        return st.lists(any_of(arguments[0]), max_size=3).map(tuple)
    if origin is list:
        return st.lists(any_of(arguments[0]), max_size=3)
    if origin is frozenset:
        return st.frozensets(any_of(arguments[0]), max_size=3)
    if origin is dict:
        return st.dictionaries(*map(any_of, arguments), max_size=3)
    if issubclass(kind, enum.Enum):
        return st.sampled_from(list(kind))
    return any_struct(kind)


def any_struct(kind: type[S], **fields: SearchStrategy[Any]) -> SearchStrategy[S]:
    """Structs of a kind with anything in their fields."""
    hints = {field.name: field.type for field in msgspec.structs.fields(kind)}
    return st.builds(kind, **{name: any_of(hint) for name, hint in hints.items()} | fields)


# ---- by hand


def a_live_job(number: int, **fields: Any) -> Job:
    meant: dict[str, Any] = {"seq": number, "created_at": NOW + number} | fields
    return a_job(f"job-{number:06d}", **meant)


def finished(job: Job, *, at: int = NOW, succeeded: bool = True) -> Job:
    """The same job after its end."""
    whole, none = job.runnable, ()
    return msgspec.structs.replace(
        job,
        runnable=none,
        succeeded=whole if succeeded else none,
        failed=none if succeeded else whole,
        stopped_at=at,
    )


def an_attempt(job: Job, number: int = 1, *, index: int = 0, ended: bool = False) -> Attempt:
    return Attempt(
        job_id=job.job_id,
        index=index,
        number=number,
        charged_before=0,
        node_id=NodeId("node"),
        created_at=NOW,
        end=AttemptEnd(cause=Cause.EXITED, exit_code=0) if ended else None,
    )


def an_event(seq: int, job_id: str, status: JobStatus = JobStatus.RUNNABLE) -> JobEvent:
    return JobEvent(
        seq=seq,
        time=NOW + seq,
        job_id=JobId(job_id),
        index=None,
        job_name=job_id,
        job_queue="queue",
        status=status,
    )
