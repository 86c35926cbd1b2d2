"""RunInstances in its turn: for one node, or for a lot of equal ones that were asked for together.

EC2 makes the instances of one token once, however often it is asked, and numbers them: the node ids of a lot stand in a
tag in that order, so each instance says from its first moment which node it is. Of a lot it may make fewer than asked
for; the others are to be asked for alone, which also finds out why: as soon as that has been noted, or a crash would ask
for both. Of a lot that is for one multi-node job it makes all or none.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from airflow_eksbatch.cloud.aws.blueprint import (
    Blueprint,
    instance_request,
    nodes_tag,
    subnets_for,
)
from airflow_eksbatch.cloud.aws.client import Aws, AwsRefusal, Pace, Throttled
from airflow_eksbatch.cloud.aws.refusals import (
    NO_ADDRESSES,
    TOKEN_ENDED,
    TOKEN_USED,
    Doubts,
    JustRefused,
    Meaning,
    launch_refused,
    never_was,
)
from airflow_eksbatch.cloud.aws.sightings import Seen
from airflow_eksbatch.cloud.port import CloudDown
from airflow_eksbatch.core.engine.effects import LaunchNode
from airflow_eksbatch.core.engine.facts import Fact, LaunchAlone, LaunchRefused
from airflow_eksbatch.core.model.node import NodeId
from airflow_eksbatch.core.model.retry import INSTANCE_TERMINATED
from airflow_eksbatch.floor.clock import Backoff, now_ms

# Throttled launches wait about a minute in all.
PAUSE, PAUSES_MAX = Backoff(first_s=0.5, most_s=10.0), 9


class Launches:
    """`launched` notes an instance and answers the fact to be told of it; `tell` tells it at once."""

    def __init__(
        self,
        aws: Aws,
        pace: Pace,
        *,
        refused_s: float,
        shown_s: float,
        skew_s: float,
        launched: Callable[[LaunchNode, str], Fact],
        tell: Callable[[list[Fact]], None],
    ) -> None:
        self.plans: dict[str, Blueprint | str] = {}
        """What instances of a compute environment are made from, or why none can be made; by its name."""
        self._aws = aws
        self._pace = pace
        self._turn = asyncio.Lock()
        self._shown_s = shown_s
        self._skew_s = skew_s
        self._just_refused = JustRefused(refused_s)
        self._doubts = Doubts()
        self._refused_before: dict[NodeId, LaunchRefused] = {}
        """What was refused in a batch that comes again, and is told already: a yes would be one too many by then."""
        self._unanswered: dict[str, tuple[str, float]] = {}
        """Node ids whose request had no answer: the subnet it named, and when it was sent."""
        self._launched = launched
        self._tell = tell

    def hope_again(self, environment: str) -> None:
        """A person may have mended it."""
        self._just_refused.forget(environment)
        self._doubts.forget(environment)

    def may_be_there(self, node_id: NodeId) -> bool:
        """Whether EC2 may have made it and not show it yet: a request for it had no answer."""
        since = time.monotonic() - self._shown_s
        return any(
            at > since and node_id in nodes.split() for nodes, (_, at) in self._unanswered.items()
        )

    async def make(self, effects: Sequence[LaunchNode], there: Mapping[NodeId, Seen]) -> list[Fact]:
        """Each answer is told as it comes: all may take a minute at EC2's pace.

        `there`: what was found of them, and of others that were made with them.
        """
        facts: list[Fact] = []
        lots: defaultdict[tuple[NodeId, ...], list[LaunchNode]] = defaultdict(list)
        for effect in effects:
            seen = there.get(effect.node_id)
            if effect.node_id in self._refused_before:
                facts.append(self._refused_before[effect.node_id])
            elif seen is None:
                lots[effect.together].append(effect)
            elif seen.has_ended:
                facts.append(seen.gone)
            else:
                facts.append(self._launched(effect, seen.instance_id))
        self._tell(facts)
        made_at = {seen.together: seen.launched_at for seen in there.values()}
        answers = await asyncio.gather(
            *(self._make_alone(effect) for effect in lots.pop((), ())),
            *(self._make_lot(lot, made_at.get(together)) for together, lot in lots.items()),
            return_exceptions=True,
        )
        facts += [fact for answer in answers if isinstance(answer, list) for fact in answer]
        for answer in answers:
            if isinstance(answer, BaseException):
                # The batch comes again; what is known already has been told.
                self._refused_before |= {
                    fact.node_id: fact for fact in facts if isinstance(fact, LaunchRefused)
                }
                raise answer
        for effect in effects:
            self._refused_before.pop(effect.node_id, None)
        return facts

    async def _make_lot(self, lot: list[LaunchNode], made_at: int | None) -> list[Fact]:
        """All that were asked for together, also those that nobody wants any more: another request could make them twice.

        `made_at`: when EC2 made those of them that it shows; the others it has not made, unless it may yet show them.
        """
        if made_at is not None and now_ms() - made_at >= (self._shown_s + self._skew_s) * 1000:
            return [LaunchAlone(node_id=effect.node_id) for effect in lot]
        try:
            made = await self._request(lot[0])
        except AwsRefusal as error:
            if self._judge(lot[0], error) is not Meaning.QUOTA or lot[0].all_or_none:
                return self._answered([self._refused(effect, error) for effect in lot])
            made = {}  # What is left of it may do for some
        launched = [self._launched(e, made[e.node_id]) for e in lot if e.node_id in made]
        # Not told before the batch is done: until then they are being asked for together.
        alone = [LaunchAlone(node_id=e.node_id) for e in lot if e.node_id not in made]
        return [*self._answered(launched), *alone]

    async def _make_alone(self, effect: LaunchNode) -> list[Fact]:
        try:
            made = await self._request(effect)
        except AwsRefusal as error:
            return self._answered([self._refused(effect, error)])
        return self._answered([self._launched(effect, made[effect.node_id])])

    def _answered(self, facts: list[Fact]) -> list[Fact]:
        self._tell(facts)
        return facts

    def _refused(self, effect: LaunchNode, error: AwsRefusal) -> Fact:
        if error.code == TOKEN_ENDED:
            return never_was(effect.node_id, INSTANCE_TERMINATED)
        return launch_refused(effect, self._judge(effect, error), error.code, error.message)

    def _judge(self, effect: LaunchNode, refusal: AwsRefusal) -> Meaning:
        plan = self.plans.get(effect.compute_environment)
        types = plan.instance_types if isinstance(plan, Blueprint) else ()
        return self._doubts.judge(effect, refusal.code, refusal.message, types)

    async def _request(self, effect: LaunchNode) -> dict[NodeId, str]:
        """Instance ids by node id, from the first subnet of its zone that has addresses. Raises AwsRefusal."""
        name = effect.compute_environment
        blueprint = self.plans[name]
        if isinstance(blueprint, str):
            raise AwsRefusal("InvalidComputeEnvironment", blueprint)
        refusal = AwsRefusal(NO_ADDRESSES, f"No subnet stands in {effect.offering.zone}.")
        nodes = nodes_tag(effect)
        # What may have been made there is found again by the same question, and by no other.
        last, _ = self._unanswered.get(nodes, ("", 0.0))
        for subnet in sorted(subnets_for(blueprint, effect), key=lambda subnet: subnet != last):
            try:
                told = await self._run(effect, instance_request(blueprint, effect, subnet))
            except CloudDown as error:
                if not isinstance(error, Throttled):
                    self._note_unanswered(nodes, subnet)
                raise
            except AwsRefusal as error:
                if error.code == TOKEN_USED:
                    # Launched before, of another blueprint, and it cannot be seen yet.
                    self._note_unanswered(nodes, subnet)
                    raise CloudDown(f"{effect.node_id}: {error.message}") from error
                self._unanswered.pop(nodes, None)
                if error.code != NO_ADDRESSES:
                    raise
                refusal = error
            else:
                self._doubts.forget(name)
                self._unanswered.pop(nodes, None)
                ids = effect.together or (effect.node_id,)
                return {ids[i["AmiLaunchIndex"]]: i["InstanceId"] for i in told["Instances"]}
        raise refusal

    def _note_unanswered(self, nodes: str, subnet: str) -> None:
        """As long as EC2 may not show what came of it."""
        now = time.monotonic()
        kept = {n: one for n, one in self._unanswered.items() if now - one[1] < self._shown_s}
        self._unanswered = {**kept, nodes: (subnet, now)}

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
                pauses += 1
                self._pace.slow_down(PAUSE.after(pauses))
            except AwsRefusal as error:
                if error.code not in (TOKEN_USED, TOKEN_ENDED, NO_ADDRESSES):
                    meaning = self._judge(effect, error)
                    # That some are beyond a quota says nothing of one machine.
                    in_part = effect.together and not effect.all_or_none
                    if not (meaning is Meaning.QUOTA and in_part):
                        self._just_refused.note(effect, meaning, error.code, error.message)
                raise
