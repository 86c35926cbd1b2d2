"""The dashboard's pages for people who are logged in to Airflow, read from the service of a connection with its keys."""

from __future__ import annotations

import json
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
from airflow_eksbatch.stream import JobFeed
from airflow_eksbatch.web.app import Trouble, make_web_app, missing

UNAUTHENTICATED = 401
FORBIDDEN = 403
NOTHING_THERE = "ResourceNotFoundException"


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
            text = await reader.text(f"jobs/{job_id}/log", dict(request.query_params))
        except Trouble as trouble:
            return missing(str(trouble), trouble.status)
        # Text of jobs: a browser must not make a page of it.
        return PlainTextResponse(text, headers={"x-content-type-options": "nosniff"})

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
    """Clients of the services that connections name; each looks its connection up anew once in a while."""

    def __init__(self) -> None:
        self._feeds: dict[str, JobFeed] = {}

    async def feed_of(self, conn_id: str) -> JobFeed:
        """Kept once it has led somewhere: anybody may ask for any name."""
        if (known := self._feeds.get(conn_id)) is not None:
            return known

        async def connect() -> AsyncBatchClient:
            return AsyncBatchClient(await EKSBatchHook(conn_id).running_endpoint())

        feed = JobFeed(connect)
        await feed.service()
        return self._feeds.setdefault(conn_id, feed)


class Reader:
    """What one person may read from one service, for one request; raises Trouble."""

    def __init__(self, services: Services, conn_id: str, request: Request, user: Any) -> None:
        self._services, self._conn_id = services, conn_id
        self._request, self._user = request, user

    async def fetch(self, name: str, **asked: str) -> Any:
        """Rows by the name of a view, as the dashboard wants them."""
        rows = await self.get(f"views/{name}", asked)
        if name == "job" and rows is not None:
            await self.check_may_see(rows)
        return rows

    async def get(self, path: str, asked: dict[str, str] | None = None) -> Any:
        """JSON; None for what does not exist."""
        try:
            return json.loads(await self._ask(path, asked))
        except ServiceRefused as error:
            if error.code == NOTHING_THERE:
                return None
            raise Trouble(str(error)) from error

    async def text(self, path: str, asked: dict[str, str]) -> str:
        try:
            return await self._ask(path, asked)
        except ServiceRefused as error:
            raise Trouble(str(error), status=404) from error

    async def check_may_see(self, job: dict[str, Any] | None) -> None:
        """Commands and output of a task are for those to whom Airflow shows the logs of its DAG."""
        dag_id = ((job or {}).get("airflow") or {}).get("dag_id")
        if not dag_id:
            return
        check = requires_access_dag("GET", DagAccessEntity.TASK_LOGS, dag_id)
        try:
            await run_in_threadpool(check, self._request, self._user)
        except HTTPException as error:
            raise Trouble(
                f"Airflow does not let you see the logs of DAG {dag_id}, to which this job belongs.",
                status=FORBIDDEN,
            ) from error

    async def _ask(self, path: str, asked: dict[str, str] | None) -> str:
        """One request; a service that does not answer may be elsewhere by now, or want another key."""
        try:
            feed = await self._services.feed_of(self._conn_id)
            service: Any = await feed.service()
            try:
                return await service.get(path, asked)
            except ServiceAway:
                renewed: Any = await feed.renewed_service()
                if renewed is service:
                    raise
                return await renewed.get(path, asked)
        except ServiceAway as error:
            raise Trouble(f"The service cannot be asked: {error}.") from error
