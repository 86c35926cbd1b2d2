"""Between a client and an API server: passes everything on, or does what a bad network and a busy server do.

with Proxy(plane) as proxy:
    service --kubeconfig proxy.kubeconfig("eksbatch")
    proxy.faults = Faults(cut_every=10)
"""

from __future__ import annotations

import asyncio
import itertools
import random
import ssl
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakSet

import aiohttp
import yaml
from aiohttp import web
from yarl import URL

from tests.airflow.rig import free_port
from tests.kubernetes.rig.control_plane import LOOPBACK, ControlPlane

START_S, CLOSE_S, HELD_S = 30.0, 0.1, 0.02
# Of one connection (RFC 9110, 7.6.1); the next one writes its own.
OF_THE_CONNECTION = frozenset({"connection", "keep-alive", "transfer-encoding", "host"})
CUTS = ("ended", "broken", "torn")


@dataclass(frozen=True)
class Asked:
    """A request: its method, and what of it (`pods`, `log`, `nodes`, ...)."""

    method: str
    what: str
    is_watch: bool

    @property
    def is_write(self) -> bool:
        return self.method not in ("GET", "HEAD")


@dataclass(frozen=True)
class Answer:
    """What is answered instead of the API server, as it words it."""

    status: int
    reason: str
    retry_after_s: int = 0

    def send(self) -> web.Response:
        body: dict[str, Any] = {
            "kind": "Status",
            "apiVersion": "v1",
            "status": "Failure",
            "message": f"{self.reason}, says the rig",
            "reason": self.reason,
            "code": self.status,
        }
        headers = {"Retry-After": str(self.retry_after_s)} if self.retry_after_s else {}
        return web.json_response(body, status=self.status, headers=headers)


BUSY = Answer(429, "TooManyRequests", retry_after_s=1)


@dataclass(frozen=True)
class Faults:
    """What is wrong now; by default nothing."""

    latency_s: tuple[float, float] = (0.0, 0.0)
    """Each way of each request, and of what a watch says, takes some time between these."""
    cut_every: int = 0
    """A watch is over after so many events: in turns it ends, breaks, or is torn within the next event."""
    instead: Callable[[Asked], Answer | None] = lambda asked: None
    """Answered so, and never passed on."""
    lost: Callable[[Asked], Answer | None] = lambda asked: None
    """Passed on and done, but this is answered."""
    holds_answers: bool = False
    """What is written is passed on and done, and answered when this is over."""


class Proxy:
    """In a thread of its own, with the certificate of the API server behind it."""

    def __init__(self, plane: ControlPlane) -> None:
        self.faults = Faults()
        self.asked: Counter[Asked] = Counter()
        """Every request that came."""
        self.cuts: Counter[str] = Counter()
        """Watches that were cut, by the way it was done."""
        self._plane = plane
        self._port = free_port()
        self._transports: WeakSet[asyncio.Transport] = WeakSet()
        self._ways = itertools.cycle(CUTS)
        self._stopping: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="proxy")

    def __enter__(self) -> Proxy:
        self._thread.start()
        assert self._ready.wait(START_S), "the proxy did not start"
        return self

    def __exit__(self, *_: object) -> None:
        assert self._loop is not None
        assert self._stopping is not None
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()

    def kubeconfig(self, identity: str) -> Path:
        """As the control plane's own, by way of this proxy."""
        direct = self._plane.kubeconfig(identity)
        config = yaml.safe_load(direct.read_text())
        for cluster in config["clusters"]:
            cluster["cluster"]["server"] = f"https://{LOOPBACK}:{self._port}"
        path = direct.with_name(f"{identity}-{self._port}.kubeconfig")
        path.touch(mode=0o600)
        path.write_text(yaml.safe_dump(config))
        return path

    def count(self, method: str, what: str) -> int:
        return sum(
            n for one, n in list(self.asked.items()) if (one.method, one.what) == (method, what)
        )

    # -- in the thread --

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        one = self._plane.identities
        incoming = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        incoming.load_cert_chain(one.certificate, one.key)
        outgoing = ssl.create_default_context(cafile=str(one.certificate))
        app = web.Application(client_max_size=2**24)
        app.router.add_route("*", "/{path:.*}", self._answer)
        connector = aiohttp.TCPConnector(limit=0, ssl=outgoing)
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(
            connector=connector, timeout=timeout, auto_decompress=False
        ) as self._http:
            runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
            await runner.setup()
            await web.TCPSite(
                runner, LOOPBACK, self._port, ssl_context=incoming, backlog=1024
            ).start()
            self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
            self._ready.set()
            await self._stopping.wait()
            # Also those that nobody answers any more; TLS ends in the loop's next turns.
            for transport in self._transports:
                transport.abort()
            await runner.cleanup()
        await asyncio.sleep(CLOSE_S)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if request.transport is not None:
            self._transports.add(request.transport)
        asked = _read(request)
        self.asked[asked] += 1
        faults = self.faults
        await _pass_time(faults)
        answer = faults.instead(asked)
        if answer is not None:
            return answer.send()
        try:
            async with self._pass_on(request, await request.read()) as there:
                if asked.is_watch and there.status == 200:
                    return await self._stream(request, there)
                body = await there.read()
        except (aiohttp.ClientError, OSError):
            # It cannot be reached: nor can we.
            return _break(request, web.Response())
        await _pass_time(faults)
        while asked.is_write and self.faults.holds_answers:
            await asyncio.sleep(HELD_S)
        answer = faults.lost(asked)
        if answer is not None:
            return answer.send()
        return web.Response(status=there.status, headers=_headers(there.headers), body=body)

    def _pass_on(self, request: web.Request, body: bytes) -> Any:
        url = URL(f"{self._plane.url}{request.raw_path}", encoded=True)
        headers = _headers(request.headers)
        return self._http.request(request.method, url, headers=headers, data=body or None)

    async def _stream(
        self, request: web.Request, there: aiohttp.ClientResponse
    ) -> web.StreamResponse:
        """A watch, event by event."""
        here = web.StreamResponse(status=there.status, headers=_headers(there.headers))
        await here.prepare(request)
        passed = 0
        async for event in _late(_lines(there), lambda: self.faults):
            faults = self.faults
            if faults.cut_every and passed >= faults.cut_every:
                return await self._cut(request, here, event)
            await here.write(event)
            passed += 1
        await here.write_eof()
        return here

    async def _cut(
        self, request: web.Request, here: web.StreamResponse, event: bytes
    ) -> web.StreamResponse:
        """What comes next is not said, or half of it is."""
        way = next(self._ways)
        self.cuts[way] += 1
        if way == "ended":
            await here.write_eof()
            return here
        if way == "torn":
            await here.write(event[: len(event) // 2])
        return _break(request, here)


def _read(request: web.Request) -> Asked:
    """What a path is about: `/api/v1/namespaces/n/pods/p/log` is `log`."""
    words = request.path.strip("/").split("/")
    root = 2 if words[0] == "api" else 3
    if words[root : root + 1] == ["namespaces"] and len(words) > root + 2:
        root += 2
    rest = words[root:]
    what = rest[2] if len(rest) > 2 else rest[0] if rest else ""
    return Asked(request.method, what, "watch" in request.query)


def _break(request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
    """The connection is gone, in the middle of whatever it was."""
    if request.transport is not None:
        request.transport.close()
    return response


def _headers(headers: Any) -> dict[str, str]:
    drop = OF_THE_CONNECTION | {"content-length"}
    return {name: value for name, value in headers.items() if name.lower() not in drop}


async def _lines(there: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Whole events; the API server may end in the middle of one, too."""
    rest = b""
    async for chunk in there.content.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line + b"\n"
    if rest:
        yield rest


async def _late(events: AsyncIterator[bytes], faults: Callable[[], Faults]) -> AsyncIterator[bytes]:
    """Each some time after it came, in order; those behind it are on their way meanwhile."""
    clock = asyncio.get_running_loop().time
    on_the_way: asyncio.Queue[tuple[float, bytes | None]] = asyncio.Queue()

    async def read() -> None:
        try:
            async for event in events:
                on_the_way.put_nowait((clock() + _latency_s(faults()), event))
        finally:
            on_the_way.put_nowait((0.0, None))

    reading = asyncio.create_task(read())
    try:
        while True:
            due, event = await on_the_way.get()
            await asyncio.sleep(max(0.0, due - clock()))
            if event is None:
                await reading
                return
            yield event
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


def _latency_s(faults: Faults) -> float:
    return random.uniform(*faults.latency_s)


async def _pass_time(faults: Faults) -> None:
    if faults.latency_s[1]:
        await asyncio.sleep(_latency_s(faults))
