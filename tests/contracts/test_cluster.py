"""What every cluster keeps to, and how processes as pods survive whatever ends the service."""

from __future__ import annotations

import asyncio
import functools
import json
import multiprocessing
import os
import re
import signal
import sys
import threading
import types
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

from airflow_eksbatch.cluster import local, process
from airflow_eksbatch.cluster.containers import expand, read_containers
from airflow_eksbatch.cluster.local import LocalCluster, inherited_environ
from airflow_eksbatch.cluster.port import BadPod, Cluster, ClusterDown
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
from airflow_eksbatch.core.model import labels
from airflow_eksbatch.core.model.compute_environment import ComputeEnvironment
from airflow_eksbatch.core.model.job import PodName
from airflow_eksbatch.core.model.node import NodeId
from airflow_eksbatch.core.model.resources import Resources
from airflow_eksbatch.core.model.retry import NOT_THERE, AttemptEnd, Cause

T = TypeVar("T", bound=Fact)
WAIT_S = 60.0
NODE = NodeId("node-000001-ce")
INSTANCE = "i-0123456789abcdef0"
NODE_NAME = "ip-10-0-0-1"
ROOM = Resources(cpu_m=64_000, memory_mib=64_000, pods=1_000)
# Where images mean something it is an image that is there.
BUSYBOX = "eksbatch.test/busybox:1"
# The first process of a PID namespace ignores signals that it has no trap for; here it is the pod's own.
NOT_FIRST = {"shareProcessNamespace": True}


def asynchronous(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test on a loop of its own, and not for ever."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(asyncio.wait_for(test(*args, **kwargs), 240))

    return run


class Watch:
    """Collects what a cluster tells, and waits for facts instead of for time."""

    def __init__(self, cluster: Cluster) -> None:
        self.facts: list[Fact] = []
        self._news = asyncio.Condition()
        self._task = asyncio.create_task(self._collect(cluster))

    async def _collect(self, cluster: Cluster) -> None:
        async for facts in cluster.watch():
            async with self._news:
                self.facts += facts
                self._news.notify_all()

    async def until(self, kind: type[T], pod: str | None = None, *, within_s: float = WAIT_S) -> T:
        """The first fact of that kind (about that pod)."""

        def is_meant(fact: T) -> bool:
            return pod in (None, getattr(fact, "pod", None))

        return await self._first(kind, is_meant, within_s)

    async def address_of(self, pod: str) -> str:
        """Where a pod runs, once that is told."""
        running = await self._first(PodRunning, lambda f: f.pod == pod and f.address != "", WAIT_S)
        return running.address

    async def _first(self, kind: type[T], is_meant: Callable[[T], bool], within_s: float) -> T:
        def found() -> T | None:
            for fact in self.facts:
                if isinstance(fact, kind) and is_meant(fact):
                    return fact
            return None

        async with asyncio.timeout(within_s), self._news:
            await self._news.wait_for(found)
        fact = found()
        assert fact is not None
        return fact

    def kinds(self, pod: str) -> list[str]:
        """What was told of a pod, in order."""
        return [type(f).__name__ for f in self.facts if getattr(f, "pod", None) == pod]

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


class LocalBed:
    """Where a cluster under test stands; Kubernetes joins with a bed of its own."""

    room = ROOM
    checked: tuple[str, ...] = ()
    """Compute environments that it knows from the beginning, without a node."""
    lost_program = (127, "StartError: 'no-such-program'", f"{BUSYBOX} is not used")
    """Exit code and beginning of the reason of a program that is not there, and what the output says."""
    stopped_in_init = 143
    heeds_a_shorter_grace = True
    """When a pod is being ended with a longer one already."""
    serve = "exec python -u -m http.server 0 --bind 127.0.0.1"
    """Says `port N`, and gives what is in the directory to whoever asks there."""
    fetch = 'python -c "import sys, urllib.request as u; print(u.urlopen(sys.argv[1]).read())"'
    """Prints the page of an address."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def look_often(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(local, "FULL_LOOK_S", 0.01)

    @asynccontextmanager
    async def open(self, *, with_node: bool = True) -> AsyncIterator[tuple[LocalCluster, Watch]]:
        """A cluster with one node, watched. It is left as a stopped service leaves it."""
        cluster = LocalCluster(self.directory)
        await cluster.start()
        if with_node:
            self.add_node(cluster)
        watch = Watch(cluster)
        try:
            yield cluster, watch
        finally:
            await watch.close()
            await cluster.stop()

    def add_node(self, cluster: LocalCluster, node_id: NodeId = NODE) -> None:
        cluster.add_node(
            node_id,
            instance_id=INSTANCE,
            node_name=NODE_NAME,
            compute_environment="ce",
            allocatable=ROOM,
        )

    async def clean(self) -> None:
        """Nothing of a test runs on."""
        async with self.open() as (cluster, _):
            await cluster.remove_node(NODE, INSTANCE)


@pytest.fixture(params=["local"])
def bed(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    bed = LocalBed(tmp_path / "a home")
    yield bed
    asyncio.run(bed.clean())


def container(script: str, **more: Any) -> dict[str, Any]:
    return {"image": BUSYBOX, "command": ["sh", "-c", script], **more}


def a_pod(name: str, *containers: dict[str, Any], **more: Any) -> CreatePod:
    return CreatePod(
        pod=PodName(name),
        compute_environment="ce",
        node_id=more.pop("node_id", NODE),
        node_name=NODE_NAME,
        namespace="batch-jobs",
        pod_properties=json.dumps({"containers": containers, **more}).encode(),
        environment={"AWS_BATCH_JOB_ID": name},
        labels={labels.ENVIRONMENT_UUID: "uuid-ce"},
        grace_s=30,
    )


def delete(name: str, grace_s: int = 30) -> DeletePod:
    return DeletePod(pod=PodName(name), compute_environment="ce", grace_s=grace_s)


def forget(name: str) -> ForgetPod:
    return ForgetPod(pod=PodName(name), compute_environment="ce")


async def output_of(cluster: Cluster, name: str, offset: int = 0) -> str:
    part = await cluster.read_log(PodName(name), offset, 1_000_000)
    assert part is not None
    return part[0].decode()


async def says(cluster: Cluster, name: str, text: str) -> None:
    """Wait until the pod's output holds this."""
    async with asyncio.timeout(WAIT_S):
        while text not in await output_of(cluster, name):
            await asyncio.sleep(0.01)


# ---- every cluster


@asynchronous
async def test_a_pod_is_seen_runs_and_ends_with_its_exit_code(bed: LocalBed) -> None:
    async with bed.open() as (cluster, watch):
        assert await cluster.create_pod(a_pod("p", container("echo hello; exit 3"))) is None
        ended = await watch.until(PodEnded, "p")
        assert watch.kinds("p") == ["PodSeen", "PodRunning", "PodEnded"]
        assert ended.end.cause is Cause.EXITED
        assert (ended.end.exit_code, ended.end.reason) == (3, "Error")
        assert await output_of(cluster, "p") == "hello\n"


@asynchronous
async def test_a_running_pod_is_told_with_an_address_at_which_others_reach_it(
    bed: LocalBed,
) -> None:
    """1. one serves a page and is told with its address; 2. another, given that address, gets the page."""
    async with bed.open() as (cluster, watch):
        serve = f"mkdir www; cd www; echo found me > page; {bed.serve}"
        await cluster.create_pod(a_pod("p", container(serve)))
        address = await watch.address_of("p")
        await says(cluster, "p", "port ")
        port = re.findall(r"port (\d+)", await output_of(cluster, "p"))[0]
        fetch = f"until {bed.fetch} http://{address}:{port}/page; do sleep 0.05; done"
        await cluster.create_pod(a_pod("q", container(fetch)))
        assert (await watch.until(PodEnded, "q")).end.succeeded
        assert "found me" in await output_of(cluster, "q")
        await cluster.delete_pod(delete("p", grace_s=1))
        await watch.until(PodEnded, "p")


@asynchronous
async def test_a_pod_that_ends_with_0_has_succeeded(bed: LocalBed) -> None:
    async with bed.open() as (cluster, watch):
        await cluster.create_pod(a_pod("p", container("exit 0")))
        assert (await watch.until(PodEnded, "p")).end.succeeded


@asynchronous
async def test_creating_a_pod_twice_runs_it_once(bed: LocalBed) -> None:
    async with bed.open() as (cluster, watch):
        effect = a_pod("p", container("echo ran"))
        await asyncio.gather(*(cluster.create_pod(effect) for _ in range(5)))
        await watch.until(PodEnded, "p")
        assert await cluster.create_pod(effect) is None
        assert await output_of(cluster, "p") == "ran\n"


@asynchronous
async def test_a_forgotten_pod_is_not_run_again_and_its_output_stays(bed: LocalBed) -> None:
    async with bed.open() as (cluster, watch):
        effect = a_pod("p", container("echo ran"))
        await cluster.create_pod(effect)
        await watch.until(PodEnded, "p")
        await asyncio.gather(cluster.forget_pod(forget("p")), cluster.forget_pod(forget("p")))
        await cluster.forget_pod(forget("p"))
        assert isinstance(await cluster.create_pod(effect), PodRefused)
        assert await output_of(cluster, "p") == "ran\n"


@asynchronous
async def test_a_pod_for_a_node_that_is_not_there_is_refused(bed: LocalBed) -> None:
    async with bed.open() as (cluster, _):
        refused = await cluster.create_pod(a_pod("p", container("true"), node_id="gone"))
        assert isinstance(refused, PodRefused)
        assert not refused.permanent
        assert "gone" in refused.reason


@asynchronous
async def test_a_pod_that_makes_no_sense_is_refused_for_good(bed: LocalBed) -> None:
    async with bed.open() as (cluster, _):
        refused = await cluster.create_pod(a_pod("p"))
        assert isinstance(refused, PodRefused)
        assert refused.permanent
        assert "no containers" in refused.reason


@asynchronous
async def test_a_deleted_pod_may_end_in_its_own_way(bed: LocalBed) -> None:
    script = "trap 'echo saved; exit 7' TERM; echo up; while :; do sleep 0.01; done"
    async with bed.open() as (cluster, watch):
        await cluster.create_pod(a_pod("p", container(script)))
        await says(cluster, "p", "up")
        assert await cluster.delete_pod(delete("p")) is None
        assert (await watch.until(PodEnded, "p")).end.exit_code == 7
        assert "saved" in await output_of(cluster, "p")


@asynchronous
async def test_a_deleted_pod_that_ignores_sigterm_is_killed_after_its_grace(bed: LocalBed) -> None:
    """The shortest grace that was asked for: a longer one that comes later gives it no more time."""
    script = "trap '' TERM; echo up; while :; do sleep 0.01; done"
    async with bed.open() as (cluster, watch):
        await cluster.create_pod(a_pod("p", container(script)))
        await says(cluster, "p", "up")
        for grace_s in (3600, 1, 3600) if bed.heeds_a_shorter_grace else (1, 3600):
            await cluster.delete_pod(delete("p", grace_s=grace_s))
        end = (await watch.until(PodEnded, "p")).end
        assert (end.cause, end.exit_code) == (Cause.EXITED, 137)


@asynchronous
async def test_deleting_a_pod_that_is_not_there_says_that_it_ended(bed: LocalBed) -> None:
    async with bed.open() as (cluster, watch):
        never = await cluster.delete_pod(delete("nobody"))
        assert isinstance(never, PodEnded)
        assert never.end == NOT_THERE
        await cluster.create_pod(a_pod("p", container("exit 4")))
        await watch.until(PodEnded, "p")
        ended = await cluster.delete_pod(delete("p"))
        assert isinstance(ended, PodEnded)
        assert ended.end.exit_code == 4


@asynchronous
async def test_a_process_that_a_signal_ended_has_128_and_the_signal(bed: LocalBed) -> None:
    async with bed.open() as (cluster, watch):
        for name in ("segv", "kill", "term"):
            script = container(f"kill -{name.upper()} $$$$")
            await cluster.create_pod(a_pod(name, script, **NOT_FIRST))
        for name, code in (("segv", 139), ("kill", 137), ("term", 143)):
            end = (await watch.until(PodEnded, name)).end
            assert (end.cause, end.exit_code) == (Cause.EXITED, code)


@asynchronous
async def test_a_program_that_does_not_exist_is_a_start_error(bed: LocalBed) -> None:
    async with bed.open() as (cluster, watch):
        lost = {"image": BUSYBOX, "command": ["no-such-program", "x"]}
        await cluster.create_pod(a_pod("p", lost))
        end = (await watch.until(PodEnded, "p")).end
        code, reason, words = bed.lost_program
        assert end.exit_code == code
        assert (end.reason or "").startswith(reason)
        assert "no-such-program" in (end.reason or "")
        assert words in await output_of(cluster, "p")


@asynchronous
async def test_a_script_that_ends_with_127_is_no_start_error(bed: LocalBed) -> None:
    async with bed.open() as (cluster, watch):
        await cluster.create_pod(a_pod("p", container("exit 127")))
        end = (await watch.until(PodEnded, "p")).end
        assert (end.exit_code, end.reason) == (127, "Error")


@asynchronous
async def test_init_containers_run_first_and_in_order(bed: LocalBed) -> None:
    async with bed.open() as (cluster, watch):
        inits = [container("echo one", name="one"), container("echo two", name="two")]
        await cluster.create_pod(a_pod("p", container("echo three"), initContainers=inits))
        assert (await watch.until(PodEnded, "p")).end.succeeded
        assert watch.kinds("p") == ["PodSeen", "PodRunning", "PodEnded"]
        assert await output_of(cluster, "p") == "one\ntwo\nthree\n"


@asynchronous
async def test_an_init_container_that_fails_keeps_the_others_from_running(bed: LocalBed) -> None:
    async with bed.open() as (cluster, watch):
        inits = [container("exit 5", name="one"), container("echo never", name="two")]
        await cluster.create_pod(a_pod("p", container("echo never"), initContainers=inits))
        end = (await watch.until(PodEnded, "p")).end
        assert (end.exit_code, end.container) == (5, "one")
        assert watch.kinds("p") == ["PodSeen", "PodEnded"]
        assert await output_of(cluster, "p") == ""


@asynchronous
async def test_a_pod_is_running_as_soon_as_its_init_containers_are_through(bed: LocalBed) -> None:
    async with bed.open() as (cluster, watch):
        inits = [container("true", name="first")]
        sleeps = container("exec sleep 600")
        await cluster.create_pod(a_pod("p", sleeps, initContainers=inits, **NOT_FIRST))
        await watch.until(PodRunning, "p")
        await cluster.delete_pod(delete("p"))
        assert (await watch.until(PodEnded, "p")).end.exit_code == 143


@asynchronous
async def test_a_pod_that_is_stopped_between_init_containers_has_not_succeeded(
    bed: LocalBed,
) -> None:
    async with bed.open() as (cluster, watch):
        script = "trap 'exit 0' TERM; echo up; while :; do sleep 0.01; done"
        polite = container(script, name="polite")
        await cluster.create_pod(a_pod("p", container("echo never"), initContainers=[polite]))
        await says(cluster, "p", "up")
        await cluster.delete_pod(delete("p"))
        end = (await watch.until(PodEnded, "p")).end
        assert (end.exit_code, end.succeeded) == (bed.stopped_in_init, False)
        assert "never" not in await output_of(cluster, "p")


@asynchronous
async def test_of_several_containers_the_first_that_failed_in_their_order_counts(
    bed: LocalBed,
) -> None:
    async with bed.open() as (cluster, watch):
        late = container("sleep 0.2; echo late; exit 8", name="a")
        early = container("exit 9", name="b")
        await cluster.create_pod(a_pod("p", container("exit 0", name="z"), late, early))
        end = (await watch.until(PodEnded, "p")).end
        assert (end.exit_code, end.container) == (8, "a")
        assert "late" in await output_of(cluster, "p")


@asynchronous
async def test_commands_and_variables_arrive_exactly_as_they_were_written(bed: LocalBed) -> None:
    nasty = 'it\'s "quoted" $HOME `id` \\ * \n two'
    env = [
        {"name": "PLAIN", "value": nasty},
        {"name": "odd.name", "value": nasty},
        {"name": "UID", "value": "x"},
        {"name": "REFERS", "value": "$(PLAIN)$(AWS_BATCH_JOB_ID)"},
    ]
    given = [nasty, "", "-n", "$(PLAIN)", "$$(PLAIN)", "$(NOBODY)"]
    # No shell, which would have its own ideas; each value ends with a NUL.
    printf = {"image": BUSYBOX, "command": ["printf", "%s\\0"], "args": given, "env": env}
    show_env = {"image": BUSYBOX, "command": ["env", "-0"], "env": env}
    async with bed.open() as (cluster, watch):
        await cluster.create_pod(a_pod("q", printf))
        await cluster.create_pod(a_pod("p", show_env))
        for name in ("q", "p"):
            assert (await watch.until(PodEnded, name)).end.succeeded
        args = (await output_of(cluster, "q")).split("\0")
        shown = (await output_of(cluster, "p")).split("\0")
    environ = dict(entry.split("=", 1) for entry in shown if entry)
    assert args == [nasty, "", "-n", nasty, "$(PLAIN)", "$(NOBODY)", ""]
    assert environ["PLAIN"] == environ["odd.name"] == nasty
    assert environ["UID"] == "x"
    assert environ["REFERS"] == nasty + "p"
    assert environ["AWS_BATCH_JOB_ID"] == "p"


@asynchronous
async def test_output_is_read_by_parts_live_and_afterwards(bed: LocalBed) -> None:
    script = "trap 'exit 0' TERM; echo 012345678; while :; do sleep 0.01; done 2>/dev/null"
    async with bed.open() as (cluster, watch):
        await cluster.create_pod(a_pod("p", container(script)))
        await says(cluster, "p", "8")
        for _ in ("live", "ended", "forgotten"):
            name = PodName("p")
            assert await cluster.read_log(name, 0, 4) == (b"0123", 4)
            assert await cluster.read_log(name, 4, 100) == (b"45678\n", 10)
            assert await cluster.read_log(name, 10, 100) == (b"", 10)
            assert await cluster.read_log(name, -3, 100) == (b"78\n", 10)
            assert await cluster.read_log(name, -300, 2) == (b"01", 2)
            await cluster.delete_pod(delete("p"))
            await watch.until(PodEnded, "p")
            await cluster.forget_pod(forget("p"))
        assert await cluster.read_log(PodName("nobody"), 0, 10) is None
        assert await cluster.read_log(PodName("../../secret"), 0, 10) is None


@asynchronous
async def test_pods_of_one_directory_are_one_services_also_while_it_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. one has it; 2. the next comes and waits; 3. the first lets go; 4. a third that waits in vain is told."""
    first, second, third = (LocalCluster(tmp_path) for _ in range(3))
    await first.start()
    starting = asyncio.create_task(second.start())
    for _ in range(3):
        await asyncio.sleep(0)
    assert not starting.done()
    await first.stop()
    await starting
    monkeypatch.setattr(local, "LOCK_S", 0.0)
    with pytest.raises(ClusterDown, match="Another service runs its pods"):
        await third.start()
    await second.stop()


@asynchronous
async def test_a_watch_begins_with_everything_that_is_there(bed: LocalBed) -> None:
    async with bed.open() as (cluster, watch):
        await cluster.create_pod(a_pod("done", container("exit 2")))
        await cluster.create_pod(a_pod("lives", container("exec sleep 600")))
        await watch.until(PodRunning, "lives")
        await watch.until(PodEnded, "done")
        second = Watch(cluster)
        listed = await second.until(PodsListed)
        assert listed.pods == {"done", "lives"}
        assert listed.compute_environment == "ce"
        assert (await second.until(PodEnded, "done")).end.exit_code == 2
        assert await second.until(PodRunning, "lives")
        assert second.kinds("lives") == ["PodSeen", "PodRunning"]
        assert (await second.until(NodeReady)).allocatable == bed.room
        await second.close()


@asynchronous
async def test_an_environment_without_pods_is_looked_at_too(bed: LocalBed) -> None:
    empty = ComputeEnvironment(name="empty", arn="", uuid="uuid-empty", namespace="batch-jobs")
    async with bed.open(with_node=False) as (cluster, _):
        assert await cluster.check(empty) is None
        watch = Watch(cluster)
        assert await watch.until(PodsListed)
        listed = [fact for fact in watch.facts if isinstance(fact, PodsListed)]
        pods = {fact.compute_environment: fact.pods for fact in listed}
        assert pods == dict.fromkeys([*bed.checked, "empty"], frozenset())
        await watch.close()


@asynchronous
async def test_full_looks_come_again_and_again(
    bed: LocalBed, monkeypatch: pytest.MonkeyPatch
) -> None:
    bed.look_often(monkeypatch)
    async with bed.open() as (_, watch), asyncio.timeout(WAIT_S):
        while sum(isinstance(fact, PodsListed) for fact in watch.facts) < 3:
            await watch.until(PodsListed)
            await asyncio.sleep(0)


@asynchronous
async def test_the_end_of_an_instance_ends_its_pods_at_the_platforms_cost(bed: LocalBed) -> None:
    async with bed.open() as (cluster, watch):
        other = NodeId("node-000002-ce")
        bed.add_node(cluster, other)
        await cluster.create_pod(a_pod("a", container("trap '' TERM; sleep 600")))
        await cluster.create_pod(a_pod("b", container("sleep 600")))
        await cluster.create_pod(a_pod("apart", container("sleep 600"), node_id=other))
        await cluster.create_pod(a_pod("done", container("exit 1")))
        await watch.until(PodEnded, "done")
        await cluster.remove_node(NODE, INSTANCE)
        expected = f"Host EC2 (instance {INSTANCE}) terminated."
        for name in ("a", "b"):
            end = (await watch.until(PodEnded, name)).end
            assert (end.cause, end.status_reason) == (Cause.PLATFORM, expected)
        assert (await watch.until(NodeLost)).node_id == NODE
        assert (await watch.until(PodEnded, "done")).end.cause is Cause.EXITED
        assert watch.kinds("apart") == ["PodSeen", "PodRunning"]
        assert isinstance(await cluster.create_pod(a_pod("late", container("true"))), PodRefused)
        await cluster.remove_node(other, INSTANCE)


# ---- processes as pods: whatever ends the service


def in_another_process(scenario: Callable[[], Coroutine[Any, Any, None]]) -> int | None:
    """Run it as a service would, in a process of its own; returns how that ended."""
    child = multiprocessing.get_context("fork").Process(target=lambda: asyncio.run(scenario()))
    child.start()
    child.join(WAIT_S)
    assert child.exitcode is not None, "the process hangs"
    return child.exitcode


def start_and_die(bed: LocalBed, *effects: CreatePod) -> None:
    """A service that creates pods and is killed with -9 at once."""

    async def scenario() -> None:
        async with bed.open() as (cluster, watch):
            for effect in effects:
                await cluster.create_pod(effect)
                await watch.until(PodSeen, effect.pod)
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_another_process(scenario) == -signal.SIGKILL


def test_pods_run_on_when_the_service_is_killed_and_are_found_again(bed: LocalBed) -> None:
    script = "echo $$$$; until [ -e go ]; do sleep 0.01; done; echo went; exit 6"
    start_and_die(bed, a_pod("p", container(script)), a_pod("q", container("sleep 600")))

    @asynchronous
    async def afterwards() -> None:
        async with bed.open() as (cluster, watch):
            await watch.until(PodRunning, "p")
            assert await cluster.create_pod(a_pod("p", container(script))) is None
            (bed.directory / "pods" / "p" / "work" / "go").touch()
            assert (await watch.until(PodEnded, "p")).end.exit_code == 6
            assert (await output_of(cluster, "p")).count("went") == 1
            await cluster.delete_pod(delete("q"))
            assert (await watch.until(PodEnded, "q")).end.exit_code == 143

    afterwards()


def test_an_end_that_nobody_watched_is_told_by_the_next_service(
    bed: LocalBed, tmp_path: Path
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    start_and_die(bed, a_pod("p", container(f"exec 3> '{fifo}'; exit 11")))
    with fifo.open() as reader:
        assert reader.read() == ""  # Every process that could write has ended.

    @asynchronous
    async def afterwards() -> None:
        async with bed.open() as (cluster, watch):
            assert (await watch.until(PodEnded, "p")).end.exit_code == 11
            await cluster.forget_pod(forget("p"))
        async with bed.open() as (cluster, watch):
            assert (await watch.until(PodsListed)).pods == frozenset()
            assert await output_of(cluster, "p") == ""

    afterwards()


def test_a_killed_supervisor_takes_its_processes_with_it(bed: LocalBed) -> None:
    """Whoever kills only the script must not leave a process that nobody knows."""
    start_and_die(bed, a_pod("p", container("echo up; exec sleep 600")))
    directory = process.PodDirectory(bed.directory / "pods" / "p")

    @asynchronous
    async def afterwards() -> None:
        async with bed.open() as (cluster, _):
            await says(cluster, "p", "up")
        pid = directory.pid()
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        async with bed.open() as (cluster, watch):
            end = (await watch.until(PodEnded, "p")).end
            assert end == AttemptEnd(cause=Cause.PLATFORM, status_reason=process.LOST)
            # Not one of its processes holds the output any more.
            assert directory.is_released()

    afterwards()


def test_a_pid_that_now_belongs_to_a_stranger_is_left_alone(bed: LocalBed) -> None:
    start_and_die(bed, a_pod("p", container("exec sleep 600")))
    directory = process.PodDirectory(bed.directory / "pods" / "p")

    @asynchronous
    async def afterwards() -> None:
        async with bed.open() as (cluster, watch):
            await watch.until(PodRunning, "p")
        pid = directory.pid()
        assert pid is not None
        stranger = await asyncio.create_subprocess_exec("sleep", "600", start_new_session=True)
        directory.note("pid", f"{stranger.pid}\n")
        os.killpg(pid, signal.SIGKILL)
        async with bed.open() as (cluster, watch):
            assert (await watch.until(PodEnded, "p")).end.cause is Cause.PLATFORM
            await cluster.remove_node(NODE, INSTANCE)
        assert stranger.returncode is None
        stranger.kill()
        await stranger.wait()

    afterwards()


class Fuse:
    """Kills its process with -9 when, once lit, that many lines of the cluster's code have run."""

    def __init__(self, lines: int) -> None:
        self.left = lines
        self.is_lit = False
        self._mutex = threading.Lock()
        # Before the cluster starts its threads: they take the trace with them.
        threading.settrace(self._trace)
        sys.settrace(self._trace)

    def _trace(self, frame: types.FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename not in (local.__file__, process.__file__):
            return None
        if event == "line" and self.is_lit:
            with self._mutex:
                self.left -= 1
                if self.left <= 0:
                    os.kill(os.getpid(), signal.SIGKILL)
        return self._trace


def test_a_service_killed_at_any_line_of_a_start_runs_the_pod_once(
    bed: LocalBed, tmp_path: Path
) -> None:
    """For every line: die there, begin again as the engine would, and count the runs.

    1. the service creates the pod and dies at line n; 2. the next one finds the pod, or creates it
    if nobody was told of it; 3. the pod ran exactly once.
    """
    for line in range(1, 500):
        name, ran = f"p{line}", tmp_path / f"ran-{line}"
        effect = a_pod(name, container(f"echo x >> '{ran}'"))

        async def scenario(effect: CreatePod = effect, line: int = line) -> None:
            fuse = Fuse(line)
            async with bed.open() as (cluster, _):
                fuse.is_lit = True
                await cluster.create_pod(effect)
                os._exit(0)

        survived = in_another_process(scenario) == 0
        asyncio.run(begin_again(bed, effect))
        assert ran.read_text() == "x\n", f"killed at line {line}"
        if survived:
            break
    else:
        pytest.fail("a start takes more lines than were tried")
    assert line > 30, "the fuse never burnt in the start itself"
    print(line)


async def begin_again(bed: LocalBed, effect: CreatePod) -> None:
    async with bed.open() as (cluster, watch):
        listed = await watch.until(PodsListed)
        if effect.pod not in listed.pods:
            assert watch.kinds(effect.pod) == []
            await cluster.create_pod(effect)
        assert (await watch.until(PodEnded, effect.pod)).end.succeeded
        await cluster.forget_pod(ForgetPod(pod=effect.pod, compute_environment="ce"))


def test_a_service_killed_at_any_line_of_a_clean_up_keeps_the_output(bed: LocalBed) -> None:
    for line in range(1, 200):
        name = f"p{line}"

        async def scenario(name: str = name, line: int = line) -> None:
            fuse = Fuse(line)
            async with bed.open() as (cluster, watch):
                await cluster.create_pod(a_pod(name, container("echo kept")))
                await watch.until(PodEnded, name)
                fuse.is_lit = True
                await cluster.forget_pod(forget(name))
                os._exit(0)

        survived = in_another_process(scenario) == 0
        asyncio.run(forget_again(bed, name))
        if survived:
            return
    pytest.fail("a clean-up takes more lines than were tried")


async def forget_again(bed: LocalBed, name: str) -> None:
    async with bed.open() as (cluster, watch):
        listed = await watch.until(PodsListed)
        if name in listed.pods:
            assert (await watch.until(PodEnded, name)).end.succeeded
        await cluster.forget_pod(forget(name))
        assert await output_of(cluster, name) == "kept\n"
        assert not (bed.directory / "pods" / name).exists()


@asynchronous
async def test_what_is_left_in_the_background_ends_with_the_pod(bed: LocalBed) -> None:
    async with bed.open() as (cluster, watch):
        await cluster.create_pod(a_pod("p", container("sleep 600 & echo $!")))
        assert (await watch.until(PodEnded, "p")).end.succeeded
        directory = process.PodDirectory(bed.directory / "pods" / "p")
        async with asyncio.timeout(WAIT_S):
            while not directory.is_released():
                await asyncio.sleep(0.01)


@asynchronous
async def test_ends_are_found_without_pidfds_too(
    bed: LocalBed, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(pid: int) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "pidfd_open", none_left, raising=False)
    async with bed.open() as (cluster, watch):
        await cluster.create_pod(a_pod("p", container("exit 3")))
        await cluster.create_pod(a_pod("q", container("exec sleep 600")))
        assert (await watch.until(PodEnded, "p")).end.exit_code == 3
    async with bed.open() as (cluster, watch):
        await cluster.delete_pod(delete("q"))
        assert (await watch.until(PodEnded, "q")).end.exit_code == 143


@asynchronous
async def test_a_hundred_pods_run_at_once(bed: LocalBed) -> None:
    async with bed.open() as (cluster, watch):
        names = [f"p{number}" for number in range(100)]
        pods = [a_pod(name, container('test "$AWS_BATCH_JOB_ID" = "$0"')) for name in names]
        await asyncio.gather(*map(cluster.create_pod, pods))
        for name in names:
            assert (await watch.until(PodEnded, name)).end.exit_code == 1


@asynchronous
async def test_two_services_do_not_share_a_home(bed: LocalBed) -> None:
    async with bed.open():
        with pytest.raises(ClusterDown, match="Another service"):
            await LocalCluster(bed.directory).start()


@asynchronous
async def test_a_disk_that_cannot_be_written_is_told_and_leaves_nothing(bed: LocalBed) -> None:
    async with bed.open() as (cluster, watch):
        pods = bed.directory / "pods"
        pods.rename(pods.with_name("away"))
        pods.write_text("no directory")
        effect = a_pod("p", container("echo ran"))
        with pytest.raises(ClusterDown, match="p cannot be started"):
            await cluster.create_pod(effect)
        pods.unlink()
        pods.with_name("away").rename(pods)
        assert await cluster.create_pod(effect) is None
        assert (await watch.until(PodEnded, "p")).end.succeeded


# ---- what needs no process


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("$(A)", "1"),
        ("x$(A)y$(B)", "x1y2"),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$1"),
        ("$(C)", "$(C)"),
        ("$A ${A} $( A $", "$A ${A} $( A $"),
    ],
)
def test_references_are_filled_in_as_kubernetes_does(text: str, filled: str) -> None:
    assert expand(text, {"A": "1", "B": "2"}) == filled


@pytest.mark.parametrize(
    "pod",
    [
        b"not json",
        b"{}",
        b'{"containers": [{"command": "x"}]}',
        b'{"containers": [{"args": ["\\u0000"]}]}',
    ],
)
def test_pods_that_cannot_be_run_are_refused_with_a_sentence(pod: bytes) -> None:
    with pytest.raises(BadPod, match=r"podProperties|NUL"):
        read_containers(pod, {})


def test_processes_do_not_inherit_the_settings_of_service_and_airflow() -> None:
    environ = {
        "PATH": "/bin",
        "LANG": "C",
        "EKSBATCH_DATABASE": "secret",
        "EKSBATCH_HOME": "here",
        "AIRFLOW__CORE__FERNET_KEY": "secret",
        "AIRFLOW_CONN_X": "secret",
        "AIRFLOW_HOME": "there",
    }
    inherited = inherited_environ(environ)
    assert inherited.pop("PATH").startswith("/bin:")
    assert inherited == {"LANG": "C", "EKSBATCH_HOME": "here", "AIRFLOW_HOME": "there"}
