"""One Kubernetes cluster that pods run in: its watches and books, and what effects ask of it.

Over its life a pod costs two writes: it is created on its node, and deleted when its end is remembered.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from airflow_eksbatch.cluster.kube.conditions import (
    NO_RIGHT,
    NO_ROOM,
    closed_for_all,
    is_against_rules,
    is_not_yet,
)
from airflow_eksbatch.cluster.kube.connection import BRIEF, ApiError, Connection
from airflow_eksbatch.cluster.kube.list_watch import ListWatch, Receiver
from airflow_eksbatch.cluster.kube.live_logs import LiveLogs
from airflow_eksbatch.cluster.kube.manifests import pod_from
from airflow_eksbatch.cluster.kube.node_book import NodeBook, labelled_as
from airflow_eksbatch.cluster.kube.objects import DaemonSet, KubeNode, Pod
from airflow_eksbatch.cluster.kube.pod_book import Hosts, PodBook, Seen
from airflow_eksbatch.cluster.outputs import Outputs
from airflow_eksbatch.cluster.port import BadPod, ClusterDown
from airflow_eksbatch.core.engine.effects import CreatePod, DeletePod
from airflow_eksbatch.core.engine.facts import Fact, PodEnded, PodRefused
from airflow_eksbatch.core.model import labels
from airflow_eksbatch.core.model.compute_environment import ComputeEnvironment
from airflow_eksbatch.core.model.job import PodName
from airflow_eksbatch.core.model.retry import NOT_THERE
from airflow_eksbatch.floor.clock import now_ms, within

T = TypeVar("T")
# A full look heals lost news; it costs one pass over the pods in memory and no request.
FULL_LOOK_S = 30.0
# How often we look what time alone has brought: nodes that stay silent, pods that do not start.
TICK_S = 1.0
# An effect waits this long for the first list of everything; then it comes again later.
SYNC_S_MAX = 2.0
# Nobody reads the warnings for unknown fields, and to find them the API server would read each pod twice.
UNWARNED = "?fieldValidation=Ignore"
OURS = f"{labels.MANAGED_BY}={labels.OURS}"
OTHERS = f"{labels.MANAGED_BY}!={labels.OURS}"
ON_NODES = "spec.nodeName!=,status.phase!=Succeeded,status.phase!=Failed"
# An API server that has just begun does not know our rights yet.
RIGHTS_S_MAX = 30.0


class Site:
    """Facts go to `tell`, what goes wrong meanwhile to `tell_trouble`."""

    def __init__(
        self,
        connection: Connection,
        directory: Path,
        outputs: Outputs,
        *,
        tell: Callable[[list[Fact]], None],
        tell_trouble: Callable[[str, int], None],
    ) -> None:
        self.connection = connection
        self._outputs = outputs
        self._tell = tell
        self._tell_trouble = tell_trouble
        self._environments: dict[str, ComputeEnvironment] = {}
        self._nodes = NodeBook(lambda node: self._pods.are_on(node))
        hosts = Hosts(self._nodes.host_of, self._nodes.is_there, lambda: connection.ahead_ms)
        self._pods = PodBook(hosts)
        self.logs = LiveLogs(
            connection, directory, outputs, look=self._look, is_there=self._nodes.is_there
        )
        self._created: dict[PodName, str] = {}
        """Namespaces of pods that the watch has not shown yet."""
        self._without_rights: dict[str, float] = {}
        """Since when (monotonic seconds) namespaces are told to be none of ours."""
        self._strangers: set[str] = set()
        """Uids of others' pods that carry our labels, as copies do."""
        self._left_nodes: set[str] = set()
        self._unlisted = {"nodes", "daemonsets", "pods beside", "pods"}
        self._synced = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    # ---- its life

    def open(self) -> None:
        """Begin to watch; pods come last, because nodes say what became of them."""
        nodes = Receiver(self._nodes_listed, self._nodes_changed)
        self._watch(
            "nodes", "/api/v1/nodes", KubeNode, nodes, labelSelector=labels.ENVIRONMENT_UUID
        )
        daemons = Receiver(self._daemons_listed, self._daemons_changed)
        self._watch("daemonsets", "/apis/apps/v1/daemonsets", DaemonSet, daemons)
        beside = Receiver(self._beside_listed, self._beside_changed)
        selectors = {"labelSelector": OTHERS, "fieldSelector": ON_NODES}
        self._watch("pods beside", "/api/v1/pods", Pod, beside, **selectors)
        self._begin(self._keep("ticks", self._tick))

    def _watch(
        self, name: str, path: str, kind: type[T], receiver: Receiver[T], **query: str
    ) -> None:
        def listed(found: list[T]) -> None:
            receiver.listed(found)
            self._note_listed(name)

        watch = ListWatch(
            self.connection,
            path,
            kind,
            Receiver(listed, receiver.changed),
            query=query,
            tell_trouble=self._tell_trouble,
        )
        self._begin(self._keep(name, watch.run))

    def _note_listed(self, name: str) -> None:
        if name not in self._unlisted:
            return
        self._unlisted.discard(name)
        if self._unlisted == {"pods"}:
            self._nodes.is_complete = True
            self._tell_nodes()
            pods = Receiver(self._pods_listed, self._pods_changed)
            self._watch("pods", "/api/v1/pods", Pod, pods, labelSelector=OURS)
        elif not self._unlisted:
            self._begin(self._keep("released nodes", self._complete))

    async def _complete(self) -> None:
        """Everything has been listed; what no list shows is asked for before anything is told to be missing."""
        while not self._synced.is_set():
            try:
                await self._find_released()
            except ClusterDown as error:
                self._tell_trouble(str(error), 1)
                await asyncio.sleep(TICK_S)
            else:
                self._synced.set()
                self._tell(self._full_look())

    async def _find_released(self) -> None:
        """Nodes that lost their label before we began, and on which pods of ours go on: these say whose they were."""
        former = {pod.spec.node_name: pod.metadata.labels for pod in self._pods.live()}
        for name, whose in sorted(former.items()):
            if self._nodes.has(name):
                continue
            node = await self._node_as_it_is(name)
            if node is not None and labels.ENVIRONMENT_UUID not in node.metadata.labels:
                self._nodes.put_node(labelled_as(node, whose))
                self._nodes.release_node(name, node)

    async def _node_as_it_is(self, name: str) -> KubeNode | None:
        """None: there is none. Raises ClusterDown."""
        try:
            answer = await self.connection.get(f"/api/v1/nodes/{name}")
        except ApiError as error:
            if error.status == 404:
                return None
            raise ClusterDown(f"Node {name} cannot be read: {error}") from error
        return msgspec.json.decode(answer, type=KubeNode)

    async def add(self, environment: ComputeEnvironment) -> None:
        """Its nodes and pods are told from now on; given again, it takes the place of its former self."""
        if self._environments.get(environment.uuid) == environment:
            return
        if self._synced.is_set():
            await self._find_released()
        others = {u: e for u, e in self._environments.items() if e.name != environment.name}
        self._environments = {**others, environment.uuid: environment}
        self._nodes.put_environments(self._environments)
        found = self._pods.put_environments(self._environments, time.monotonic(), now_ms())
        self._tell_nodes()
        self._tell([*found, *self._full_look()])

    def again(self) -> list[Fact]:
        """Everything that is so."""
        at = now_ms()
        return [*self._nodes.again(at), *self._pods.again(at), *self._full_look()]

    def _full_look(self) -> list[Fact]:
        """Nothing is said to be missing before everything was listed once."""
        if not self._synced.is_set():
            return []
        at = now_ms()
        return [*self._nodes.full_look(at), *self._pods.full_look(at)]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.logs.close()
        await self.connection.close()

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _keep(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Whatever comes: without its watches the service is blind."""
        while True:
            try:
                return await work()
            except Exception as error:  # A surprise in one watch; the next one looks at everything
                self._tell_trouble(f"{self.connection.name}: {name}: {error!r}", 1)
                await asyncio.sleep(TICK_S)

    # ---- what effects ask

    def knows(self, pod: PodName) -> bool:
        return self._pods.get(pod) is not None or pod in self._created or self.logs.has(pod)

    async def create(self, effect: CreatePod) -> Fact | None:
        await self._until_synced()
        pod, at = effect.pod, now_ms()
        ended_before = PodRefused(pod=pod, at=at, reason=f"Pod {pod} has ended before")
        seen = self._pods.get(pod)
        if seen is not None:
            return ended_before if seen.is_leaving else None
        if not self._nodes.takes_pods(effect.node_id, effect.node_name):
            return PodRefused(pod=pod, at=at, reason=f"Node {effect.node_id} is not there")
        if self._outputs.has(pod):
            return ended_before
        try:
            wanted = pod_from(effect)
        except BadPod as error:
            return PodRefused(pod=pod, at=at, reason=str(error), permanent=True)
        namespace = wanted["metadata"]["namespace"]
        if self._pods.get(pod) is None:
            self._created[pod] = namespace
        path = f"/api/v1/namespaces/{namespace}/pods{UNWARNED}"
        try:
            body = msgspec.json.encode(wanted)
            await self.connection.write("POST", path, body, accept=BRIEF)
        except ApiError as error:
            if error.status == 409 and error.reason == "AlreadyExists":
                return await self._compare(effect, namespace)
            if not error.is_passing:
                self._created.pop(pod, None)
            return self._refused(effect, namespace, error)
        self._without_rights.pop(namespace, None)
        return None

    def _refused(self, effect: CreatePod, namespace: str, error: ApiError) -> Fact:
        """What is the pod's own fault is final; what the cluster lacks now may come: then ClusterDown is raised."""
        if error.is_passing or is_not_yet(error.message):
            raise ClusterDown(f"Pod {effect.pod} cannot be created: {error}")
        # Whoever asks for a namespace of its own must find room and rights there.
        is_own = namespace != effect.namespace
        closed = closed_for_all(error.message, namespace)
        if not is_own and NO_RIGHT in closed:
            now = time.monotonic()
            if now - self._without_rights.setdefault(namespace, now) < RIGHTS_S_MAX:
                raise ClusterDown(f"Pod {effect.pod} cannot be created: {error}")
        if not is_own and (closed or NO_ROOM in error.message):
            # Of all pods that wait, so not by the name of this one.
            reason = closed or error.message[error.message.index(NO_ROOM) :]
            return PodRefused(
                pod=effect.pod, at=now_ms(), reason=reason, quota=True, unusable=bool(closed)
            )
        if closed or is_against_rules(error.status, error.message):
            reason = error.message or error.reason
            return PodRefused(pod=effect.pod, at=now_ms(), reason=reason, permanent=True)
        raise ClusterDown(f"Pod {effect.pod} cannot be created: {error}")

    async def _compare(self, effect: CreatePod, namespace: str) -> Fact | None:
        """There is a pod of that name: ours from an earlier try, or somebody else's."""
        try:
            answer = await self.connection.get(f"/api/v1/namespaces/{namespace}/pods/{effect.pod}")
        except ApiError as error:
            raise ClusterDown(f"Pod {effect.pod} cannot be read: {error}") from error
        there = msgspec.json.decode(answer, type=Pod)
        if effect.labels.items() <= there.metadata.labels.items():
            return None
        self._created.pop(effect.pod, None)
        reason = f"A pod named {effect.pod} is there already, and it is not ours"
        return PodRefused(pod=effect.pod, at=now_ms(), reason=reason)

    async def delete(self, effect: DeletePod) -> Fact | None:
        await self._until_synced()
        pod, seen = effect.pod, self._pods.get(effect.pod)
        namespace = seen.namespace if seen else self._created.get(pod)
        if namespace is None:
            return PodEnded(pod=pod, at=now_ms(), end=NOT_THERE)
        if seen is None:
            if not await self._delete(pod, namespace, effect.grace_s, None):
                return None
            self._created.pop(pod, None)
            return PodEnded(pod=pod, at=now_ms(), end=NOT_THERE)
        if seen.end is not None:
            return seen.end
        # Nobody on a machine that is gone could be told to stop.
        there = self._nodes.is_there(seen.node)
        grace_s = max(1, effect.grace_s) if there else 0
        latest = now_ms() - self.connection.ahead_ms + grace_s * 1000
        if not there or seen.due is None or seen.due > latest:
            if there:
                await self.logs.hold(seen.pod)
            seen.asked = True
            await self._delete(pod, namespace, grace_s, seen.pod.metadata.uid)
        return None

    async def forget(self, pod: PodName) -> None:
        """Put its output away and drop it; one that still lives is ended first, which brings it here again."""
        seen = self._pods.get(pod)
        if seen is None:
            if self.logs.has(pod):
                await self.logs.keep(pod)
            return
        if seen.is_leaving:
            return
        if seen.end is None:
            await self.delete(DeletePod(pod=pod, compute_environment="", grace_s=1))
            return
        seen.is_leaving = True
        try:
            await self._keep_and_delete(seen)
        except BaseException:
            seen.is_leaving = False
            raise

    async def _keep_and_delete(self, seen: Seen) -> None:
        if isinstance(seen.end, PodEnded):
            try:
                await self.logs.keep(seen.name)
            except OSError as error:
                raise ClusterDown(f"The output of {seen.name} cannot be kept: {error}") from error
        await self._delete(seen.name, seen.namespace, 0, seen.pod.metadata.uid)

    async def _delete(self, pod: PodName, namespace: str, grace_s: int, uid: str | None) -> bool:
        """Ask for its end; True when it is not there (any more)."""
        options: dict[str, object] = {"gracePeriodSeconds": grace_s}
        if uid is not None:
            options["preconditions"] = {"uid": uid}
        path = f"/api/v1/namespaces/{namespace}/pods/{pod}"
        try:
            body = msgspec.json.encode(options)
            await self.connection.write("DELETE", path, body, accept=BRIEF)
        except ApiError as error:
            if error.status in (404, 409):
                return True
            raise ClusterDown(f"Pod {pod} cannot be deleted: {error}") from error
        return False

    async def _until_synced(self) -> None:
        if not await within(SYNC_S_MAX, self._synced):
            raise ClusterDown(f"{self.connection.name} has not shown its pods yet")

    # ---- what watches say

    def _pods_listed(self, pods: list[Pod]) -> None:
        ours = [pod for pod in pods if pod.is_of_jobs]
        for pod in ours:
            self._created.pop(PodName(pod.metadata.name), None)
        for uid in self._strangers - {pod.metadata.uid for pod in pods}:
            self._nodes.drop_pod(uid)
        self._strangers.clear()
        for pod in pods:
            if not pod.is_of_jobs:
                self._stranger_changed(True, pod)
        self._tell(self._pods.listed(ours, time.monotonic(), now_ms()))
        self._nodes.touch(self._nodes.names())
        self._tell_nodes()

    def _pods_changed(self, changes: list[tuple[bool, Pod]]) -> None:
        facts: list[Fact] = []
        clock_s, at = time.monotonic(), now_ms()
        for is_put, pod in changes:
            name = PodName(pod.metadata.name)
            if not pod.is_of_jobs:
                self._stranger_changed(is_put, pod)
                continue
            self._created.pop(name, None)
            facts += (self._pods.put if is_put else self._pods.drop)(pod, clock_s, at)
            seen = self._pods.get(name)
            if seen is not None and seen.is_ended_by_others and not self.logs.has(name):
                # What it says until then is taken all the same.
                self._begin(self.logs.hold(pod))
        self._tell(facts)
        self._nodes.touch({pod.spec.node_name for _, pod in changes})
        self._tell_nodes()

    def _stranger_changed(self, is_put: bool, pod: Pod) -> None:
        """It takes room, and tells nothing of a job."""
        if is_put:
            self._strangers.add(pod.metadata.uid)
            self._nodes.put_pod(pod)
        else:
            self._strangers.discard(pod.metadata.uid)
            self._nodes.drop_pod(pod.metadata.uid)

    def _nodes_listed(self, nodes: list[KubeNode]) -> None:
        there = {node.metadata.name for node in nodes}
        self._left_nodes |= self._nodes.names() - there
        self._nodes_changed([(True, node) for node in nodes])

    def _nodes_changed(self, changes: list[tuple[bool, KubeNode]]) -> None:
        for is_put, node in changes:
            if is_put:
                self._left_nodes.discard(node.metadata.name)
                self._nodes.put_node(node)
            else:
                self._left_nodes.add(node.metadata.name)
        self._tell_nodes()
        if self._left_nodes:
            self._begin(self._look_after_nodes())

    def _daemons_listed(self, daemon_sets: list[DaemonSet]) -> None:
        there = {daemon_set.metadata.uid for daemon_set in daemon_sets}
        for uid in self._nodes.daemon_sets() - there:
            self._nodes.drop_daemon_set(uid)
        self._daemons_changed([(True, daemon_set) for daemon_set in daemon_sets])

    def _daemons_changed(self, changes: list[tuple[bool, DaemonSet]]) -> None:
        for is_put, daemon_set in changes:
            if is_put:
                self._nodes.put_daemon_set(daemon_set)
            else:
                self._nodes.drop_daemon_set(daemon_set.metadata.uid)
        self._tell_nodes()

    def _beside_listed(self, pods: list[Pod]) -> None:
        there = {pod.metadata.uid for pod in pods}
        for uid in self._nodes.pods_beside() - there - self._strangers:
            self._nodes.drop_pod(uid)
        self._beside_changed([(True, pod) for pod in pods])

    def _beside_changed(self, changes: list[tuple[bool, Pod]]) -> None:
        for is_put, pod in changes:
            if is_put:
                self._nodes.put_pod(pod)
            else:
                self._nodes.drop_pod(pod.metadata.uid)
        self._tell_nodes()

    def _tell_nodes(self) -> None:
        news = self._nodes.news(time.monotonic(), now_ms())
        if news:
            self._tell(news)

    def _look(self, pod: PodName) -> Pod | None:
        seen = self._pods.get(pod)
        return None if seen is None else seen.pod

    # ---- what time brings

    async def _tick(self) -> None:
        looked_at = time.monotonic()
        while True:
            await asyncio.sleep(TICK_S)
            at = now_ms()
            self._tell(self._pods.stuck(time.monotonic(), at))
            self._nodes.tick(await self._unsure())
            self._tell_nodes()
            await self._look_after_nodes()
            await self.logs.tend()
            if time.monotonic() - looked_at >= FULL_LOOK_S:
                looked_at = time.monotonic()
                self._left_nodes |= self._nodes.released()
                self._tell([*self._pods.ends(), *self._full_look()])

    async def _look_after_nodes(self) -> None:
        """A node that left our list is gone, or somebody took its label away: the API server knows."""
        for name in sorted(self._left_nodes):
            try:
                node = await self._node_as_it_is(name)
            except ClusterDown:
                return
            if name in self._left_nodes:  # Else it is back
                self._left_nodes.discard(name)
                self._take(name, node)
        self._tell_nodes()

    def _take(self, name: str, node: KubeNode | None) -> None:
        """A node as the API server says that it is, beside what the watch tells."""
        if node is None:
            self._nodes.drop_node(name)
        elif labels.ENVIRONMENT_UUID in node.metadata.labels:
            self._nodes.put_node(node)
        else:
            self._nodes.release_node(name, node)

    async def _unsure(self) -> list[str]:
        """Nodes to be given up of which the API server does not say now how they are; of the others it does."""
        names = self._nodes.given_up(time.monotonic())
        for number, name in enumerate(names):
            try:
                node = await self._node_as_it_is(name)
            except ClusterDown:
                return names[number:]
            self._take(name, node)
        return []
