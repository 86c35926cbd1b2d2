"""Signature Version 4, as every AWS client does it, and what happens to whoever cannot sign."""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uuid6
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.exceptions import ClientError

from airflow_eksbatch.api import app
from airflow_eksbatch.api.app import Keys, may_see
from airflow_eksbatch.api.auth import Credential
from airflow_eksbatch.api.port import ApiSettings
from airflow_eksbatch.core.model.errors import Rejected
from airflow_eksbatch.endpoint import ACCESS_DENIED, NotLetIn, ServiceRefused, raise_for_answer
from airflow_eksbatch.service.settings import Settings
from airflow_eksbatch.store.port import SigningKey
from airflow_eksbatch.terminal import Client, Sentence
from tests.airflow.processes import wait_for
from tests.api.asking import Raw, Reply, ask_app
from tests.api.desk import StageDesk
from tests.build import a_world
from tests.core.stage import Stage
from tests.service.running import RunningService, a_definition

CLIENT_HEADERS = ("authorization", "x-amz-date", "content-type")


class Key(msgspec.Struct, frozen=True):
    access_key: str
    secret: str


def keys(home: Path, *arguments: str) -> Any:
    """`eksbatch keys`, as JSON."""
    clean = {name: value for name, value in os.environ.items() if "EKSBATCH" not in name}
    command = [sys.executable, "-m", "airflow_eksbatch.cli", "keys", *arguments]
    ended = subprocess.run(
        [*command, "--json", "--home", str(home)], capture_output=True, env=clean, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def a_key(home: Path, *options: str) -> Key:
    made = keys(home, "create", *options)
    return Key(made["accessKeyId"], made["secretAccessKey"])


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """A service that wants signatures."""
    with RunningService(tmp_path_factory.mktemp("closed"), "--auth", "sigv4") as service:
        yield service


@pytest.fixture(scope="module")
def key(closed: RunningService) -> Key:
    return a_key(closed.home)


def signed(
    service: RunningService, key: Key, body: bytes = b"{}", at: datetime | None = None
) -> dict[str, str]:
    """The headers that botocore signs a DescribeJobQueues with."""
    request = AWSRequest("POST", f"{service.url}/v1/describejobqueues", data=body)
    request.headers["content-type"] = "application/json"
    signer = SigV4Auth(Credentials(key.access_key, key.secret), "batch", "us-east-1")
    if at is None:
        signer.add_auth(request)
    else:
        stamp = at.strftime("%Y%m%dT%H%M%SZ")
        request.context["timestamp"] = stamp
        request.headers["x-amz-date"] = stamp
        canonical = signer.canonical_request(request)
        text = signer.string_to_sign(request, canonical)
        signer._inject_signature_to_request(request, signer.signature(text, request))
    return {name.lower(): value for name, value in request.headers.items()}


def ask(service: RunningService, headers: Mapping[str, str], body: bytes = b"{}") -> Reply:
    return Raw(service.url)("POST", "/v1/describejobqueues", body, headers)


def test_a_created_key_opens_the_whole_api(closed: RunningService, key: Key) -> None:
    """Also paths and query strings that the signature must spell as AWS does."""
    batch = closed.batch(key.access_key, key.secret)
    assert batch.describe_job_queues()["jobQueues"]
    arn = batch.describe_job_queues()["jobQueues"][0]["jobQueueArn"]
    tags = {"a key": "ü", "b/c": "+", "d&e=f": "~", "%20": "*"}
    batch.tag_resource(resourceArn=arn, tags=tags)
    assert batch.list_tags_for_resource(resourceArn=arn)["tags"] == tags
    batch.untag_resource(resourceArn=arn, tagKeys=list(tags))
    assert batch.list_tags_for_resource(resourceArn=arn)["tags"] == {}


def test_the_log_says_who_asked_for_a_change(closed: RunningService, key: Key) -> None:
    """Also who was not allowed; neither who has only looked, nor what was refused for another reason."""
    batch = closed.batch(key.access_key, key.secret)
    fair = {"shareDistribution": [{"shareIdentifier": "a"}]}
    arn = batch.create_scheduling_policy(name="told", fairsharePolicy=fair)["arn"]
    with pytest.raises(ClientError):
        batch.create_scheduling_policy(name="told", fairsharePolicy=fair)
    batch.describe_scheduling_policies(arns=[arn])
    user = a_key(closed.home, "--role", "user")
    with pytest.raises(ClientError):
        closed.batch(user.access_key, user.secret).delete_scheduling_policy(arn=arn)
    batch.delete_scheduling_policy(arn=arn)

    def told() -> list[tuple[str, str, str, str]]:
        lines = [json.loads(line) for line in closed.output if line.startswith("{")]
        return [
            (line["level"], line["event"], line["what"], line["by"])
            for line in lines
            if "SchedulingPolic" in line["event"]
        ]

    wait_for("all lines", lambda: len(told()) > 2, within_s=30)
    assert told() == [
        ("info", "CreateSchedulingPolicy", "told", key.access_key),
        ("warning", "DeleteSchedulingPolicy was denied", arn, user.access_key),
        ("info", "DeleteSchedulingPolicy", arn, key.access_key),
    ]


@pytest.mark.parametrize(
    ("access_key", "secret", "code"),
    [
        ("", "wrong", "InvalidSignatureException"),
        ("EKSBNOBODY", "wrong", "UnrecognizedClientException"),
        ("EKSB/WITH/SLASHES", "wrong", "UnrecognizedClientException"),
    ],
)
def test_a_wrong_secret_and_an_unknown_key_are_403(
    closed: RunningService, key: Key, access_key: str, secret: str, code: str
) -> None:
    with pytest.raises(ClientError) as refused:
        closed.batch(access_key or key.access_key, secret).describe_job_queues()
    answer = refused.value.response
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == 403
    assert answer["ResponseMetadata"]["RetryAttempts"] == 0
    assert answer["Error"]["Code"] == code


def test_an_unsigned_request_is_403_and_told_how_to_get_a_key(closed: RunningService) -> None:
    reply = ask(closed, {})
    assert (reply.status, reply.code) == (403, "MissingAuthenticationTokenException")
    assert "eksbatch keys create" in reply.message


def test_a_request_that_was_changed_on_its_way_is_403(closed: RunningService, key: Key) -> None:
    headers = signed(closed, key, b'{"maxResults": 1}')
    assert ask(closed, headers, b'{"maxResults": 1}').status == 200
    reply = ask(closed, headers, b'{"maxResults": 2}')
    assert (reply.status, reply.code) == (403, "InvalidSignatureException")
    other_path = Raw(closed.url)("POST", "/v1/listschedulingpolicies", b"{}", signed(closed, key))
    assert other_path.status == 403
    other_time = headers | {"x-amz-date": "20200101T000000Z"}
    assert ask(closed, other_time, b'{"maxResults": 1}').status == 403


@pytest.mark.parametrize("minutes", [-16, 16])
def test_a_clock_that_is_more_than_15_minutes_off_is_403(
    closed: RunningService, key: Key, minutes: int
) -> None:
    at = datetime.now(UTC) + timedelta(minutes=minutes)
    reply = ask(closed, signed(closed, key, at=at))
    assert (reply.status, reply.code) == (403, "InvalidSignatureException")
    assert "clock" in reply.message
    assert ask(closed, signed(closed, key, at=datetime.now(UTC) - timedelta(minutes=5))).status == (
        200
    )


@pytest.mark.parametrize(
    "header",
    [
        "Basic dXNlcjpwYXNz",
        "Bearer token",
        "AWS4-HMAC-SHA256",
        "AWS4-HMAC-SHA256 Credential=a, SignedHeaders=b, Signature=c",
        "AWS4-HMAC-SHA256 Credential=a/b/c/d/e",
        "AWS3-HMAC-SHA256 Credential={key}/20260101/us-east-1/batch/aws4_request, "
        "SignedHeaders=host, Signature=x",
        "AWS4-HMAC-SHA256 Credential={key}/20260101/us-east-1/batch/aws4_request, "
        "SignedHeaders=host, Signature=\u00fc",
        "AWS4-HMAC-SHA256 Credential={key}///batch/aws4_request, SignedHeaders=;;, Signature=",
    ],
)
def test_a_header_that_is_no_signature_is_403(
    closed: RunningService, key: Key, header: str
) -> None:
    now = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    for stamp in (now, "yesterday", ""):
        told = {"authorization": header.format(key=key.access_key), "x-amz-date": stamp}
        reply = ask(closed, told)
        assert reply.status == 403, reply.body
        assert reply.message


def test_keys_are_listed_deleted_and_useless_afterwards(closed: RunningService) -> None:
    """A key made or deleted while the service runs counts within seconds, without a restart."""
    key = a_key(closed.home, "--note", "for one test")
    batch = closed.batch(key.access_key, key.secret)
    assert batch.describe_job_queues()["jobQueues"]
    (listed,) = [row for row in keys(closed.home, "list") if row["accessKeyId"] == key.access_key]
    assert listed["note"] == "for one test"
    keys(closed.home, "delete", key.access_key)
    assert key.access_key not in [row["accessKeyId"] for row in keys(closed.home, "list")]
    end = time.monotonic() + 60

    def ask_until_refused() -> None:
        while time.monotonic() < end:
            batch.describe_job_queues()

    with pytest.raises(ClientError) as refused:
        ask_until_refused()
    assert refused.value.response["Error"]["Code"] == "UnrecognizedClientException"


PAGES_OF_A_JOB = tuple(f"/v1/eksbatch/jobs/x{more}" for more in ("", "/log", "/explain"))
STRANGE = {"host": "eksbatch.eksbatch.svc:8642"}


def test_extensions_want_a_signature_too_and_probes_do_not(closed: RunningService) -> None:
    raw = Raw(closed.url)
    for path in ("/v1/eksbatch/events", "/v1/eksbatch/summary", "/v1/eksbatch/costs"):
        assert raw("GET", path).status == 403, path
    for path in PAGES_OF_A_JOB:
        assert raw("GET", path, headers=STRANGE).status == 403, path
    for path in ("/healthz", "/readyz", "/metrics"):
        assert raw("GET", path, headers=STRANGE).status == 200, path


def look(
    service: RunningService, path: str, headers: Mapping[str, str] | None = None, peer: str = ""
) -> int:
    """The status of a GET by a browser that connects from there."""
    _, _, host = service.url.partition("//")
    source = (peer, 0) if peer else None
    connection = http.client.HTTPConnection(host, timeout=60, source_address=source)
    try:
        connection.request("GET", path, headers={"host": "localhost:8642", **(headers or {})})
        return connection.getresponse().status
    finally:
        connection.close()


def test_who_may_see_the_dashboard_may_follow_its_links_without_a_key(
    closed: RunningService,
) -> None:
    for host in ("localhost:8642", "127.0.0.1:1", "[::1]:8642", "LOCALHOST"):
        assert look(closed, "/", {"host": host}) == 200, host
    for path in PAGES_OF_A_JOB:
        assert look(closed, path) == 404, "there is no such job"
        signed_by_nobody = {"authorization": "AWS4-HMAC-SHA256 Credential=a/b/c/d/e"}
        assert look(closed, path, signed_by_nobody) == 403
    page = Raw(closed.url)("GET", PAGES_OF_A_JOB[0], headers={**STRANGE, "accept": "text/html"})
    assert (page.status, page.headers["location"]) == (303, "/job/x")


@pytest.mark.parametrize(
    ("headers", "peer"),
    [
        (STRANGE, ""),
        ({"host": "localhost.evil.example"}, ""),
        ({"host": "127.0.0.1.evil.example:8642"}, ""),
        ({"host": "10.0.0.7:8642"}, ""),
        ({"host": ""}, ""),
        ({"x-forwarded-for": "127.0.0.1"}, ""),
        ({"x-forwarded-proto": "https"}, ""),
        ({"forwarded": "for=127.0.0.1"}, ""),
        ({"x-real-ip": "127.0.0.1"}, ""),
        ({}, "127.0.0.6"),
    ],
)
def test_a_proxy_or_a_sidecar_on_this_machine_is_nobody_of_this_machine(
    closed: RunningService, headers: dict[str, str], peer: str
) -> None:
    """Istio's sidecar hands requests on from 127.0.0.6."""
    for path in ("/", "/job/x", *PAGES_OF_A_JOB):
        assert look(closed, path, headers, peer) == 403, path


def test_the_dashboard_is_for_whom_the_settings_say() -> None:
    def a_scope(host: str, peer: str) -> dict[str, Any]:
        return {"client": (peer, 1), "headers": [(b"host", host.encode())]}

    here, there = a_scope("localhost:1", "127.0.0.1"), a_scope("eksbatch.example", "10.0.0.7")
    rebound = a_scope("evil.example:8642", "127.0.0.1")
    for given, seen in (
        (ApiSettings(), [True, False, False]),
        (ApiSettings(dashboard="open"), [True, True, True]),
        (ApiSettings(dashboard="off"), [False, False, False]),
        (ApiSettings(dashboard="off", auth="open"), [False, False, False]),
        (ApiSettings(auth="open"), [True, False, False]),
    ):
        assert [may_see(given, scope) for scope in (here, there, rebound)] == seen, given


@pytest.mark.parametrize(("dashboard", "status"), [("open", 404), ("local", 403), ("off", 403)])
def test_links_of_an_open_dashboard_may_be_called_as_it_may_be(dashboard: Any, status: int) -> None:
    desk = StageDesk(Stage(a_world()))
    desk.settings = ApiSettings(auth="open", dashboard=dashboard)
    served = app.make_app(desk)
    for path in PAGES_OF_A_JOB:
        assert ask_app(served, path, STRANGE).status == status, path
    reply = ask_app(served, "/v1/eksbatch/summary", STRANGE)
    assert (reply.status, reply.code) == (403, ACCESS_DENIED)


def test_who_calls_an_open_service_by_a_strange_name_is_not_told_to_get_a_key() -> None:
    with pytest.raises(ServiceRefused, match="by such a URL"):
        raise_for_answer(403, ACCESS_DENIED, '{"message": "ask it by such a URL"}')
    with pytest.raises(NotLetIn):
        raise_for_answer(403, "UnrecognizedClientException", "{}")
    client = Client(argparse.Namespace(endpoint_url="http://127.0.0.1:1"))
    for kind, hinted in ((ACCESS_DENIED, False), ("InvalidSignatureException", True)):
        with pytest.raises(Sentence) as refused:
            client._raise(403, kind, b'{"message": "No."}')
        assert ("eksbatch keys create" in str(refused.value)) is hinted


class CountingDesk(StageDesk):
    """Counts how often keys are read."""

    def __init__(self) -> None:
        super().__init__(Stage(a_world()))
        self.keys = {"EKSBKNOWN": SigningKey(secret="secret")}
        self.reads = 0

    async def ask(self, question: object) -> Any:
        self.reads += 1
        await asyncio.sleep(0)
        return dict(self.keys)


def test_callers_who_are_not_known_share_a_query(monkeypatch: pytest.MonkeyPatch) -> None:
    """1 a hundred strangers cost two queries 2 one who is known none 3 a key that was made meanwhile is found."""
    monkeypatch.setattr(app, "UNKNOWN_KEYS_S", 0.05)

    def named(access_key: str) -> Credential:
        words = {"date": "", "region": "", "service": "", "signature": ""}
        return Credential(access_key=access_key, signed_headers=(), **words)

    async def run() -> None:
        desk = CountingDesk()
        known = Keys(desk)
        strangers = [known.find(named(f"EKSB{number}")) for number in range(100)]
        ends = await asyncio.gather(*strangers, return_exceptions=True)
        assert {type(end) for end in ends} == {Rejected}
        assert desk.reads <= 2
        before = desk.reads
        assert (await known.find(named("EKSBKNOWN"))).secret == "secret"
        assert desk.reads == before
        desk.keys["EKSBNEW"] = SigningKey(secret="new")
        assert (await known.find(named("EKSBNEW"))).secret == "new"
        assert desk.reads == before + 1

    asyncio.run(run())


def test_nobody_sends_a_body_before_it_is_known_who_he_is(closed: RunningService) -> None:
    """Half a request: the answer does not wait for the rest."""
    host, port = closed.url.removeprefix("http://").split(":")
    now = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    credential = f"Credential=EKSBNOBODY/{now[:8]}/us-east-1/batch/aws4_request"
    for header in (
        "x-nothing: 1",
        f"authorization: AWS4-HMAC-SHA256 {credential}, SignedHeaders=host, Signature=x",
    ):
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            connection.sendall(
                "POST /v1/submitjob HTTP/1.1\r\nhost: x\r\ncontent-length: 300000\r\n"
                f"x-amz-date: {now}\r\n{header}\r\n\r\n".encode()
            )
            assert b" 403 " in connection.recv(1000).splitlines()[0]


def submit_with(service: RunningService, key: Key, headers: Mapping[str, str]) -> str:
    """A job of a client that sends these headers, signed with the rest."""
    batch = service.batch(key.access_key, key.secret)
    definition = a_definition(batch, "true", name="mine")
    batch.meta.events.register(
        "before-call.batch.SubmitJob", lambda params, **_: params["headers"].update(headers)
    )
    job = {"jobName": "x", "jobQueue": "default", "jobDefinition": definition}
    return str(batch.submit_job(**job, shareIdentifier="today")["jobId"])


def test_a_token_is_of_the_key_that_signed(closed: RunningService, key: Key) -> None:
    """Two callers with one token are two callers."""
    token = {"x-eksbatch-token": "dag|run|task|-1|1"}
    made = {submit_with(closed, one, token) for one in (key, a_key(closed.home), key)}
    assert len(made) == 2


def test_a_task_instance_has_one_job_whoever_signs(closed: RunningService, key: Key) -> None:
    """The key is changed while a task waits: its trigger may submit again with the new one."""
    headers = {
        "x-eksbatch-token": "dag|rotated|task|-1|1",
        "x-eksbatch-task-instance": str(uuid6.uuid7()),
    }
    made = {submit_with(closed, one, headers) for one in (key, a_key(closed.home))}
    assert len(made) == 1


def test_only_loopback_is_open_by_default() -> None:
    for host, mode in (
        ("127.0.0.1", "open"),
        ("::1", "open"),
        ("localhost", "open"),
        ("0.0.0.0", "sigv4"),
        ("10.0.0.7", "sigv4"),
        ("::", "sigv4"),
    ):
        assert Settings(host=host).auth_mode == mode, host
    assert Settings(host="127.0.0.1", auth="sigv4").auth_mode == "sigv4"
    assert Settings(host="0.0.0.0", auth="open").auth_mode == "open"
