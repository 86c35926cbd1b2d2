"""Processes as pods on this machine, on nodes that a cloud says are there.

A container's image is not used: its command runs with what this machine has, as the service's
user. CPU and memory are booked by the planner and not enforced; a process that leaves its session
is not followed. Pods outlive the service; how they are found again is told in `process`.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, TypeVar

import msgspec

from airflow_eksbatch.cluster.containers import Container, read_containers
from airflow_eksbatch.cluster.outputs import OutputFiles, Outputs, read_part
from airflow_eksbatch.cluster.port import BadPod, ClusterDown
from airflow_eksbatch.cluster.process import (
    NEW,
    OLD,
    PodDirectory,
    PodRecord,
    ProcessEnds,
    begin,
    is_script,
    signal_group,
)
from airflow_eksbatch.core.engine.effects import CreatePod, DeletePod, ForgetPod
from airflow_eksbatch.core.engine.facts import (
    Fact,
    NodeLost,
    NodeReady,
    PodEnded,
    PodRefused,
    PodRunning,
    PodSeen,
    PodsListed,
)
from airflow_eksbatch.core.model.compute_environment import ComputeEnvironment
from airflow_eksbatch.core.model.job import PodName
from airflow_eksbatch.core.model.node import NodeId
from airflow_eksbatch.core.model.resources import Resources
from airflow_eksbatch.core.model.retry import NOT_THERE, AttemptEnd, host_ended
from airflow_eksbatch.floor.clock import now_ms
from airflow_eksbatch.floor.feeds import Feeds, next_facts

NOTICE = (
    "Pods of the embedded cluster are processes of this machine: images are not used, CPU and "
    "memory are booked but not enforced."
)
# A full look heals lost news; it costs one pass over the pods.
FULL_LOOK_S = 10.0
# How often we look whether init containers are through, and whether killed processes have gone.
LOOK_S = 0.1
# A process that left its session may hold a dead pod's output this long, then it is let go.
RELEASE_S_MAX = 5.0
# Where the pods of this machine reach each other.
ADDRESS = "127.0.0.1"
# How long another service may hold the directory until it is told to be one.
LOCK_S = 2.0
# A start or a clean-up is a millisecond of file work; two threads keep up with 500 a second.
THREADS = 2
T = TypeVar("T")


def inherited_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """What processes inherit: the service's own settings and Airflow's secrets are not for them.

    Programs beside our Python are found last, so that `python` is always there.
    """
    ours = re.compile(r"EKSBATCH_(?!HOME$|URL$)|_*AIRFLOW_(?!HOME$)")
    inherited = {name: value for name, value in environ.items() if not ours.match(name)}
    path = inherited.get("PATH", os.defpath)
    return inherited | {"PATH": f"{path}{os.pathsep}{Path(sys.executable).parent}"}


class Node(msgspec.Struct, kw_only=True, frozen=True):
    """A node that is there, with how it is told."""

    compute_environment: str
    ready: NodeReady


class Pod:
    """One pod that has a directory."""

    def __init__(self, directory: PodDirectory, record: PodRecord, pid: int | None) -> None:
        self.directory = directory
        self.record = record
        self.pid = pid
        self.running_at: int | None = None
        self.end: PodEnded | None = None
        self.has_ended = asyncio.Event()
        self.kill_at: float | None = None
        self.killer: asyncio.TimerHandle | None = None
        self.is_leaving = False

    @property
    def name(self) -> PodName:
        return self.record.pod

    def facts(self) -> list[Fact]:
        """All there is to tell of it."""
        facts: list[Fact] = [PodSeen(pod=self.name, at=self.record.created_at)]
        if self.running_at is not None:
            facts.append(PodRunning(pod=self.name, at=self.running_at, address=ADDRESS))
        return facts if self.end is None else [*facts, self.end]


class LocalCluster:
    """Start it before the cloud that adds and removes its nodes."""

    def __init__(
        self,
        directory: Path,
        *,
        environ: Mapping[str, str] | None = None,
        outputs: Outputs | None = None,
    ) -> None:
        self._directory = directory.absolute() / "pods"
        self._environ = inherited_environ(os.environ if environ is None else environ)
        self._outputs = outputs or OutputFiles(directory.absolute() / "logs")
        self._nodes: dict[NodeId, Node] = {}
        self._pods: dict[PodName, Pod] = {}
        self._starting: dict[PodName, tuple[NodeId, asyncio.Task[None]]] = {}
        self._environments: set[str] = set()
        self._feeds = Feeds()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="pods")
        self._init_look: asyncio.Task[None] | None = None
        self._lock: IO[str] | None = None
        self._ends: ProcessEnds

    # ---- the port

    async def start(self) -> None:
        self._ends = ProcessEnds()
        self._lock = await _lock(self._directory)
        for pod in await self._on_thread(self._find_pods):
            await self._adopt(pod)

    async def check(self, environment: ComputeEnvironment) -> str | None:
        """Always usable: namespaces and roles mean nothing here."""
        self._environments.add(environment.name)
        return None

    async def create_pod(self, effect: CreatePod) -> Fact | None:
        pod = effect.pod
        if pod not in self._pods and pod not in self._starting:
            refusal = self._prepare(effect)
            if refusal is not None:
                return refusal
        if pod in self._starting:
            # A caller that gives up does not undo a start that is under way.
            await asyncio.shield(self._starting[pod][1])
        return None

    async def delete_pod(self, effect: DeletePod) -> Fact | None:
        if effect.pod in self._starting:
            await asyncio.wait([self._starting[effect.pod][1]])
        pod = self._pods.get(effect.pod)
        if pod is None:
            return PodEnded(pod=effect.pod, at=now_ms(), end=NOT_THERE)
        if pod.end is None:
            self._stop(pod, effect.grace_s)
        return pod.end

    async def forget_pod(self, effect: ForgetPod) -> None:
        pod = self._pods.get(effect.pod)
        if pod is None or pod.end is None or pod.is_leaving:
            return
        pod.is_leaving = True
        try:
            await self._on_thread(lambda: self._put_away(pod))
        except OSError as error:
            pod.is_leaving = False
            raise ClusterDown(f"The output of {pod.name} cannot be kept: {error}") from error
        self._pods.pop(pod.name, None)

    async def watch(self) -> AsyncIterator[list[Fact]]:
        with self._feeds.open() as feed:
            yield [
                *(node.ready for node in self._nodes.values()),
                *(fact for pod in self._pods.values() for fact in pod.facts()),
                *self._full_look(),
            ]
            looked_at = time.monotonic()
            while True:
                facts = await next_facts(feed, looked_at + FULL_LOOK_S - time.monotonic())
                if not facts:
                    facts, looked_at = self._full_look(), time.monotonic()
                yield facts

    async def read_log(self, pod: PodName, offset: int, limit: int) -> tuple[bytes, int] | None:
        def read() -> tuple[bytes, int] | None:
            live = read_part(self._directory / pod / "log", offset, limit)
            return live or self._outputs.read(pod, offset, limit)

        return await self._on_thread(read) if _is_name(pod) else None

    async def stop(self) -> None:
        """Pods go on; the next start finds them."""
        await asyncio.gather(*(task for _, task in self._starting.values()), return_exceptions=True)
        if self._init_look is not None:
            self._init_look.cancel()
        for pod in self._pods.values():
            if pod.killer is not None:
                pod.killer.cancel()
        self._ends.close()
        self._threads.shutdown()
        if self._lock is not None:
            self._lock.close()

    # ---- nodes, by the cloud

    def add_node(
        self,
        node_id: NodeId,
        *,
        instance_id: str,
        node_name: str,
        compute_environment: str,
        allocatable: Resources,
    ) -> None:
        """Its pods may be created from now on. Twice is harmless."""
        ready = NodeReady(
            node_id=node_id, node_name=node_name, allocatable=allocatable, at=now_ms()
        )
        self._nodes[node_id] = Node(compute_environment=compute_environment, ready=ready)
        self._environments.add(compute_environment)
        self._feeds.tell([ready])

    async def remove_node(self, node_id: NodeId, instance_id: str) -> None:
        """Kill its pods and wait until they are gone: their ends are the platform's doing."""
        self._nodes.pop(node_id, None)
        starting = [task for on, task in self._starting.values() if on == node_id]
        await asyncio.gather(*starting, return_exceptions=True)
        pods = [pod for pod in self._pods.values() if pod.record.node_id == node_id]
        for pod in pods:
            if pod.end is None:
                pod.directory.note("host", instance_id)
                self._kill(pod)
        for pod in pods:
            await pod.has_ended.wait()
        reason = host_ended(instance_id)
        self._feeds.tell([NodeLost(node_id=node_id, at=now_ms(), reason=reason)])

    def node_ids(self) -> frozenset[NodeId]:
        return frozenset(self._nodes) | {
            pod.record.node_id for pod in self._pods.values() if pod.end is None
        }

    def pods_on(self, node_id: NodeId) -> int:
        return sum(pod.record.node_id == node_id and pod.end is None for pod in self._pods.values())

    # ---- begin

    def _prepare(self, effect: CreatePod) -> PodRefused | None:
        """Begin its start, or say why not."""
        pod, at = effect.pod, now_ms()
        if not _is_name(pod):
            return PodRefused(pod=pod, at=at, reason=f"{pod!r} is no pod name", permanent=True)
        if effect.node_id not in self._nodes:
            return PodRefused(pod=pod, at=at, reason=f"Node {effect.node_id} is not there")
        if self._outputs.has(pod):
            return PodRefused(pod=pod, at=at, reason=f"Pod {pod} has ended before")
        try:
            containers = read_containers(effect.pod_properties, effect.environment)
        except BadPod as error:
            return PodRefused(pod=pod, at=at, reason=str(error), permanent=True)
        record = PodRecord(
            pod=pod,
            compute_environment=effect.compute_environment,
            node_id=effect.node_id,
            created_at=at,
            programs={c.label: c.argv[0] if c.argv else "" for c in containers},
            names={c.label: c.name for c in containers},
        )
        task = asyncio.create_task(self._begin(record, containers))
        self._starting[pod] = (effect.node_id, task)
        task.add_done_callback(lambda _: self._starting.pop(pod, None))
        return None

    async def _begin(self, record: PodRecord, containers: tuple[Container, ...]) -> None:
        def begin_it() -> int:
            return begin(self._directory, record, containers, self._environ)

        try:
            pid = await self._on_thread(begin_it)
        except OSError as error:
            raise ClusterDown(f"{record.pod} cannot be started: {error}") from error
        pod = Pod(PodDirectory(self._directory / record.pod), record, pid)
        pod.running_at = None if record.has_inits else now_ms()
        self._enter(pod)
        self._feeds.tell(pod.facts())

    def _enter(self, pod: Pod) -> None:
        """From now on its end is awaited."""
        self._pods[pod.name] = pod
        self._environments.add(pod.record.compute_environment)
        if pod.pid is not None:
            self._ends.watch(pod.pid, lambda status: self._on_process_end(pod, status))
        if pod.running_at is None and (self._init_look is None or self._init_look.done()):
            self._init_look = asyncio.create_task(self._look_for_running(), name="init-containers")

    async def _look_for_running(self) -> None:
        """Init containers end without a sign of their own."""
        while waiting := [p for p in self._pods.values() if p.running_at is None and not p.end]:
            for pod in waiting:
                self._note_running(pod)
            await asyncio.sleep(LOOK_S)

    def _note_running(self, pod: Pod) -> None:
        pod.running_at = pod.directory.written_at("running" if pod.record.has_inits else "pid")
        if pod.running_at is not None:
            self._feeds.tell([PodRunning(pod=pod.name, at=pod.running_at, address=ADDRESS)])

    # ---- end

    def _stop(self, pod: Pod, grace_s: float) -> None:
        """SIGTERM once; SIGKILL at the earliest time that was asked for."""
        loop = asyncio.get_running_loop()
        if pod.kill_at is None:
            pod.directory.note("signal", str(int(signal.SIGTERM)))
            self._signal(pod, signal.SIGTERM)
        kill_at = loop.time() + grace_s
        if pod.kill_at is None or kill_at < pod.kill_at:
            pod.kill_at = kill_at
            if pod.killer is not None:
                pod.killer.cancel()
            pod.killer = loop.call_at(kill_at, self._kill, pod)

    def _kill(self, pod: Pod) -> None:
        pod.directory.note("signal", str(int(signal.SIGKILL)))
        self._signal(pod, signal.SIGKILL)

    def _signal(self, pod: Pod, number: int) -> None:
        if pod.pid is not None and pod.end is None:
            signal_group(pod.pid, number)

    def _on_process_end(self, pod: Pod, status: int | None) -> None:
        """The script is gone. If it left no record, what it started is killed and waited for."""
        end = pod.directory.end(pod.record)
        if end is not None:
            self._note_end(pod, end)
            return
        self._signal(pod, signal.SIGKILL)
        pod.pid = None
        self._await_release(pod, status, asyncio.get_running_loop().time() + RELEASE_S_MAX)

    def _await_release(self, pod: Pod, status: int | None, until: float) -> None:
        loop = asyncio.get_running_loop()
        if pod.directory.is_released() or loop.time() > until:
            self._note_end(pod, pod.directory.end_without_record(status))
        else:
            loop.call_later(LOOK_S, self._await_release, pod, status, until)

    def _note_end(self, pod: Pod, end: AttemptEnd) -> None:
        if pod.killer is not None:
            pod.killer.cancel()
        if pod.running_at is None:
            self._note_running(pod)
        at = pod.directory.written_at("exit") or now_ms()
        pod.end = PodEnded(pod=pod.name, at=at, end=end)
        pod.has_ended.set()
        self._feeds.tell([pod.end])

    def _put_away(self, pod: Pod) -> None:
        self._outputs.keep(pod.name, pod.directory.path / "log")
        pod.directory.remove()

    # ---- find again

    def _find_pods(self) -> list[Pod]:
        """Every pod that began."""
        self._outputs.open()
        found: list[Pod] = []
        for path in sorted(self._directory.iterdir()):
            directory = PodDirectory(path)
            if path.name.startswith((NEW, OLD)):
                shutil.rmtree(path, ignore_errors=True)
            elif not path.is_dir():
                continue
            elif not (path / "log").exists():
                directory.remove()  # Its output was put away already.
            elif directory.read("pid") is None and directory.is_released():
                directory.remove()
            else:
                found.append(Pod(directory, directory.record(), directory.pid()))
        return found

    async def _adopt(self, pod: Pod) -> None:
        """Take up a pod where an earlier service left it."""
        if not pod.record.has_inits:
            pod.running_at = pod.directory.written_at("pid")
        if pod.directory.is_released():
            self._pods[pod.name], pod.pid = pod, None
            self._on_process_end(pod, None)
            return
        until = time.monotonic() + RELEASE_S_MAX
        while pod.pid is None and time.monotonic() < until:
            # It was started in the very moment in which the service was killed.
            await asyncio.sleep(LOOK_S)
            pod.pid = pod.directory.pid()
        whose = is_script(pod.pid, pod.directory) if pod.pid is not None else False
        if whose:
            self._enter(pod)
            return
        if whose is False:
            pod.pid = None
        self._pods[pod.name] = pod
        self._on_process_end(pod, None)

    # ---- telling

    def _full_look(self) -> list[Fact]:
        pods: dict[str, set[PodName]] = {name: set() for name in sorted(self._environments)}
        for pod in self._pods.values():
            pods.setdefault(pod.record.compute_environment, set()).add(pod.name)
        now = now_ms()
        return [
            PodsListed(compute_environment=name, pods=frozenset(found), at=now)
            for name, found in pods.items()
        ]

    async def _on_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


def _is_name(pod: str) -> bool:
    """Whether it is safe as a file's name."""
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}", pod) is not None


def _lock_file(directory: Path) -> IO[str]:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return (directory / "lock").open("w")


async def _lock(directory: Path) -> IO[str]:
    """One service at a time; a dead one lets go by itself.

    Not at once: a process that it has just begun has the lock too, until the kernel has closed what is not for it.
    """
    lock = _lock_file(directory)
    until = time.monotonic() + LOCK_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                lock.close()
                raise ClusterDown(
                    f"Another service runs its pods in {directory}; stop it or choose another home."
                ) from None
        else:
            return lock
        await asyncio.sleep(0.02)
