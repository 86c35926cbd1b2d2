"""The dashboard inside Airflow: mounted in its API server, behind its own login, with an entry in its menu.

Airflow loads this module in all of its processes, so what the pages need is imported when the first one is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow.plugins_manager import AirflowPlugin

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

PREFIX = "/eksbatch"


class PagesWhenAsked:
    """An ASGI app that is made by its first request."""

    def __init__(self) -> None:
        self._pages: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._pages is None:
            from airflow_eksbatch.airflow_pages import make_airflow_pages

            self._pages = make_airflow_pages()
        await self._pages(scope, receive, send)


APPS = [{"app": PagesWhenAsked(), "url_prefix": PREFIX, "name": "EKS Batch"}]
# Shown in a frame; the address is relative to Airflow's own, which may have a path.
VIEWS = [
    {
        "name": "EKS Batch",
        "href": f"{PREFIX.lstrip('/')}/",
        "destination": "nav",
        "url_route": "eksbatch",
    }
]


class EKSBatchPlugin(AirflowPlugin):
    """What Airflow finds by its entry point."""

    name = "eksbatch"
    fastapi_apps = APPS
    external_views = VIEWS
