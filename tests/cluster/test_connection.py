"""Which cluster a compute environment's pods go to, and how its credentials are read again."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.http_writer import StreamWriter
from multidict import CIMultiDict

from airflow_eksbatch.cluster.kube.connection import (
    ApiError,
    BadKubeconfig,
    InCluster,
    Kubeconfig,
    environment_proxy,
)
from airflow_eksbatch.cluster.port import ClusterDown
from tests.kubernetes.rig.identities import Identities

ARN = "arn:aws:eks:eu-west-1:123456789012:cluster/night"
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


def a_kubeconfig(path: Path, *contexts: tuple[str, str], **at: str) -> str:
    """Contexts as (name, cluster); the first is the current one. `at`: what is said of each cluster, such as its server."""
    clusters = sorted({cluster for _, cluster in contexts})
    path.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": contexts[0][0],
                "contexts": [
                    {"name": name, "context": {"cluster": cluster, "user": "me"}}
                    for name, cluster in contexts
                ],
                "clusters": [
                    {"name": name, "cluster": {"server": "http://nowhere", **at}}
                    for name in clusters
                ],
                "users": [{"name": "me", "user": {"tokenFile": str(path.with_name("token"))}}],
            }
        )
    )
    path.with_name("token").write_text("first")
    return str(path)


@pytest.mark.parametrize(
    "named",
    [("night", "x"), ("x", "night"), (ARN, "x"), ("x", ARN)],
    ids=["context", "cluster", "context by ARN", "cluster by ARN"],
)
def test_an_environment_runs_in_the_context_that_its_cluster_names(
    tmp_path: Path, named: tuple[str, str]
) -> None:
    file = a_kubeconfig(tmp_path / "config", ("current", "other"), named)
    assert Kubeconfig(file).place_of(ARN) == named[0]


def test_a_context_with_the_whole_arn_goes_before_one_with_the_name_alone(tmp_path: Path) -> None:
    file = a_kubeconfig(tmp_path / "config", ("night", "x"), ("mine", ARN))
    assert Kubeconfig(file).place_of(ARN) == "mine"


def test_of_several_users_of_a_cluster_the_current_one_is_taken(tmp_path: Path) -> None:
    file = a_kubeconfig(tmp_path / "config", ("admin", ARN), ("viewer", ARN))
    assert Kubeconfig(file).place_of(ARN) == "admin"
    file = a_kubeconfig(tmp_path / "config", ("current", "x"), ("first", ARN), ("second", ARN))
    assert Kubeconfig(file).place_of(ARN) == "first"


@pytest.mark.parametrize("arn", [ARN, "no arn at all"])
def test_a_cluster_that_is_not_named_is_the_only_one_there_is(tmp_path: Path, arn: str) -> None:
    """On kind, on premises: the ARN is made up then."""
    file = a_kubeconfig(tmp_path / "config", ("kind", "kind"))
    assert Kubeconfig(file).place_of(arn) == "kind"


def test_without_an_arn_the_current_context_is_looked_at(tmp_path: Path) -> None:
    file = a_kubeconfig(tmp_path / "config", ("current", "other"), ("day", "day"))
    assert Kubeconfig(file).place_of("") == "current"


ELSEWHERE = ARN.replace("eu-west-1", "us-east-1")


@pytest.mark.parametrize(
    ("contexts", "words"),
    [
        ([("current", "other"), ("day", "day")], "has no context for arn.*There are: current, day"),
        ([("a", "night"), ("night", "b")], "has more than one context for arn.*: a, night"),
        ([("night", ELSEWHERE), ("day", "day")], "has no context"),
        ([(ELSEWHERE, ELSEWHERE)], "has no context"),
    ],
    ids=["not named", "two of the name", "another region", "only another region"],
)
def test_an_environment_never_runs_in_a_cluster_that_it_did_not_name(
    tmp_path: Path, contexts: list[tuple[str, str]], words: str
) -> None:
    file = a_kubeconfig(tmp_path / "config", *contexts)
    with pytest.raises(BadKubeconfig, match=words):
        Kubeconfig(file).place_of(ARN)


@pytest.mark.parametrize("text", [None, "", "{", "contexts: []"])
def test_a_kubeconfig_that_cannot_be_used_is_named(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "config"
    if text is not None:
        file.write_text(text)
    with pytest.raises(BadKubeconfig, match=str(file)):
        Kubeconfig(str(file)).place_of(ARN)


def test_outside_of_a_cluster_in_cluster_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadKubeconfig, match="a pod with a service account is needed"):
        InCluster(tmp_path, {}).place_of(ARN)


def served(
    answer: Answer,
    scenario: Callable[[str], Awaitable[None]],
    *,
    seconds: float = 60.0,
    tls: ssl.SSLContext | None = None,
) -> None:
    """Run a scenario against a server on loopback that answers every request so."""

    async def run() -> None:
        app = web.Application()
        app.router.add_route("*", "/{rest:.*}", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
        try:
            host, port = runner.addresses[0][:2]
            async with asyncio.timeout(seconds):
                await scenario(f"{'https' if tls else 'http'}://{host}:{port}")
        finally:
            await runner.cleanup()

    asyncio.run(run())


def test_a_token_that_is_not_taken_any_more_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. the first token works; 2. it is rotated; 3. the next request is answered all the same."""
    monkeypatch.setattr("airflow_eksbatch.cluster.kube.connection.REAUTHENTICATE_S", 0.0)
    taken, seen = {"first"}, list[str]()

    async def answer(request: web.Request) -> web.Response:
        token = request.headers["Authorization"].partition(" ")[2]
        seen.append(token)
        return web.Response(status=200 if token in taken else 401)

    async def scenario(url: str) -> None:
        file = a_kubeconfig(tmp_path / "config", ("c", "c"), server=url)
        connection = await Kubeconfig(file).connect("c")
        await connection.get("/api")
        (tmp_path / "token").write_text("second")
        taken.clear()
        taken.add("second")
        await connection.get("/api")
        assert seen == ["first", "first", "second"]
        taken.clear()
        with pytest.raises(ApiError, match="401"):
            await connection.get("/api")
        await connection.close()

    served(answer, scenario)


def test_a_renewed_certificate_authority_is_trusted_without_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. what is trusted is not the server's; 2. the file is renewed; 3. the next request is answered."""
    monkeypatch.setattr("airflow_eksbatch.cluster.kube.connection.REFRESH_S", 0.0)
    former, now = (Identities(tmp_path / name, "127.0.0.1", "") for name in ("former", "now"))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(now.certificate, now.key)
    trusted = tmp_path / "ca.crt"
    trusted.write_bytes(former.certificate.read_bytes())

    async def answer(request: web.Request) -> web.Response:
        return web.Response()

    async def scenario(url: str) -> None:
        at = {"server": url, "certificate-authority": str(trusted)}
        file = a_kubeconfig(tmp_path / "config", ("c", "c"), **at)
        connection = await Kubeconfig(file).connect("c")
        with pytest.raises(ClusterDown, match="certificate"):
            await connection.get("/api")
        trusted.write_bytes(now.certificate.read_bytes())
        assert await connection.get("/api") == b""
        await connection.close()

    served(answer, scenario, tls=tls)


def test_a_proxy_of_the_environment_is_asked_unless_the_host_is_excepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[str]()

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.headers["Host"])
        return web.Response()

    async def scenario(url: str) -> None:
        monkeypatch.setenv("http_proxy", url)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        for server in ("http://api.example", url):
            file = a_kubeconfig(tmp_path / "config", ("c", "c"), server=server)
            connection = await Kubeconfig(file).connect("c")
            await connection.get("/api")
            await connection.close()
        assert asked == ["api.example", url.removeprefix("http://")]

    served(answer, scenario)


def test_too_many_requests_are_waited_out_as_long_as_the_server_says(tmp_path: Path) -> None:
    refusals = 3

    async def answer(request: web.Request) -> web.Response:
        nonlocal refusals
        refusals -= 1
        if refusals >= 0:
            status = {"reason": "TooManyRequests", "details": {"retryAfterSeconds": 0.01}}
            return web.json_response(status, status=429)
        return web.json_response(await request.json())

    async def scenario(url: str) -> None:
        file = a_kubeconfig(tmp_path / "config", ("c", "c"), server=url)
        connection = await Kubeconfig(file).connect("c")
        before = connection.limit.allowed
        assert await connection.write("POST", "/x", b'{"a":1}') == b'{"a": 1}'
        assert connection.limit.allowed < before
        await connection.close()

    served(answer, scenario)


def test_who_may_not_write_any_more_sends_nothing(tmp_path: Path) -> None:
    """Also when it waits for its turn meanwhile."""
    seen = list[str]()

    async def answer(request: web.Request) -> web.Response:
        seen.append(request.method)
        status = {"reason": "TooManyRequests", "details": {"retryAfterSeconds": 0.01}}
        return web.json_response(status, status=429)

    async def scenario(url: str) -> None:
        file = a_kubeconfig(tmp_path / "config", ("c", "c"), server=url)
        connection = await Kubeconfig(file).connect("c")
        connection.may_write = lambda: not seen
        with pytest.raises(ClusterDown, match="may not lead any more"):
            await connection.write("POST", "/api", b"{}")
        assert seen == ["POST"]
        await connection.close()

    served(answer, scenario)


def test_a_write_is_given_up_until_the_moment_in_which_it_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a process stood still between the headers of a request and its body."""
    seen, standstills = list[str](), list[str]()
    write_headers = StreamWriter.write_headers

    async def write_headers_and_stand_still(
        writer: StreamWriter, line: str, headers: CIMultiDict[str]
    ) -> None:
        await write_headers(writer, line, headers)
        if not line.startswith("GET"):
            standstills.append(line)

    monkeypatch.setattr(StreamWriter, "write_headers", write_headers_and_stand_still)

    async def answer(request: web.Request) -> web.Response:
        seen.append(request.method)
        return web.json_response({})

    async def scenario(url: str) -> None:
        file = a_kubeconfig(tmp_path / "config", ("c", "c"), server=url)
        connection = await Kubeconfig(file).connect("c")
        assert await connection.get("/api") == b"{}"
        connection.may_write = lambda: not standstills
        for method in ("POST", "DELETE"):
            standstills.clear()
            with pytest.raises(ClusterDown, match="may not lead any more"):
                await connection.write(method, "/api", b"{}")
            assert standstills
        assert seen == ["GET"]
        await connection.close()

    served(answer, scenario)


@pytest.mark.parametrize(("apart_s", "ahead_s"), [(3600, 3600), (-3600, -3600), (1, 0), (None, 0)])
def test_the_clock_of_an_api_server_is_known_by_its_answers(
    tmp_path: Path, apart_s: int | None, ahead_s: int
) -> None:
    async def answer(request: web.Request) -> web.Response:
        if apart_s is None:
            return web.Response(headers={"Date": "at noon"})
        now = datetime.now(UTC) - timedelta(seconds=apart_s)
        return web.Response(headers={"Date": format_datetime(now, usegmt=True)})

    async def scenario(url: str) -> None:
        file = a_kubeconfig(tmp_path / "config", ("c", "c"), server=url)
        connection = await Kubeconfig(file).connect("c")
        assert connection.ahead_ms == 0
        await connection.get("/api")
        # Whole seconds, and what an answer takes on a machine that does much else.
        assert ahead_s * 1000 <= connection.ahead_ms < ahead_s * 1000 + 60_000
        await connection.close()

    served(answer, scenario)


def test_a_cluster_that_cannot_be_reached_is_down(tmp_path: Path) -> None:
    async def scenario() -> None:
        file = a_kubeconfig(tmp_path / "config", ("c", "c"), server="http://127.0.0.1:1")
        connection = await Kubeconfig(file).connect("c")
        with pytest.raises(ClusterDown, match="c cannot be reached"):
            await connection.get("/api")
        await connection.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("exempt", "proxy"),
    [
        ("", "http://proxy:3128"),
        ("10.0.0.0/8", None),
        ("localhost, 10.100.0.0/16,.svc", None),
        ("10.200.0.0/16,x", "http://proxy:3128"),
        ("10.100.0.1", None),
    ],
)
def test_an_address_within_a_network_of_no_proxy_is_asked_straight(
    monkeypatch: pytest.MonkeyPatch, exempt: str, proxy: str | None
) -> None:
    """In a cluster the API server is an address, and networks are what people exempt."""
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    monkeypatch.setenv("NO_PROXY", exempt)
    assert environment_proxy("https://10.100.0.1:443") == proxy
