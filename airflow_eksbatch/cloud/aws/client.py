"""AWS calls off the event loop: boto3 clients in a few threads, and errors in two kinds."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from typing import Any, Literal

import boto3
import msgspec
from botocore import xform_name
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from airflow_eksbatch.cloud.aws.refusals import THROTTLED, Meaning, meaning_of
from airflow_eksbatch.cloud.port import CloudDown

# Calls under way at once; one of them may be a long wait for notices.
CALLS_MAX = 12
# Of one call that changes nothing, or the same thing again.
ATTEMPTS = 5
CONNECT_S = 10
READ_S = 60
# The only regions with a price list, for all regions of their partition.
PRICING_REGIONS = {"cn": "cn-northwest-1", "default": "us-east-1"}

ServiceName = Literal[
    "ec2", "eks", "events", "iam", "pricing", "service-quotas", "sqs", "ssm", "sts"
]


class Throttled(CloudDown):
    """Asked too fast."""


class AwsRefusal(Exception):
    """AWS said no to this request, and would again."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class Pace:
    """Requests at a rate that AWS lets through: `burst` at once, then `per_s`; a bucket of tokens, as AWS counts them."""

    def __init__(self, burst: int, per_s: float) -> None:
        self._burst, self._per_s = burst, per_s
        self._tokens, self._at = float(burst), time.monotonic()

    async def take(self) -> None:
        """One request; waits until it may be sent. Callers come one after the other."""
        if (missing := 1 - self._filled()) > 0:
            await asyncio.sleep(missing / self._per_s + max(0.0, self._at - time.monotonic()))
            self._filled()
        self._tokens -= 1

    def slow_down(self, seconds: float) -> None:
        """AWS counts more than we do: somebody else asks, too."""
        self._tokens, self._at = 0.0, max(self._at, time.monotonic() + seconds)

    def _filled(self) -> float:
        now = time.monotonic()
        if now > self._at:
            self._tokens = min(self._burst, self._tokens + (now - self._at) * self._per_s)
            self._at = now
        return self._tokens


class Troubles:
    """What goes wrong in calls for whose answer nobody waits. It is told with how often in a row it was the same."""

    def __init__(self) -> None:
        self.tell: Callable[[str, str, int], None] = lambda what, reason, times: None
        """Set by the wiring: what does not work, why, how many times."""
        self._noted: dict[tuple[str, str], tuple[str, int]] = {}

    def note(self, what: str, reason: str, of: str = "") -> None:
        """`what` is one of a few; `of` which of many: instances, compute environments."""
        last, times = self._noted.get((what, of), ("", 0))
        times = times + 1 if reason == last else 1
        self._noted[what, of] = reason, times
        self.tell(what, f"{of}: {reason}" if of else reason, times)

    def over(self, what: str, of: str = "") -> None:
        self._noted.pop((what, of), None)


class AwsSettings(msgspec.Struct, frozen=True, kw_only=True):
    region: str = "us-east-1"
    endpoint: str = ""
    """One address for every service, in place of AWS's own; empty leaves it to AWS_ENDPOINT_URL."""


class Aws:
    """Clients by service, made when they are first needed; credentials are found as boto3 finds them."""

    def __init__(self, settings: AwsSettings, session: boto3.Session | None = None) -> None:
        self.region = settings.region
        self.troubles = Troubles()
        self._endpoint = settings.endpoint or None
        self._session = session or boto3.Session(region_name=settings.region)
        self._making = asyncio.Lock()
        self._clients: dict[tuple[str, int], Any] = {}
        self._slots = asyncio.Semaphore(CALLS_MAX)

    async def call(self, service: ServiceName, operation: str, **request: Any) -> dict[str, Any]:
        """Raises CloudDown when it may go better later, AwsRefusal when it may not."""
        client = await self._client(service, ATTEMPTS)
        return await self._in_thread(operation, lambda: getattr(client, operation)(**request))

    async def call_once(
        self, service: ServiceName, operation: str, **request: Any
    ) -> dict[str, Any]:
        """Without boto3's own repeats: it takes a lack of capacity (HTTP 500) for a failure of EC2's."""
        client = await self._client(service, 1)
        return await self._in_thread(operation, lambda: getattr(client, operation)(**request))

    async def pages(
        self, service: ServiceName, operation: str, **request: Any
    ) -> AsyncIterator[dict[str, Any]]:
        """Every page of a listing, each fetched when it is asked for."""
        client = await self._client(service, ATTEMPTS)
        pages = iter(client.get_paginator(operation).paginate(**request))
        while (page := await self._in_thread(operation, lambda: next(pages, None))) is not None:
            yield page

    def close(self) -> None:
        """Calls under way are left to themselves: each is harmless when repeated."""
        for client in self._clients.values():
            client.close()

    async def _in_thread(self, operation: str, ask: Callable[[], Any]) -> Any:
        try:
            async with self._slots:
                return await _in_daemon_thread(ask)
        except ClientError as error:
            told = error.response.get("Error", {})
            code, message = told.get("Code", "Unknown"), told.get("Message", str(error))
            if xform_name(error.operation_name) != operation:
                # Credentials could not be had (AssumeRoleWithWebIdentity): nobody has looked at what we asked.
                raise CloudDown(f"No credentials: {code}: {message}") from error
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 400)
            if meaning_of(code, message) is Meaning.LATER or (status >= 500 and _is_unsaid(code)):
                kind = Throttled if code in THROTTLED else CloudDown
                raise kind(f"{code}: {message}") from error
            raise AwsRefusal(code, message) from error
        except (
            BotoCoreError,
            ResponseParserError,
        ) as error:  # No way there, no credentials, no answer of AWS
            raise CloudDown(f"AWS cannot be asked: {error}") from error

    async def _client(self, service: ServiceName, attempts: int) -> Any:
        """One at a time, since sessions are not made for threads; and in one, since EC2's model takes half a second."""
        key = (service, attempts)
        async with self._making:
            if key not in self._clients:
                self._clients[key] = await _in_daemon_thread(
                    lambda: self._make_client(service, attempts)
                )
        return self._clients[key]

    def _make_client(self, service: ServiceName, attempts: int) -> Any:
        region = self.region
        if service == "pricing":
            region = PRICING_REGIONS.get(region[:2], PRICING_REGIONS["default"])
        return self._session.client(
            service,
            region_name=region,
            endpoint_url=self._endpoint,
            config=Config(
                retries={"mode": "standard", "total_max_attempts": attempts},
                connect_timeout=CONNECT_S,
                read_timeout=READ_S,
                max_pool_connections=CALLS_MAX,
                user_agent_appid="eksbatch",
            ),
        )


async def _in_daemon_thread(ask: Callable[[], Any]) -> Any:
    """Threads of an executor are waited for when Python exits; a long wait for notices must not hold it up."""
    told: Future[Any] = Future()
    told.set_running_or_notify_cancel()  # Whoever does not wait any more cannot take it back

    def run() -> None:
        try:
            told.set_result(ask())
        except BaseException as error:
            told.set_exception(error)

    threading.Thread(target=run, name="aws", daemon=True).start()
    return await asyncio.wrap_future(told)


def _is_unsaid(code: str) -> bool:
    """EC2 answers 500 also to refusals with a name (InsufficientInstanceCapacity), which is no failure of its own."""
    return meaning_of(code) is Meaning.NEVER
