"""Pages read themselves anew: in a real browser, where there is one."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from airflow_eksbatch.web import app

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
SCRIPT = Path(app.__file__).parent / "static" / "refresh.js"
PAGE = '<script defer src="refresh.js"></script><time id="now">{0}</time><main>{0} look</main>'
WAIT_S = 120

pytestmark = pytest.mark.skipif(
    BROWSER is None and "CI" not in os.environ, reason="there is no browser here"
)


class Service(BaseHTTPRequestHandler):
    """A page; then a service that is not ready, a proxy with a page of its own, and the page again."""

    ANSWERS: ClassVar = [
        (200, PAGE.format("first")),
        (503, "The service is not ready: loading."),
        (200, "<p>Please sign in.</p>"),
    ]
    looks = 0

    def do_GET(self) -> None:
        if self.path == "/refresh.js":
            return self._answer(200, "text/javascript", SCRIPT.read_text())
        if self.path != "/":
            return self._answer(404, "text/plain", "")
        status, text = 200, PAGE.format("last")
        if Service.looks < len(self.ANSWERS):
            status, text = self.ANSWERS[Service.looks]
        Service.looks += 1
        return self._answer(status, "text/html", text)

    def _answer(self, status: int, kind: str, text: str) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def url() -> Iterator[str]:
    Service.looks = 0
    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def page_after(url: str, ms: int, profile: Path) -> str:
    """What a reader sees who has had it open for so long, by the browser's own clock."""
    assert BROWSER is not None
    options = ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}")
    shown = subprocess.run(
        [BROWSER, *options, f"--virtual-time-budget={ms}", "--dump-dom", url],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=True,
    )
    return shown.stdout


def test_a_page_outlives_a_service_that_was_away(url: str, tmp_path: Path) -> None:
    away = page_after(url, 8_000, tmp_path)
    assert "<main>first look</main>" in away, "the last words that were ours"
    assert "does not answer" in away
    Service.looks = 0
    back = page_after(url, 13_000, tmp_path)
    assert "<main>last look</main>" in back
    assert "null" not in back
    assert "does not answer" not in back
