"""CloudWatch Logs as far as clients of AWS Batch need it, so that they print the output of pods unchanged."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NoReturn

import msgspec

from airflow_eksbatch.api.port import Desk
from airflow_eksbatch.core.model.errors import Rejected
from airflow_eksbatch.core.model.job import Attempt, JobId
from airflow_eksbatch.floor.clock import now_ms

GROUP = "/aws/batch/job"
# AWS's own bounds of one answer.
EVENTS_MAX = 10_000
BYTES_MAX = 1 << 20
STREAMS_MAX = 50
STREAM = re.compile(r"(.{1,64})-([0-9]{1,6})-([0-9]{1,6})", re.DOTALL)
JOB_ID_LENGTH = 36
TOKEN = re.compile(r"([fb])/([0-9]{1,17})")
Answer = dict[str, Any]
Request = Callable[[Desk, bytes], Awaitable[Answer]]


class Group(msgspec.Struct, rename="camel", kw_only=True):
    """Which log group is meant; there is one."""

    log_group_name: str | None = None
    log_group_identifier: str | None = None

    def check(self) -> None:
        name = self.log_group_name or (self.log_group_identifier or "").split(":log-group:")[-1]
        if name.removesuffix(":*") != GROUP:
            missing(f"The log group {name or 'without a name'}", f"Outputs of jobs are in {GROUP}.")


class GetLogEvents(Group, rename="camel", kw_only=True):
    log_stream_name: str
    start_time: int | None = None
    end_time: int | None = None
    next_token: str | None = None
    limit: int | None = None
    start_from_head: bool | None = None


class DescribeLogStreams(Group, rename="camel", kw_only=True):
    log_stream_name_prefix: str = ""
    limit: int | None = None


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """Whole lines of an output, and where they lie in it."""

    lines: Sequence[bytes]
    start: int
    end: int


def missing(what: str, then: str) -> NoReturn:
    raise Rejected(f"{what} does not exist. {then}", "ResourceNotFoundException")


def invalid(message: str) -> NoReturn:
    raise Rejected(message, "InvalidParameterException")


async def get_log_events(desk: Desk, body: bytes) -> Answer:
    """Lines of one attempt's output. All bear the time it started: outputs are kept as they came, without times."""
    asked = decode(body, GetLogEvents)
    asked.check()
    attempt = await attempt_of(desk, asked.log_stream_name)
    direction, position = position_of(asked)
    limit = max(1, min(asked.limit or EVENTS_MAX, EVENTS_MAX))
    if direction == "f":
        part = await lines_from(desk, attempt, position, limit)
    else:
        part = await lines_before(desk, attempt, position, limit)
    at = attempt.started_at or attempt.created_at
    is_asked = (asked.start_time or 0) <= at and (asked.end_time is None or at < asked.end_time)
    events = [
        {
            "timestamp": at,
            "message": line.decode(errors="replace").rstrip("\r\n"),
            "ingestionTime": at,
        }
        for line in (part.lines if is_asked else ())
    ]
    return {
        "events": events,
        "nextForwardToken": f"f/{part.end}",
        "nextBackwardToken": f"b/{part.start}",
    }


async def describe_log_streams(desk: Desk, body: bytes) -> Answer:
    """One stream for each attempt of a job, whose id the prefix begins with."""
    asked = decode(body, DescribeLogStreams)
    asked.check()
    prefix = asked.log_stream_name_prefix
    if len(prefix) < JOB_ID_LENGTH or "\0" in prefix:
        invalid("logStreamNamePrefix must begin with a job id: there is a stream for each attempt.")
    job_id = JobId(prefix[:JOB_ID_LENGTH])
    attempts = await desk.ask(lambda store: store.find_attempts([job_id]))
    limit = max(1, min(asked.limit or STREAMS_MAX, STREAMS_MAX))
    found = [attempt for attempt in attempts if attempt.pod_name.startswith(prefix)]
    return {"logStreams": [stream(desk, attempt) for attempt in found[:limit]]}


def stream(desk: Desk, attempt: Attempt) -> Answer:
    last = attempt.stopped_at or now_ms()
    settings = desk.settings
    place = f"arn:aws:logs:{settings.region}:{settings.account}:log-group:{GROUP}"
    return {
        "logStreamName": attempt.pod_name,
        "arn": f"{place}:log-stream:{attempt.pod_name}",
        "creationTime": attempt.created_at,
        "firstEventTimestamp": attempt.started_at or attempt.created_at,
        "lastEventTimestamp": attempt.started_at or attempt.created_at,
        "lastIngestionTime": last,
        "storedBytes": 0,
    }


# ---- reading


def decode(body: bytes, kind: type[Any]) -> Any:
    try:
        return msgspec.json.decode(body or b"{}", type=kind)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        invalid(f"The request cannot be read: {error}.")


def position_of(asked: GetLogEvents) -> tuple[str, int | None]:
    """Onwards (f) or backwards (b) from an offset; None is the end."""
    if asked.next_token is None:
        return ("f", 0) if asked.start_from_head else ("b", None)
    match = TOKEN.fullmatch(asked.next_token)
    if match is None:
        invalid("nextToken is not one that this service gave: begin without it.")
    return match[1], int(match[2])


async def attempt_of(desk: Desk, name: str) -> Attempt:
    """The attempt whose pod has this name."""
    match = STREAM.fullmatch(name)
    if match is not None and "\0" not in name:
        job_id, index = JobId(match[1]), int(match[2])
        for attempt in await desk.ask(lambda store: store.find_attempts([job_id], [index])):
            if attempt.pod_name == name:
                return attempt
    missing(
        f"The log stream {name!r}",
        "DescribeJobs tells it as container.logStreamName once the job has started.",
    )


async def lines_from(desk: Desk, attempt: Attempt, offset: int | None, limit: int) -> Part:
    """Whole lines after an offset; a last line without an end only once no more can come."""
    start = offset or 0
    found = await desk.read_log(attempt, start, BYTES_MAX)
    output, end = found if found else (b"", start)
    if output:
        # Of a long output the first part is gone: what there is begins later than was asked for.
        start = end - len(output)
    lines = output.splitlines(keepends=True)
    is_full = len(output) >= BYTES_MAX
    is_open = bool(lines) and not lines[-1].endswith((b"\n", b"\r"))
    if is_open and (is_full or attempt.end is None) and not (is_full and len(lines) == 1):
        lines.pop()
    lines = lines[:limit]
    return Part(lines=lines, start=start, end=start + sum(map(len, lines)))


async def lines_before(desk: Desk, attempt: Attempt, end: int | None, limit: int) -> Part:
    """The last lines before an offset, or of all there is."""
    if end is None:
        found = await desk.read_log(attempt, -BYTES_MAX, BYTES_MAX)
        output, end = found if found else (b"", 0)
    else:
        start = max(0, end - BYTES_MAX)
        found = await desk.read_log(attempt, start, end - start) if end else None
        output, until = found if found else (b"", end)
        # Where the first part of a long output is gone, later bytes come instead.
        output = output[: max(0, len(output) - (until - end))]
    start = end - len(output)
    lines = output.splitlines(keepends=True)
    if start > 0 and len(lines) > 1:
        lines = lines[1:]
    lines = lines[-limit:]
    return Part(lines=lines, start=end - sum(map(len, lines)), end=end)


OPERATIONS: dict[str, Request] = {
    "Logs_20140328.GetLogEvents": get_log_events,
    "Logs_20140328.DescribeLogStreams": describe_log_streams,
}
