"""What the API asks of the service behind it, and what an operation is given."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Literal, Protocol, TypeVar

import msgspec

from airflow_eksbatch.core.engine.facts import Fact
from airflow_eksbatch.core.model.errors import Outdated, Rejected
from airflow_eksbatch.core.model.job import Attempt
from airflow_eksbatch.core.world.world import World
from airflow_eksbatch.store.port import Rights, Store

T = TypeVar("T")


class ApiSettings(msgspec.Struct, frozen=True, kw_only=True):
    region: str = "us-east-1"
    account: str = "000000000000"
    auth: Literal["open", "sigv4"] = "sigv4"
    """`open` takes unsigned requests from whoever can connect."""
    dashboard: Literal["local", "open", "off"] = "local"
    """To whom the dashboard is shown; with `auth` open, all who can connect are local."""
    base_url: str = ""

    def arn(self, tail: str) -> str:
        return f"arn:aws:batch:{self.region}:{self.account}:{tail}"


class Desk(Protocol):
    settings: ApiSettings

    @property
    def world(self) -> World:
        """To read, after `settled()`."""
        ...

    @property
    def trouble(self) -> str | None:
        """Why the service is not ready, or None."""
        ...

    async def offer(self, fact: Fact) -> Any:
        """Hand in a fact and wait for its commit; raises Rejected."""
        ...

    async def settled(self) -> None:
        """Until no beat is between its step and its commit."""
        ...

    async def ask(self, question: Callable[[Store], T]) -> T:
        """Run a question on the store's thread."""
        ...

    async def read_log(
        self, attempt: Attempt, offset: int, limit: int
    ) -> tuple[bytes, int] | None: ...

    def subscribe(self, cursor: int) -> AsyncIterator[dict[str, Any]]:
        """Lines of the event stream."""
        ...

    async def control_cloud(self, request: dict[str, Any]) -> dict[str, Any]: ...

    def metrics_text(self) -> bytes: ...

    def tell_changed(self, operation: str, what: str | None, by: str | None, /) -> None:
        """For the log: an operation that changes something was answered; `by` is the access key, None without one."""
        ...

    def tell_denied(self, operation: str, what: str | None, by: str, /) -> None:
        """For the log: it was not allowed to this key."""
        ...


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks. Where nothing is signed that is anybody, who may do everything."""

    access_key: str = ""
    rights: Rights = Rights()


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """The validated input of an operation, who asks, and the desk."""

    desk: Desk
    input: dict[str, Any]
    headers: Mapping[str, str]
    caller: Caller


Operation = Callable[[Call], Awaitable[dict[str, Any]]]


async def offer_change(
    desk: Desk, what: str, find: Callable[[World], T | None], change: Callable[[T], Fact]
) -> Any:
    """An update made from what is there, made anew as long as somebody else is quicker: nobody's is lost."""
    while True:
        await desk.settled()
        before = find(desk.world)
        if before is None:
            raise Rejected(f"{what} does not exist.")
        try:
            return await desk.offer(change(before))
        except Outdated:
            pass
