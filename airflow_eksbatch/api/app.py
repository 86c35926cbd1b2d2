"""The HTTP face of the service: Batch operations, extensions, health and metrics as one ASGI app."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from functools import partial
from typing import Any
from urllib.parse import quote

import msgspec
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

import airflow_eksbatch
from airflow_eksbatch.api import (
    compute_environments,
    extension,
    job_definitions,
    job_reads,
    jobs,
    logs,
    queues,
    tags,
)
from airflow_eksbatch.api.auth import (
    Credential,
    Signed,
    access_key_of,
    check_not_a_web_page,
    check_signature,
    credential_of,
    is_local,
    names_loopback,
    unknown_key,
)
from airflow_eksbatch.api.dashboard import view_of
from airflow_eksbatch.api.port import ApiSettings, Call, Caller, Desk, Operation
from airflow_eksbatch.api.rights import NAME_SHOWN_MAX, changes_something, check_role
from airflow_eksbatch.api.wire.model import check_text, operations, request_check
from airflow_eksbatch.core.model import limits
from airflow_eksbatch.core.model.errors import Denied, Rejected
from airflow_eksbatch.store.port import SigningKey

log = logging.getLogger(__name__)

OPERATIONS: dict[str, Operation] = {
    **jobs.OPERATIONS,
    **job_reads.OPERATIONS,
    **job_definitions.OPERATIONS,
    **queues.OPERATIONS,
    **compute_environments.OPERATIONS,
    **tags.OPERATIONS,
}
# Whatever is not listed is about who asks.
STATUS = {
    "ClientException": 400,
    "SerializationException": 400,
    "RequestEntityTooLargeException": 413,
    "TooManyRequestsException": 429,
    "ServerException": 503,
    "InvalidParameterException": 400,
    "ResourceNotFoundException": 404,
    "UnknownOperationException": 404,
}
DENIED = 403
# Where a request that changes something says of what.
NAMED_BY = (
    "jobId",
    "jobName",
    "jobDefinition",
    "jobDefinitionName",
    "jobQueue",
    "jobQueueName",
    "computeEnvironment",
    "computeEnvironmentName",
    "arn",
    "name",
    "resourceArn",
    "jobs",
)
BODY_BYTES_MAX = limits.SUBMIT_BYTES_MAX + 64 * 1024
# Known keys are read again after so long; unknown ones may cost a query each time, so they wait for one that all share.
KEYS_S, UNKNOWN_KEYS_S = 5.0, 1.0

Answer = Callable[[Request, bytes, Caller], Awaitable[Response]]
_encode = msgspec.json.Encoder().encode


class Keys:
    """Access keys, as they were in the store a few seconds ago; one that was made since is found."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._keys: dict[str, SigningKey] = {}
        self._read_at = -KEYS_S
        self._reading = asyncio.Lock()

    async def find(self, credential: Credential) -> SigningKey:
        """Raises Rejected for one that is not known."""
        asked_at = time.monotonic()
        age_s = asked_at - self._read_at
        if credential.access_key not in self._keys:
            await asyncio.sleep(max(0.0, UNKNOWN_KEYS_S - age_s))
            await self._read_after(asked_at)
        elif age_s > KEYS_S:
            await self._read_after(asked_at)
        key = self._keys.get(credential.access_key)
        if key is None:
            raise unknown_key(credential)
        return key

    async def _read_after(self, moment: float) -> None:
        """Who waits meanwhile shares the answer."""
        async with self._reading:
            if self._read_at < moment:
                began = time.monotonic()
                self._keys = await self._desk.ask(lambda store: store.keys())
                self._read_at = began


class Api:
    """Routes requests to operations; whatever goes wrong becomes a modelled error."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._keys = Keys(desk)

    # ---- the way of every request

    def guarded(
        self, answer: Answer, *, for_people: bool = False
    ) -> Callable[[Request], Awaitable[Response]]:
        """Check who asks, read, answer; errors in the words of AWS. Nobody's body is read before it is known who he is.

        What is `for_people` is on the dashboard too, so whoever may see that needs no signature.
        """

        async def endpoint(request: Request) -> Response:
            request_id = str(uuid.uuid4())
            response = await answered(request, request_id)
            return with_id(response, request_id)

        async def answered(request: Request, request_id: str) -> Response:
            try:
                check_path(request)
                if self._needs_no_signature(request, for_people):
                    name = access_key_of(request.headers.get("authorization"))
                    return await answer(request, await read_body(request), Caller(access_key=name))
                credential = credential_of(request.headers)
                key = await self._keys.find(credential)
                body = await read_body(request)
                check_signature(signed_of(request, body), credential, key.secret)
                caller = Caller(access_key=credential.access_key, rights=key.rights)
                return await answer(request, body, caller)
            except Rejected as refusal:
                return error_response(refusal)
            except ClientDisconnect:
                return Response(status_code=400)
            except Exception:
                where = f"{request.method} {request.url.path}"
                log.exception("a request failed: %s (request id %s)", where, request_id)
                return error_response(
                    Rejected("The service failed at this request; its log says why.", "Internal"),
                    500,
                )

        return endpoint

    def _needs_no_signature(self, request: Request, for_people: bool) -> bool:
        """Raises Rejected for web pages that ask a service which is open."""
        settings = self._desk.settings
        if settings.auth == "open":
            # By whatever name the dashboard may be called, its links may be.
            if not (for_people and settings.dashboard == "open"):
                check_not_a_web_page(request.headers)
            return True
        is_signed = "authorization" in request.headers
        return for_people and not is_signed and may_see(settings, request.scope)

    # ---- AWS Batch

    async def run(
        self, name: str, given: dict[str, Any], request: Request, caller: Caller
    ) -> Response:
        operation = OPERATIONS.get(name)
        if operation is None:
            raise Rejected(f"{name} is not supported by this service.")
        with self._telling_denials(name, given, caller):
            check_role(caller, name)
            call = Call(
                desk=self._desk,
                input=request_check(name)(given, ""),
                headers=request.headers,
                caller=caller,
            )
            answer = await operation(call)
        if changes_something(name):
            # Where nothing is signed, anybody may name any key.
            is_signed = self._desk.settings.auth != "open"
            by = caller.access_key if is_signed else None
            self._desk.tell_changed(name, named_in(given), by)
        return json_response(answer)

    @contextlib.contextmanager
    def _telling_denials(
        self, name: str, given: Mapping[str, Any], caller: Caller
    ) -> Iterator[None]:
        try:
            yield
        except Denied:
            self._desk.tell_denied(name, named_in(given), caller.access_key)
            raise

    async def batch(self, request: Request, body: bytes, caller: Caller) -> Response:
        """POST /v1/<operation>."""
        name = operations().get(request.path_params["operation"])
        if name is None:
            raise Rejected(
                f"There is no operation {request.path_params['operation']}.",
                "UnknownOperationException",
            )
        return await self.run(name, decode(body), request, caller)

    async def tags(self, request: Request, body: bytes, caller: Caller) -> Response:
        """/v1/tags/<ARN>, which clients send percent-encoded or plain."""
        given: dict[str, Any] = {"resourceArn": request.path_params["arn"]}
        name = {
            "GET": "ListTagsForResource",
            "HEAD": "ListTagsForResource",
            "DELETE": "UntagResource",
        }.get(request.method)
        if name == "UntagResource":
            given["tagKeys"] = request.query_params.getlist("tagKeys")
        elif name is None:
            name, given = "TagResource", {**decode(body), **given}
        return await self.run(name, given, request, caller)

    async def logs(self, request: Request, body: bytes, caller: Caller) -> Response:
        """CloudWatch Logs: the operation is in a header."""
        target = request.headers.get("x-amz-target", "")
        operation = logs.OPERATIONS.get(target)
        if operation is None:
            what = f"The operation {target}" if target else "POST / without x-amz-target"
            raise Rejected(f"{what} is not supported here.", "UnknownOperationException")
        return json_response(await operation(self._desk, body))

    # ---- extensions

    async def dry_run(self, request: Request, body: bytes, caller: Caller) -> Response:
        """A SubmitJob that is only tried."""
        given = decode(body)
        with self._telling_denials("dry-run", given, caller):
            check_role(caller, "SubmitJob")
            asked = request_check("SubmitJob")(given, "")
            call = Call(desk=self._desk, input=asked, headers=request.headers, caller=caller)
            return json_response(await jobs.dry_run(call))

    async def events(self, request: Request, body: bytes, caller: Caller) -> Response:
        await self._desk.settled()
        lines = self._desk.subscribe(extension.number_in(request.query_params, "cursor", -1))
        return StreamingResponse(encoded(lines), media_type="application/x-ndjson")

    async def job(self, request: Request, body: bytes, caller: Caller) -> Response:
        job_id = request.path_params["job_id"]
        return json_response(await extension.get_job(self._desk, job_id))

    async def output(self, request: Request, body: bytes, caller: Caller) -> Response:
        job_id, query = request.path_params["job_id"], request.query_params
        media = "text/plain; charset=utf-8"
        if query.get("follow", "0") not in ("0", ""):
            await extension.find_attempt(self._desk, job_id, 0)
            return StreamingResponse(
                extension.follow_output(self._desk, job_id, query), media_type=media
            )
        output = await extension.read_output(self._desk, job_id, query)
        # Text of jobs: a browser must not make a page of it.
        headers = {
            "x-eksbatch-attempt": str(output.attempt),
            "x-eksbatch-next-offset": str(output.offset),
            "x-content-type-options": "nosniff",
        }
        return Response(output.text, media_type=media, headers=headers)

    async def explain(self, request: Request, body: bytes, caller: Caller) -> Response:
        return json_response(await extension.explain_job(self._desk, request.path_params["job_id"]))

    async def summary(self, request: Request, body: bytes, caller: Caller) -> Response:
        return json_response(await extension.get_summary(self._desk))

    async def costs(self, request: Request, body: bytes, caller: Caller) -> Response:
        return json_response(await extension.read_costs(self._desk, request.query_params))

    async def view(self, request: Request, body: bytes, caller: Caller) -> Response:
        name, asked = request.path_params["name"], dict(request.query_params)
        return json_response(await view_of(self._desk, name, asked))

    async def cloud(self, request: Request, body: bytes, caller: Caller) -> Response:
        with self._telling_denials("cloud", {}, caller):
            check_role(caller, "ControlCloud")
        return json_response(await self._desk.control_cloud(decode(body)))

    # ---- for probes; unsigned

    async def healthz(self, request: Request) -> Response:
        return json_response({"status": "up", "version": airflow_eksbatch.__version__})

    async def readyz(self, request: Request) -> Response:
        trouble = self._desk.trouble
        if trouble is None:
            return json_response({"status": "ready"})
        return json_response({"status": "not ready", "reason": trouble}, 503)

    async def metrics(self, request: Request) -> Response:
        return PlainTextResponse(self._desk.metrics_text())


def make_app(desk: Desk, dashboard: ASGIApp | None = None) -> Starlette:
    """The whole of what is served; the dashboard to whom the settings say."""
    api = Api(desk)
    root = "/v1/eksbatch"
    on = api.guarded
    get_job = on(api.job, for_people=True)

    async def job(request: Request) -> Response:
        """JSON; a browser, which cannot sign, is led to the page of the job."""
        if "text/html" in request.headers.get("accept", ""):
            page = f"/job/{quote(request.path_params['job_id'], safe=':')}"
            return RedirectResponse(page, status_code=303)
        return await get_job(request)

    routes: list[Route | Mount] = [
        # Most requests are of this form; it takes no path of the others.
        Route("/v1/{operation}", on(api.batch), methods=["POST"]),
        Route("/healthz", api.healthz),
        Route("/readyz", api.readyz),
        Route("/metrics", api.metrics),
        Route(f"{root}/dry-run", on(api.dry_run), methods=["POST"]),
        Route(f"{root}/events", on(api.events)),
        Route(f"{root}/jobs/{{job_id}}", job),
        Route(f"{root}/jobs/{{job_id}}/log", on(api.output, for_people=True)),
        Route(f"{root}/jobs/{{job_id}}/explain", on(api.explain, for_people=True)),
        Route(f"{root}/summary", on(api.summary)),
        Route(f"{root}/costs", on(api.costs)),
        Route(f"{root}/views/{{name}}", on(api.view)),
        Route(f"{root}/cloud", on(api.cloud), methods=["POST"]),
        Route("/v1/tags/{arn:path}", on(api.tags), methods=["GET", "POST", "DELETE"]),
    ]
    routes += [Route("/", on(api.logs), methods=["POST"]), Mount("/v1", nothing_here)]
    if dashboard is not None:
        routes.append(Mount("/", partial(for_people, dashboard, desk)))
    return Starlette(routes=routes, exception_handlers={404: unknown_path, 405: unknown_path})


def may_see(settings: ApiSettings, scope: Scope) -> bool:
    """Whether the dashboard, and what it links to, is shown to whoever asks: browsers do not sign."""
    if settings.dashboard == "local" and settings.auth == "open":
        return names_loopback(Headers(scope=scope))
    return settings.dashboard == "open" or (settings.dashboard == "local" and is_local(scope))


async def for_people(
    dashboard: ASGIApp, desk: Desk, scope: Scope, receive: Receive, send: Send
) -> None:
    app = dashboard
    if scope["method"] not in ("GET", "HEAD"):
        app = nothing_here
    elif not may_see(desk.settings, scope):
        how = {
            "off": "It is switched off (--dashboard off).",
            "local": "It is shown on the machine of the service, or through kubectl port-forward: open it "
            "as http://localhost with the port, and not through a proxy (--dashboard local).",
        }
        app = PlainTextResponse(
            f"The dashboard is not shown here. {how[desk.settings.dashboard]}", status_code=DENIED
        )
    elif desk.trouble is not None:
        app = PlainTextResponse(f"The service is not ready: {desk.trouble}.", status_code=503)
    await app(scope, receive, send)


async def nothing_here(scope: Scope, receive: Receive, send: Send) -> None:
    """What has no route, in the words of the API."""
    answer = await unknown_path(Request(scope), LookupError())
    await answer(scope, receive, send)


async def unknown_path(request: Request, error: Exception) -> Response:
    where = f"{request.method} {request.url.path}"
    refusal = Rejected(f"There is nothing at {where}.", "UnknownOperationException")
    return with_id(error_response(refusal), str(uuid.uuid4()))


def with_id(response: Response, request_id: str) -> Response:
    """Clients of AWS print it with whatever went wrong, and some fail where there is none."""
    response.headers["x-amzn-RequestId"] = request_id
    return response


# ---- requests and answers


def check_path(request: Request) -> None:
    """Raises Rejected for what no database can be asked for."""
    if "\0" in request.scope["path"] or b"%00" in request.scope["query_string"]:
        raise Rejected(
            "The URL has a NUL character (%00), which no name here can hold: leave it out."
        )


async def read_body(request: Request) -> bytes:
    """All of it, up to the limit."""
    blocks: list[bytes] = []
    size = 0
    async for block in request.stream():
        size += len(block)
        if size > BODY_BYTES_MAX:
            raise Rejected(
                f"The request is larger than {BODY_BYTES_MAX // 1024} KiB. "
                "Put large input where jobs can read it.",
                "RequestEntityTooLargeException",
            )
        blocks.append(block)
    return b"".join(blocks)


def decode(body: bytes) -> dict[str, Any]:
    """A JSON object; raises Rejected. NUL is refused because no database keeps it in text."""
    try:
        given = msgspec.json.decode(body or b"{}")
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise Rejected(f"The body is not JSON: {error}.", "SerializationException") from None
    if not isinstance(given, dict):
        raise Rejected("The body must be a JSON object.", "SerializationException")
    check_text(given, body)
    return given


def signed_of(request: Request, body: bytes) -> Signed:
    scope = request.scope
    raw_path = scope.get("raw_path") or scope["path"].encode()
    return Signed(
        method=request.method,
        raw_path=raw_path.decode("latin-1"),
        raw_query=scope["query_string"].decode("latin-1"),
        headers=request.headers,
        body=body,
    )


def named_in(given: Mapping[str, Any]) -> str | None:
    """What a request is about, for the log."""
    named = (str(given[key])[:NAME_SHOWN_MAX] for key in NAMED_BY if given.get(key))
    return next(named, None)


def json_response(answer: object, status: int = 200) -> Response:
    return Response(_encode(answer), status_code=status, media_type="application/json")


def error_response(refusal: Rejected, status: int | None = None) -> Response:
    """The wire form of an error in botocore's rest-json and json."""
    code = "ServerException" if status == 500 else refusal.code
    body = {"__type": code, "message": refusal.message}
    response = json_response(body, status or STATUS.get(refusal.code, DENIED))
    response.headers["x-amzn-ErrorType"] = code
    return response


async def encoded(lines: AsyncIterator[dict[str, Any]]) -> AsyncIterator[bytes]:
    """One JSON object a line."""
    async for line in lines:
        yield _encode(line) + b"\n"
