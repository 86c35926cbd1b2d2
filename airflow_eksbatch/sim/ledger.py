"""What a store would remember, as bytes: whatever was not committed is gone after a crash, also by mistake."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import msgspec

from airflow_eksbatch.core.model.job import Attempt, Ended, Job, JobEvent, JobId, ended
from airflow_eksbatch.core.model.node import Node
from airflow_eksbatch.core.model.resources import FREE, Cost
from airflow_eksbatch.core.world.books import Account
from airflow_eksbatch.core.world.changes import NOUNS, Changes, Counters, Snapshot, Totals
from airflow_eksbatch.core.world.world import World

KINDS: dict[str, type[msgspec.Struct]] = {
    "job": Job,
    "attempt": Attempt,
    "node": Node,
} | NOUNS
KIND_OF = {noun: kind for kind, noun in KINDS.items()}
Key = tuple[str, str]
T = TypeVar("T", bound=msgspec.Struct)
encode = msgspec.msgpack.Encoder().encode


class Ledger:
    """Rows by kind and name. `live` holds what a start would load; the past is kept beside it."""

    def __init__(self) -> None:
        self.live: dict[Key, bytes] = {}
        self.past: dict[Key, bytes] = {}
        self.events: list[JobEvent] = []
        self.costs: dict[tuple[int, Account], Cost] = {}
        self.commits = 0
        self._totals = encode(Totals())
        self._counters = encode(Counters())
        self._ends: dict[JobId, Ended] = {}
        self._tokens: dict[str, JobId] = {}

    def commit(self, changes: Changes) -> None:
        """One transaction of whole rows."""
        self.commits += 1
        for kind, name, noun in rows_of(changes):
            self._put(kind, name, noun)
        for kind, name in changes.deleted:
            self.live.pop((kind, name), None)
        self.events += changes.events
        for entry in changes.costs:
            key = (entry.hour, entry.account)
            self.costs[key] = self.costs.get(key, FREE).plus(entry.cost)
        if changes.totals is not None:
            self._totals = encode(changes.totals)
        if changes.counters is not None:
            self._counters = encode(changes.counters)

    def _put(self, kind: str, name: str, noun: msgspec.Struct) -> None:
        alive = True
        match noun:
            case Job():
                alive = noun.stopped_at is None
                if noun.spec.token:
                    self._tokens[noun.spec.token] = noun.job_id
                if not alive:
                    self._ends[noun.job_id] = ended(noun)
            case Attempt():
                alive = noun.end is None
            case Node():
                alive = noun.ended_at is None
            case _:
                pass
        key = (kind, name)
        if alive:
            self.live[key] = encode(noun)
        else:
            self.live.pop(key, None)
            self.past[key] = encode(noun)

    def snapshot(self) -> Snapshot:
        """Everything alive, in objects of its own."""
        found: dict[str, list[object]] = {kind: [] for kind in KINDS}
        for (kind, _), row in self.live.items():
            found[kind].append(msgspec.msgpack.decode(row, type=KINDS[kind]))
        return Snapshot(
            jobs=found["job"],  # type: ignore[arg-type]
            attempts=found["attempt"],  # type: ignore[arg-type]
            nodes=found["node"],  # type: ignore[arg-type]
            queues=found["job_queue"],  # type: ignore[arg-type]
            compute_environments=found["compute_environment"],  # type: ignore[arg-type]
            policies=found["scheduling_policy"],  # type: ignore[arg-type]
            definitions=found["job_definition"],  # type: ignore[arg-type]
            usages=found["share_usage"],  # type: ignore[arg-type]
            totals=msgspec.msgpack.decode(self._totals, type=Totals),
            counters=msgspec.msgpack.decode(self._counters, type=Counters),
        )

    def difference(self, world: World) -> str | None:
        """What the world holds and this does not, or the other way round; None when they are the same."""
        held = {(kind, name): noun for kind, name, noun in rows_of(everything(world))}
        for key in held.keys() | self.live.keys():
            noun, row = held.get(key), self.live.get(key)
            if noun is not None and encode(noun) == row:
                continue
            # Sets may be written in another order, so bytes that differ are read before they count.
            kept = row and msgspec.msgpack.decode(row, type=KINDS[key[0]])
            if kept != noun:
                return f"{key[0]} {key[1]} is {noun} in memory and {kept} in the store"
        if encode(world.totals) != self._totals or encode(world.counters) != self._counters:
            return "the totals or counters in memory are not those in the store"
        return None

    def find_ends(self, job_ids: Iterable[JobId]) -> dict[JobId, Ended]:
        """Of jobs that have ended: how."""
        return {job_id: self._ends[job_id] for job_id in job_ids if job_id in self._ends}

    def find_tokens(self, tokens: Iterable[str]) -> dict[str, JobId]:
        return {token: self._tokens[token] for token in tokens if token in self._tokens}

    def find_job(self, job_id: JobId) -> Job | None:
        row = self.live.get(("job", job_id)) or self.past.get(("job", job_id))
        return msgspec.msgpack.decode(row, type=Job) if row else None

    def found(self, kind: type[T], *, live: bool = False) -> list[T]:
        """All of a kind there ever were, or those alive."""
        rows = self.live if live else self.past | self.live
        word = KIND_OF[kind]
        return [
            msgspec.msgpack.decode(row, type=kind) for key, row in rows.items() if key[0] == word
        ]


def rows_of(changes: Changes) -> Iterable[tuple[str, str, msgspec.Struct]]:
    """(kind, name, noun) of every row of a transaction."""
    for job in (*changes.jobs_added, *changes.jobs):
        yield "job", job.job_id, job
    for attempt in changes.attempts:
        yield "attempt", attempt.pod_name, attempt
    for node in changes.nodes:
        yield "node", node.node_id, node
    yield from changes.nouns()


def everything(world: World) -> Changes:
    """The world as one transaction."""
    return Changes(
        jobs=list(world.jobs.values()),
        attempts=list(world.attempts.values()),
        nodes=list(world.nodes.values()),
        queues=list(world.queues.values()),
        compute_environments=list(world.compute_environments.values()),
        policies=list(world.policies.values()),
        definitions=[d for revisions in world.definitions.values() for d in revisions.values()],
        usages=list(world.usages.values()),
    )
