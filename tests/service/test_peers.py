"""A replica vouches for callers on its own machine: a browser behind kubectl port-forward reaches either."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp import web

from airflow_eksbatch.api.auth import is_local
from airflow_eksbatch.service.front import PEER, Standby, secret_of, seen_by_peer

OWNER = "http://leader:8642#what-only-the-database-knows"
SECRET = secret_of(OWNER).encode()


def a_scope(client: str, *headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return {
        "type": "http",
        "method": "GET",
        "raw_path": b"/jobs",
        "query_string": b"",
        "headers": [(b"host", b"localhost:8642"), *headers],
        "client": (client, 4711),
    }


@pytest.mark.parametrize(
    ("client", "told"),
    [("127.0.0.1", [SECRET.decode()]), ("127.0.0.6", []), ("10.0.0.7", [])],
)
def test_a_standby_vouches_for_its_own_machine_and_for_nobody_who_says_so_himself(
    client: str, told: list[str]
) -> None:
    async def run() -> None:
        heard: list[str] = []

        async def answer(request: web.Request) -> web.Response:
            heard.extend(request.headers.getall(PEER.decode(), []))
            return web.Response()

        app = web.Application()
        app.router.add_get("/jobs", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        standby = Standby()
        standby.follow(f"http://127.0.0.1:{port}#{secret_of(OWNER)}")
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request"}

        async def send(message: Any) -> None:
            sent.append(message)

        await standby(a_scope(client, (PEER, b"let me in")), receive, send)
        await standby.close()
        await runner.cleanup()
        assert sent[0]["status"] == 200
        assert heard == told

    asyncio.run(run())


def test_whom_a_peer_vouches_for_is_as_one_from_here() -> None:
    scope = a_scope("10.0.0.8", (PEER, SECRET))
    assert not is_local(scope)
    assert is_local(seen_by_peer(scope, secret_of(OWNER)))


@pytest.mark.parametrize("secret", ["", secret_of(OWNER)])
@pytest.mark.parametrize("headers", [(), ((PEER, b""),), ((PEER, b"guess"),)])
def test_whoever_guesses_stays_a_stranger(
    secret: str, headers: tuple[tuple[bytes, bytes], ...]
) -> None:
    scope = a_scope("10.0.0.8", *headers)
    assert seen_by_peer(scope, secret) == scope
