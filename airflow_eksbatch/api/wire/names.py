"""Names, ARNs and page tokens."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

from airflow_eksbatch.core.model import limits
from airflow_eksbatch.core.model.errors import Rejected
from airflow_eksbatch.core.model.job import JobId

RESOURCE = re.compile(r"[A-Za-z0-9_-]{1,128}")
JOB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
SHARE = re.compile(r"[A-Za-z0-9]{0,255}\*?")
PART = re.compile(r"([^:#]*)([:#])(0|[1-9][0-9]{0,5})")

# Larger than any sequence number, and no database refuses it.
POSITION_MAX = 2**62
NUMBER = re.compile(r"-?[0-9]{1,19}")
Key = tuple[str, int]
"""What lists are ordered by: a name, then a number where names repeat."""
T = TypeVar("T")
LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


def name_of(value: str) -> str:
    """A name, given as name or ARN: what follows the last slash."""
    return value.rsplit("/", 1)[-1] if value.startswith("arn:") else value


def check_name(value: str, what: str) -> str:
    if not RESOURCE.fullmatch(value):
        raise Rejected(
            f"{what} must be 1 to 128 letters, digits, hyphens and underscores, not {value!r}."
        )
    return value


def check_job_name(value: str) -> str:
    if not JOB_NAME.fullmatch(value):
        raise Rejected(
            "jobName must be 1 to 128 letters, digits, hyphens and underscores and begin with a "
            f"letter or digit, not {value!r}."
        )
    return value


def check_namespace(value: str, what: str) -> str:
    """A namespace of Kubernetes that jobs may run in."""
    if not LABEL.fullmatch(value) or value == "default" or value.startswith("kube-"):
        raise Rejected(
            f"{what} must be 1 to 63 small letters, digits and hyphens and be neither default nor "
            f"begin with kube-, not {value!r}: jobs have a namespace of their own."
        )
    return value


def check_tags(tags: dict[str, str] | None) -> dict[str, str]:
    """At most 50; keys up to 128 characters, values up to 256, `aws:` is reserved."""
    tags = tags or {}
    if len(tags) > limits.TAGS_MAX:
        raise Rejected(f"At most {limits.TAGS_MAX} tags are allowed, not {len(tags)}.")
    for key, value in tags.items():
        if not 1 <= len(key) <= 128 or len(value) > 256 or key.lower().startswith("aws:"):
            raise Rejected(
                f"Tag {key!r}: keys have 1 to 128 characters and do not begin with aws:, "
                "values have up to 256."
            )
    return tags


class NamedJob(NamedTuple):
    """What an id names; whether there is such a job is another question."""

    job_id: JobId
    number: int | None = None
    """Of a child of an array, or of a node of a multi-node job; None for the job as a whole."""
    is_node: bool = False


def split_job_id(job_id: str) -> NamedJob:
    """`uuid`, `uuid:index` or `uuid#node`, as id or ARN; with anything else behind the mark it stays whole, and names no job."""
    whole = name_of(job_id)
    match = PART.fullmatch(whole)
    if match is None:
        return NamedJob(JobId(whole))
    return NamedJob(JobId(match[1]), int(match[3]), is_node=match[2] == "#")


def encoded(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decoded(token: str) -> str:
    try:
        return base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)).decode()
    except (binascii.Error, ValueError):
        raise foreign_token() from None


def foreign_token() -> Rejected:
    return Rejected("nextToken is not one that this service gave: begin without it.")


def page_token(position: int) -> str:
    """Opaque to callers."""
    return encoded(f"1.{position}")


def position_of(token: str | None) -> int:
    """Where the next page begins; 0 without a token."""
    if not token:
        return 0
    version, _, position = decoded(token).partition(".")
    if version != "1" or not NUMBER.fullmatch(position) or not 0 <= int(position) <= POSITION_MAX:
        raise foreign_token()
    return int(position)


def page(
    rows: Iterable[T], key: Callable[[T], Key], request: Mapping[str, Any]
) -> tuple[list[T], str | None]:
    """One page of what is all in memory, in the order of its keys, and the token of the next.

    That one begins after the key of this page's last row: callers change and delete what they read, page by page.
    """
    size = max(1, min(request.get("maxResults") or limits.DESCRIBE_MAX, limits.DESCRIBE_MAX))
    token = request.get("nextToken")
    after = key_of(token) if token else None
    left = sorted((row for row in rows if after is None or key(row) > after), key=key)
    chosen = left[:size]
    return chosen, key_token(key(chosen[-1])) if len(left) > size else None


def key_token(key: Key) -> str:
    """Opaque to callers."""
    return encoded(f"2.{key[1]}.{key[0]}")


def key_of(token: str) -> Key:
    """The last row of the page before."""
    version, _, rest = decoded(token).partition(".")
    number, _, name = rest.partition(".")
    if version != "2" or not NUMBER.fullmatch(number):
        raise foreign_token()
    return name, int(number)
