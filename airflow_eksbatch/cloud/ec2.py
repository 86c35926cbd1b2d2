"""EC2: buys one instance for each node id, finds it again by its tags, and sees to it that all of them end.

Why nothing is bought twice, and nothing is left: an instance is made by a RunInstances whose ClientToken is derived from
the node ids and whose tags carry them, in the order in which EC2 numbers the instances of one request (`aws/launches.py`);
so there is no moment in which an instance exists and does not say whose it is. A launch that is repeated is first looked
for by its tag (which outlives the token), then asked for with the same token (which holds while the tag cannot be seen
yet). Every full look lists what carries an environment's tag: the core ends what nobody remembers, and of two instances
of one node that which was not told of, else the younger, is ended here. Only that a listing leaves an instance out is no end of it: it is asked for by its
id, since its jobs run again as soon as it has ended.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Collection, Iterable

import msgspec

from airflow_eksbatch.cloud.aws.blueprint import Blueprint
from airflow_eksbatch.cloud.aws.catalogue import Ec2Catalogue, within_bid
from airflow_eksbatch.cloud.aws.checks import bid_percentage_of, draw_blueprint, find_network
from airflow_eksbatch.cloud.aws.client import Aws, AwsRefusal, Pace
from airflow_eksbatch.cloud.aws.interruptions import Kind, Notice, NoticeQueue
from airflow_eksbatch.cloud.aws.launches import Launches
from airflow_eksbatch.cloud.aws.refusals import (
    never_was,
    sentence_of,
)
from airflow_eksbatch.cloud.aws.sightings import (
    Known,
    Seen,
    ask_for_ends,
    find_by_node,
    list_by,
    look_up,
    tag_again,
)
from airflow_eksbatch.cloud.port import CloudDown
from airflow_eksbatch.core.engine.effects import LaunchNode, TerminateNode, TerminateStray
from airflow_eksbatch.core.engine.facts import (
    Fact,
    InstanceLaunched,
    InstancesListed,
    OfferingsListed,
    RebalanceRecommended,
    SpotInterrupted,
)
from airflow_eksbatch.core.model import labels
from airflow_eksbatch.core.model.compute_environment import ComputeEnvironment
from airflow_eksbatch.core.model.node import NodeId, Offering
from airflow_eksbatch.floor.clock import now_ms

NEWS = {Kind.INTERRUPTION: SpotInterrupted, Kind.REBALANCE: RebalanceRecommended}


class Ec2Settings(msgspec.Struct, frozen=True, kw_only=True):
    notices: str = ""
    """SQS queue (name or URL) of interruption notices; empty: none are read."""
    notices_rest_s: float = 5.0
    """How long to leave the queue alone when it cannot be read; each time twice as long."""
    look_s: float = 30.0
    """From one full look to the next: one listing, 1,000 instances a page."""
    shown_s: float = 60.0
    """How long EC2 may not show an instance that it has launched: it says seconds, we allow a minute."""
    skew_s: float = 300.0
    """How far EC2's clock may be from ours: AWS takes requests so far off."""
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


class Ec2Cloud:
    def __init__(
        self, aws: Aws, settings: Ec2Settings | None = None, catalogue: Ec2Catalogue | None = None
    ) -> None:
        self._aws = aws
        self._settings = settings or Ec2Settings()
        self._catalogue = catalogue or Ec2Catalogue(aws)
        self._environments: dict[str, ComputeEnvironment] = {}
        self._launched: dict[NodeId, tuple[str, str, float]] = {}
        self._known: dict[str, Known] = {}
        self._ending: set[str] = set()
        self._may_not_end: set[str] = set()
        self._surplus: set[str] = set()
        self._told_gone: set[str] = set()
        self._feeds: set[asyncio.Queue[list[Fact]]] = set()
        self._launches = Launches(
            aws,
            Pace(self._settings.launch_burst, self._settings.launches_per_s),
            refused_s=self._settings.refused_s,
            shown_s=self._settings.shown_s,
            skew_s=self._settings.skew_s,
            launched=self._note,
            tell=self._tell,
        )
        self._since = time.monotonic()
        self._watched_since: float | None = None
        self._priced_at = -math.inf

    # ---- the port

    async def start(self) -> None:
        """Everything is found again by its tags, when the environments are known."""

    async def offerings(self, environment: ComputeEnvironment) -> tuple[Offering, ...]:
        self._environments[environment.name] = environment
        self._launches.hope_again(environment.name)
        try:
            offerings, blueprint = await self._look_into(environment)
        except ValueError as error:
            self._launches.plans[environment.name] = str(error)
            raise
        self._launches.plans[environment.name] = blueprint
        return offerings

    async def launch(self, effects: list[LaunchNode]) -> list[Fact]:
        for name in {effect.compute_environment for effect in effects}:
            if name not in self._launches.plans:
                raise CloudDown(f"Compute environment {name} has not been looked into yet.")
        there = await find_by_node(self._aws, [e.node_id for e in effects])
        return await self._launches.make(effects, there)

    async def terminate(self, effects: list[TerminateNode | TerminateStray]) -> list[Fact]:
        """What EC2 does not let us end is told as trouble, and asked for again at every full look."""
        ends = [e for e in effects if isinstance(e, TerminateNode)]
        nodes = {e.instance_id: e for e in ends if e.instance_id is not None}
        unnamed = [e.node_id for e in ends if e.instance_id is None]
        node_ids = {instance_id: effect.node_id for instance_id, effect in nodes.items()}
        for instance_id, effect in nodes.items():
            self._know(instance_id, effect.node_id, effect.compute_environment)
        facts: list[Fact] = []
        hidden: list[NodeId] = []
        if unnamed:
            found = await find_by_node(self._aws, unnamed)
            for node_id in unnamed:
                if (seen := found.get(node_id)) is not None:
                    node_ids[seen.instance_id] = node_id
                    self._known[seen.instance_id] = Known(node_id=node_id, uuid=seen.uuid)
                elif self._may_be_there(node_id):
                    hidden.append(node_id)
                else:
                    facts.append(never_was(node_id))
        ids = {e.instance_id for e in effects if isinstance(e, TerminateStray)} | set(node_ids)
        missing = await self._end(ids)
        # By what was asked for: a full look may meanwhile have forgotten them.
        facts += [never_was(node_ids[i]) for i in missing if i in node_ids]
        self._ends_of_missing(missing)
        facts += await self._look_at_endings(ids - missing)
        self._tell(facts)
        if hidden:
            raise CloudDown(f"EC2 may yet show an instance of {', '.join(hidden)}.")
        return facts

    def _may_be_there(self, node_id: NodeId) -> bool:
        """Asked for without an answer, by us or by a service before us, so lately that EC2 may not show it."""
        is_settled = time.monotonic() - self._since >= self._settings.settle_s
        return not is_settled or self._launches.may_be_there(node_id)

    async def watch(self) -> AsyncIterator[list[Fact]]:
        feed: asyncio.Queue[list[Fact]] = asyncio.Queue()
        self._feeds.add(feed)
        queue = NoticeQueue(self._aws, self._settings.notices, self._settings.notices_rest_s)
        if self._watched_since is None:
            self._watched_since = self._priced_at = time.monotonic()
        # Apart: neither may hold up what the other tells.
        tasks = [
            asyncio.create_task(queue.read(self._act_on), name="ec2-notices"),
            asyncio.create_task(self._tell_prices(), name="ec2-prices"),
        ]
        looked_at = -math.inf
        try:
            while True:
                now = time.monotonic()
                for task in tasks:
                    if task.done():
                        task.result()  # A mistake of ours: the next watch begins again
                if now - looked_at >= self._settings.look_s:
                    looked_at = now
                    settled = now - self._watched_since >= self._settings.settle_s
                    yield await self._full_look(settled=settled)
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
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def delete_environment(self, environment: str, uuid: str) -> None:
        """Only instances were made for it, and the core waits until they have ended: this ends what it never knew of."""
        seen = await list_by(self._aws, f"tag:{labels.ENVIRONMENT_UUID}", [uuid])
        ids = {s.instance_id for s in seen if not s.has_ended}
        await self._end(ids)
        if ids & self._may_not_end:
            raise CloudDown(f"EC2 does not let us end {', '.join(sorted(ids))}.")
        self._known = {i: k for i, k in self._known.items() if k.uuid != uuid}
        known = self._environments.get(environment)
        if known is not None and known.uuid == uuid:  # Else one of that name was made anew
            del self._environments[environment]
            self._launches.plans.pop(environment, None)

    async def stop(self) -> None:
        """Instances stay; the next start finds them."""
        self._aws.close()

    # ---- environments

    async def _look_into(
        self, environment: ComputeEnvironment
    ) -> tuple[tuple[Offering, ...], Blueprint]:
        try:
            network = await find_network(self._aws, environment)
            sold = await self._catalogue.sold(environment, list(network.subnets))
            # Of all that is sold: what is too dear today may be bought tomorrow.
            blueprint = await draw_blueprint(self._aws, environment, network, sold)
        except AwsRefusal as error:
            raise ValueError(sentence_of(error.code, error.message)) from error
        return within_bid(sold, bid_percentage_of(environment)), blueprint

    async def _tell_prices(self) -> None:
        """For ever; a watch that begins again does not begin this anew."""
        while True:
            await asyncio.sleep(self._priced_at + self._settings.offerings_s - time.monotonic())
            self._priced_at = time.monotonic()
            self._tell(await self._prices())

    async def _prices(self) -> list[Fact]:
        """What environments may buy, at today's prices; one of which that cannot be found out keeps what it has."""
        facts: list[Fact] = []
        for name, blueprint in list(self._launches.plans.items()):
            environment = self._environments.get(name)
            if environment is None or isinstance(blueprint, str):
                continue  # Deleted meanwhile, or nothing can be bought
            try:
                sold = await self._catalogue.sold(environment, list(blueprint.subnets))
            except (AwsRefusal, CloudDown, ValueError) as error:
                self._aws.troubles.note("offerings", str(error), of=name)
                continue
            self._aws.troubles.over("offerings", of=name)
            offerings = within_bid(sold, bid_percentage_of(environment))
            # Else it was checked anew meanwhile, or deleted.
            if self._launches.plans.get(name) is blueprint:
                facts.append(
                    OfferingsListed(
                        compute_environment=name, offerings=offerings, made_from=environment
                    )
                )
        return facts

    # ---- launching

    def _note(self, effect: LaunchNode, instance_id: str) -> InstanceLaunched:
        self._know(instance_id, effect.node_id, effect.compute_environment)
        self._launched[effect.node_id] = (
            effect.compute_environment,
            instance_id,
            time.monotonic(),
        )
        return InstanceLaunched(node_id=effect.node_id, instance_id=instance_id, at=now_ms())

    def _know(self, instance_id: str, node_id: NodeId, environment: str) -> None:
        if environment in self._environments:
            uuid = self._environments[environment].uuid
            self._known[instance_id] = Known(node_id=node_id, uuid=uuid)

    # ---- ending

    async def _end(self, instance_ids: Collection[str]) -> set[str]:
        """Ask for their end; answers those that EC2 has never heard of, or has forgotten."""
        ends = await ask_for_ends(self._aws, instance_ids)
        self._ending |= ends.asked
        self._may_not_end -= ends.asked | ends.missing
        self._may_not_end |= set(ends.refused)
        for instance_id, sentence in sorted(ends.refused.items()):
            self._aws.troubles.note("end", sentence, of=instance_id)
        self._tell([])  # The watch now looks more often
        hidden = ends.missing & self._young()
        if hidden:
            raise CloudDown(f"EC2 does not show {', '.join(sorted(hidden))} yet.")
        return ends.missing

    def _young(self) -> set[str]:
        """Instances that EC2 may not show yet."""
        since = time.monotonic() - self._settings.shown_s
        self._launched = {n: kept for n, kept in self._launched.items() if kept[2] >= since}
        return {instance_id for _, instance_id, _ in self._launched.values()}

    async def _look_at_endings(self, instance_ids: set[str]) -> list[Fact]:
        """Those that have ended."""
        shown, missing = await self._look_up(instance_ids)
        facts = self._ends_of_missing(missing)
        for seen in shown:
            if seen.has_ended:
                facts += self._end_of(seen)
        return facts

    def _ends_of_missing(self, instance_ids: set[str]) -> list[Fact]:
        facts: list[Fact] = []
        for instance_id in sorted(instance_ids):
            known = self._known.get(instance_id)
            if known is not None and instance_id not in self._surplus:
                facts.append(never_was(known.node_id))
            self._forget(instance_id)
        return facts

    def _end_of(self, seen: Seen) -> list[Fact]:
        """Told of the instance that counts for its node, not of a second one."""
        is_surplus = seen.instance_id in self._surplus
        self._forget(seen.instance_id)
        return [] if is_surplus else [seen.gone]

    def _forget(self, instance_id: str) -> None:
        for kept in (self._ending, self._surplus, self._may_not_end):
            kept.discard(instance_id)
        self._aws.troubles.over("end", of=instance_id)
        self._told_gone.add(instance_id)
        known = self._known.pop(instance_id, None)
        if known is not None and instance_id in self._launched.get(known.node_id, ()):
            del self._launched[known.node_id]

    # ---- looking

    async def _look_up(self, instance_ids: set[str]) -> tuple[list[Seen], set[str]]:
        """By id, as whose we know them; and those that certainly are not there."""
        shown, missing = await look_up(self._aws, instance_ids)
        known = [seen.as_known(self._known.get(seen.instance_id)) for seen in shown]
        return known, missing - self._young()

    async def _full_look(self, *, settled: bool) -> list[Fact]:
        """What is there. Until EC2 shows everything that a service before us launched, nothing is said to be missing."""
        at = now_ms()
        names = {e.uuid: e.name for e in self._environments.values() if e.managed}
        listed: dict[str, dict[str, Seen]] = {name: {} for name in names.values()}
        facts: list[Fact] = []
        unwanted: set[str] = set()
        ended: list[Seen] = []
        # Of two of one node the one that was told counts, else the older.
        told = {instance_id for _, instance_id, _ in self._launched.values()}
        for seen in sorted(
            await self._all_of(names),
            key=lambda s: (
                s.instance_id in self._surplus,
                s.instance_id not in told,
                s.launched_at,
            ),
        ):
            nodes = listed[names[seen.uuid]]
            if seen.has_ended:
                ended.append(seen)
                continue
            self._known[seen.instance_id] = Known(node_id=seen.node_id, uuid=seen.uuid)
            if seen.state == "shutting-down":
                self._ending.add(seen.instance_id)
            if seen.node_id in nodes:
                self._surplus.add(seen.instance_id)
            if (
                seen.state in ("stopping", "stopped")
                or seen.instance_id in self._surplus | self._may_not_end
            ):
                unwanted.add(seen.instance_id)
            nodes.setdefault(seen.node_id, seen)
        for seen in ended:
            if seen.instance_id not in self._told_gone:
                if seen.node_id in listed[names[seen.uuid]]:
                    self._surplus.add(seen.instance_id)
                facts += self._end_of(seen)
        self._told_gone &= {seen.instance_id for seen in ended}
        await self._end_unwanted(unwanted)
        for name, nodes in listed.items():
            instances = {node_id: seen.instance_id for node_id, seen in nodes.items()}
            facts += self._told_as(name, instances, at, settled=settled)
        return facts

    async def _all_of(self, uuids: Collection[str]) -> list[Seen]:
        """Instances of these environments: those that a listing shows, and those that we know and it leaves out."""
        listed = await list_by(self._aws, f"tag:{labels.ENVIRONMENT_UUID}", sorted(uuids))
        shown = [seen.as_known(self._known.get(seen.instance_id)) for seen in listed]
        left_out = {i for i, known in self._known.items() if known.uuid in uuids}
        left_out -= {seen.instance_id for seen in shown} | self._young()
        found, missing = await self._look_up(left_out)
        self._tell(self._ends_of_missing(missing))
        shown = [seen for seen in (*shown, *found) if seen.uuid in uuids]
        untagged = [s for s in shown if not (s.is_tagged or s.has_ended)]
        if untagged:
            self._aws.troubles.note("tags", tag_again(untagged))
        else:
            self._aws.troubles.over("tags")
        return shown

    async def _end_unwanted(self, instance_ids: set[str]) -> None:
        """Of which nobody waits for the end: it is asked for again at the next look, and must not hold up this one."""
        try:
            await self._end(instance_ids)
        except CloudDown as error:
            self._aws.troubles.note("end", str(error))

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

    async def _act_on(self, notices: Iterable[Notice]) -> None:
        at = now_ms()
        by_id: dict[str, list[Notice]] = {}
        for notice in notices:
            by_id.setdefault(notice.instance_id, []).append(notice)
        facts: list[Fact] = []
        stopped: set[str] = set()
        shown = await list_by(self._aws, "instance-id", sorted(by_id))
        left_out = (set(by_id) & set(self._known)) - {seen.instance_id for seen in shown}
        for seen in (*shown, *(await self._look_up(left_out))[0]):
            for notice in by_id[seen.instance_id]:
                if notice.kind in NEWS and not seen.has_ended:
                    told = NEWS[notice.kind]
                    facts.append(told(node_id=seen.node_id, at=min(at, notice.at or at)))
                elif notice.state == "stopped":
                    stopped.add(seen.instance_id)
            if seen.has_ended:
                facts += self._end_of(seen)
            elif seen.state == "shutting-down":
                self._known[seen.instance_id] = Known(node_id=seen.node_id, uuid=seen.uuid)
                self._ending.add(seen.instance_id)
        await self._end_unwanted(stopped)
        self._tell(facts)

    def _tell(self, facts: list[Fact]) -> None:
        for feed in self._feeds:
            feed.put_nowait(facts)
