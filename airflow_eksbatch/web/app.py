"""The dashboard as an ASGI app over one function that fetches a view; it keeps nothing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from airflow_eksbatch.core.model.errors import Rejected
from airflow_eksbatch.floor.clock import now_ms
from airflow_eksbatch.web import pages

Fetch = Callable[..., Awaitable[Any]]
"""fetch("summary" | "queues" | "nodes" | "classes" | "jobs" | "job" | "costs", queue=, status=, job_id=, by=, since=):
rows, or None for what does not exist; raises Trouble, or Rejected with a code of the API."""


class Trouble(Exception):
    """Why there are no rows: a sentence for the reader of the page."""

    def __init__(self, sentence: str, status: int = 503) -> None:
        super().__init__(sentence)
        self.status = status


TEMPLATES = Environment(
    loader=PackageLoader("airflow_eksbatch.web"),
    autoescape=select_autoescape(),
    trim_blocks=True,
    lstrip_blocks=True,
)
for _filter in (pages.ago, pages.clock, pages.in_url, pages.money, pages.mib, pages.span):
    TEMPLATES.filters[_filter.__name__] = _filter


def make_web_app(fetch: Fetch) -> Starlette:
    """Six pages; every number on them is also in the API."""

    async def overview(request: Request) -> HTMLResponse:
        now = now_ms()
        summary, queues = await fetch("summary"), await fetch("queues")
        return page("overview", now, pages.overview(summary, queues, await fetch("jobs"), now))

    async def nodes(request: Request) -> HTMLResponse:
        return page("nodes", now_ms(), pages.nodes(await fetch("nodes")))

    async def plan(request: Request) -> HTMLResponse:
        return page("plan", now_ms(), {"classes": await fetch("classes")})

    async def queue(request: Request) -> HTMLResponse:
        name, status = request.path_params["name"], request.query_params.get("status", "")
        now = now_ms()
        rows = [row for row in await fetch("queues") if row["jobQueue"] == name]
        if not rows:
            return missing(f"Job queue {name} does not exist.")
        chosen = {"status": status} if status in pages.STATUSES else {}
        shown = pages.queue(
            rows[0],
            shares=(await fetch("summary"))["shares"],
            classes=await fetch("classes", queue=name),
            jobs=await fetch("jobs", queue=name, **chosen),
            now=now,
        )
        return page("queue", now, {**shown, "status": chosen.get("status")})

    async def job(request: Request) -> HTMLResponse:
        job_id = request.path_params["job_id"]
        view = await fetch("job", job_id=job_id)
        if view is None:
            return missing(f"Job {job_id} does not exist, or was forgotten since.")
        now = now_ms()
        return page("job", now, pages.job(view, now))

    async def cost(request: Request) -> HTMLResponse:
        now, query = now_ms(), request.query_params
        by = query["by"] if query.get("by") in pages.COST_VIEWS else "queue"
        days = query["days"] if query.get("days") in pages.COST_DAYS else "1"
        since = {"since": str(now - int(days) * pages.DAY_MS)}
        rows, hours = await fetch("costs", by=by, **since), await fetch("costs", by="hour", **since)
        return page("cost", now, {**pages.costs(rows, hours), "by": by, "days": days})

    async def nowhere(request: Request, error: Exception) -> HTMLResponse:
        return missing(f"There is no page {request.url.path}.")

    async def trouble(request: Request, error: Exception) -> HTMLResponse:
        assert isinstance(error, Trouble)
        return missing(str(error), error.status)

    async def refused(request: Request, error: Exception) -> HTMLResponse:
        assert isinstance(error, Rejected)
        return missing(error.message, 503 if error.code == "ServerException" else 400)

    return Starlette(
        routes=[
            Route("/", overview),
            Route("/nodes", nodes),
            Route("/plan", plan),
            Route("/cost", cost),
            Route("/queue/{name}", queue),
            Route("/job/{job_id}", job),
            Mount("/static", StaticFiles(directory=Path(__file__).parent / "static")),
        ],
        exception_handlers={404: nowhere, Trouble: trouble, Rejected: refused},
    )


def page(name: str, now: int, view: Mapping[str, Any], status: int = 200) -> HTMLResponse:
    """Render one template."""
    template = TEMPLATES.get_template(f"{name}.html")
    return HTMLResponse(template.render(page=name, now=now, **view), status_code=status)


def missing(sentence: str, status: int = 404) -> HTMLResponse:
    return page("missing", now_ms(), {"sentence": sentence}, status=status)
