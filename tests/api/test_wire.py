"""Whatever comes over the wire gets an answer of the API: never a traceback, never a 5xx for a wrong request."""

from __future__ import annotations

import json
import socket
import uuid
from typing import Any
from urllib.parse import urlsplit

import pytest
from botocore.exceptions import ClientError

from tests.api.asking import Raw
from tests.service.running import RunningService

JSON = {"content-type": "application/json"}
KIB = 1024


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", "SerializationException"),
        (b"nonsense", "SerializationException"),
        (b"[]", "SerializationException"),
        (b'"text"', "SerializationException"),
        (b"null", "SerializationException"),
        (b"\xff\xfe", "SerializationException"),
        (b'{"jobs": ["\\ud800"]}', "SerializationException"),
        (b'{"jobs": ["\xc3\x28"]}', "SerializationException"),
        (b"[" * 100_000, "SerializationException"),
        (b'{"a":' * 50_000, "SerializationException"),
        (b'{"jobs": ["a\\u0000b"]}', "ClientException"),
        (b'{"jobs": 1e999}', "SerializationException"),
        (b'{"jobs": {}}', "ClientException"),
        (b'{"jobs": [null]}', "ClientException"),
        (b'{"jobs": [1]}', "ClientException"),
        (b"", "ClientException"),
    ],
)
def test_a_body_that_is_no_request_is_a_400_with_a_message(
    raw: Raw, body: bytes, code: str
) -> None:
    reply = raw("POST", "/v1/describejobs", body, JSON)
    assert (reply.status, reply.code) == (400, code), reply.body
    assert reply.message.endswith("."), reply.message


def test_every_answer_has_a_request_id_of_its_own(batch: Any, raw: Raw) -> None:
    """Tools print ResponseMetadata["RequestId"] of answers and of refusals."""
    given = {"jobs": ["x"]}
    found = [batch.describe_jobs(**given)["ResponseMetadata"]["RequestId"] for _ in range(2)]
    with pytest.raises(ClientError) as refused:
        batch.describe_jobs(jobs=["x"] * 101)
    found.append(refused.value.response["ResponseMetadata"]["RequestId"])
    for path in ("/v1/eksbatch/jobs/x", "/v1/nothing", "/v1/nothing/here"):
        found.append(raw("GET", path).headers["x-amzn-requestid"])
    assert len({uuid.UUID(one) for one in found}) == 6


@pytest.mark.parametrize(
    "path", ["jobs/%00", "jobs/%00/log", "jobs/x/log?tail=%00", "views/jobs?queue=%00"]
)
def test_a_url_with_what_no_database_can_be_asked_for_is_a_400(raw: Raw, path: str) -> None:
    reply = raw("GET", f"/v1/eksbatch/{path}")
    assert (reply.status, reply.code) == (400, "ClientException"), reply.body
    assert "NUL" in reply.message


def test_an_empty_body_is_an_empty_input(raw: Raw) -> None:
    assert raw("POST", "/v1/describejobqueues").status == 200
    assert raw("POST", "/v1/describejobqueues", b"{}").status == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-amz-json-1.1", "image/png", ""])
def test_the_content_type_is_not_asked_for(raw: Raw, kind: str) -> None:
    """Clients differ in it; what counts is whether the body is JSON."""
    headers = {"content-type": kind}
    assert raw("POST", "/v1/describejobqueues", b"{}", headers).status == 200
    assert raw("POST", "/v1/describejobqueues", b"a=b", headers).status == 400


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS"])
@pytest.mark.parametrize("path", ["/v1/submitjob", "/v1/nothing", "/v1/", "/v1/a/b/c"])
def test_a_wrong_verb_or_path_is_a_404_that_names_it(raw: Raw, method: str, path: str) -> None:
    reply = raw(method, path)
    assert (reply.status, reply.code) == (404, "UnknownOperationException"), reply.body
    assert path in reply.message


def test_an_operation_that_aws_does_not_have_is_a_404(raw: Raw) -> None:
    reply = raw("POST", "/v1/runjob", b"{}")
    assert (reply.status, reply.code) == (404, "UnknownOperationException")
    assert "runjob" in reply.message
    assert raw("HEAD", "/v1/submitjob").status == 404
    assert raw("POST", "/v2/x").code == "UnknownOperationException"


def test_members_that_no_model_knows_are_ignored(raw: Raw) -> None:
    """Clients newer than this service send them."""
    reply = raw("POST", "/v1/describejobqueues", b'{"jobQueues": ["default"], "sortBy": "name"}')
    assert reply.status == 200
    assert len(json.loads(reply.body)["jobQueues"]) == 1


@pytest.mark.parametrize("name", ["nodeSelector", "affinity", "tolerations", "nodeName"])
def test_a_wish_for_a_place_that_would_be_ignored_is_refused_and_the_way_told(
    raw: Raw, name: str
) -> None:
    pod = {"containers": [{"image": "busybox"}], name: {"kubernetes.io/arch": "arm64"}}
    asked = {"jobDefinitionName": "a", "type": "container", "eksProperties": {"podProperties": pod}}
    reply = raw("POST", "/v1/registerjobdefinition", json.dumps(asked).encode(), JSON)
    assert (reply.status, reply.code) == (400, "ClientException")
    assert f"podProperties.{name} is not in AWS Batch's model: tags of the job" in reply.message


def test_a_body_that_is_too_large_is_refused_and_the_limit_told(raw: Raw) -> None:
    reply = raw.post("DescribeJobs", {"jobs": ["x" * 400 * KIB]})
    assert (reply.status, reply.code) == (413, "RequestEntityTooLargeException")
    assert "320 KiB" in reply.message


def test_a_body_without_end_is_cut_off(service: RunningService) -> None:
    """Chunks that never stop: the answer comes before the body is whole."""
    host, port = urlsplit(service.url).netloc.split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(
            b"POST /v1/describejobs HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
        for _ in range(8):
            connection.sendall(chunk)
        assert b" 413 " in connection.recv(1000).splitlines()[0]


def test_a_client_that_leaves_midway_does_no_harm(service: RunningService, raw: Raw) -> None:
    host, port = urlsplit(service.url).netloc.split(":")
    for sent in (
        b"POST /v1/submitjob HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99\r\n\r\n{",
        b"\0\r\n",
    ):
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            connection.sendall(sent)
    assert raw("POST", "/v1/describejobqueues").status == 200
    assert "a request failed" not in service.text


def test_other_web_pages_cannot_submit_jobs_through_a_browser_here(raw: Raw) -> None:
    """Loopback is open, so a page that a browser of this machine shows must not get in."""
    for headers in (
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"origin": "http://evil.example:8642", "host": "evil.example:8642"},
    ):
        reply = raw("POST", "/v1/describejobqueues", b"{}", headers)
        assert (reply.status, reply.code) == (403, "AccessDeniedException")
    ours = {"origin": "http://127.0.0.1:8642", "host": "127.0.0.1:8642"}
    assert raw("POST", "/v1/describejobqueues", b"{}", ours).status == 200


def test_a_name_that_was_made_to_point_here_opens_nothing(raw: Raw) -> None:
    """Same-origin reads name no origin: only the Host tells a page whose name server answers 127.0.0.1."""
    rebound = {"host": "evil.example:8642"}
    for path in ("/", "/job/x", "/v1/eksbatch/summary", "/v1/eksbatch/jobs/x/log"):
        reply = raw("GET", path, headers=rebound)
        assert reply.status == 403, path
    assert "127.0.0.1" in raw("POST", "/v1/describejobqueues", b"{}", rebound).message


@pytest.mark.parametrize(
    "token", ["", "|", "no number", "key|", "key|one", "key|-1", "a%00b|1", "key|99999999999"]
)
def test_a_token_that_is_none_is_refused(raw: Raw, token: str) -> None:
    body = json.dumps({"jobName": "x", "jobQueue": "default", "jobDefinition": "x"}).encode()
    reply = raw("POST", "/v1/submitjob", body, {"x-eksbatch-token": token})
    assert reply.status == 400
    assert "KEY|1" in reply.message


@pytest.mark.parametrize(
    "headers",
    [
        {"x-eksbatch-token": f"{'k' * 2000}|1"},
        {"x-eksbatch-token": f"{'%C3%A9' * 1000}|1"},
        {"x-eksbatch-token": "k|1", "x-eksbatch-deployment": "d", "amz-sdk-invocation-id": "i"},
        {"amz-sdk-invocation-id": "i" * 2000},
    ],
)
def test_a_token_that_is_longer_than_databases_index_is_refused(
    raw: Raw, headers: dict[str, str]
) -> None:
    body = json.dumps({"jobName": "x", "jobQueue": "default", "jobDefinition": "x"}).encode()
    reply = raw("POST", "/v1/submitjob", body, headers)
    assert reply.status == 400
    assert ("at most 2000" in reply.message) == (len(headers) == 1)
