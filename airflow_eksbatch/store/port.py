"""What the service asks of a store; SQLite and PostgreSQL pass one contract suite."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Literal, Protocol

import msgspec

from airflow_eksbatch.core.model.compute_environment import ComputeEnvironment
from airflow_eksbatch.core.model.job import Attempt, Ended, Job, JobEvent, JobId
from airflow_eksbatch.core.world.books import Entry
from airflow_eksbatch.core.world.changes import Changes, Snapshot
from airflow_eksbatch.floor.clock import now_ms


class StoreError(Exception):
    """The store cannot be used; the message is one sentence that says what to do."""


class Fenced(StoreError):
    """Another service took the lease: this one may not write any more."""


class NewerSchema(StoreError):
    """A newer release has brought the schema forward: this one cannot use it, however long it waits."""


class Unstorable(StoreError):
    """Nothing is wrong with the store: it does not take one of these values."""


class StoreView(msgspec.Struct, frozen=True, kw_only=True):
    """What a store is, for somebody who only looks: nothing is changed or brought forward."""

    schema_version: int
    """0: there is nothing yet."""
    newest_version: int
    """What this release would bring it to."""
    leader: str = ""
    """Who holds, or last held, the lease."""
    leads_until: int = 0
    """Epoch ms, by the clock of the one who leads."""
    compute_environments: tuple[ComputeEnvironment, ...] = ()
    clock_ms: int | None = None
    """The database's own clock; None where it has none but ours."""

    @property
    def lease_left_ms(self) -> int:
        """How long somebody leads yet, by the database's clock where it has one; below 0: so long nobody has led."""
        now = now_ms() if self.clock_ms is None else self.clock_ms
        return self.leads_until - now


Role = Literal["viewer", "user", "admin"]


class Rights(msgspec.Struct, frozen=True, kw_only=True):
    """What whoever signs with a key may do."""

    role: Role = "admin"
    queues: tuple[str, ...] = ()
    """The job queues to which it may submit and whose jobs it may end; empty for all."""


class SigningKey(msgspec.Struct, frozen=True, kw_only=True):
    secret: str
    rights: Rights = Rights()


class AccessKey(msgspec.Struct, frozen=True, kw_only=True):
    """Of a key, what may be shown."""

    access_key: str
    note: str
    created_at: int
    """Epoch ms; 0 where it is not known."""
    rights: Rights = Rights()


class JobQuery(msgspec.Struct, frozen=True, kw_only=True):
    """One page of ListJobs over what is stored, newest first. Names end in `*` for a prefix."""

    queue: str | None = None
    statuses: tuple[str, ...] = ()
    name: str | None = None
    definition: str | None = None
    share: str | None = None
    created_before: int | None = None
    created_after: int | None = None
    before_seq: int | None = None
    limit: int = 1_000


class Store(Protocol):
    """All calls block and belong on one thread; `commit` is all or nothing."""

    def open(self) -> None:
        """Connect, and bring the schema forward; raises StoreError (corrupt file, no access), NewerSchema, and Fenced
        where another has taken the lease that this one had.
        """
        ...

    def prepare(self) -> StoreView:
        """As far as one may without leading: an empty database gets its tables, whatever else is there stays as it is,
        because others may use it. Leases can be taken and keys read then. Raises StoreError as `open` does.
        """
        ...

    def look(self) -> StoreView:
        """Without opening it: the schema as it is, who leads; raises StoreError also if nothing could be written."""
        ...

    def load(self) -> Snapshot:
        """All that is alive."""
        ...

    def commit(self, changes: Changes) -> None:
        """Keep one beat's changes, durably. Raises StoreError when it could not (disk full, fenced, Unstorable)."""
        ...

    def find_ends(self, job_ids: Iterable[JobId]) -> dict[JobId, Ended]:
        """Of those jobs, the finished ones and how they ended."""
        ...

    def find_tokens(self, tokens: Iterable[str]) -> dict[str, JobId]:
        """Jobs that submits with these tokens made."""
        ...

    def find_task_jobs(self, task_keys: Iterable[str]) -> dict[str, JobId]:
        """The newest job of each Airflow task, finished ones included."""
        ...

    def find_jobs(self, job_ids: Iterable[JobId]) -> list[Job]:
        """Jobs by id, finished ones included; unknown ids are left out."""
        ...

    def list_jobs(self, query: JobQuery) -> list[Job]:
        """One page of jobs, newest first."""
        ...

    def find_attempts(
        self, job_ids: Iterable[JobId], indices: Collection[int] = ()
    ) -> list[Attempt]:
        """Attempts of jobs (of these indices, if any are named), oldest first, live ones included."""
        ...

    def sum_costs(self, since: int, until: int, by: Collection[str]) -> list[Entry]:
        """What is in the books for hours that begin in [since, until) (epoch ms), summed over all that `by` does not name.

        `by` takes `hour` and members of Account; what is not named is 0 or empty. Market and use are always told.
        """
        ...

    def costly_jobs(self, since: int, until: int, limit: int) -> list[Job]:
        """Of the jobs that ended in [since, until) (epoch ms), those that cost most."""
        ...

    def events_since(self, seq: int, limit: int, job_id: JobId | None = None) -> list[JobEvent]:
        """Events after `seq` in order; of one job if asked."""
        ...

    def first_event_seq(self) -> int:
        """From this one on every event is kept, so a cursor before it has a gap; 0 if there never was one."""
        ...

    def forget_before(self, time: int, limit: int) -> int:
        """Drop finished jobs, their attempts and events older than that (epoch ms), at most `limit` jobs; how many."""
        ...

    def keys(self) -> dict[str, SigningKey]:
        """By access key id; in a schema that knows no rights, each may do everything."""
        ...

    def list_keys(self) -> list[AccessKey]:
        """All of them, oldest first, without their secrets."""
        ...

    def put_key(self, key: AccessKey, secret: str) -> None: ...

    def delete_key(self, access_key: str) -> bool: ...

    def now(self) -> int | None:
        """What time it is for all services of this database (epoch ms); None: they are on one machine."""
        ...

    def take_lease(self, owner: str, now: int, seconds: int) -> int | None:
        """Become (or stay) the one that beats: a fencing number, or None while another holds it."""
        ...

    def lease_owner(self) -> str | None:
        """Who beats, or did last."""
        ...

    def close(self) -> None: ...
