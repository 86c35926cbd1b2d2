"""Lists and watches, against a server on loopback that breaks them in its own ways."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

from aiohttp import web

from airflow_eksbatch.cluster.kube.connection import Kubeconfig
from airflow_eksbatch.cluster.kube.list_watch import ListWatch, Receiver
from airflow_eksbatch.cluster.kube.objects import Pod
from tests.cluster.test_connection import a_kubeconfig, served

Speak = Callable[[web.StreamResponse], Awaitable[None]]


def event(kind: str, name: str, version: int) -> bytes:
    metadata = {"name": name, "namespace": "n", "uid": name, "resourceVersion": str(version)}
    return json.dumps({"type": kind, "object": {"metadata": metadata}}).encode() + b"\n"


class Seen:
    """What a receiver was told, and what went wrong meanwhile."""

    def __init__(self, directory: Path, *watches: Speak) -> None:
        self.changes: list[tuple[bool, str]] = []
        self.lists = 0
        self.since: list[str] = []
        self.troubles: list[str] = []
        self.done = asyncio.Event()
        self._directory = directory
        self._watches = [*watches]

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if "watch" not in request.query:
            return web.json_response({"metadata": {"resourceVersion": "10"}, "items": []})
        self.since.append(request.query["resourceVersion"])
        here = web.StreamResponse()
        await here.prepare(request)
        if self._watches:
            await self._watches.pop(0)(here)
        else:
            self.done.set()
        return here

    async def run(self, url: str) -> None:
        """Until all watches were begun."""
        file = a_kubeconfig(self._directory / "config", ("c", "c"), server=url)
        connection = await Kubeconfig(file).connect("c")

        def listed(pods: list[Pod]) -> None:
            self.lists += 1

        def changed(changes: list[tuple[bool, Pod]]) -> None:
            self.changes += [(is_put, pod.metadata.name) for is_put, pod in changes]

        watch = ListWatch(
            connection,
            "/api/v1/pods",
            Pod,
            Receiver(listed, changed),
            query={},
            tell_trouble=lambda trouble, failures: self.troubles.append(trouble),
        )
        task = asyncio.create_task(watch.run())
        await self.done.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await connection.close()


def seen(directory: Path, *watches: Speak) -> Seen:
    """One watch after the other; the last one has nothing to say."""
    seen = Seen(directory, *watches)
    served(seen.answer, seen.run)
    return seen


async def ends_at_once(here: web.StreamResponse) -> None:
    return


async def ends_well(here: web.StreamResponse) -> None:
    await here.write(event("ADDED", "a", 11))


async def is_torn(here: web.StreamResponse) -> None:
    """Half of an event, and the connection is gone."""
    await here.write(event("ADDED", "a", 11) + event("ADDED", "b", 12)[:20])
    await here.drain()
    assert here._req is not None
    assert here._req.transport is not None
    here._req.transport.close()


async def has_forgotten(here: web.StreamResponse) -> None:
    gone = {"kind": "Status", "code": 410, "reason": "Expired"}
    line = json.dumps({"type": "ERROR", "object": gone}).encode()
    await here.write(event("DELETED", "a", 11) + line + b"\n")


def test_a_watch_that_ends_goes_on_where_it_was(tmp_path: Path) -> None:
    found = seen(tmp_path, ends_well)
    assert found.changes == [(True, "a")]
    assert (found.lists, found.since, found.troubles) == (1, ["10", "11"], [])


def test_a_watch_that_ends_at_once_is_trouble_and_begun_with_pauses(tmp_path: Path) -> None:
    found = seen(tmp_path, ends_at_once, ends_at_once)
    assert len(found.troubles) == 2
    assert found.since == ["10"] * 3


def test_half_an_event_is_none_and_is_told_by_the_next_watch(tmp_path: Path) -> None:
    found = seen(tmp_path, is_torn)
    assert found.changes == [(True, "a")]
    assert (found.lists, found.since) == (1, ["10", "11"])


def test_a_place_that_the_server_has_forgotten_is_listed_again(tmp_path: Path) -> None:
    found = seen(tmp_path, has_forgotten)
    assert (found.lists, found.since) == (2, ["10", "10"])
