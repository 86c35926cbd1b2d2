"""Requests to one API server through the official client: its credentials, its TLS, its connections.

Bodies are bytes both ways: the client's model classes would cost more than everything else we do with a pod.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from email.utils import parsedate_to_datetime
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlencode, urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import msgspec
import yaml
from kubernetes.aio import client, config

from airflow_eksbatch.cluster.kube.write_limit import WriteLimit
from airflow_eksbatch.cluster.port import ClusterDown

# Long enough for an API server under load; whoever waits longer asks again.
REQUEST_S_MAX = 60.0
CONNECT_S_MAX = 10.0
# Bookmarks come about every minute; a watch that is silent for longer has lost its server.
SILENCE_S_MAX = 150.0
READ_BYTES = 2**21
# Followed logs and watches each hold one connection for long.
CONNECTIONS_MAX = 512
# How often credentials are looked at; tokens live for minutes at least.
REFRESH_S = 30.0
REAUTHENTICATE_S = 5.0
# How often a write is repeated when the API server has too much to do.
TRIES_MAX = 8
RETRY_AFTER_S = 1.0
CLOSE_S = 0.1
# So many are kept for the watches over them, which begin anew every few minutes.
FORMER_MAX = 4
JSON = "application/json"
# For an answer of which nobody needs more than that it came: the object's metadata only.
BRIEF = f"{JSON};as=PartialObjectMetadata;g=meta.k8s.io;v=v1,{JSON}"
# The API server's clock is known by the dates of its last answers; the quickest of them knows best.
DATES_MAX = 32
AGREE_MS = 2500

# What the client raises for a kubeconfig that is missing, half written or no kubeconfig at all.
BROKEN = (config.ConfigException, OSError, yaml.YAMLError, TypeError, AttributeError)

# So many contexts are named when none is the right one.
CONTEXTS_TOLD = 10

Query = Mapping[str, str | int]


class ApiError(Exception):
    """The API server's no."""

    def __init__(self, status: int, reason: str, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after_s = retry_after_s

    @property
    def is_passing(self) -> bool:
        """It says nothing of what was asked: the same may be done another time, or is done already."""
        return self.status == 429 or self.status >= 500


class BadKubeconfig(Exception):
    """There is no way to the cluster; the message is a sentence for people."""


class _Call(msgspec.Struct, frozen=True):
    """What is asked of the API server."""

    method: str
    path: str
    query: Query = {}
    body: bytes | None = None
    accept: str = JSON


class _Details(msgspec.Struct, rename="camel"):
    retry_after_seconds: float = 0.0


class _Status(msgspec.Struct):
    reason: str = ""
    message: str = ""
    details: _Details | None = None


Renew = Callable[[client.Configuration, bool], Awaitable[None]]
"""Puts credentials into a configuration; True: those that it has are not taken any more."""


class Connection:
    """Made with what authenticates it; nothing is sent before the first request."""

    def __init__(self, name: str, configuration: client.Configuration, renew: Renew) -> None:
        self.name = name
        self.limit = WriteLimit()
        self.may_write: Callable[[], bool] = lambda: True
        """Asked before each write: whoever does not lead any more must not act, however late it notices."""
        self.acts_as = ""
        """A user to ask as, whose rights then count (`kubectl --as`); empty: as whoever we are."""
        configuration.connection_pool_maxsize = CONNECTIONS_MAX
        self._configuration = configuration
        self._renew = renew
        self._renewed_at = time.monotonic()
        self._renewing = asyncio.Lock()
        self._client = client.ApiClient(configuration=configuration)
        self._http = self._make_session()
        self._trust = _trust_of(configuration)
        self._former: list[tuple[aiohttp.ClientSession, client.ApiClient]] = []
        """Of certificates that were renewed; watches may still go on over them."""
        self._host: str = configuration.host
        self._proxy: str | None = configuration.proxy or environment_proxy(configuration.host)
        self._apart_ms: deque[int] = deque(maxlen=DATES_MAX)
        self._date = ""

    @property
    def ahead_ms(self) -> int:
        """How far our clock is ahead of the API server's; 0 while they agree as well as whole seconds show."""
        apart_ms = min(self._apart_ms, default=0)
        return apart_ms if abs(apart_ms) >= AGREE_MS else 0

    def _make_session(self) -> aiohttp.ClientSession:
        """Over the client's own connections. What is written is asked for as late as can be: a process may stand still at any
        line, and aiohttp sends headers and body together, turns of the loop after it was told to.
        """

        async def look(_: object, __: object, about: aiohttp.TraceRequestChunkSentParams) -> None:
            if about.method != "GET" and not self.may_write():
                raise ClusterDown(f"{self.name}: this service may not lead any more")

        traces = aiohttp.TraceConfig()
        traces.on_request_chunk_sent.append(look)
        return aiohttp.ClientSession(
            connector=self._client.rest_client.pool_manager.connector,
            connector_owner=False,
            read_bufsize=READ_BYTES,
            trace_configs=[traces],
        )

    async def close(self) -> None:
        self._former.append((self._http, self._client))
        await self._end_former(0)
        # TLS connections end in the loop's next turns (aiohttp's own advice).
        await asyncio.sleep(CLOSE_S)

    async def _end_former(self, kept: int) -> None:
        while len(self._former) > kept:
            http, former = self._former.pop(0)
            await http.close()
            await former.close()

    async def get(self, path: str, query: Query | None = None) -> bytes:
        answer, _ = await self._request(_Call("GET", path, query or {}))
        return answer

    async def get_dated(self, path: str) -> tuple[bytes, str]:
        """With the API server's clock as its Date header has it; empty if it does not say."""
        answer, headers = await self._request(_Call("GET", path))
        return answer, headers.get("Date", "")

    async def write(self, method: str, path: str, body: bytes, *, accept: str = JSON) -> bytes:
        """A write takes its turn under the limit; "too many requests" is waited out."""
        call = _Call(method, path, body=body, accept=accept)
        for _ in range(TRIES_MAX):
            async with self.limit.slot() as began:
                try:
                    answer, _ = await self._request(call)
                except ApiError as error:
                    if error.status != 429:
                        self.limit.answered(began)
                        raise
                    self.limit.refused(began, error.retry_after_s or RETRY_AFTER_S)
                else:
                    self.limit.answered(began)
                    return answer
        raise ClusterDown(f"{self.name}: too many requests, {TRIES_MAX} times in a row")

    async def stream(
        self, path: str, query: Query, *, silence_s: float | None = SILENCE_S_MAX
    ) -> AsyncIterator[bytes]:
        """The body of a GET as it comes: watches and logs. An empty part says that it has begun."""
        timeout = aiohttp.ClientTimeout(sock_connect=CONNECT_S_MAX, sock_read=silence_s)
        try:
            async with await self._open(_Call("GET", path, query), timeout) as response:
                if response.status >= 300:
                    raise _error_of(response, await response.read())
                yield b""
                async for chunk in response.content.iter_any():
                    yield chunk
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._down(error) from error

    async def _request(self, call: _Call) -> tuple[bytes, Mapping[str, str]]:
        timeout = aiohttp.ClientTimeout(total=REQUEST_S_MAX, sock_connect=CONNECT_S_MAX)
        try:
            async with await self._open(call, timeout) as response:
                answer = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._down(error) from error
        if response.status < 300:
            return answer, response.headers
        raise _error_of(response, answer)

    async def _open(self, call: _Call, patience: aiohttp.ClientTimeout) -> aiohttp.ClientResponse:
        """Send it; once more with new credentials when the old ones are not taken any more."""
        if time.monotonic() - self._renewed_at >= REFRESH_S:
            await self._renew_credentials(afresh=False)
        response = await self._send(call, patience)
        if response.status == 401:
            response.release()
            await self._renew_credentials(afresh=True)
            response = await self._send(call, patience)
        return response

    async def _send(self, call: _Call, patience: aiohttp.ClientTimeout) -> aiohttp.ClientResponse:
        rest = self._client.rest_client
        headers = {"Accept": call.accept, "User-Agent": "eksbatch"}
        if call.body is not None:
            headers["Content-Type"] = JSON
        if self.acts_as:
            headers["Impersonate-User"] = self.acts_as
        await self._client.update_params_for_auth(headers, [], ["BearerToken"])
        options: dict[str, Any] = {"proxy": self._proxy} if self._proxy else {}
        if rest.server_hostname:
            options["server_hostname"] = rest.server_hostname
        url = f"{self._host}{call.path}" + (f"?{urlencode(call.query)}" if call.query else "")
        response = await self._http.request(
            call.method, url, data=call.body, headers=headers, timeout=patience, **options
        )
        self._note_date(response.headers.get("Date", ""))
        return response

    def _note_date(self, date: str) -> None:
        if date == self._date:
            return
        self._date = date
        try:
            server_s = parsedate_to_datetime(date).timestamp()
        except ValueError:
            return
        self._apart_ms.append(int((time.time() - server_s) * 1000))

    async def _renew_credentials(self, *, afresh: bool) -> None:
        """Look at the credentials again, unless somebody just did."""
        async with self._renewing:
            age_s = time.monotonic() - self._renewed_at
            if age_s < (REAUTHENTICATE_S if afresh else REFRESH_S):
                return
            self._renewed_at = time.monotonic()
            try:
                await self._renew(self._configuration, afresh)
            except BROKEN as error:
                raise self._down(error) from error
            trust = _trust_of(self._configuration)
            if trust != self._trust:
                # Connections are made with the certificates that a client began with.
                self._former.append((self._http, self._client))
                await self._end_former(FORMER_MAX)
                self._client = client.ApiClient(configuration=self._configuration)
                self._http, self._trust = self._make_session(), trust

    def _down(self, error: BaseException) -> ClusterDown:
        told = str(error) or type(error).__name__
        return ClusterDown(f"{self.name} cannot be reached: {told}")


def _trust_of(configuration: client.Configuration) -> tuple[bytes, ...]:
    """The certificates and the key that it names, as they are now."""
    named = (configuration.ssl_ca_cert, configuration.cert_file, configuration.key_file)
    return tuple(Path(one).read_bytes() if one and Path(one).is_file() else b"" for one in named)


def environment_proxy(url: str) -> str | None:
    """By HTTPS_PROXY and NO_PROXY. aiohttp would look for each request (`trust_env`), in a thread: twice the request's price."""
    about, proxies = urlsplit(url), getproxies()
    if not about.hostname or proxy_bypass(about.netloc):
        return None
    return None if _is_within(about.hostname, proxies.get("no", "")) else proxies.get(about.scheme)


def _is_within(host: str, exempt: str) -> bool:
    """Whether an address is in one of the networks of NO_PROXY, which Python's own reading passes over."""
    for one in exempt.split(","):
        with contextlib.suppress(ValueError):
            if ip_address(host) in ip_network(one.strip(), strict=False):
                return True
    return False


def _error_of(response: aiohttp.ClientResponse, body: bytes) -> ApiError:
    try:
        status = msgspec.json.decode(body, type=_Status)
    except msgspec.MsgspecError:
        text = body[:200].decode(errors="replace")
        status = _Status(reason=response.reason or "", message=text)
    told = response.headers.get("Retry-After", "")
    wait_s = float(told) if told.isdigit() else 0.0
    if status.details is not None:
        wait_s = max(wait_s, status.details.retry_after_seconds)
    return ApiError(response.status, status.reason, status.message, wait_s)


# ---- ways to a cluster


class Ways(Protocol):
    """How clusters are reached: by a kubeconfig file, or from within."""

    def place_of(self, cluster_arn: str) -> str:
        """Where the cluster of that ARN is; two ARNs may be at one place. Raises BadKubeconfig."""
        ...

    async def connect(self, place: str) -> Connection:
        """Raises BadKubeconfig."""
        ...


class Kubeconfig:
    """Clusters of a kubeconfig file: each environment's by the name in its cluster ARN."""

    def __init__(self, file: str = "") -> None:
        self._file = file or config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION

    def place_of(self, cluster_arn: str) -> str:
        """The context for an EKS cluster: named by its ARN, or by its name alone if only one is, or the only one there is.

        Without an ARN the current one. A context whose cluster has another ARN is never meant: the same name may be
        in every region. Raises BadKubeconfig.
        """
        found, current = self._contexts()
        if not cluster_arn:
            return current["name"]
        contexts = {one["name"]: str(one["context"].get("cluster")) for one in found}
        named = {
            name: cluster for name, cluster in contexts.items() if cluster_arn in (name, cluster)
        }
        if not named:
            short = cluster_arn.rpartition("/")[2]
            others = {
                name: cluster
                for name, cluster in contexts.items()
                if not name.startswith("arn:") and not cluster.startswith("arn:")
            }
            named = {n: cluster for n, cluster in others.items() if short in (n, cluster)}
            if not named and len(contexts) == 1:
                named = others
        if len(set(named.values())) == 1:
            # Several users of one cluster.
            return current["name"] if current["name"] in named else next(iter(named))
        raise BadKubeconfig(
            f"kubeconfig {self._file} has {'more than one context' if named else 'no context'} for {cluster_arn}. "
            "A context, or its cluster, must have the ARN as its name: "
            f"aws eks update-kubeconfig makes one. There are: {', '.join(sorted(named or contexts)[:CONTEXTS_TOLD])}."
        )

    async def connect(self, place: str) -> Connection:
        configuration = client.Configuration()
        loader = await self._load(place, configuration)

        async def renew(configuration: client.Configuration, afresh: bool) -> None:
            """Token files are read again, exec plugins asked again when their token ends."""
            nonlocal loader
            if afresh:
                loader = await self._load(place, configuration)
            else:
                await loader.load_and_set(configuration)

        return Connection(place, configuration, renew)

    async def _load(self, place: str, configuration: client.Configuration) -> Any:
        try:
            return await config.load_kube_config(
                config_file=self._file,
                context=place,
                client_configuration=configuration,
                persist_config=False,
            )
        except BROKEN as error:
            raise BadKubeconfig(f"Context {place} of {self._file}: {error}") from error

    def _contexts(self) -> Any:
        """All of the file, and the current one."""
        try:
            return config.list_kube_config_contexts(config_file=self._file)
        except BROKEN as error:
            raise BadKubeconfig(f"kubeconfig {self._file} cannot be used: {error}") from error


class InCluster:
    """The cluster that the service itself runs in, as its service account; the token is read again as it rotates."""

    def __init__(
        self, account: Path | None = None, environ: Mapping[str, str] | None = None
    ) -> None:
        self._account = account
        self._environ = environ

    def place_of(self, cluster_arn: str) -> str:
        try:
            self._load(client.Configuration())
        except config.ConfigException as error:
            raise BadKubeconfig(f"a pod with a service account is needed: {error}") from error
        return "in-cluster"

    async def connect(self, place: str) -> Connection:
        configuration = client.Configuration()
        self._load(configuration)

        async def renew(configuration: client.Configuration, afresh: bool) -> None:
            self._load(configuration)

        return Connection(place, configuration, renew)

    def _load(self, configuration: client.Configuration) -> None:
        known = config.incluster_config
        token, authority = known.SERVICE_TOKEN_FILENAME, known.SERVICE_CERT_FILENAME
        if self._account is not None:
            token, authority = str(self._account / "token"), str(self._account / "ca.crt")
        given = {} if self._environ is None else {"environ": self._environ}
        loader = known.InClusterConfigLoader(token, authority, try_refresh_token=False, **given)
        loader.load_and_set(configuration)
