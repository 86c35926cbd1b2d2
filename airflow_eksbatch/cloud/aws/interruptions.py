"""Notices about instances: EventBridge puts them into an SQS queue, this reads them."""

from __future__ import annotations

import asyncio
import enum
import json
from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime
from typing import Any

import msgspec

from airflow_eksbatch.cloud.aws.client import Aws, AwsRefusal
from airflow_eksbatch.cloud.port import CloudDown
from airflow_eksbatch.floor.clock import Backoff

# SQS's own most, both: a long wait costs one request, and ten notices are one answer.
WAIT_S = 20
MESSAGES_MAX = 10
# The queue may be missing for as long as nobody makes it.
REST_S_MAX = 300.0
TROUBLE = "notices"


class Kind(enum.Enum):
    INTERRUPTION = "EC2 Spot Instance Interruption Warning"
    REBALANCE = "EC2 Instance Rebalance Recommendation"
    STATE = "EC2 Instance State-change Notification"


class Notice(msgspec.Struct, frozen=True, kw_only=True):
    kind: Kind
    instance_id: str
    state: str = ""
    """Of a state change: what it is now."""
    at: int = 0
    """When it was given, epoch milliseconds; 0 if it does not say."""


def notice_from(body: str) -> Notice | None:
    """None for what is no notice about an instance; the queue may be fed with more than we asked for."""
    try:
        told: Any = json.loads(body)
        kind, detail = Kind(told["detail-type"]), told["detail"]
        return Notice(
            kind=kind,
            instance_id=str(detail["instance-id"]),
            state=str(detail.get("state", "")),
            at=time_of(told),
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def time_of(told: Any) -> int:
    """Of the two minutes some may be over when a notice is read."""
    try:
        return int(datetime.fromisoformat(told["time"]).timestamp() * 1000)
    except (ValueError, KeyError, TypeError):
        return 0


class NoticeQueue:
    """One SQS queue; each message is read until it was acted on."""

    def __init__(self, aws: Aws, queue: str, rest_s: float) -> None:
        self._aws = aws
        self._queue = queue
        self._rest = Backoff(first_s=rest_s, most_s=REST_S_MAX)
        self._url = queue if "://" in queue else ""

    async def read(self, act_on: Callable[[list[Notice]], Awaitable[None]]) -> None:
        """For ever. A queue that cannot be read is told as trouble and tried again: without it, what EC2 takes back is
        known when it is gone, and all else goes on.
        """
        if not self._queue:
            await asyncio.Event().wait()
        failures = 0
        while True:
            try:
                messages = await self._receive()
                if messages:
                    await act_on([n for m in messages if (n := notice_from(m["Body"])) is not None])
                    await self._delete(messages)
                failures = 0
                self._aws.troubles.over(TROUBLE)
            except (AwsRefusal, CloudDown) as error:
                self._aws.troubles.note(TROUBLE, f"Queue {self._queue}: {error}")
                failures += 1
                await asyncio.sleep(self._rest.after(failures))

    async def _receive(self) -> list[dict[str, Any]]:
        if not self._url:
            told = await self._aws.call("sqs", "get_queue_url", QueueName=self._queue)
            self._url = told["QueueUrl"]
        told = await self._aws.call(
            "sqs",
            "receive_message",
            QueueUrl=self._url,
            MaxNumberOfMessages=MESSAGES_MAX,
            WaitTimeSeconds=WAIT_S,
        )
        return told.get("Messages", [])

    async def _delete(self, messages: Iterable[dict[str, Any]]) -> None:
        entries = [
            {"Id": str(number), "ReceiptHandle": message["ReceiptHandle"]}
            for number, message in enumerate(messages)
        ]
        await self._aws.call("sqs", "delete_message_batch", QueueUrl=self._url, Entries=entries)
