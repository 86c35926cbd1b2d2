"""Outputs of pods, read through the API server while they run and put away before they go.

A pod that somebody reads, or that is being ended, is followed into a file: so parts can be read by offset, and what a
pod says last is not lost with it. The file holds one container after the other, init containers first; containers that
run at the same time are mixed as their output comes. Bytes stay as they are; of very long outputs the last part is kept.
A stream that breaks goes on where it broke, found by the last bytes that came: kubelets begin a new file now and then.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import msgspec

from airflow_eksbatch.cluster.kube.connection import ApiError, Connection
from airflow_eksbatch.cluster.kube.growing_file import GrowingFile
from airflow_eksbatch.cluster.kube.objects import ContainerSpec, ContainerStatus, Pod
from airflow_eksbatch.cluster.outputs import Outputs
from airflow_eksbatch.cluster.port import ClusterDown
from airflow_eksbatch.core.model.job import PodName
from airflow_eksbatch.floor.clock import Backoff, within

# Where a stream broke is known by so many bytes before.
LAST_BYTES = 1024
# A follower holds a connection here and one at the kubelet; one that nobody reads from is let go.
FOLLOWERS_MAX = 256
UNREAD_S_MAX = 60.0
# How long a first reader waits for what is there already, and a deletion for its follower.
FIRST_PART_S_MAX = 1.0
OPEN_S_MAX = 0.3
# The rest of an output must come within this time after its pod has ended.
REST_S_MAX = 20.0
# How often a kubelet that does not answer is asked again, and how long it is left alone after that.
TRIES_MAX = 3
SILENT_S = 30.0
LOOK_S = 0.1
# How often a stream is tried again while its pod lives.
AGAIN = Backoff(first_s=LOOK_S, most_s=5.0)
# A job may be silent for hours, and a connection may die without a word: then it is made again, which costs a look
# through what the kubelet has (10 MiB unless told otherwise).
SILENCE_S_MAX = 600.0
# The end of a stream is known before the end of its container is.
ENDS_SOON_S = 3.0
CANNOT_FOLLOW = b"failed to create fsnotify watcher: "
GAP = b"eksbatch: a part of the output is missing here: its stream broke, and the kubelet has begun a new file since\n"
T = TypeVar("T")
Look = Callable[[PodName], Pod | None]
"""The pod as it is now; None when it is gone."""


class Taken(msgspec.Struct):
    """What came of a container: where we are in the kubelet's file, as far as that is still the same, and what was last."""

    offset: int = 0
    last: bytes = b""

    def add(self, part: bytes) -> None:
        self.offset += len(part)
        self.last = (self.last + part[-LAST_BYTES:])[-LAST_BYTES:]


class Follower:
    """One pod whose output is being written to a file."""

    def __init__(self, file: Path, node: str) -> None:
        self.file = file
        self.node = node
        self.output = GrowingFile(file)
        self.task: asyncio.Task[None] | None = None
        self.is_held = False
        """Its pod is being ended: the output is wanted whether somebody reads it or not."""
        self.is_whole = False
        self.is_broken = False
        """The last try brought no stream."""
        self.is_open = asyncio.Event()
        self.has_part = asyncio.Event()
        self.came_at = 0.0
        """When the last part of it came (monotonic seconds)."""
        self.has_caught_up = False
        """What had been said before it began is here."""
        self.taken: defaultdict[str, Taken] = defaultdict(Taken)
        """By container."""
        self.wanted_at = time.monotonic()

    @property
    def may_be_all(self) -> bool:
        """Whether its part of the output may not be had again."""
        return self.is_held or (self.is_broken and any(t.offset for t in self.taken.values()))

    async def wait(self, seconds: float) -> None:
        """Until it is over, or that long."""
        if self.task is not None:
            await asyncio.wait([self.task], timeout=seconds)


class Silence(msgspec.Struct, frozen=True):
    """A kubelet that is left alone for a while, and what it last said."""

    until: float
    why: str
    is_given_up: bool = False
    """Asked in vain often enough: what its pods have said is lost."""


SPOKE = Silence(until=0.0, why="the node is gone")


class LiveLogs:
    """For one cluster; `look` says how a pod is now, `is_there` whether a node is."""

    def __init__(
        self,
        connection: Connection,
        directory: Path,
        outputs: Outputs,
        *,
        look: Look,
        is_there: Callable[[str], bool],
    ) -> None:
        self._connection = connection
        self._directory = directory
        self._outputs = outputs
        self._look = look
        self._is_there = is_there
        self._followers: dict[PodName, Follower] = {}
        self._tries: dict[PodName, int] = {}
        self._silent: dict[str, Silence] = {}
        """Nodes whose kubelets gave no output lately."""
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="outputs")

    def has(self, pod: PodName) -> bool:
        return pod in self._followers

    async def read(self, pod: PodName, offset: int, limit: int) -> tuple[bytes, int] | None:
        """Of a pod that is there or was followed; None for any other."""
        follower, now = self._followers.get(pod), self._look(pod)
        if follower is None:
            follower = None if now is None else self._begin(now)
        if follower is None:
            return None
        follower.wanted_at = time.monotonic()
        if now is not None and now.is_over:
            await follower.wait(REST_S_MAX)
        elif not follower.has_caught_up:
            await self._catch_up(follower)
        output = follower.output

        def look() -> tuple[bytes, int] | None:
            # What was put away in the meantime took the follower's file with it.
            kept = self._outputs.read(pod, offset, limit)
            return output.read(offset, limit) if kept is None else kept

        return await self._on_thread(look)

    async def _catch_up(self, follower: Follower) -> None:
        """Wait for what is there already: until nothing more comes, but not for long."""
        until = time.monotonic() + FIRST_PART_S_MAX
        await within(FIRST_PART_S_MAX, follower.has_part)
        while True:
            now = time.monotonic()
            if now >= min(until, follower.came_at + LOOK_S):
                break
            await asyncio.sleep(LOOK_S / 2)
        follower.has_caught_up = True

    async def hold(self, pod: Pod) -> None:
        """The pod is about to be ended: take what it has said and will say until then."""
        if not pod.is_over and _begun(pod):
            follower = self._followers.get(PodName(pod.metadata.name))
            if follower is None:
                self._make_room()
                follower = self._begin(pod)
            if follower is not None:
                follower.is_held = True
                await within(OPEN_S_MAX, follower.is_open)

    async def keep(self, pod: PodName) -> None:
        """Put the output away for good. Raises ClusterDown while it makes sense to ask again."""
        if self._outputs.has(pod):
            # The pod could not be deleted then, or who did it led no more.
            await self._put_away(pod, None)
            return
        follower, now = self._followers.get(pod), self._look(pod)
        reachable = now is not None and self._is_there(now.spec.node_name)
        whole: Path | None = None
        if follower is not None:
            # Of a pod that is gone its kubelet may still send the rest.
            await follower.wait(REST_S_MAX if self._is_there(follower.node) else LOOK_S)
            whole = follower.file if follower.is_whole or now is None else None
        if whole is None and now is not None and _begun(now):
            whole = await self._fetch(now) if reachable else None
            whole = whole or (follower.file if follower else self._missing(now))
        await self._put_away(pod, whole)

    async def tend(self) -> None:
        """To be called now and then: let go what nobody reads, put away what is left of pods that are gone."""
        now = time.monotonic()
        for pod, follower in list(self._followers.items()):
            if now - follower.wanted_at <= UNREAD_S_MAX:
                continue
            seen = self._look(pod)
            if seen is None:
                await self._put_away(pod, follower.file)
            elif not follower.may_be_all and self._is_there(seen.spec.node_name):
                self._let_go(pod)

    async def close(self) -> None:
        tasks = [f.task for f in self._followers.values() if f.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._threads.shutdown()

    def _begin(self, pod: Pod) -> Follower | None:
        if len(self._followers) >= FOLLOWERS_MAX:
            return None
        name = PodName(pod.metadata.name)
        follower = self._followers[name] = Follower(
            self._new_file(f"{name}.part"), pod.spec.node_name
        )
        follower.task = asyncio.create_task(self._follow(pod, follower), name=f"log {name}")
        return follower

    def _make_room(self) -> None:
        """Who only watches gives way to what could not be read later."""
        if len(self._followers) >= FOLLOWERS_MAX:
            spare = [(f.wanted_at, pod) for pod, f in self._followers.items() if not f.may_be_all]
            if spare:
                self._let_go(min(spare)[1])

    def _let_go(self, pod: PodName) -> None:
        follower = self._followers.pop(pod, None)
        if follower is not None:
            if follower.task is not None:
                follower.task.cancel()
            follower.file.unlink(missing_ok=True)

    async def _put_away(self, pod: PodName, file: Path | None) -> None:
        if file is not None and not self._outputs.has(pod):
            await self._on_thread(lambda: self._outputs.keep(pod, file))
        self._let_go(pod)
        self._tries.pop(pod, None)

    def _new_file(self, name: str) -> Path:
        self._directory.mkdir(parents=True, exist_ok=True)
        file = self._directory / name
        file.write_bytes(b"")
        return file

    # ---- ended pods

    async def _fetch(self, pod: Pod) -> Path | None:
        """The output of a pod that is over, container by container; None when nobody can say it."""
        name, node = PodName(pod.metadata.name), pod.spec.node_name
        began_at, silence = time.monotonic(), self._silent.get(node, SPOKE)
        if silence.until > began_at:
            if silence.is_given_up:
                return None
            raise ClusterDown(f"The output of {name} cannot be read: {silence.why}")
        taken = Follower(self._new_file(f"{name}.whole"), node)
        try:
            for status in _begun(pod):
                await self._take(pod, status.name, taken, follow=False)
        except (ApiError, ClusterDown) as error:
            taken.file.unlink(missing_ok=True)
            tried = self._tries[name] = self._tries.get(name, 0) + 1
            is_lost, now = tried >= TRIES_MAX, time.monotonic()
            if is_lost or now - began_at > REST_S_MAX / 2:
                # It let us wait: not every pod of its needs to.
                self._silent[node] = Silence(now + SILENT_S, str(error), is_given_up=is_lost)
            if is_lost:
                return None
            raise ClusterDown(f"The output of {name} cannot be read: {error}") from error
        return taken.file

    def _missing(self, pod: Pod) -> Path:
        """People look for the output: they are told why there is none."""
        name, node = pod.metadata.name, pod.spec.node_name
        file = self._new_file(f"{name}.whole")
        why = self._silent.get(node, SPOKE).why
        file.write_text(f"eksbatch: the output of {name} on {node} is lost: {why}\n")
        return file

    # ---- pods that live

    async def _follow(self, pod: Pod, follower: Follower) -> None:
        """Init containers one after the other, then all others at once, sidecars beside both; ends when the pod has."""
        now = self._look(PodName(pod.metadata.name))
        inits = [c.name for c in pod.spec.init_containers if not c.is_sidecar]
        sidecars = [c.name for c in pod.spec.init_containers if c.is_sidecar]
        mains = [container.name for container in pod.spec.containers]
        if now is None or now.is_over:
            # What there is, in order.
            inits, sidecars, mains = [c.name for c in _containers(pod)], [], []
        try:
            async with asyncio.TaskGroup() as group:
                for container in sidecars:
                    group.create_task(self._follow_container(pod, container, follower))
                for container in inits:
                    await self._follow_container(pod, container, follower)
                for container in mains:
                    group.create_task(self._follow_container(pod, container, follower))
            follower.is_whole = True
        except* (ApiError, ClusterDown):
            # Whoever needs the whole output asks again when the pod has ended.
            follower.is_whole = False
        finally:
            follower.has_part.set()

    async def _follow_container(self, pod: Pod, container: str, follower: Follower) -> None:
        """Until the container has ended and all it said is here."""
        name, failures, taken = PodName(pod.metadata.name), 0, follower.taken[container]
        while True:
            before, began_at = taken.offset, time.monotonic()
            now = self._look(name)
            state = None if now is None else _status_of(now, container).state
            if state is not None and (state.running or state.terminated):
                try:
                    await self._take(pod, container, follower, follow=True)
                except (ApiError, ClusterDown):
                    # What lasted, or brought something, was no failure but an end.
                    lasted_s = time.monotonic() - began_at
                    in_vain = taken.offset == before and lasted_s < SILENCE_S_MAX / 2
                    failures = failures + 1 if in_vain else 1
                    follower.is_broken = True
                    now = self._look(name)
                    if failures >= TRIES_MAX and (now is None or now.is_over):
                        raise
                else:
                    failures = 0
                    if await self._ends_soon(name, container):
                        return
            elif now is None or now.is_over:
                return
            follower.has_part.set()
            await asyncio.sleep(AGAIN.after(failures) if failures else LOOK_S)

    async def _ends_soon(self, name: PodName, container: str) -> bool:
        """Whether the container has ended, as the end of its stream says."""
        until = time.monotonic() + ENDS_SOON_S
        while True:
            pod = self._look(name)
            if pod is None or _status_of(pod, container).state.terminated is not None:
                return True
            if time.monotonic() > until:
                return False
            await asyncio.sleep(LOOK_S)

    async def _take(self, pod: Pod, container: str, follower: Follower, *, follow: bool) -> None:
        """Append what a container says, from where we are."""
        taken = follower.taken[container]
        try:
            if taken.offset and not await self._find_place(pod, container, taken):
                await self._append(follower, GAP if taken.last.endswith(b"\n") else b"\n" + GAP)
                taken.offset, taken.last = 0, b""
            skip = taken.offset
            async for chunk in self._stream(pod, container, follow=follow):
                follower.is_open.set()
                follower.is_broken = False
                fresh = chunk[skip:]
                skip -= len(chunk) - len(fresh)
                if follow:
                    fresh = without_complaint(fresh)
                if fresh:
                    follower.came_at = math.inf  # it is not here yet
                    await self._append(follower, fresh)
                    follower.came_at = time.monotonic()
                    taken.add(fresh)
                    follower.has_part.set()
        except ApiError as error:
            # 400: the container has not begun or never did; 404: the pod is gone, and with it what it said.
            if error.status not in (400, 404):
                raise

    async def _find_place(self, pod: Pod, container: str, taken: Taken) -> bool:
        """Go to where the kubelet's file has what came last; False when it is not there (any more).

        Where it is expected counts most: what an output says again and again is in many places.
        """
        wanted, places = taken.last, list[int]()
        start, carry = 0, b""
        async for chunk in self._stream(pod, container, follow=False):
            part = carry + chunk
            expected = taken.offset - len(wanted) - start
            if expected >= 0 and part.startswith(wanted, expected):
                places.insert(0, taken.offset)
            found = part.find(wanted)
            if found >= 0 and not places:
                places.append(start + found + len(wanted))
            carry = part[max(0, len(part) - len(wanted) + 1) :]
            start += len(part) - len(carry)
        taken.offset = places[0] if places else taken.offset
        return bool(places)

    def _stream(self, pod: Pod, container: str, *, follow: bool) -> AsyncIterator[bytes]:
        meta, query = pod.metadata, {"container": container}
        path = f"/api/v1/namespaces/{meta.namespace}/pods/{meta.name}/log"
        if follow:
            return self._connection.stream(
                path, {**query, "follow": "true"}, silence_s=SILENCE_S_MAX
            )
        return self._connection.stream(path, query, silence_s=REST_S_MAX)

    async def _append(self, follower: Follower, part: bytes) -> None:
        await self._on_thread(lambda: follower.output.append(part))

    async def _on_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


def without_complaint(part: bytes) -> bytes:
    """A kubelet that has no inotify left says so behind what there is, in the output's own stream; the container never did."""
    begin = part.rfind(CANNOT_FOLLOW)
    is_last = begin >= 0 and part.find(b"\n", begin) in (-1, len(part) - 1)
    return part[:begin] if is_last else part


def _containers(pod: Pod) -> list[ContainerSpec]:
    return [*pod.spec.init_containers, *pod.spec.containers]


def _status_of(pod: Pod, container: str) -> ContainerStatus:
    statuses = (*pod.status.init_container_statuses, *pod.status.container_statuses)
    none_yet = ContainerStatus(name=container)
    return next((status for status in statuses if status.name == container), none_yet)


def _begun(pod: Pod) -> list[ContainerStatus]:
    """Containers that have run, in order."""
    statuses = [_status_of(pod, container.name) for container in _containers(pod)]
    return [status for status in statuses if status.state.running or status.state.terminated]
