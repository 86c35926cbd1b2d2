"""One beating service per database: it keeps the lease; the others hand every request to it, as it came."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import math
import time
from collections.abc import AsyncIterator, Callable, Iterable

import aiohttp
import msgspec
from starlette.types import Receive, Scope, Send
from yarl import URL

from airflow_eksbatch.api.auth import VOUCHED, is_local
from airflow_eksbatch.service.store_thread import StoreThread
from airflow_eksbatch.service.telemetry import Telemetry
from airflow_eksbatch.store.port import Store, StoreError

LOST = "Another service took the lease of this database while this one could not renew it."


class LeaseLost(Exception):
    """Another service beats on this database now."""


# A million live jobs are loaded in 15 s; one that takes longer than this hangs, and a standby may do better.
LOAD_S_MAX = 120
# How often a standby looks at the lease, at least.
LOOK_S = 1.0
# Goes on while a process is stopped; on Linux also while its machine sleeps.
CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Lease:
    """A third of the lease's length is the time between renewals, so two may fail."""

    def __init__(
        self,
        owner: str,
        seconds: int,
        *,
        store: StoreThread,
        make_store: Callable[[], Store],
        clock: Callable[[], int],
        telemetry: Telemetry,
    ) -> None:
        self._owner = owner
        self._seconds = seconds
        self._store = store
        self._make_store = make_store
        self._clock = clock
        self._telemetry = telemetry
        self._sure_until = 0.0
        self.standby = Standby()
        """Serves while somebody else beats."""
        self.secret = secret_of(owner)

    def is_sure(self) -> bool:
        """Whether nobody else can have it. The store fences commits; whatever acts on the outside asks here first,
        because a service that was stopped for a while does not know that it was.
        """
        return time.clock_gettime(CLOCK) < self._sure_until

    async def acquire(self) -> None:
        """Wait until this service is the one that beats; the standby is told who does meanwhile."""
        if await self.renew():
            return
        self._telemetry.standing_by()
        is_ours = await self._try()
        while not is_ours:
            await asyncio.sleep(min(LOOK_S, self._seconds / 3))
            is_ours = await self._try()

    async def _try(self) -> bool:
        """Whether it could be taken. Who stands by waits for a database that is down, too."""
        try:
            self.standby.follow(await self._store.ask(lambda store: store.lease_owner()))
            return await self.renew()
        except StoreError as error:
            self._telemetry.store_failed("lease", str(error))
            return False

    async def keep(self) -> None:
        """Renew for ever; raises LeaseLost. A store that cannot be reached keeps others out, too."""
        while True:
            await asyncio.sleep(self._seconds / 3)
            try:
                if not await self.renew():
                    raise LeaseLost(LOST)
            except StoreError as error:
                self._telemetry.store_failed("lease", str(error))

    async def renew(self) -> bool:
        """Take or keep the lease for its whole length from now."""
        return await self._take(self._seconds, self._store)

    @contextlib.asynccontextmanager
    async def hold(self) -> AsyncIterator[None]:
        """Keep it through a load, which keeps the store's thread busy; raises LeaseLost.

        It is renewed no further ahead than at other times: a standby must not wait for one that died while it loaded.
        """
        if not await self.renew():
            raise LeaseLost(LOST)
        renewing = asyncio.create_task(self._renew_beside(), name="lease beside a load")
        try:
            yield
        finally:
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)
        if not await self.renew():
            raise LeaseLost(LOST)

    async def _renew_beside(self) -> None:
        """Through a connection of its own, for as long as a load may take."""
        pause_s = self._seconds / 3
        # Most loads end before this does.
        await asyncio.sleep(pause_s)
        beside = StoreThread(self._make_store())
        try:
            for _ in range(math.ceil(LOAD_S_MAX / pause_s)):
                try:
                    if not await self._take(self._seconds, beside):
                        return
                except StoreError as error:
                    self._telemetry.store_failed("lease", str(error))
                await asyncio.sleep(pause_s)
        finally:
            await beside.close()

    async def release(self) -> None:
        """Let a standby begin at once."""
        self._sure_until = 0.0
        try:
            await self._take(0, self._store)
        except StoreError as error:
            self._telemetry.store_failed("lease", str(error))

    async def _take(self, seconds: int, thread: StoreThread) -> bool:
        """By the database's clock, where it has one of its own: those of replicas differ."""

        def take(store: Store) -> int | None:
            now = store.now()
            return store.take_lease(self._owner, self._clock() if now is None else now, seconds)

        began = time.clock_gettime(CLOCK)
        is_ours = await thread.commit(take) is not None
        # One that waited behind a load is overtaken by those beside it.
        self._sure_until = max(self._sure_until, began + seconds) if is_ours else 0.0
        return is_ours


# ---- those who wait

# Headers of one connection (RFC 9110, 7.6.1), and what the next one writes itself.
OF_THE_CONNECTION = frozenset(
    {b"connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"expect"}
)
CONNECT_S = 5.0
# By it a replica says of a caller that it is on the replica's own machine: what replicas know of each other by the database.
PEER = b"eksbatch-peer"
KEPT_BACK = OF_THE_CONNECTION | {PEER}


def secret_of(owner: str) -> str:
    """The owner of a lease is named `<URL>#<secret>`; an embedded service serves itself only, and has none."""
    return owner.partition("#")[2]


def seen_by_peer(scope: Scope, secret: str) -> Scope:
    """A request that a standby vouches for is as one from this machine: browsers do not sign, and kubectl port-forward
    reaches any replica.
    """
    told = next((value for name, value in scope.get("headers", ()) if name == PEER), None)
    if not secret or told is None or not hmac.compare_digest(told, secret.encode()):
        return scope
    return {**scope, VOUCHED: True}


class Standby:
    """Knows who beats, and forwards. The signature stays valid: path, query, Host and body are untouched."""

    def __init__(self) -> None:
        self.leader: str | None = None
        """Where the one that beats is reached; None while nobody does."""
        self._secret = ""
        self._http: aiohttp.ClientSession | None = None

    def follow(self, owner: str | None) -> None:
        url, mark, self._secret = (owner or "").partition("#")
        self.leader = url if mark else None

    async def close(self) -> None:
        if self._http is not None:
            await self._http.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.leader is None:
            await _send_unavailable(send, "No replica beats yet; one takes over in a moment.")
            return
        began = False
        try:
            async with self._ask(self.leader, scope, receive) as answer:
                headers = [(k.lower(), v) for k, v in answer.raw_headers if _passes(k)]
                start = {"type": "http.response.start", "status": answer.status}
                await send({**start, "headers": headers})
                began = True
                async for block in answer.content.iter_any():
                    await send({"type": "http.response.body", "body": block, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            if began:
                raise  # the connection breaks here as it broke there
            await _send_unavailable(send, f"The replica that beats does not answer: {error}.")

    def _ask(
        self, leader: str, scope: Scope, receive: Receive
    ) -> aiohttp.client._RequestContextManager:  # pyright: ignore[reportPrivateUsage]
        path, query = scope["raw_path"].decode("latin-1"), scope["query_string"].decode("latin-1")
        headers = [
            (k.decode("latin-1"), v.decode("latin-1")) for k, v in scope["headers"] if _passes(k)
        ]
        if is_local(scope):
            headers.append((PEER.decode(), self._secret))
        has_body = any(
            name in (b"content-length", b"transfer-encoding") for name, _ in scope["headers"]
        )
        return self._session().request(
            scope["method"],
            URL(f"{leader}{path}{'?' if query else ''}{query}", encoded=True),
            headers=headers,
            data=_body(receive) if has_body else None,
            allow_redirects=False,
        )

    def _session(self) -> aiohttp.ClientSession:
        if self._http is None:
            self._http = aiohttp.ClientSession(
                auto_decompress=False,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
                connector=aiohttp.TCPConnector(limit=0),
                skip_auto_headers=("User-Agent", "Content-Type", "Accept", "Accept-Encoding"),
            )
        return self._http


def _passes(name: bytes) -> bool:
    return name.lower() not in KEPT_BACK


async def _body(receive: Receive) -> AsyncIterator[bytes]:
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionResetError("the client left")
        more = message.get("more_body", False)
        yield message.get("body", b"")


async def _send_unavailable(send: Send, sentence: str) -> None:
    """A ServerException, which AWS clients repeat."""
    body = msgspec.json.encode({"message": sentence})
    headers: Iterable[tuple[bytes, bytes]] = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"x-amzn-errortype", b"ServerException"),
    ]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": body})
