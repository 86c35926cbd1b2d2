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

from airflow_eksbatch.web import pages

Fetch = Callable[..., Awaitable[Any]]
"""fetch("summary" | "queues" | "nodes" | "classes"), or fetch("job", id): rows, or None for what does not exist."""

TEMPLATES = Environment(
    loader=PackageLoader("airflow_eksbatch.web"), autoescape=select_autoescape()
)


def make_web_app(fetch: Fetch) -> Starlette:
    """Five pages; every number on them is also in the API."""

    async def overview(request: Request) -> HTMLResponse:
        return page("overview", pages.overview(await fetch("summary"), await fetch("queues")))

    async def nodes(request: Request) -> HTMLResponse:
        return page("nodes", pages.nodes(await fetch("nodes")))

    async def plan(request: Request) -> HTMLResponse:
        return page("plan", {"classes": await fetch("classes")})

    async def queue(request: Request) -> HTMLResponse:
        name = request.path_params["name"]
        rows = [row for row in await fetch("queues") if row["jobQueue"] == name]
        if not rows:
            return page("missing", {"what": f"Job queue {name}"}, status=404)
        classes = [row for row in await fetch("classes") if row["jobQueue"] == name]
        return page("queue", {"queue": rows[0], "bars": pages.bars(rows[0]), "classes": classes})

    async def job(request: Request) -> HTMLResponse:
        job_id = request.path_params["job_id"]
        view = await fetch("job", job_id)
        if view is None:
            return page("missing", {"what": f"Job {job_id}"}, status=404)
        return page("job", view)

    return Starlette(
        routes=[
            Route("/", overview),
            Route("/nodes", nodes),
            Route("/plan", plan),
            Route("/queue/{name}", queue),
            Route("/job/{job_id}", job),
            Mount("/static", StaticFiles(directory=Path(__file__).parent / "static")),
        ]
    )


def page(name: str, view: Mapping[str, Any], status: int = 200) -> HTMLResponse:
    """Render one template."""
    template = TEMPLATES.get_template(f"{name}.html")
    return HTMLResponse(template.render(page=name, **view), status_code=status)
