"""What a standby passes on of the leader's answers: all of one, or that there was none."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from airflow_eksbatch.service.front import WHOLE_BYTES_MAX, Standby

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
BODY = b'{"jobId":"0-0-0-0-0"}'


def relayed(answer: bytes) -> tuple[list[Any], Exception | None]:
    """What a client of the standby is sent while the leader says this and is killed; what breaks then."""

    async def run() -> tuple[list[Any], Exception | None]:
        async def lead(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
            writer.close()

        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        async def receive() -> Any:
            return {"type": "http.request"}

        leader = await asyncio.start_server(lead, "127.0.0.1", 0)
        standby = Standby()
        standby.follow(f"http://127.0.0.1:{leader.sockets[0].getsockname()[1]}#secret")
        scope = {
            "type": "http",
            "method": "POST",
            "raw_path": b"/v1/submitjob",
            "query_string": b"",
            "headers": [(b"host", b"localhost")],
            "client": ("10.0.0.7", 4711),
        }
        broke: Exception | None = None
        try:
            await standby(scope, receive, send)
        except Exception as error:
            broke = error
        await standby.close()
        leader.close()
        return sent, broke

    return asyncio.run(run())


@pytest.mark.parametrize("said", [0, 8], ids=["nothing but its head", "a part of it"])
def test_half_an_answer_is_none_and_asked_for_again(said: int) -> None:
    """botocore takes it for an empty one: a job would be accepted and nobody told its id."""
    sent, broke = relayed(HEAD % len(BODY) + BODY[:said])
    assert [message.get("status") for message in sent] == [503, None]
    assert (b"x-amzn-errortype", b"ServerException") in list(sent[0]["headers"])
    assert broke is None


def test_a_whole_answer_is_passed_on_as_it_is() -> None:
    sent, broke = relayed(HEAD % len(BODY) + BODY)
    assert sent[0]["status"] == 200
    assert b"".join(message.get("body", b"") for message in sent) == BODY
    assert broke is None


def test_a_long_answer_is_passed_on_as_it_comes_and_breaks_where_it_broke() -> None:
    """Such as much output, or events: of which a client sees that there is no more."""
    sent, broke = relayed(HEAD % (WHOLE_BYTES_MAX + 1) + b"begun")
    assert sent[0]["status"] == 200
    assert b"".join(message.get("body", b"") for message in sent) == b"begun"
    assert broke is not None
