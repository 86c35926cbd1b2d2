"""List, then watch: everything of one kind, kept up to date whatever happens to connection or API server.

A watch goes on where the last one ended (resourceVersion, moved on by bookmarks). When the API server does not
remember that place any more (410 Gone: a long gap, a compaction, a restart) everything is listed again.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

import msgspec

from airflow_eksbatch.cluster.kube.connection import ApiError, Connection, Query
from airflow_eksbatch.cluster.kube.objects import Metadata
from airflow_eksbatch.cluster.port import ClusterDown
from airflow_eksbatch.floor.clock import Backoff

T = TypeVar("T")
# One page of a list: large answers cost memory on both sides.
PAGE = 1000
# The API server ends a watch after about this long; all at once would be a burst of new ones.
WATCH_S = (240, 480)
PAUSE = Backoff(first_s=0.1, most_s=10.0)
# A watch that ends sooner and has said nothing is trouble, though it ended well.
SHORT_S = 1.0
HTTP_GONE = 410


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """ADDED, MODIFIED or DELETED, with the object as it is (or last was)."""

    type: str
    object: msgspec.Raw


class _Meta(msgspec.Struct, frozen=True, rename="camel"):
    resource_version: str = ""
    continue_: str = msgspec.field(name="continue", default="")


class _Bookmark(msgspec.Struct):
    metadata: _Meta = _Meta()


class _Failure(msgspec.Struct):
    code: int = 0
    reason: str = ""
    message: str = ""


class _Page(msgspec.Struct):
    metadata: _Meta
    items: list[msgspec.Raw] = []


class _Expired(Exception):
    """The API server does not know any more what happened since then."""


_read_event = msgspec.json.Decoder(Event).decode
_read_page = msgspec.json.Decoder(_Page).decode
_read_bookmark = msgspec.json.Decoder(_Bookmark).decode
_read_failure = msgspec.json.Decoder(_Failure).decode


class Receiver(msgspec.Struct, Generic[T], frozen=True):
    """Who wants to know: `listed` gets everything there is, `changed` what is put (True) or dropped (False)."""

    listed: Callable[[list[T]], None]
    changed: Callable[[list[tuple[bool, T]]], None]


class ListWatch(Generic[T]):
    """Everything under one path of an API server, for ever."""

    def __init__(
        self,
        connection: Connection,
        path: str,
        kind: type[T],
        receiver: Receiver[T],
        *,
        query: Query,
        tell_trouble: Callable[[str, int], None],
    ) -> None:
        self._connection = connection
        self._path = path
        self._read: Callable[[msgspec.Raw], T] = msgspec.json.Decoder(kind).decode
        self._receiver = receiver
        self._query = dict(query)
        self._tell_trouble = tell_trouble
        self._version: str | None = None
        self.failures = 0
        """In a row; 0 while all is well."""

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                if self._version is None:
                    self._version = await self._list()
                await self._watch()
            except _Expired:
                self._version = None
            except (ApiError, ClusterDown) as error:
                if isinstance(error, ApiError) and error.status not in (429, 500, 503):
                    self._version = None
                await self._pause(error)

    async def _list(self) -> str:
        """Page by page; the place in time that all pages show."""
        found: list[T] = []
        query: dict[str, str | int] = {**self._query, "limit": PAGE}
        while True:
            try:
                page = _read_page(await self._connection.get(self._path, query))
            except ApiError as error:
                if error.status == HTTP_GONE:
                    raise _Expired from error
                raise
            found += self._objects(page.items)
            if not page.metadata.continue_:
                break
            query["continue"] = page.metadata.continue_
        self._receiver.listed(found)
        self.failures = 0
        return page.metadata.resource_version

    async def _watch(self) -> None:
        query = {
            **self._query,
            "watch": 1,
            "resourceVersion": self._version or "",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": random.randint(*WATCH_S),
        }
        began, rest, has_said = time.monotonic(), b"", False
        async for chunk in self._connection.stream(self._path, query):
            *lines, rest = (rest + chunk).split(b"\n")
            if lines:
                self._receive(lines)
                has_said = True
        if not has_said and time.monotonic() - began < SHORT_S:
            raise ClusterDown("the watch ended at once")
        self.failures = 0

    def _receive(self, lines: list[bytes]) -> None:
        """What came together is told together."""
        changes: list[tuple[bool, T]] = []
        version = self._version
        for line in lines:
            event = _read_event(line)
            if event.type == "ERROR":
                failure = _read_failure(event.object)
                if failure.code == HTTP_GONE:
                    raise _Expired
                raise ApiError(failure.code, failure.reason, failure.message)
            version = _read_bookmark(event.object).metadata.resource_version or version
            if event.type != "BOOKMARK":
                is_put = event.type != "DELETED"
                changes += [(is_put, object) for object in self._objects([event.object])]
        if changes:
            self._receiver.changed(changes)
        self._version = version
        self.failures = 0

    def _objects(self, raw: list[msgspec.Raw]) -> Iterator[T]:
        """One object that cannot be read must not hide all others."""
        for one in raw:
            try:
                yield self._read(one)
            except msgspec.MsgspecError as error:
                self._tell_trouble(f"{self._path}: an object cannot be read: {error}", 1)

    async def _pause(self, error: Exception) -> None:
        self.failures += 1
        self._tell_trouble(f"{self._path}: {error}", self.failures)
        pause_s = PAUSE.after(self.failures) * random.uniform(0.5, 1.5)
        told_s = error.retry_after_s if isinstance(error, ApiError) else 0.0
        await asyncio.sleep(max(pause_s, told_s))


def name_of(metadata: Metadata) -> str:
    """What tells objects of one kind apart in a cluster."""
    return f"{metadata.namespace}/{metadata.name}"
