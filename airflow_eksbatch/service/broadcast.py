"""Committed events as lines of the event stream, batched, for any number of subscribers."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import msgspec

from airflow_eksbatch.api.wire.shapes import event_wire
from airflow_eksbatch.core.model.job import JobEvent
from airflow_eksbatch.floor.clock import within

Line = dict[str, Any]


class StreamSettings(msgspec.Struct, frozen=True, kw_only=True):
    batch_s: float = 0.05
    """Events wait this long for company: 1,000 jobs a second are 20 lines, not 1,000."""
    heartbeat_s: float = 5.0
    behind_max: int = 20_000
    """Events a subscriber may be behind in memory; beyond that it reads on from the store."""
    page: int = 2_000


class History(msgspec.Struct, frozen=True, kw_only=True):
    """How to read what was told before: both run on the store's thread."""

    events_since: Callable[[int, int], Awaitable[list[JobEvent]]]
    first_seq: Callable[[], Awaitable[int]]


class _Subscriber:
    """What one reader has not read yet; `lagging` when it must fetch that from the store."""

    def __init__(self, cursor: int) -> None:
        self.cursor = cursor
        self.waiting: deque[JobEvent] = deque()
        self.lagging = False
        self.woken = asyncio.Event()

    def give(self, events: Sequence[JobEvent], behind_max: int) -> None:
        if self.lagging or len(self.waiting) + len(events) > behind_max:
            self.lagging = True
            self.waiting.clear()
        else:
            self.waiting.extend(events)
        self.woken.set()

    def take(self) -> list[JobEvent]:
        """Everything new to this reader; what the store told it already is left out."""
        self.woken.clear()
        events = [event for event in self.waiting if event.seq > self.cursor]
        self.waiting.clear()
        return events


class Broadcast:
    """Events go out only after their commit; a reader that is slow costs memory up to a bound, never an event."""

    def __init__(self, settings: StreamSettings, history: History) -> None:
        self._settings = settings
        self._history = history
        self._subscribers: set[_Subscriber] = set()
        self._closed = False
        self.last_seq = 0

    def start_at(self, seq: int) -> None:
        """The newest event of the world that was just loaded."""
        self.last_seq = seq

    def publish(self, events: Sequence[JobEvent]) -> None:
        if not events:
            return
        self.last_seq = max(self.last_seq, events[-1].seq)
        for subscriber in self._subscribers:
            subscriber.give(events, self._settings.behind_max)

    def close(self) -> None:
        """End all streams; their readers connect again with their cursor."""
        self._closed = True
        for subscriber in self._subscribers:
            subscriber.woken.set()

    @property
    def subscribers(self) -> int:
        return len(self._subscribers)

    async def subscribe(self, cursor: int) -> AsyncIterator[Line]:
        """Lines of GET /v1/eksbatch/events: hello, then what was missed, then what happens."""
        subscriber = _Subscriber(self.last_seq if cursor < 0 else cursor)
        self._subscribers.add(subscriber)
        try:
            yield await self._hello(subscriber)
            while not self._closed:
                async for line in self._live(subscriber):
                    yield line
                if subscriber.lagging and "gap" in (line := await self._hello(subscriber)):
                    yield line
        finally:
            self._subscribers.discard(subscriber)

    async def _hello(self, subscriber: _Subscriber) -> Line:
        """Where the stream stands; a cursor that is no longer kept (or never was given out) has a gap."""
        last = self.last_seq
        subscriber.lagging = subscriber.cursor < last
        if subscriber.cursor > last:
            subscriber.cursor = last
            return {"hello": last, "gap": True}
        if subscriber.lagging:
            first = await self._history.first_seq()
            if not 0 < first <= subscriber.cursor + 1:
                subscriber.cursor, subscriber.lagging = last, False
                return {"hello": last, "gap": True}
        return {"hello": last}

    async def _live(self, subscriber: _Subscriber) -> AsyncIterator[Line]:
        """Batches and heartbeats until the subscriber falls behind."""
        if subscriber.lagging:
            async for line in self._missed(subscriber):
                yield line
        while not self._closed and not subscriber.lagging:
            events = subscriber.take()
            if events:
                yield _line(subscriber, events)
                await asyncio.sleep(self._settings.batch_s)
                continue
            if not await within(self._settings.heartbeat_s, subscriber.woken):
                yield {"seq": subscriber.cursor}

    async def _missed(self, subscriber: _Subscriber) -> AsyncIterator[Line]:
        """Read on from the store until nothing is left; from then on memory has everything."""
        while not self._closed:
            subscriber.lagging = False
            events = await self._history.events_since(subscriber.cursor, self._settings.page)
            if not events:
                return
            yield _line(subscriber, events)


def _line(subscriber: _Subscriber, events: Sequence[JobEvent]) -> Line:
    subscriber.cursor = events[-1].seq
    return {
        "seq": subscriber.cursor,
        "events": [event_wire(event) for event in events],
    }
