"""Our instances as EC2 shows them, by tag or by id, and the request for their end. It remembers nothing.

EC2 shows a change some time after it was made, and not in every answer at once: an instance that a listing by tags leaves
out may be there, and may have lost its tags. Asked for by its id it is shown, or said not to exist.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

import msgspec

from airflow_eksbatch.cloud.aws.blueprint import ENVIRONMENT_TAG
from airflow_eksbatch.cloud.aws.client import Aws, AwsRefusal
from airflow_eksbatch.cloud.aws.refusals import NO_INSTANCE, end_from, sentence_of
from airflow_eksbatch.core.engine.facts import InstanceGone
from airflow_eksbatch.core.model import labels
from airflow_eksbatch.core.model.node import NodeId
from airflow_eksbatch.floor.clock import now_ms

# EC2 takes so many values in one filter, and answers fast with so many ids in one call.
VALUES_MAX = 200
IDS_MAX = 100
INSTANCE_ID = re.compile(r"\bi-[0-9a-f]+\b")


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """Whose an instance is; its tags say the same for as long as it has them."""

    node_id: NodeId
    uuid: str
    """Of its compute environment."""


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """An instance as EC2 shows it."""

    instance_id: str
    node_id: NodeId
    uuid: str
    environment: str
    """The name of its compute environment, as people see it."""
    state: str
    launched_at: int
    gone: InstanceGone
    """How it ended, if it has."""
    is_tagged: bool
    """With all by which it is found again."""
    together: tuple[NodeId, ...] = ()
    """The nodes of the request that made it, if there were several."""

    @property
    def has_ended(self) -> bool:
        return self.state == "terminated"

    def as_known(self, known: Known | None) -> Seen:
        """Whose it is by our own memory, where that has it: tags can be taken away."""
        if known is None:
            return self
        gone = msgspec.structs.replace(self.gone, node_id=known.node_id)
        return msgspec.structs.replace(self, node_id=known.node_id, uuid=known.uuid, gone=gone)


class Ends(msgspec.Struct, frozen=True, kw_only=True):
    """What EC2 said to each instance that was to be ended."""

    asked: set[str] = msgspec.field(default_factory=set[str])
    missing: set[str] = msgspec.field(default_factory=set[str])
    """EC2 has never heard of them, or has forgotten them."""
    refused: dict[str, str] = msgspec.field(default_factory=dict[str, str])
    """Instance id -> why it may not be ended."""


def seen_from(told: dict[str, Any]) -> Seen:
    tags = {tag["Key"]: tag["Value"] for tag in told.get("Tags", [])}
    nodes = [NodeId(node_id) for node_id in tags.get(labels.NODE_UID, "").split()]
    number = told.get("AmiLaunchIndex", 0) if len(nodes) > 1 else 0
    node_id = nodes[number] if number < len(nodes) else NodeId("")
    uuid = tags.get(labels.ENVIRONMENT_UUID, "")
    return Seen(
        instance_id=told["InstanceId"],
        node_id=node_id,
        uuid=uuid,
        environment=tags.get(ENVIRONMENT_TAG, ""),
        state=told["State"]["Name"],
        launched_at=int(told["LaunchTime"].timestamp() * 1000),
        gone=end_from(node_id, told, now_ms()),
        is_tagged=bool(node_id and uuid and tags.get(labels.MANAGED_BY) == labels.OURS),
        together=tuple(nodes) if len(nodes) > 1 else (),
    )


async def list_by(aws: Aws, filter_name: str, values: Sequence[str]) -> list[Seen]:
    """Those with our tag and one of these values. That one is not among them proves nothing."""
    found: list[Seen] = []
    for start in range(0, len(values), VALUES_MAX):
        filters = [
            {"Name": filter_name, "Values": list(values[start : start + VALUES_MAX])},
            {"Name": f"tag:{labels.MANAGED_BY}", "Values": [labels.OURS]},
        ]
        found += await _described(aws, Filters=filters)
    return found


async def find_by_node(aws: Aws, node_ids: Sequence[NodeId]) -> dict[NodeId, Seen]:
    """The one that counts for each node, the oldest live one; also for nodes whose instances were made with them."""
    seen = await list_by(aws, f"tag:{labels.NODE_UID}", [f"*{node_id}*" for node_id in node_ids])
    seen.sort(key=lambda s: (not s.has_ended, -s.launched_at, s.instance_id))
    return {one.node_id: one for one in seen}


async def look_up(aws: Aws, instance_ids: Collection[str]) -> tuple[list[Seen], set[str]]:
    """Those that EC2 shows, and those of which it says that they do not exist."""
    found: list[Seen] = []
    missing: set[str] = set()
    lots = _lots_of(instance_ids)
    while lots:
        ids = lots.pop()
        try:
            found += await _described(aws, InstanceIds=ids)
        except AwsRefusal as error:
            if error.code != NO_INSTANCE:
                raise
            named = _named_in(error, ids)
            missing |= named
            lots += _others(ids, named)
    return found, missing


async def ask_for_ends(aws: Aws, instance_ids: Collection[str]) -> Ends:
    """Each is asked for: one that EC2 says no to (termination protection, no right, no such instance) holds up no other."""
    ends = Ends()
    lots = _lots_of(instance_ids)
    while lots:
        ids = lots.pop()
        try:
            await aws.call("ec2", "terminate_instances", InstanceIds=ids)
        except AwsRefusal as error:
            named = _named_in(error, ids)
            if error.code == NO_INSTANCE:
                ends.missing.update(named)
            else:
                ends.refused.update(dict.fromkeys(named, sentence_of(error.code, error.message)))
            lots += _others(ids, named)
        else:
            ends.asked.update(ids)
    return ends


async def _described(aws: Aws, **which: Any) -> list[Seen]:
    return [
        seen_from(told)
        async for page in aws.pages("ec2", "describe_instances", **which)
        for reservation in page["Reservations"]
        for told in reservation["Instances"]
    ]


def _lots_of(instance_ids: Collection[str]) -> list[list[str]]:
    ids = sorted(instance_ids)
    return [ids[start : start + IDS_MAX] for start in range(0, len(ids), IDS_MAX)]


def _named_in(error: AwsRefusal, ids: list[str]) -> set[str]:
    """Of which instances a refusal speaks: it holds for the whole call, but not for all that is in it."""
    if len(ids) == 1:
        return set(ids)
    return set(INSTANCE_ID.findall(error.message)) & set(ids)


def _others(ids: list[str], named: set[str]) -> list[list[str]]:
    """What is to be asked again: the others together, or each alone where none was named."""
    if not named:
        return [[instance_id] for instance_id in ids]
    others = [instance_id for instance_id in ids if instance_id not in named]
    return [others] if others else []


def tag_again(untagged: Sequence[Seen]) -> str:
    """Our rights let us tag while we buy only."""
    ids = ", ".join(seen.instance_id for seen in untagged)
    one = untagged[0]
    tags = {
        labels.MANAGED_BY: labels.OURS,
        labels.ENVIRONMENT_UUID: one.uuid,
        labels.NODE_UID: one.node_id,
    }
    again = " ".join(f"Key={key},Value={value}" for key, value in tags.items())
    return (
        f"Somebody took our tags from {ids}: kept, but a service that starts anew would not find them, and we may not end "
        f"them. Tag them again: aws ec2 create-tags --resources {one.instance_id} --tags {again}"
    )
