"""The way in over HTTP: the API where the beat is; a standby hands every request to that one, as it came."""

from __future__ import annotations

import contextlib
import hmac
import socket
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Iterator

import aiohttp
import msgspec
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from yarl import URL

from airflow_eksbatch.api.auth import VOUCHED, is_local

# Headers of one connection (RFC 9110, 7.6.1), and what the next one writes itself.
OF_THE_CONNECTION = frozenset(
    {b"connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"expect"}
)
CONNECT_S = 5.0
# Up to here an answer is had whole before any of it is passed on: botocore takes half a one, of a leader that is killed in the
# middle of it, for an empty one, and would not ask again.
WHOLE_BYTES_MAX = 8 * 1024**2
BACKLOG = 4096
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
        self.name = ""
        """Of that one, for people."""
        self._secret = ""
        self._http: aiohttp.ClientSession | None = None

    def follow(self, owner: str | None) -> None:
        self.name, mark, self._secret = (owner or "").partition("#")
        self.leader = self.name if mark else None

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
                length = answer.content_length
                is_small = length is not None and length <= WHOLE_BYTES_MAX
                whole = await answer.read() if is_small else b""
                headers = [(k.lower(), v) for k, v in answer.raw_headers if _passes(k)]
                start = {"type": "http.response.start", "status": answer.status}
                await send({**start, "headers": headers})
                began = True
                if not is_small:
                    async for block in answer.content.iter_any():
                        await send({"type": "http.response.body", "body": block, "more_body": True})
                await send({"type": "http.response.body", "body": whole})
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            if began:
                raise  # the connection breaks here as it broke there
            await _send_unavailable(send, f"The replica that beats does not answer: {error}.")

    def _ask(
        self, leader: str, scope: Scope, receive: Receive
    ) -> aiohttp.client._RequestContextManager:
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
        (b"x-amzn-requestid", str(uuid.uuid4()).encode()),
    ]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class Front:
    """The API, here or where the beat is; who asks or listens, and when somebody last did."""

    OWN = frozenset({"/healthz", "/metrics"})
    LOOKS = OWN | {"/readyz"}

    def __init__(
        self, app: ASGIApp, standby: Standby, secret: str, is_standby: Callable[[], bool]
    ) -> None:
        self._app = app
        self._standby = standby
        self._secret = secret
        self._is_standby = is_standby
        self.last_request_s = time.monotonic()
        self.open_requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path")
        forward = self._is_standby() and path not in self.OWN
        app = self._standby if forward else self._app
        if not forward:
            scope = seen_by_peer(scope, self._secret)
        if path in self.LOOKS:
            await app(scope, receive, send)
            return
        self.open_requests += 1
        try:
            await app(scope, receive, send)
        finally:
            self.open_requests -= 1
            self.last_request_s = time.monotonic()


class _Server(uvicorn.Server):
    """uvicorn without its own signal handlers: the process decides when to end."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def http_server(app: ASGIApp) -> _Server:
    return _Server(
        uvicorn.Config(
            app,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            # Who asks is the one who connects; what else a proxy says of it anybody can say.
            proxy_headers=False,
            timeout_graceful_shutdown=2,
            timeout_keep_alive=75,
            backlog=BACKLOG,
        )
    )


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; raises OSError when the port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        # Two that have bound one port are told apart only here.
        listening.listen(BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening


def url_of(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
