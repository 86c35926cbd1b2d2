"""The dashboard inside Airflow: mounted in its API server, behind its own login, with an entry in its menu.

Airflow loads this module in all of its processes, so what the pages need is imported when the first one is asked for.
"""

from __future__ import annotations

import asyncio
import threading
from importlib import import_module
from typing import TYPE_CHECKING

from airflow.plugins_manager import AirflowPlugin

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

PREFIX = "/eksbatch"


class PagesWhenAsked:
    """An ASGI app that is made by its first request, in a thread: all of Airflow's API waits for its event loop."""

    def __init__(self) -> None:
        self._pages: ASGIApp | None = None
        self._making = threading.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        pages = self._pages or await asyncio.to_thread(self._made)
        await pages(scope, receive, send)

    def _made(self) -> ASGIApp:
        """Once, however many ask at first."""
        with self._making:
            if self._pages is None:
                from airflow_eksbatch.airflow_pages import make_airflow_pages
                from airflow_eksbatch.outcome import ASKING_NEEDS

                for module in ASKING_NEEDS:
                    import_module(module)
                self._pages = make_airflow_pages()
            return self._pages


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
