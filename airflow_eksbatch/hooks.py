"""EKSBatchHook: an Airflow connection, or the embedded service, as a client of AWS Batch's API."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

import msgspec
from airflow.sdk import BaseHook

from airflow_eksbatch.endpoint import (
    ANNOUNCEMENT,
    DEFAULT_REGION,
    EMBEDDED_PLACE,
    Endpoint,
    NotLetIn,
    NotOurService,
    ServiceAway,
    ServiceNotNamed,
    ServiceRefused,
    announced,
    answers,
    default_home,
    is_url,
    named,
    raise_for_answer,
    signed_headers,
)

if TYPE_CHECKING:
    import aiohttp

__all__ = [
    "EKSBatchHook",
    "AsyncBatchClient",
    "Endpoint",
    "ServiceAway",
    "ServiceNotNamed",
    "NotLetIn",
    "NotOurService",
    "ServiceRefused",
    "endpoint_from_connection",
    "find_or_start_embedded",
    "job_url",
]

DEFAULT_CONN_ID = "eksbatch_default"
EMBEDDED_START_S = 60  # a cold start of the embedded service on a loaded laptop
# One that a task has started ends by itself after so long without work and callers.
EMBEDDED_IDLE_MIN = 60.0
CALL_TIMEOUT_S = 30

# Connections that named a service when this process last read them, or another one before it.
_naming: set[str] = set()
# Those it was told not to have; said once.
_missing: set[str] = set()


class EKSBatchHook(BaseHook):
    """
    Reach an airflow-eksbatch service.

    :param conn_id: connection of type ``eksbatch``: host (a full URL, or a name with port and
        http/https as schema), access key id as login, secret access key as password, and as
        extras ``region``, ``verify``, ``dashboard_url`` if people see the service's dashboard
        elsewhere than in Airflow, and ``deployment``, the name of this Airflow, if another one
        with the same DAGs uses the same service: they would end each other's jobs. (A new name
        is a new Airflow: give it while no job runs.) A connection of another type, such as
        ``aws``, does if it names a host or an ``endpoint_url``. Where one of type ``eksbatch``
        names no host, and where there is no ``eksbatch_default``, the embedded service of this
        machine is found or started; any other connection must be there. One that was started so
        ends after an hour without jobs, instances and callers; ``eksbatch local`` stays. Airflow
        does not tell a connection that is not there from one that cannot be read just now, so
        where jobs must not run on this machine, set the environment variable
        ``EKSBATCH_EMBEDDED=never``.
    """

    conn_name_attr = "conn_id"
    default_conn_name = DEFAULT_CONN_ID
    conn_type = "eksbatch"
    hook_name = "EKS Batch"

    def __init__(self, conn_id: str = DEFAULT_CONN_ID, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.conn_id = conn_id

    def endpoint(self) -> Endpoint:
        """Where the service is; starts the embedded one if none is configured."""
        try:
            connection = self.get_connection(self.conn_id)
        except Exception as error:
            found = self._without_connection(error)
        else:
            found = self._configured(connection)
        return self._named(found or self._embedded())

    async def aendpoint(self) -> Endpoint:
        """The same, for the triggerer's event loop."""
        import asyncio

        try:
            connection = await self.aget_connection(self.conn_id)
        except Exception as error:
            found = self._without_connection(error)
        else:
            found = self._configured(connection)
        return self._named(found or await asyncio.to_thread(self._embedded))

    async def running_endpoint(self) -> Endpoint:
        """For pages that everybody may ask for who may log in to Airflow: only connections of our type, and nothing is started."""
        import asyncio

        try:
            connection = await self.aget_connection(self.conn_id)
        except Exception as error:
            found = self._without_connection(error)
        else:
            if connection.conn_type != self.conn_type:
                raise ServiceNotNamed(
                    f"connection {self.conn_id} is of the type {connection.conn_type}; "
                    f"give it the type {self.conn_type}"
                )
            found = self._configured(connection)
        return self._named(found or await asyncio.to_thread(find_embedded))

    def _named(self, endpoint: Endpoint) -> Endpoint:
        if not is_url(endpoint.url):
            raise ServiceNotNamed(
                f"connection {self.conn_id} leads to {endpoint.url}, which is no URL of a service: "
                "give a host such as http://batch.internal:8642"
            )
        return msgspec.structs.replace(endpoint, conn_id=self.conn_id)

    def _configured(self, connection: Any) -> Endpoint | None:
        try:
            found = endpoint_from_connection(connection)
        except ValueError as error:
            raise ServiceNotNamed(f"connection {self.conn_id} cannot be used: {error}") from error
        if found is None and connection.conn_type != self.conn_type:
            raise ServiceNotNamed(
                f"connection {self.conn_id} is of the type {connection.conn_type} and names no service: "
                f"give it the host of one, or the type {self.conn_type}"
            )
        (_naming.add if found else _naming.discard)(self.conn_id)
        return found

    def _without_connection(self, error: Exception) -> None:
        """Airflow says the same when what keeps connections does not answer: then no job may end up elsewhere."""
        from airflow.sdk.exceptions import AirflowNotFoundException

        if not isinstance(error, AirflowNotFoundException):
            raise ServiceNotNamed(f"connection {self.conn_id} cannot be read: {error}") from error
        if self.conn_id in _naming:
            raise ServiceNotNamed(
                f"connection {self.conn_id} cannot be read now; it was there before"
            ) from error
        if self.conn_id != DEFAULT_CONN_ID:
            raise ServiceNotNamed(
                f"connection {self.conn_id} does not exist or cannot be read: create it with the "
                f"type {self.conn_type}, or name another as conn_id"
            ) from error
        if self.conn_id not in _missing:
            _missing.add(self.conn_id)
            self.log.info("There is no connection %s: the embedded service is used", self.conn_id)

    def _embedded(self) -> Endpoint:
        try:
            return find_or_start_embedded()
        except ServiceAway as error:
            text = f"connection {self.conn_id} names no service, and {error}"
            raise type(error)(text) from error

    def get_conn(self) -> Any:
        """A boto3-compatible Batch client (botocore), signed if the connection has keys."""
        import botocore.session
        from botocore import UNSIGNED
        from botocore.config import Config

        endpoint = self.endpoint()
        unsigned = {} if endpoint.access_key_id else {"signature_version": UNSIGNED}
        return botocore.session.Session().create_client(
            "batch",
            region_name=endpoint.region,
            endpoint_url=endpoint.url,
            aws_access_key_id=endpoint.access_key_id,
            aws_secret_access_key=endpoint.secret_access_key,
            verify=endpoint.verify,
            config=Config(retries={"mode": "standard", "max_attempts": 5}, **unsigned),
        )

    def test_connection(self) -> tuple[bool, str]:
        try:
            endpoint = self.endpoint()
            queues = self.get_conn().describe_job_queues()["jobQueues"]
        except Exception as error:
            return False, str(error)
        names = ", ".join(sorted(queue["jobQueueName"] for queue in queues)) or "none yet"
        return True, f"{endpoint.url} answers; job queues: {names}"


def keep_named(conn_id: str, place: str) -> None:
    """What this process must not forget because another one has read it: this connection named a service.

    Not where EKSBATCH_URL may have named it: that is read without fail.
    """
    if place not in ("", EMBEDDED_PLACE) and not os.environ.get("EKSBATCH_URL"):
        _naming.add(conn_id)


def endpoint_from_connection(connection: Any) -> Endpoint | None:
    """The endpoint a connection names, or None if it leaves the choice to the embedded service."""
    extra = _extra_of(connection)
    url = str(extra.get("endpoint_url") or "") or _url_from_parts(connection)
    if not url:
        return None
    verify = extra.get("verify", True)
    own = Endpoint(url=url) if connection.login else named(url, os.environ)
    return Endpoint(
        url=url.rstrip("/"),
        access_key_id=connection.login or own.access_key_id,
        secret_access_key=connection.password or own.secret_access_key,
        region=extra.get("region") or extra.get("region_name") or DEFAULT_REGION,
        deployment=str(extra.get("deployment") or ""),
        dashboard_url=str(extra.get("dashboard_url") or "").rstrip("/"),
        verify=verify
        if isinstance(verify, bool)
        else str(verify).lower() not in ("false", "0", "no"),
    )


def _extra_of(connection: Any) -> dict[str, Any]:
    try:
        extra = json.loads(connection.extra) if connection.extra else {}
    except ValueError:
        extra = None
    if not isinstance(extra, dict):
        raise ValueError(
            'its extra must be a JSON object such as {"region": "us-east-1"}, or empty'
        )
    return extra


def _url_from_parts(connection: Any) -> str:
    host = connection.host or ""
    if not host or "://" in host:
        return host
    scheme = connection.schema or ("https" if connection.port == 443 else "http")
    return f"{scheme}://{host}:{connection.port}" if connection.port else f"{scheme}://{host}"


# ---- the embedded service ----

LOG = "local.log"
_one_starter = threading.Lock()
# What this process has started; asked again before the next start, so that none that has ended stays a zombie.
_begun: list[subprocess.Popen[bytes]] = []


def find_or_start_embedded() -> Endpoint:
    """The service this machine uses when nothing else is said."""
    if url := os.environ.get("EKSBATCH_URL"):
        return named(url, os.environ)
    _check_embedded_allowed()
    home = default_home(os.environ).absolute()
    with _one_starter:  # a thousand tasks of a triggerer ask at once
        return _running_embedded(home) or _start_embedded(home)


def find_embedded() -> Endpoint:
    """The same, if it runs."""
    if url := os.environ.get("EKSBATCH_URL"):
        return named(url, os.environ)
    _check_embedded_allowed()
    if found := _running_embedded(default_home(os.environ)):
        return found
    raise ServiceAway(
        "no service is running on this machine: the next task starts it, or `eksbatch local`. To see "
        f"another one, give it as host of the connection {DEFAULT_CONN_ID}"
    )


def _check_embedded_allowed() -> None:
    """Whatever the value, who sets this wants none."""
    if value := os.environ.get("EKSBATCH_EMBEDDED"):
        raise ServiceNotNamed(
            f"EKSBATCH_EMBEDDED={value} forbids the embedded service: give the host of a service in the "
            f"connection {DEFAULT_CONN_ID}; if it is there, it cannot be read now"
        )


def _running_embedded(home: Path) -> Endpoint | None:
    found = announced(home / ANNOUNCEMENT)
    return found if found and answers(found.url, "/healthz") else None


def _start_embedded(home: Path) -> Endpoint:
    """Start `eksbatch local`, detached; it holds a lock, so two starters get one service."""
    home.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + EMBEDDED_START_S
    how = f"did not start within {EMBEDDED_START_S} s"
    while time.monotonic() < deadline:
        process = _begin_embedded(home)
        while process.poll() is None and time.monotonic() < deadline:
            if found := _running_embedded(home):
                return found
            time.sleep(0.1)  # it announces itself by a file, which wakes nobody
        if found := _running_embedded(home):
            return found
        if process.returncode:
            how = f"ended at once ({_last_line(home / LOG)})"
            break
        # It found another one, which has left meanwhile.
    raise ServiceAway(
        f"the embedded service {how}; its output is in {home / LOG}. To use another service, "
        f"give it as host of the connection {DEFAULT_CONN_ID}, or set EKSBATCH_URL"
    )


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "without a word")


def _begin_embedded(home: Path) -> subprocess.Popen[bytes]:
    program = "from airflow_eksbatch.cli import main; raise SystemExit(main())"
    _begun[:] = [process for process in _begun if process.poll() is None]
    with (home / LOG).open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", program, "local", "--leave-when-idle", str(EMBEDDED_IDLE_MIN)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env={**os.environ, "EKSBATCH_HOME": str(home)},
        )
    _begun.append(process)
    return process


# ---- the client for event loops ----


class AsyncBatchClient:
    """JSON calls of the Batch API over aiohttp, signed by botocore if there are keys."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._http: aiohttp.ClientSession | None = None
        self._streams: set[aiohttp.StreamReader] = set()

    def _session(self) -> aiohttp.ClientSession:
        import aiohttp

        if self._http is None or self._http.closed:
            self._http = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
                connector=aiohttp.TCPConnector(limit=50, ssl=self.endpoint.verify),
            )
        return self._http

    async def close(self) -> None:
        """Whoever still reads a stream is told so: aiohttp would leave him waiting for ever."""
        import aiohttp

        for content in self._streams:
            content.set_exception(aiohttp.ClientConnectionError("another service is used now"))
        if self._http is not None:
            await self._http.close()
            self._http = None

    async def call(
        self, operation: str, body: dict[str, Any], headers: dict[str, str] | None = None
    ) -> dict[str, Any]:
        """One operation of the Batch API, such as `describejobs`."""
        told, _ = await self._ask("POST", f"/v1/{operation}", json.dumps(body).encode(), headers)
        try:
            return json.loads(told) if told else {}
        except ValueError:
            text = told[:100].decode(errors="replace")
            raise ServiceAway(
                f"{self.endpoint.url} does not answer as the service does: {text!r}"
            ) from None

    async def get(self, path: str, params: dict[str, Any] | None = None) -> str:
        """The text of one of the service's own pages under /v1/eksbatch/."""
        return (await self.read(path, params))[0].decode(errors="replace")

    async def read(
        self, path: str, params: dict[str, Any] | None = None
    ) -> tuple[bytes, Mapping[str, str]]:
        """The same as it was sent, since jobs print what they like, and its headers."""
        return await self._ask("GET", _with_query(f"/v1/eksbatch/{path}", params))

    async def _ask(
        self, method: str, path: str, data: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[bytes, Mapping[str, str]]:
        import aiohttp

        try:
            opened = self._request(method, path, data=data, headers=headers, total_s=CALL_TIMEOUT_S)
            async with opened as answer:
                told = await answer.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ServiceAway(f"{self.endpoint.url}: {error or type(error).__name__}") from error
        if answer.status >= 400:
            kind = answer.headers.get("x-amzn-ErrorType", "")
            raise_for_answer(answer.status, kind, told.decode(errors="replace"))
        return told, answer.headers

    async def lines(
        self, path: str, params: dict[str, Any], silence_s: float
    ) -> AsyncIterator[bytes]:
        """The lines of a long-lived answer, until it ends or is silent for too long."""
        import aiohttp

        target = _with_query(f"/v1/eksbatch/{path}", params)
        try:
            async with self._request("GET", target, silence_s=silence_s) as answer:
                if answer.status != 200:
                    kind = answer.headers.get("x-amzn-ErrorType", "")
                    raise_for_answer(answer.status, kind, await answer.text())
                self._streams.add(answer.content)
                try:
                    async for chunk in _split_lines(answer.content):
                        yield chunk
                finally:
                    self._streams.discard(answer.content)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ServiceAway(f"{self.endpoint.url}: {error or type(error).__name__}") from error

    def _request(
        self,
        method: str,
        path: str,
        *,
        data: bytes = b"",
        headers: dict[str, str] | None = None,
        total_s: float | None = None,
        silence_s: float | None = None,
    ) -> Any:
        import aiohttp
        from yarl import URL

        url = self.endpoint.url + path
        return self._session().request(
            method,
            URL(url, encoded=True),
            data=data or None,
            headers=self._signed(method, url, data, headers or {}),
            timeout=aiohttp.ClientTimeout(total=total_s, sock_connect=10, sock_read=silence_s),
        )

    def _signed(
        self, method: str, url: str, data: bytes, headers: dict[str, str]
    ) -> dict[str, str]:
        if data:
            headers = {"Content-Type": "application/json", **headers}
        if self.endpoint.deployment:
            headers = {"x-eksbatch-deployment": self.endpoint.deployment, **headers}
        return signed_headers(self.endpoint, method, url, data, headers)


async def _split_lines(content: Any) -> AsyncIterator[bytes]:
    """Lines of any length: aiohttp's own iteration refuses those over 128 KiB."""
    rest = b""
    async for chunk in content.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line:
                yield line


def _with_query(path: str, params: dict[str, Any] | None) -> str:
    # A child's id holds a colon, which stays as it is in a path, also for the signature.
    path = quote(path, safe="/:")
    return f"{path}?{urlencode(params)}" if params else path


def job_url(endpoint: Endpoint, job_id: str) -> str:
    """Where a person reads about a job: relative to Airflow's own address, unless the dashboard is elsewhere."""
    root = (
        endpoint.dashboard_url or f"eksbatch/{quote(endpoint.conn_id or DEFAULT_CONN_ID, safe='')}"
    )
    return f"{root}/job/{quote(job_id, safe=':')}"
