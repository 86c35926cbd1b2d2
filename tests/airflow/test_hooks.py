"""Which service a connection leads to, and that a mistake never leads to another one."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowNotFoundException

from airflow_eksbatch import endpoint as endpoints
from airflow_eksbatch import hooks
from airflow_eksbatch.endpoint import default_home, raise_for_answer
from airflow_eksbatch.hooks import (
    AsyncBatchClient,
    EKSBatchHook,
    Endpoint,
    NotLetIn,
    NotOurService,
    ServiceAway,
    ServiceNotNamed,
    ServiceRefused,
    find_or_start_embedded,
    job_url,
    keep_named,
)
from airflow_eksbatch.terminal import Client
from tests.airflow.contract_service import ContractService

EMBEDDED = Endpoint(url="http://here:1", embedded=True)
FOR_PEOPLE = "prod"

Ask = Callable[[str], Endpoint]


class Connections:
    """What keeps connections: Airflow says "not found" for whatever goes wrong there."""

    def __init__(self) -> None:
        self.known: dict[str, Any] = {}
        self.error: Exception | None = None

    def put(self, name: str, host: str, conn_type: str = "eksbatch", **extra: Any) -> None:
        more: dict[str, Any] = {"login": None, "password": None, "port": None, "schema": None}
        more |= {"conn_type": conn_type, "extra": json.dumps(extra)}
        self.known[name] = SimpleNamespace(host=host, **more)

    def get(self, name: str) -> Any:
        if self.error:
            raise self.error
        if name not in self.known:
            raise AirflowNotFoundException(f"The conn_id `{name}` isn't defined")
        return self.known[name]

    async def aget(self, name: str) -> Any:
        return self.get(name)


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> Connections:
    """All there are, none to begin with, and none read before."""
    kept = Connections()
    monkeypatch.setattr(EKSBatchHook, "get_connection", staticmethod(kept.get))
    monkeypatch.setattr(EKSBatchHook, "aget_connection", staticmethod(kept.aget))
    monkeypatch.setattr(hooks, "_naming", set())
    return kept


@pytest.fixture(params=["on a worker", "in the triggerer"])
def ask(
    request: pytest.FixtureRequest, connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> Ask:
    """Where the embedded service would be found or started."""
    monkeypatch.setattr(hooks, "find_or_start_embedded", lambda: EMBEDDED)

    def asked(name: str) -> Endpoint:
        hook = EKSBatchHook(name)
        on_worker = request.param == "on a worker"
        return hook.endpoint() if on_worker else asyncio.run(hook.aendpoint())

    return asked


def test_the_embedded_service_is_used_where_nothing_else_is_said(
    ask: Ask, connections: Connections
) -> None:
    assert ask("eksbatch_default").place == "embedded"
    connections.put("mine", host="")
    assert ask("mine").place == "embedded"


def test_a_misspelt_connection_is_named_and_no_job_runs_here_instead(
    ask: Ask, connections: Connections
) -> None:
    connections.put("eksbatch_prod", "http://prod:1")
    with pytest.raises(ServiceNotNamed, match="eksbatch_prd does not exist"):
        ask("eksbatch_prd")


def test_a_connection_of_another_type_runs_no_job_here_but_may_name_a_service(
    ask: Ask, connections: Connections
) -> None:
    connections.put("aws_default", "", "aws", region_name="eu-west-1")
    with pytest.raises(ServiceNotNamed) as raised:
        ask("aws_default")
    assert str(raised.value).startswith(
        "connection aws_default is of the type aws and names no service"
    )
    connections.put("aws_default", "", "aws", endpoint_url="http://prod:1")
    assert ask("aws_default").url == "http://prod:1"
    connections.put("web", "http://prod:2", "http")
    assert ask("web").url == "http://prod:2"


@pytest.mark.parametrize("url", ["http://x:notaport", "http://[x", "ftp://x", "http:///x", "5"])
def test_a_host_that_is_no_url_is_told_with_its_connection(
    ask: Ask, connections: Connections, url: str
) -> None:
    connections.put("prod", "", endpoint_url=url)
    with pytest.raises(ServiceNotNamed) as raised:
        ask("prod")
    assert f"connection prod leads to {url}, which is no URL" in str(raised.value)


@pytest.mark.parametrize("extra", ["not JSON", "[1]", "5"])
def test_an_extra_that_is_no_object_is_told_with_its_connection(
    ask: Ask, connections: Connections, extra: str
) -> None:
    connections.put("prod", "http://prod:1")
    connections.known["prod"].extra = extra
    with pytest.raises(ServiceNotNamed, match=r"connection prod .* extra must be a JSON object"):
        ask("prod")


def test_a_connection_that_cannot_be_read_any_more_does_not_become_the_embedded_service(
    ask: Ask, connections: Connections
) -> None:
    connections.put("eksbatch_default", "http://prod:1")
    assert ask("eksbatch_default").url == "http://prod:1"
    del connections.known["eksbatch_default"]
    with pytest.raises(ServiceNotNamed, match="was there before"):
        ask("eksbatch_default")
    connections.put("eksbatch_default", "")
    assert ask("eksbatch_default").place == "embedded"


def test_what_another_process_has_read_of_a_connection_holds_here_too(
    ask: Ask, connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    for nothing in ("", "embedded"):
        keep_named("eksbatch_default", nothing)
        assert ask("eksbatch_default").place == "embedded"
    monkeypatch.setenv("EKSBATCH_URL", "http://prod:2")
    keep_named("eksbatch_default", "http://prod:1")
    assert ask("eksbatch_default").place == "embedded"  # the variable names it, and is there
    monkeypatch.delenv("EKSBATCH_URL")
    keep_named("eksbatch_default", "http://prod:1")
    with pytest.raises(ServiceNotNamed, match="was there before"):
        ask("eksbatch_default")


def test_whatever_else_goes_wrong_with_connections_is_worth_asking_again(
    ask: Ask, connections: Connections
) -> None:
    connections.error = RuntimeError("the secrets backend is down")
    with pytest.raises(ServiceNotNamed, match="secrets backend is down"):
        ask("eksbatch_default")


def test_calls_tell_which_airflow_asks(connections: Connections) -> None:
    async def scenario() -> None:
        async with ContractService() as service:
            connections.put("prod", service.url, deployment=FOR_PEOPLE)
            client = AsyncBatchClient(await EKSBatchHook("prod").aendpoint())
            await client.call("describejobs", {"jobs": []})
            await client.close()
            (_, _, headers), *_ = service.requests
            assert headers["x-eksbatch-deployment"] == FOR_PEOPLE

    asyncio.run(scenario())


def test_people_are_sent_to_the_dashboard_in_airflow_unless_there_is_another(
    ask: Ask, connections: Connections
) -> None:
    connections.put("prod", "https://batch.internal")
    assert job_url(ask("prod"), "j:7") == "eksbatch/prod/job/j:7"
    connections.put("prod", "https://batch.internal", dashboard_url="https://batch.example/ui/")
    assert job_url(ask("prod"), "j:7") == "https://batch.example/ui/job/j:7"


@pytest.mark.parametrize(
    ("status", "kind", "error"),
    [
        (400, "ClientException", ServiceRefused),
        (404, "ResourceNotFoundException:http://x", ServiceRefused),
        (429, "TooManyRequestsException", ServiceAway),
        (503, "ServerException", ServiceAway),
        (403, "UnrecognizedClientException", NotLetIn),
        (403, "InvalidSignatureException", NotLetIn),
        # What a proxy says before the service is there again, or behind it.
        (403, "", ServiceAway),
        (404, "", NotOurService),
        (502, "", ServiceAway),
    ],
)
def test_only_what_the_service_itself_refuses_is_final(
    status: int, kind: str, error: type[Exception]
) -> None:
    with pytest.raises(error) as raised:
        raise_for_answer(status, kind, "<html>")
    assert type(raised.value) is error


def test_a_key_that_is_not_taken_is_not_asked_with_for_an_hour() -> None:
    for what_a_person_mends in (NotLetIn, NotOurService, ServiceNotNamed):
        assert what_a_person_mends.patience_s == endpoints.PATIENCE_S
    assert ServiceAway.patience_s == float("inf")


# ---- the embedded service


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home that is named as shells do it."""
    monkeypatch.delenv("EKSBATCH_URL", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("EKSBATCH_HOME", "~/eksbatch")
    (tmp_path / "eksbatch").mkdir()
    yield tmp_path / "eksbatch"
    for process in hooks._begun:
        process.wait()
    hooks._begun.clear()


def test_a_home_below_ones_own_is_the_same_for_all_who_look_there(home: Path) -> None:
    assert default_home({"EKSBATCH_HOME": "~/eksbatch"}) == home
    assert default_home({}) == home.parent / ".local" / "share" / "eksbatch"


@pytest.mark.parametrize("url", ["http://127.0.0.1:8642", "http://localhost:8642/"])
def test_who_names_the_embedded_service_by_its_url_has_its_key(
    home: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    """And nobody else has."""
    told = {"url": "http://127.0.0.1:8642", "access_key": "EKSBLOCAL", "secret_key": "secret"}
    (home / "service.json").write_text(json.dumps(told))
    connections = Connections()
    connections.put("there", url)
    connections.put("elsewhere", "http://127.0.0.1:9999")
    monkeypatch.setenv("EKSBATCH_URL", url)
    by_connection = hooks.endpoint_from_connection(connections.get("there"))
    assert by_connection is not None
    by_command = Client(Namespace(endpoint_url=url)).endpoint
    for found in (find_or_start_embedded(), by_connection, by_command):
        assert (found.url, found.access_key_id) == (url.rstrip("/"), "EKSBLOCAL")
    other = hooks.endpoint_from_connection(connections.get("elsewhere"))
    assert other is not None
    assert other.access_key_id is None


def ask_by_hook() -> None:
    async def ask() -> None:
        client = AsyncBatchClient(find_or_start_embedded())
        await client.call("describejobs", {"jobs": []})
        await client.close()

    asyncio.run(ask())


def ask_by_command() -> None:
    assert [*Client(Namespace(endpoint_url=None)).pages("describejobs", "jobs", {"jobs": []})] == []


@pytest.mark.parametrize("ask_it", [ask_by_hook, ask_by_command])
def test_a_running_service_is_found_with_the_key_that_it_wants(
    home: Path, monkeypatch: pytest.MonkeyPatch, ask_it: Callable[[], None]
) -> None:
    """Also by a shell that has keys of another service."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "SOMEBODY")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "else")

    async def scenario() -> None:
        async with ContractService() as service:
            keys = {"access_key": "EKSBLOCAL", "secret_key": "secret"}
            (home / "service.json").write_text(json.dumps({"url": service.url, "pid": 1, **keys}))
            await asyncio.to_thread(ask_it)
            (_, _, headers), *_ = service.requests
            assert "Credential=EKSBLOCAL/" in headers["Authorization"]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "ask_here",
    [lambda: EKSBatchHook().endpoint(), lambda: asyncio.run(EKSBatchHook().running_endpoint())],
)
@pytest.mark.usefixtures("connections")
def test_where_it_is_forbidden_nothing_becomes_the_embedded_service(
    monkeypatch: pytest.MonkeyPatch, home: Path, ask_here: Callable[[], Endpoint]
) -> None:
    monkeypatch.setenv("EKSBATCH_EMBEDDED", "never")
    with pytest.raises(ServiceNotNamed, match="EKSBATCH_EMBEDDED=never"):
        ask_here()
    monkeypatch.setenv("EKSBATCH_URL", "http://prod:1")
    assert ask_here().url == "http://prod:1"


def test_one_that_cannot_start_is_told_with_its_last_words_and_the_connection(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin(home: Path) -> subprocess.Popen[bytes]:
        (home / "local.log").write_text("Traceback\nModuleNotFoundError: No module named 'x'\n\n")
        return subprocess.Popen([sys.executable, "-c", "raise SystemExit(1)"])

    monkeypatch.setattr(hooks, "_begin_embedded", begin)
    with pytest.raises(ServiceAway) as raised:
        EKSBatchHook("mine")._embedded()
    assert "connection mine names no service" in str(raised.value)
    assert "No module named 'x'" in str(raised.value)
