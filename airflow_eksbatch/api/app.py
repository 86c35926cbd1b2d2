"""The HTTP face of the service: Batch operations, extensions, health and metrics as one ASGI app."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

import msgspec
from starlette.applications import Starlette
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
from airflow_eksbatch.api.auth import Signed, check_request, is_local
from airflow_eksbatch.api.port import Call, Desk, Operation
from airflow_eksbatch.api.wire.model import check_text, operations, request_check
from airflow_eksbatch.core.model import limits
from airflow_eksbatch.core.model.errors import Rejected

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
BODY_BYTES_MAX = limits.SUBMIT_BYTES_MAX + 64 * 1024
KEYS_S = 5.0
# Hosts that no name server can make up.
LITERAL = re.compile(r"(localhost|[0-9.]+|\[[0-9a-f:.]+\])(:[0-9]+)?$")

Answer = Callable[[Request, bytes, str], Awaitable[Response]]
_encode = msgspec.json.Encoder().encode


class Keys:
    """Access keys, read again after a few seconds or when one is not known."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._keys: dict[str, str] = {}
        self._read_at = 0.0

    async def get(self, authorization: str) -> dict[str, str]:
        stale = time.monotonic() - self._read_at > KEYS_S
        if stale or not any(key in authorization for key in self._keys):
            self._keys = await self._desk.ask(lambda store: store.keys())
            self._read_at = time.monotonic()
        return self._keys


class Api:
    """Routes requests to operations; whatever goes wrong becomes a modelled error."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._keys = Keys(desk)

    # ---- the way of every request

    def guarded(self, answer: Answer) -> Callable[[Request], Awaitable[Response]]:
        """Read, check who asks, answer; errors in the words of AWS."""

        async def endpoint(request: Request) -> Response:
            try:
                body = await read_body(request)
                access_key = await self.check_caller(request, body)
                return await answer(request, body, access_key)
            except Rejected as refusal:
                return error_response(refusal)
            except ClientDisconnect:
                return Response(status_code=400)
            except Exception:
                log.exception("a request failed: %s %s", request.method, request.url.path)
                return error_response(
                    Rejected("The service failed at this request; its log says why.", "Internal"),
                    500,
                )

        return endpoint

    async def check_caller(self, request: Request, body: bytes) -> str:
        """The access key, "" without one; raises Rejected."""
        signed = signed_of(request, body)
        is_open = self._desk.settings.auth == "open"
        if is_open:
            check_not_a_web_page(signed)
            return check_request(signed, {}, is_open=True)
        authorization = signed.headers.get("authorization", "")
        keys = await self._keys.get(authorization) if authorization else {}
        return check_request(signed, keys, is_open=False)

    # ---- AWS Batch

    async def run(
        self, name: str, given: dict[str, Any], request: Request, access_key: str
    ) -> Response:
        operation = OPERATIONS.get(name)
        if operation is None:
            raise Rejected(f"{name} is not supported by this service.")
        call = Call(
            desk=self._desk,
            input=request_check(name)(given, ""),
            headers=request.headers,
            access_key=access_key,
        )
        return json_response(await operation(call))

    async def batch(self, request: Request, body: bytes, access_key: str) -> Response:
        """POST /v1/<operation>."""
        name = operations().get(request.path_params["operation"])
        if name is None:
            raise Rejected(
                f"There is no operation {request.path_params['operation']}.",
                "UnknownOperationException",
            )
        return await self.run(name, decode(body), request, access_key)

    async def tags(self, request: Request, body: bytes, access_key: str) -> Response:
        """/v1/tags/<ARN>, which clients send percent-encoded or plain."""
        given: dict[str, Any] = {"resourceArn": request.path_params["arn"]}
        name = {"GET": "ListTagsForResource", "DELETE": "UntagResource"}.get(request.method)
        if name == "UntagResource":
            given["tagKeys"] = request.query_params.getlist("tagKeys")
        elif name is None:
            name, given = "TagResource", {**decode(body), **given}
        return await self.run(name, given, request, access_key)

    async def logs(self, request: Request, body: bytes, access_key: str) -> Response:
        """CloudWatch Logs: the operation is in a header."""
        target = request.headers.get("x-amz-target", "")
        operation = logs.OPERATIONS.get(target)
        if operation is None:
            what = f"The operation {target}" if target else "POST / without x-amz-target"
            raise Rejected(f"{what} is not supported here.", "UnknownOperationException")
        return json_response(await operation(self._desk, body))

    # ---- extensions

    async def events(self, request: Request, body: bytes, access_key: str) -> Response:
        await self._desk.settled()
        lines = self._desk.subscribe(extension.number_in(request.query_params, "cursor", -1))
        return StreamingResponse(encoded(lines), media_type="application/x-ndjson")

    async def job(self, request: Request, body: bytes, access_key: str) -> Response:
        """JSON; a browser is led to the page of the job."""
        job_id = request.path_params["job_id"]
        if "text/html" in request.headers.get("accept", ""):
            return RedirectResponse(f"/job/{job_id}", status_code=303)
        return json_response(await extension.get_job(self._desk, job_id))

    async def output(self, request: Request, body: bytes, access_key: str) -> Response:
        job_id, query = request.path_params["job_id"], request.query_params
        media = "text/plain; charset=utf-8"
        if query.get("follow", "0") not in ("0", ""):
            await extension.find_attempt(self._desk, job_id, 0)
            return StreamingResponse(
                extension.follow_output(self._desk, job_id, query), media_type=media
            )
        text, offset = await extension.read_output(self._desk, job_id, query)
        headers = {"x-eksbatch-next-offset": str(offset)}
        return Response(text, media_type=media, headers=headers)

    async def explain(self, request: Request, body: bytes, access_key: str) -> Response:
        return json_response(await extension.explain_job(self._desk, request.path_params["job_id"]))

    async def summary(self, request: Request, body: bytes, access_key: str) -> Response:
        return json_response(await extension.get_summary(self._desk))

    async def costs(self, request: Request, body: bytes, access_key: str) -> Response:
        return json_response(await extension.read_costs(self._desk, request.query_params))

    async def cloud(self, request: Request, body: bytes, access_key: str) -> Response:
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
    """The whole of what is served; the dashboard only to this machine or where all is open."""
    api = Api(desk)
    root = "/v1/eksbatch"
    on = api.guarded
    routes: list[Route | Mount] = [
        # Most requests are of this form; it takes no path of the others.
        Route("/v1/{operation}", on(api.batch), methods=["POST"]),
        Route("/healthz", api.healthz),
        Route("/readyz", api.readyz),
        Route("/metrics", api.metrics),
        Route(f"{root}/events", on(api.events)),
        Route(f"{root}/jobs/{{job_id}}", on(api.job)),
        Route(f"{root}/jobs/{{job_id}}/log", on(api.output)),
        Route(f"{root}/jobs/{{job_id}}/explain", on(api.explain)),
        Route(f"{root}/summary", on(api.summary)),
        Route(f"{root}/costs", on(api.costs)),
        Route(f"{root}/cloud", on(api.cloud), methods=["POST"]),
        Route("/v1/tags/{arn:path}", on(api.tags), methods=["GET", "POST", "DELETE"]),
    ]
    routes += [Route("/", on(api.logs), methods=["POST"]), Mount("/v1", nothing_here)]
    if dashboard is not None:
        routes.append(Mount("/", partial(for_people, dashboard, desk)))
    return Starlette(routes=routes, exception_handlers={404: unknown_path, 405: unknown_path})


async def for_people(
    dashboard: ASGIApp, desk: Desk, scope: Scope, receive: Receive, send: Send
) -> None:
    """Browsers do not sign; with signatures on, a port-forward of Kubernetes makes them local."""
    client = scope.get("client")
    app = dashboard
    if scope["method"] not in ("GET", "HEAD"):
        app = nothing_here
    elif desk.settings.auth != "open" and not is_local(client[0] if client else ""):
        app = PlainTextResponse(
            "The dashboard is shown on the machine of the service, or through kubectl port-forward.",
            status_code=DENIED,
        )
    elif desk.trouble is not None:
        app = PlainTextResponse(f"The service is not ready: {desk.trouble}.", status_code=503)
    await app(scope, receive, send)


async def nothing_here(scope: Scope, receive: Receive, send: Send) -> None:
    """What has no route, in the words of the API."""
    answer = await unknown_path(Request(scope), LookupError())
    await answer(scope, receive, send)


async def unknown_path(request: Request, error: Exception) -> Response:
    return error_response(
        Rejected(
            f"There is nothing at {request.method} {request.url.path}.", "UnknownOperationException"
        )
    )


# ---- requests and answers


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
        client=request.client.host if request.client else "",
    )


def check_not_a_web_page(signed: Signed) -> None:
    """Where nothing is signed, a page in this machine's browser must not submit jobs either.

    A page may have its own name point at this machine, so the same name on both sides is not enough.
    """
    origin = signed.headers.get("origin")
    site = signed.headers.get("sec-fetch-site", "none")
    host = signed.headers.get("host", "")
    is_ours = origin is None or (origin.partition("://")[2] == host and LITERAL.match(host))
    if not is_ours or site == "cross-site":
        raise Rejected(
            "Requests from other web pages are refused while requests need no signature.",
            "AccessDeniedException",
        )


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
