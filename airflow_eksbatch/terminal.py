"""What the commands stand on: a client of the service, and tables for people at a terminal or a pipe."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from http import HTTPStatus
from typing import Any, NoReturn

import msgspec

from airflow_eksbatch.endpoint import (
    ACCESS_DENIED,
    ANNOUNCEMENT,
    Endpoint,
    announced,
    default_home,
    is_url,
    named,
    signed_headers,
)
from airflow_eksbatch.service.settings import Settings

Json = dict[str, Any]
OK = 0
COLORS = {"SUCCEEDED": "green", "FAILED": "red", "RUNNING": "cyan", "STARTING": "cyan"}


class Sentence(Exception):
    """What went wrong, for the person at the terminal."""


class Refused(Sentence):
    """The service understood and said no."""


class NotThere(Exception):
    """What was asked for does not exist."""


# ---- talking to a service


class Client:
    """JSON calls to a service: a URL, or the embedded one. Signed when there are keys."""

    TIMEOUT_S = 60

    def __init__(self, given: argparse.Namespace) -> None:
        url = given.endpoint_url or os.environ.get("EKSBATCH_URL")
        if url and not is_url(url):
            said_by = "--endpoint-url" if given.endpoint_url else "EKSBATCH_URL"
            raise Sentence(f"{said_by} must be http://HOST:PORT or https://HOST:PORT, not {url!r}.")
        self.endpoint = _with_key(named(url, os.environ) if url else _embedded())
        self.url = self.endpoint.url

    def get(self, path: str) -> Json:
        return json.loads(b"".join(self.stream(path)))

    def post(self, path: str, body: Json) -> Json:
        return json.loads(b"".join(self.stream(path, json.dumps(body).encode())))

    def pages(
        self, operation: str, key: str, asked: Mapping[str, Any] | None = None
    ) -> Iterator[Json]:
        """Members of all pages of a Batch operation; the next one is asked for when somebody wants more."""
        body = {**(asked or {})}
        while True:
            page = self.post(f"/v1/{operation}", body)
            yield from page[key]
            if not page.get("nextToken"):
                return
            body["nextToken"] = page["nextToken"]

    def stream(self, path: str, body: bytes | None = None) -> Iterator[bytes]:
        """The blocks of an answer; raises Sentence or NotThere for whatever is not one."""
        import http.client
        import urllib.error
        import urllib.request

        url = self.url + path
        try:
            request = urllib.request.Request(url, data=body, headers=self._headers(url, body))
            timeout_s = None if "follow=1" in path else self.TIMEOUT_S
            with urllib.request.urlopen(request, timeout=timeout_s) as reply:
                while block := reply.read1(65_536):
                    yield block
        except urllib.error.HTTPError as error:
            self._raise(error.code, error.headers.get("x-amzn-ErrorType", ""), error.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise Sentence(
                f"No service answers at {self.url} ({reason}). Start one with `eksbatch local`, or "
                "name another by --endpoint-url or EKSBATCH_URL."
            ) from error

    def _headers(self, url: str, body: bytes | None) -> dict[str, str]:
        headers = {"content-type": "application/json"} if body is not None else {}
        method = "GET" if body is None else "POST"
        return signed_headers(self.endpoint, method, url, body or b"", headers)

    def _raise(self, status: int, kind: str, body: bytes) -> NoReturn:
        try:
            message = str(json.loads(body)["message"])
        except (ValueError, KeyError, TypeError):
            message = body.decode(errors="replace")[:200] or f"HTTP status {status}"
        if status == 404 or "does not exist" in message or "not found" in message.lower():
            raise NotThere(message)
        if status == 403 and kind != ACCESS_DENIED:
            message += " Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY to a key of `eksbatch keys create`."
        raise (Refused if status == HTTPStatus.BAD_REQUEST else Sentence)(message)


def _embedded() -> Endpoint:
    found = announced(default_home(os.environ) / ANNOUNCEMENT)
    if found is None:
        raise Sentence(
            "No service is running here. Start one with `eksbatch local` (it knows what ran here before), "
            "or name one by --endpoint-url or EKSBATCH_URL."
        )
    return found


def _with_key(endpoint: Endpoint) -> Endpoint:
    """The key of this shell's environment, unless the service has announced one."""
    region = os.environ.get("EKSBATCH_REGION") or Settings().region
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    key, secret = (os.environ.get(name) for name in names)
    if endpoint.access_key_id or not key or not secret:
        return msgspec.structs.replace(endpoint, region=region)
    return msgspec.structs.replace(
        endpoint, region=region, access_key_id=key, secret_access_key=secret
    )


# ---- showing


def show(given: argparse.Namespace, answer: object, tell: Callable[[], None]) -> int:
    """The answer as JSON if asked so, else for people."""
    if given.json:
        print(json.dumps(answer, indent=2, default=str))
    else:
        tell()
    return OK


def table(heads: str, rows: Sequence[Sequence[object]]) -> None:
    """A table without frames; columns that are empty everywhere are left out."""
    titles = heads.split("|")
    kept = [i for i in range(len(titles)) if not rows or any(str(row[i]) for row in rows)]
    numbers = {i for i in kept if rows and all(is_number(row[i]) for row in rows)}
    cells = [[str(row[i]) for i in kept] for row in rows]
    if sys.stdout.isatty():
        _table_for_eyes([titles[i] for i in kept], cells, [i in numbers for i in kept])
        return
    widths = [
        max(map(len, column)) for column in zip([titles[i] for i in kept], *cells, strict=True)
    ]
    for line in ([titles[i] for i in kept], *cells):
        parts = [
            text.rjust(width) if i in numbers else text.ljust(width)
            for i, text, width in zip(kept, line, widths, strict=True)
        ]
        print("  ".join(parts).rstrip())


def is_number(cell: object) -> bool:
    """Or nothing, in a column of numbers; amounts of money come as text, with their digits."""
    return isinstance(cell, int | float) or re.fullmatch(r"(-?\d+\.\d+)?", str(cell)) is not None


def _table_for_eyes(titles: list[str], rows: list[list[str]], numbers: list[bool]) -> None:
    """As wide as the terminal, with the colours of statuses."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, pad_edge=False, header_style="bold")
    for title, number in zip(titles, numbers, strict=True):
        shown.add_column(title, justify="right" if number else "left", overflow="fold")
    for row in rows:
        shown.add_row(*(Text(text, COLORS.get(text, "")) for text in row))
    console = Console(highlight=False)
    console.print(shown)
    if not rows:
        console.print("none", style="dim")


def when(ms: int | None) -> str:
    return datetime.fromtimestamp(ms / 1000).strftime("%Y-%m-%d %H:%M:%S") if ms else ""


def lasted(row: Json) -> str:
    started, stopped = row.get("startedAt"), row.get("stoppedAt")
    return f"{(stopped - started) / 1000:.1f} s" if started and stopped else ""


def tail(arn: str, mark: str = "/") -> str:
    return arn.rpartition(mark)[2]
