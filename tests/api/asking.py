"""Requests as they go over the wire, right or wrong, and what boto3 makes of refusals."""

from __future__ import annotations

import asyncio
import http.client
import json
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest
from botocore.exceptions import ClientError
from starlette.types import ASGIApp, Message

WAIT_S = 60


class Reply(msgspec.Struct, frozen=True):
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def code(self) -> str:
        """The error's name, as botocore finds it."""
        return self.headers.get("x-amzn-errortype", "")

    @property
    def message(self) -> str:
        return str(json.loads(self.body)["message"])


class Raw:
    """HTTP without a client that corrects anything."""

    def __init__(self, url: str) -> None:
        self._host = urlsplit(url).netloc

    def __call__(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Reply:
        connection = http.client.HTTPConnection(self._host, timeout=WAIT_S)
        try:
            connection.request(method, path, body or None, dict(headers or {}))
            reply = connection.getresponse()
            found = {name.lower(): value for name, value in reply.getheaders()}
            return Reply(reply.status, found, reply.read())
        finally:
            connection.close()

    def post(self, operation: str, given: object) -> Reply:
        return self("POST", f"/v1/{operation.lower()}", json.dumps(given).encode())


def ask_app(app: ASGIApp, path: str, headers: Mapping[str, str] | None = None) -> Reply:
    """A GET of an app that no server serves."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "GET", "path": path, "query_string": b"", "client": ("10.0.0.7", 1),
        "headers": [(name.encode(), value.encode()) for name, value in (headers or {}).items()],
    }  # fmt: skip

    async def ask() -> None:
        await app(scope, receive, send)

    asyncio.run(ask())
    found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return Reply(sent[0]["status"], found, b"".join(block["body"] for block in sent[1:]))


def refusal(call: Callable[..., Any], **given: Any) -> str:
    """The message of the ClientException that a call ends with."""
    with pytest.raises(ClientError) as refused:
        call(**given)
    error, answer = refused.value.response["Error"], refused.value.response["ResponseMetadata"]
    assert (error["Code"], answer["HTTPStatusCode"]) == ("ClientException", 400), error
    return str(error["Message"])
