"""The dashboard's pages for people who are logged in to Airflow, read from the service of a connection with its keys."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from airflow.api_fastapi.auth.managers.models.resource_details import AccessView, DagAccessEntity
from airflow.api_fastapi.core_api.security import (
    GetUserDep,
    requires_access_dag,
    requires_access_view,
)
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exception_handlers import http_exception_handler
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from airflow_eksbatch.hooks import (
    DEFAULT_CONN_ID,
    AsyncBatchClient,
    EKSBatchHook,
    ServiceAway,
    ServiceRefused,
)
from airflow_eksbatch.stream import LOOK_UP_S
from airflow_eksbatch.web.app import Trouble, make_web_app, missing

UNAUTHENTICATED = 401
FORBIDDEN = 403
NOTHING_THERE = "ResourceNotFoundException"
# Which part of an output may be asked for here. To follow it would hold a request for as long as the job runs.
PARTS = ("attempt", "offset", "tail")
GOES_ON_AT = "x-eksbatch-next-offset"


def make_airflow_pages() -> FastAPI:
    """Below its prefix: CONN_ID/ is the dashboard of that connection's service, and / that of the default one's."""
    services = Services()
    app = FastAPI(
        openapi_url=None,
        dependencies=[Depends(requires_access_view(AccessView.CLUSTER_ACTIVITY))],
        exception_handlers={HTTPException: to_login},
    )

    async def default(request: Request) -> Response:
        return RedirectResponse(f"{request.url.path.rstrip('/')}/{DEFAULT_CONN_ID}/")

    async def with_slash(request: Request) -> Response:
        return RedirectResponse(f"{request.url.path}/")

    async def output(conn_id: str, job_id: str, request: Request, user: GetUserDep) -> Response:
        """Where the page of a job leads for all of its output."""
        reader = Reader(services, conn_id, request, user)
        try:
            await reader.check_may_see(await reader.get(f"jobs/{job_id}"))
            query = request.query_params
            asked = {name: query[name] for name in PARTS if name in query}
            text, offset = await reader.output(f"jobs/{job_id}/log", asked)
        except Trouble as trouble:
            return missing(str(trouble), trouble.status)
        # Text of jobs: a browser must not make a page of it.
        return PlainTextResponse(
            text, headers={GOES_ON_AT: offset, "x-content-type-options": "nosniff"}
        )

    async def page(conn_id: str, request: Request, user: GetUserDep) -> Response:
        return OfApp(make_web_app(Reader(services, conn_id, request, user).fetch), f"/{conn_id}")

    for path, answer in (
        ("/", default),
        ("/{conn_id}", with_slash),
        ("/{conn_id}/v1/eksbatch/jobs/{job_id}/log", output),
        ("/{conn_id}/{path:path}", page),
    ):
        app.add_api_route(path, answer, methods=["GET", "HEAD"], response_model=None)
    return app


async def to_login(request: Request, error: Exception) -> Response:
    """A browser without a login is led to Airflow's; whoever else asks is told."""
    assert isinstance(error, HTTPException)
    is_page = "text/html" in request.headers.get("accept", "")
    if error.status_code != UNAUTHENTICATED or not is_page:
        return await http_exception_handler(request, error)
    root = request.scope.get("app_root_path", "")
    here = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    return RedirectResponse(f"{root}/api/v2/auth/login?next={quote(here, safe='')}")


class OfApp(Response):
    """What another ASGI app answers, mounted below a path of ours."""

    def __init__(self, app: ASGIApp, below: str) -> None:
        super().__init__()
        self._app, self._below = app, below

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        inner = {**scope, "root_path": scope.get("root_path", "") + self._below}
        await self._app(inner, receive, send)


class Services:
    """Clients of the services that connections name.

    Waiting tasks go on with what was named last when a connection cannot be read; what is shown to
    people is not: a connection that was deleted, or has other keys, is not used for longer than LOOK_UP_S.
    """

    def __init__(self) -> None:
        self._clients: dict[str, AsyncBatchClient] = {}
        self._looked_up_at: dict[str, float] = {}

    async def client_of(self, conn_id: str) -> AsyncBatchClient:
        """Kept once it has led somewhere: anybody may ask for any name."""
        known = self._clients.get(conn_id)
        if known is not None and time.monotonic() - self._looked_up_at[conn_id] < LOOK_UP_S:
            return known
        return await self.renewed_client_of(conn_id)

    async def renewed_client_of(self, conn_id: str) -> AsyncBatchClient:
        try:
            endpoint = await EKSBatchHook(conn_id).running_endpoint()
        except ServiceAway:
            if (gone := self._clients.pop(conn_id, None)) is not None:
                await gone.close()
            raise
        self._looked_up_at[conn_id] = time.monotonic()
        known = self._clients.get(conn_id)
        if known is not None and known.endpoint == endpoint:
            return known
        fresh = self._clients[conn_id] = AsyncBatchClient(endpoint)
        if known is not None:
            await known.close()
        return fresh


class Reader:
    """What one person may read from one service, for one request; raises Trouble."""

    def __init__(self, services: Services, conn_id: str, request: Request, user: Any) -> None:
        self._services, self._conn_id = services, conn_id
        self._request, self._user = request, user
        self._deployment = ""  # of the connection, once it was asked with

    async def fetch(self, name: str, **asked: str) -> Any:
        """Rows by the name of a view, as the dashboard wants them."""
        rows = await self.get(f"views/{name}", asked)
        if name == "job" and rows is not None:
            await self.check_may_see(rows)
        return rows

    async def get(self, path: str, asked: dict[str, str] | None = None) -> Any:
        """JSON; None for what does not exist."""
        try:
            return json.loads((await self._ask(path, asked))[0])
        except ServiceRefused as error:
            if error.code == NOTHING_THERE:
                return None
            raise Trouble(str(error)) from error

    async def output(self, path: str, asked: dict[str, str]) -> tuple[bytes, str]:
        """Text, and the offset from which it goes on: one answer holds 16 MiB."""
        try:
            output, headers = await self._ask(path, asked)
        except ServiceRefused as error:
            raise Trouble(str(error), status=404) from error
        return output, headers.get(GOES_ON_AT, "")

    async def check_may_see(self, job: dict[str, Any] | None) -> None:
        """Commands and output of a task are for those to whom Airflow shows the logs of its DAG.

        A DAG of that name in another Airflow, which uses the same service, is another DAG.
        """
        airflow = (job or {}).get("airflow")
        if not isinstance(airflow, dict) or not airflow.get("dag_id"):
            return
        dag_id, deployment = str(airflow["dag_id"]), airflow.get("deployment")
        # What was submitted before services kept it says nothing of its deployment.
        if deployment is not None and deployment != self._deployment:
            raise Trouble(
                f"This job is of another Airflow, of the deployment {deployment or 'without a name'}: "
                "see it there, or give the connection of this one the same deployment if it is the same.",
                status=FORBIDDEN,
            )
        check = requires_access_dag("GET", DagAccessEntity.TASK_LOGS, dag_id)
        try:
            await run_in_threadpool(check, self._request, self._user)
        except HTTPException as error:
            raise Trouble(
                f"Airflow does not let you see the logs of DAG {dag_id}, to which this job belongs.",
                status=FORBIDDEN,
            ) from error

    async def _ask(
        self, path: str, asked: dict[str, str] | None
    ) -> tuple[bytes, Mapping[str, str]]:
        """One request; a service that does not answer may be elsewhere by now, or want another key."""
        try:
            client = await self._services.client_of(self._conn_id)
            try:
                answer = await client.read(path, asked)
            except ServiceAway:
                renewed = await self._services.renewed_client_of(self._conn_id)
                if renewed is client:
                    raise
                client, answer = renewed, await renewed.read(path, asked)
        except ServiceAway as error:
            raise Trouble(f"The service cannot be asked: {error}.") from error
        self._deployment = client.endpoint.deployment
        return answer
