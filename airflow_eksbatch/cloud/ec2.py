"""EC2: buys one instance for each node id, finds it again by its tags, and sees to it that all of them end.

Why nothing is bought twice, and nothing is left: an instance is made by one RunInstances whose ClientToken is derived from
the node id and whose tags carry it, so there is no moment in which an instance exists and does not say whose it is. A launch
that is repeated is first looked for by its tag (which outlives the token), then asked for with the same token (which holds
while the tag cannot be seen yet). Every full look lists what carries an environment's tag: the core ends what nobody
remembers, and of two instances of one node the younger is ended here. A fleet would need one call for many nodes, but its
instances learn whose they are only after they exist.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

import msgspec

from airflow_eksbatch.cloud.aws import Aws, AwsRefusal, Pace, Throttled
from airflow_eksbatch.cloud.blueprint import Blueprint, instance_request, subnets_for
from airflow_eksbatch.cloud.catalogue import Ec2Catalogue
from airflow_eksbatch.cloud.checks import bid_percentage_of, draw_blueprint, find_network
from airflow_eksbatch.cloud.instances import now_ms
from airflow_eksbatch.cloud.interruptions import Kind, Notice, NoticeQueue
from airflow_eksbatch.cloud.port import CloudDown
from airflow_eksbatch.cloud.refusals import (
    NO_ADDRESSES,
    NO_INSTANCE,
    TOKEN_USED,
    JustRefused,
    Meaning,
    end_from,
    meaning_of,
    sentence_of,
)
from airflow_eksbatch.core.engine.effects import LaunchNode, TerminateNode, TerminateStray
from airflow_eksbatch.core.engine.facts import (
    Fact,
    InstanceGone,
    InstanceLaunched,
    InstancesListed,
    LaunchRefused,
    OfferingsListed,
    RebalanceRecommended,
    SpotInterrupted,
)
from airflow_eksbatch.core.model import labels
from airflow_eksbatch.core.model.compute_environment import ComputeEnvironment
from airflow_eksbatch.core.model.node import NodeId, Offering

# EC2 takes so many values in one filter, and answers fast with so many ids in one call.
VALUES_MAX = 200
IDS_MAX = 100
# Throttled launches wait half a second, then twice as long each time: about a minute in all.
PAUSE_FIRST_S, PAUSE_MOST_S, PAUSES_MAX = 0.5, 10.0, 9
NEWS = {Kind.INTERRUPTION: SpotInterrupted, Kind.REBALANCE: RebalanceRecommended}
INSTANCE_ID = re.compile(r"\bi-[0-9a-f]+\b")


class Ec2Settings(msgspec.Struct, frozen=True, kw_only=True):
    notices: str = ""
    """SQS queue (name or URL) of interruption notices; empty: none are read."""
    look_s: float = 30.0
    """From one full look to the next: one listing, 1,000 instances a page."""
    shown_s: float = 60.0
    """How long EC2 may not show an instance that it has launched: it says seconds, we allow a minute."""
    settle_s: float = 60.0
    """The same for instances that a service before us launched: until then none is said to be missing."""
    endings_s: float = 5.0
    """How often instances that are ending are looked at."""
    offerings_s: float = 600.0
    """How often prices are told again."""
    launch_burst: int = 5
    launches_per_s: float = 2.0
    """EC2's own bounds of RunInstances in an account and region, unless AWS was asked for more."""
    refused_s: float = 15.0
    """How long a refusal also holds for launches that were in line when it came."""


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """An instance of ours as EC2 shows it."""

    instance_id: str
    node_id: NodeId
    uuid: str
    state: str
    launched_at: int
    gone: InstanceGone
    """How it ended, if it has."""

    @property
    def has_ended(self) -> bool:
        return self.state == "terminated"


class Ec2Cloud:
    def __init__(
        self, aws: Aws, settings: Ec2Settings | None = None, catalogue: Ec2Catalogue | None = None
    ) -> None:
        self._aws = aws
        self._settings = settings or Ec2Settings()
        self._catalogue = catalogue or Ec2Catalogue(aws)
        self._environments: dict[str, ComputeEnvironment] = {}
        self._blueprints: dict[str, Blueprint] = {}
        self._troubles: dict[str, str] = {}
        self._launched: dict[NodeId, tuple[str, str, float]] = {}
        self._nodes: dict[str, NodeId] = {}
        self._ending: set[str] = set()
        self._surplus: set[str] = set()
        self._told_gone: set[str] = set()
        self._feeds: set[asyncio.Queue[list[Fact]]] = set()
        self._pace = Pace(self._settings.launch_burst, self._settings.launches_per_s)
        self._turn = asyncio.Lock()
        self._just_refused = JustRefused(self._settings.refused_s)

    # ---- the port

    async def start(self) -> None:
        """Everything is found again by its tags, when the environments are known."""

    async def offerings(self, environment: ComputeEnvironment) -> tuple[Offering, ...]:
        self._environments[environment.name] = environment
        self._just_refused.forget(environment.name)
        try:
            offerings, blueprint = await self._look_into(environment)
        except ValueError as error:
            self._troubles[environment.name] = str(error)
            self._blueprints.pop(environment.name, None)
            raise
        self._troubles.pop(environment.name, None)
        self._blueprints[environment.name] = blueprint
        return offerings

    async def launch(self, effects: list[LaunchNode]) -> list[Fact]:
        for name in {effect.compute_environment for effect in effects}:
            if name not in self._blueprints and name not in self._troubles:
                raise CloudDown(f"Compute environment {name} has not been looked into yet.")
        there = {seen.node_id: seen for seen in await self._find([e.node_id for e in effects])}
        answers = await asyncio.gather(
            *(self._launch(effect, there.get(effect.node_id)) for effect in effects),
            return_exceptions=True,
        )
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer  # The batch comes again; what is known already has been told
        return [answer for answer in answers if isinstance(answer, Fact)]

    async def terminate(self, effects: list[TerminateNode | TerminateStray]) -> list[Fact]:
        nodes = {e.instance_id: e.node_id for e in effects if isinstance(e, TerminateNode)}
        unnamed = [
            e.node_id for e in effects if isinstance(e, TerminateNode) and e.instance_id is None
        ]
        nodes.pop(None, None)
        facts: list[Fact] = []
        if unnamed:
            found = {seen.node_id: seen for seen in await self._find(unnamed)}
            nodes.update((seen.instance_id, node_id) for node_id, seen in found.items())
            facts += [_never_was(node_id) for node_id in unnamed if node_id not in found]
        self._nodes.update((i, node_id) for i, node_id in nodes.items() if i is not None)
        ids = {i for i in nodes if i is not None}
        ids |= {e.instance_id for e in effects if isinstance(e, TerminateStray)}
        missing = await self._end(sorted(ids))
        facts += [_never_was(nodes[i]) for i in missing if i in nodes]
        facts += await self._look_at_endings(ids - missing)
        self._tell(facts)
        return facts

    async def watch(self) -> AsyncIterator[list[Fact]]:
        feed: asyncio.Queue[list[Fact]] = asyncio.Queue()
        self._feeds.add(feed)
        reader = asyncio.create_task(self._read_notices(), name="ec2-notices")
        began = looked_at = priced_at = time.monotonic()
        try:
            yield await self._full_look(settled=self._settings.settle_s <= 0)
            while True:
                now = time.monotonic()
                if reader.done():
                    reader.result()  # Raises: the next watch reads again
                if now - looked_at >= self._settings.look_s:
                    looked_at = now
                    yield await self._full_look(settled=now - began >= self._settings.settle_s)
                if now - priced_at >= self._settings.offerings_s:
                    priced_at = now
                    yield await self._prices()
                wait_s = looked_at + self._settings.look_s - now
                if self._ending:
                    wait_s = min(wait_s, self._settings.endings_s)
                try:
                    async with asyncio.timeout(max(0.0, wait_s)):
                        facts = await feed.get()
                except TimeoutError:
                    facts = await self._look_at_endings(set(self._ending))
                if facts:
                    yield facts
        finally:
            self._feeds.discard(feed)
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def delete_environment(self, environment: str) -> None:
        """Only instances were made for it, and the core waits until they have ended: this ends what it never knew of."""
        known = self._environments.get(environment)
        if known is not None:
            seen = await self._find_all([known.uuid])
            await self._end([s.instance_id for s in seen if not s.has_ended])
        for kept in (self._environments, self._blueprints, self._troubles):
            kept.pop(environment, None)

    async def stop(self) -> None:
        """Instances stay; the next start finds them."""
        self._aws.close()

    # ---- environments

    async def _look_into(
        self, environment: ComputeEnvironment
    ) -> tuple[tuple[Offering, ...], Blueprint]:
        try:
            network = await find_network(self._aws, environment)
            bid = bid_percentage_of(environment)
            offerings = await self._catalogue.offerings(environment, list(network.subnets), bid)
            blueprint = await draw_blueprint(self._aws, environment, network, offerings)
        except AwsRefusal as error:
            raise ValueError(sentence_of(error.code, error.message)) from error
        return offerings, blueprint

    async def _prices(self) -> list[Fact]:
        """What environments may buy, at today's prices."""
        facts: list[Fact] = []
        for name, blueprint in list(self._blueprints.items()):
            environment = self._environments[name]
            offerings = await self._catalogue.offerings(
                environment, list(blueprint.subnets), bid_percentage_of(environment)
            )
            facts.append(OfferingsListed(compute_environment=name, offerings=offerings))
        return facts

    # ---- launching

    async def _launch(self, effect: LaunchNode, seen: Seen | None) -> Fact:
        """A batch may take a minute at EC2's pace: each answer is told as it comes."""
        fact = await self._launch_one(effect, seen)
        self._tell([fact])
        return fact

    async def _launch_one(self, effect: LaunchNode, seen: Seen | None) -> Fact:
        if seen is not None:
            return seen.gone if seen.has_ended else self._note(effect, seen.instance_id)
        blueprint = self._blueprints.get(effect.compute_environment)
        if blueprint is None:
            trouble = self._troubles[effect.compute_environment]
            return _refused(effect, AwsRefusal("InvalidComputeEnvironment", trouble))
        refusal = AwsRefusal(NO_ADDRESSES, f"No subnet stands in {effect.offering.zone}.")
        for subnet in subnets_for(blueprint, effect):
            try:
                told = await self._run(effect, instance_request(blueprint, effect, subnet))
            except AwsRefusal as error:
                refusal = error
                if error.code == TOKEN_USED:
                    # Launched before, of another blueprint, and its tag cannot be seen yet.
                    raise CloudDown(f"{effect.node_id}: {error.message}") from error
                if error.code != NO_ADDRESSES:
                    break
            else:
                return self._note(effect, told["Instances"][0]["InstanceId"])
        return _refused(effect, refusal)

    def _note(self, effect: LaunchNode, instance_id: str) -> InstanceLaunched:
        self._nodes[instance_id] = effect.node_id
        self._launched[effect.node_id] = (
            effect.compute_environment,
            instance_id,
            time.monotonic(),
        )
        return InstanceLaunched(node_id=effect.node_id, instance_id=instance_id, at=now_ms())

    async def _run(self, effect: LaunchNode, request: dict[str, Any]) -> dict[str, Any]:
        """RunInstances in its turn, unless meanwhile EC2 has said no to another like it."""
        pauses = 0
        while True:
            async with self._turn:
                said = self._just_refused.about(effect)
                if said is not None:
                    raise AwsRefusal(*said)
                await self._pace.take()
            try:
                return await self._aws.call_once("ec2", "run_instances", **request)
            except Throttled:
                if pauses == PAUSES_MAX:
                    raise
                self._pace.slow_down(min(PAUSE_MOST_S, PAUSE_FIRST_S * 2**pauses))
                pauses += 1
            except AwsRefusal as error:
                if error.code not in (TOKEN_USED, NO_ADDRESSES):
                    self._just_refused.note(effect, error.code, error.message)
                raise

    # ---- ending

    async def _end(self, instance_ids: Sequence[str]) -> set[str]:
        """Ask for their end; answers those that EC2 has never heard of, or has forgotten."""
        missing: set[str] = set()
        for start in range(0, len(instance_ids), IDS_MAX):
            ids = list(instance_ids[start : start + IDS_MAX])
            while ids:
                try:
                    await self._aws.call("ec2", "terminate_instances", InstanceIds=ids)
                    break
                except AwsRefusal as error:
                    unknown = set(INSTANCE_ID.findall(error.message)) & set(ids)
                    if error.code != NO_INSTANCE or not unknown or unknown & self._young():
                        raise CloudDown(sentence_of(error.code, error.message)) from error
                    missing |= unknown
                    ids = [i for i in ids if i not in unknown]
        self._ending |= set(instance_ids) - missing
        self._tell([])  # The watch now looks more often
        return missing

    def _young(self) -> set[str]:
        """Instances that EC2 may not show yet."""
        since = time.monotonic() - self._settings.shown_s
        self._launched = {n: kept for n, kept in self._launched.items() if kept[2] >= since}
        return {instance_id for _, instance_id, _ in self._launched.values()}

    async def _look_at_endings(self, instance_ids: set[str]) -> list[Fact]:
        """Those that have ended."""
        ids = sorted(instance_ids)
        shown = {seen.instance_id: seen for seen in await self._find_by("instance-id", ids)}
        facts: list[Fact] = []
        for instance_id in ids:
            seen = shown.get(instance_id)
            if seen is not None and seen.has_ended:
                facts += self._end_of(seen)
            elif seen is None and instance_id not in self._young():
                if instance_id in self._nodes:
                    facts.append(_never_was(self._nodes[instance_id]))
                self._forget(instance_id)
        return facts

    def _end_of(self, seen: Seen) -> list[Fact]:
        """Told of the instance that counts for its node, not of a second one."""
        is_surplus = seen.instance_id in self._surplus
        self._forget(seen.instance_id)
        return [] if is_surplus else [seen.gone]

    def _forget(self, instance_id: str) -> None:
        self._ending.discard(instance_id)
        self._surplus.discard(instance_id)
        self._told_gone.add(instance_id)
        node_id = self._nodes.pop(instance_id, NodeId(""))
        if instance_id in self._launched.get(node_id, ()):
            del self._launched[node_id]

    # ---- looking

    async def _find(self, node_ids: Sequence[NodeId]) -> list[Seen]:
        """Instances by node id, ended ones before live ones, the oldest last: so it is the one that counts."""
        seen = await self._find_by(f"tag:{labels.NODE_UID}", node_ids)
        return sorted(seen, key=lambda s: (not s.has_ended, -s.launched_at, s.instance_id))

    async def _find_all(self, uuids: Sequence[str]) -> list[Seen]:
        return await self._find_by(f"tag:{labels.ENVIRONMENT_UUID}", uuids)

    async def _find_by(self, filter_name: str, values: Sequence[str]) -> list[Seen]:
        found: list[Seen] = []
        for start in range(0, len(values), VALUES_MAX):
            filters = [
                {"Name": filter_name, "Values": list(values[start : start + VALUES_MAX])},
                {"Name": f"tag:{labels.MANAGED_BY}", "Values": [labels.OURS]},
            ]
            async for page in self._aws.pages("ec2", "describe_instances", Filters=filters):
                for reservation in page["Reservations"]:
                    found += map(seen_from, reservation["Instances"])
        return found

    async def _full_look(self, *, settled: bool) -> list[Fact]:
        """What is there. Until EC2 shows everything that a service before us launched, nothing is said to be missing."""
        at = now_ms()
        names = {e.uuid: e.name for e in self._environments.values() if e.managed}
        listed: dict[str, dict[str, Seen]] = {name: {} for name in names.values()}
        facts: list[Fact] = []
        unwanted: list[str] = []
        ended: list[Seen] = []
        for seen in sorted(await self._find_all(sorted(names)), key=lambda s: s.launched_at):
            nodes = listed[names[seen.uuid]]
            if seen.has_ended:
                ended.append(seen)
                continue
            self._nodes[seen.instance_id] = seen.node_id
            if seen.state == "shutting-down":
                self._ending.add(seen.instance_id)
            if seen.node_id in nodes:
                self._surplus.add(seen.instance_id)
            if seen.state in ("stopping", "stopped") or seen.instance_id in self._surplus:
                unwanted.append(seen.instance_id)
            nodes.setdefault(seen.node_id, seen)
        for seen in ended:
            if seen.instance_id not in self._told_gone:
                if seen.node_id in listed[names[seen.uuid]]:
                    self._surplus.add(seen.instance_id)
                facts += self._end_of(seen)
        self._told_gone &= {seen.instance_id for seen in ended}
        if unwanted:
            await self._end(unwanted)
        for name, nodes in listed.items():
            instances = {node_id: seen.instance_id for node_id, seen in nodes.items()}
            facts += self._told_as(name, instances, at, settled=settled)
        return facts

    def _told_as(
        self, name: str, instances: dict[str, str], at: int, *, settled: bool
    ) -> list[Fact]:
        if not settled:
            return [
                InstanceLaunched(node_id=NodeId(node_id), instance_id=instance_id, at=at)
                for node_id, instance_id in sorted(instances.items())
            ]
        young = self._young()
        for node_id, (environment, instance_id, _) in self._launched.items():
            if environment == name and instance_id in young:
                instances.setdefault(node_id, instance_id)
        return [InstancesListed(compute_environment=name, instances=instances, at=at)]

    # ---- notices

    async def _read_notices(self) -> None:
        if not self._settings.notices:
            await asyncio.Event().wait()
        async for notices in NoticeQueue(self._aws, self._settings.notices).notices():
            self._tell(await self._facts_of(notices))

    async def _facts_of(self, notices: Iterable[Notice]) -> list[Fact]:
        at = now_ms()
        by_id: dict[str, list[Notice]] = {}
        for notice in notices:
            by_id.setdefault(notice.instance_id, []).append(notice)
        facts: list[Fact] = []
        stopped: list[str] = []
        for seen in await self._find_by("instance-id", sorted(by_id)):
            for notice in by_id[seen.instance_id]:
                if notice.kind in NEWS and not seen.has_ended:
                    told = NEWS[notice.kind]
                    facts.append(told(node_id=seen.node_id, at=min(at, notice.at or at)))
                elif notice.state == "stopped":
                    stopped.append(seen.instance_id)
            if seen.has_ended:
                facts += self._end_of(seen)
            elif seen.state == "shutting-down":
                self._nodes[seen.instance_id] = seen.node_id
                self._ending.add(seen.instance_id)
        if stopped:
            await self._end(stopped)
        return facts

    def _tell(self, facts: list[Fact]) -> None:
        for feed in self._feeds:
            feed.put_nowait(facts)


def seen_from(told: dict[str, Any]) -> Seen:
    tags = {tag["Key"]: tag["Value"] for tag in told.get("Tags", [])}
    node_id = NodeId(tags.get(labels.NODE_UID, ""))
    return Seen(
        instance_id=told["InstanceId"],
        node_id=node_id,
        uuid=tags.get(labels.ENVIRONMENT_UUID, ""),
        state=told["State"]["Name"],
        launched_at=int(told["LaunchTime"].timestamp() * 1000),
        gone=end_from(node_id, told, now_ms()),
    )


def _refused(effect: LaunchNode, refusal: AwsRefusal) -> LaunchRefused:
    return LaunchRefused(
        node_id=effect.node_id,
        code=refusal.code,
        message=sentence_of(refusal.code, refusal.message),
        at=now_ms(),
        quota=meaning_of(refusal.code) is Meaning.QUOTA,
        for_good=meaning_of(refusal.code) is Meaning.NEVER,
    )


def _never_was(node_id: NodeId) -> InstanceGone:
    return InstanceGone(node_id=node_id, at=now_ms(), reason="There is no such instance")
