"""Outputs of pods while they run: whatever becomes of the stream, nothing is said twice and the last part is there.

The kubelet behind an API server is played here: tests/kubernetes has a real one, which cannot be told when to break.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from airflow_eksbatch.cluster.kube import live_logs
from airflow_eksbatch.cluster.kube.connection import Kubeconfig
from airflow_eksbatch.cluster.kube.growing_file import GrowingFile
from airflow_eksbatch.cluster.kube.live_logs import GAP, LiveLogs
from airflow_eksbatch.cluster.kube.objects import Pod
from airflow_eksbatch.cluster.outputs import OutputFiles
from airflow_eksbatch.core.model.job import PodName
from airflow_eksbatch.floor.clock import Backoff
from tests.cluster.objects import a_kube_pod, ended, running
from tests.cluster.test_connection import a_kubeconfig, served

POD = PodName("p")
MIB = 1024**2


class Kubelet:
    """A file for each container, as it is now; streams follow it until they are broken or the container has ended."""

    def __init__(self) -> None:
        self.files: defaultdict[str, bytearray] = defaultdict(bytearray)
        self.pod: Pod = a_kube_pod(status=running())
        self.is_there = True
        """Its node."""
        self.is_silent = False
        """It answers nobody."""
        self.complaint = b""
        """What it says instead of following."""
        self.asked: Counter[str] = Counter()
        """Requests, by container, and all that follow as `follow`."""
        self.sent_bytes = 0
        self.over: set[str] = set()
        """Containers that have ended before all others."""
        self._is_over = False
        self._broken = 0
        self._news = asyncio.Condition()

    async def says(self, part: bytes, container: str = "default") -> None:
        async with self._news:
            self.files[container] += part
            self._news.notify_all()

    async def breaks(self) -> None:
        """All streams that there are."""
        async with self._news:
            self._broken += 1
            self._news.notify_all()

    async def ends(self, status: dict[str, Any]) -> None:
        async with self._news:
            self.pod = a_kube_pod(spec=SPEC, status=status)
            self._is_over = True
            self._news.notify_all()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        container, broken, sent = request.query["container"], self._broken, 0
        follows = "follow" in request.query
        self.asked[container] += 1
        self.asked["follow"] += follows
        if self.is_silent:
            return web.Response(status=503)
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            part = self.files[container][sent : sent + MIB]
            await response.write(part)
            sent += len(part)
            self.sent_bytes += len(part)
            async with self._news:
                if sent < len(self.files[container]):
                    continue
                if not follows or self._is_over or container in self.over:
                    return response
                if self.complaint:
                    await response.write(self.complaint)
                    return response
                if self._broken == broken:
                    await self._news.wait()
            if self._broken > broken:
                assert request.transport is not None
                request.transport.abort()
                return response


SPEC = {
    "initContainers": [{"name": "mesh", "restartPolicy": "Always"}, {"name": "first"}],
    "containers": [{"name": "default"}],
}
Scenario = Callable[[Kubelet, LiveLogs, OutputFiles], Awaitable[None]]


def played(home: Path, scenario: Scenario) -> None:
    kubelet: list[Kubelet] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        return await kubelet[0].answer(request)

    async def run(url: str) -> None:
        kubelet.append(Kubelet())
        connection = await Kubeconfig(
            a_kubeconfig(home / "config", ("c", "c"), server=url)
        ).connect("c")
        outputs = OutputFiles(home / "logs")
        outputs.open()
        logs = LiveLogs(
            connection,
            home / "live",
            outputs,
            look=lambda _: kubelet[0].pod,
            is_there=lambda _: kubelet[0].is_there,
        )
        try:
            await asyncio.wait_for(scenario(kubelet[0], logs, outputs), 30)
        finally:
            await kubelet[0].ends(ended())
            await logs.close()
            await connection.close()

    served(answer, run)


async def output(logs: LiveLogs) -> bytes:
    part = await logs.read(POD, 0, 1000 * MIB)
    assert part is not None
    return part[0]


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    while not await holds():
        await asyncio.sleep(0.01)


async def shows(logs: LiveLogs, text: bytes) -> None:
    async def is_there() -> bool:
        return text in await output(logs)

    await until(is_there)


async def follows_again(kubelet: Kubelet, logs: LiveLogs) -> None:
    """A stream after the one that was broken."""
    before = kubelet.asked["follow"]

    async def is_open() -> bool:
        await logs.read(POD, 0, 1)
        return kubelet.asked["follow"] > before

    await kubelet.breaks()
    await until(is_open)


def test_a_stream_that_breaks_goes_on_where_it_was(tmp_path: Path) -> None:
    """Also among lines that are all the same."""

    async def scenario(kubelet: Kubelet, logs: LiveLogs, outputs: OutputFiles) -> None:
        said = b""
        for number in range(5):
            line = b"tick\n" if number % 2 else b"%d\n" % number * 5000
            said += line
            await kubelet.says(line)
            await shows(logs, said)
            await follows_again(kubelet, logs)
        await kubelet.says(b"end\n")
        await shows(logs, b"end\n")
        assert await output(logs) == said + b"end\n"

    played(tmp_path, scenario)


def test_a_kubelet_that_cannot_follow_has_nothing_said_twice(tmp_path: Path) -> None:
    """It has no inotify left: it tells what there is, then that, in the same stream, and ends."""

    async def scenario(kubelet: Kubelet, logs: LiveLogs, outputs: OutputFiles) -> None:
        kubelet.complaint = b"failed to create fsnotify watcher: too many open files"
        await kubelet.says(b"one\ntwo\n")
        await shows(logs, b"two\n")
        await kubelet.says(b"three\n")
        await shows(logs, b"three\n")
        assert await output(logs) == b"one\ntwo\nthree\n"

    played(tmp_path, scenario)


def test_a_stream_that_breaks_after_the_kubelet_began_a_new_file_goes_on_too(
    tmp_path: Path,
) -> None:
    """1. it was followed into the new file: nothing is missing; 2. it was not: that is said in one line."""

    async def scenario(kubelet: Kubelet, logs: LiveLogs, outputs: OutputFiles) -> None:
        lines = [b"line %d\n" % number for number in range(1000)]
        await kubelet.says(b"".join(lines))
        await shows(logs, lines[-1])
        kubelet.files["default"] = bytearray().join(lines[500:])
        await follows_again(kubelet, logs)
        await kubelet.says(b"more\n")
        await shows(logs, b"more\n")
        whole = b"".join(lines) + b"more\n"
        assert await output(logs) == whole

        kubelet.files["default"] = bytearray(b"of the next file\n")
        await follows_again(kubelet, logs)
        await kubelet.says(b"last\n")
        await shows(logs, b"last\n")
        assert await output(logs) == whole + GAP + b"of the next file\nlast\n"

    played(tmp_path, scenario)


def test_a_silence_is_no_failure_however_often_it_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection may be dead, or the job has nothing to say."""
    monkeypatch.setattr(live_logs, "SILENCE_S_MAX", 0.05)

    async def scenario(kubelet: Kubelet, logs: LiveLogs, outputs: OutputFiles) -> None:
        async def many_streams() -> bool:
            await logs.read(POD, 0, 1)
            return kubelet.asked["follow"] > 2 * live_logs.TRIES_MAX

        await kubelet.says(b"now\n")
        await until(many_streams)
        await kubelet.says(b"then\n")
        await shows(logs, b"then\n")
        assert await output(logs) == b"now\nthen\n"

    played(tmp_path, scenario)


def test_a_reader_gets_more_when_a_kubelet_is_back_after_many_tries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_logs, "AGAIN", Backoff(first_s=0.01, most_s=0.01))

    async def scenario(kubelet: Kubelet, logs: LiveLogs, outputs: OutputFiles) -> None:
        await kubelet.says(b"before\n")
        await shows(logs, b"before\n")
        kubelet.is_silent, asked = True, kubelet.asked["default"]
        await kubelet.breaks()

        async def many_tries() -> bool:
            return kubelet.asked["default"] > asked + 2 * live_logs.TRIES_MAX

        await until(many_tries)
        kubelet.is_silent = False
        await kubelet.says(b"after\n")
        await shows(logs, b"after\n")
        assert await output(logs) == b"before\nafter\n"

    played(tmp_path, scenario)


@pytest.mark.parametrize("is_known", [True, False])
def test_what_nobody_reads_is_let_go_unless_its_machine_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_known: bool
) -> None:
    """Then it is all that there will be of the output, also before anybody knows of the machine."""

    async def scenario(kubelet: Kubelet, logs: LiveLogs, outputs: OutputFiles) -> None:
        await kubelet.says(b"up\n")
        await shows(logs, b"up\n")
        await logs.tend()
        assert logs.has(POD)
        monkeypatch.setattr(live_logs, "UNREAD_S_MAX", 0.0)
        kubelet.is_there, kubelet.is_silent = not is_known, True
        before = kubelet.asked["default"]
        await kubelet.breaks()

        async def is_tried_again() -> bool:
            return kubelet.asked["default"] > before + 1

        await until(is_tried_again)
        await logs.tend()
        kubelet.is_there = False
        kubelet.pod = a_kube_pod(status=ended())
        await logs.tend()
        await logs.keep(POD)
        assert outputs.read(POD, 0, 100) == (b"up\n", 3)

        kubelet.pod, kubelet.is_there, kubelet.is_silent = a_kube_pod(status=running()), True, False
        assert not logs.has(POD)
        await logs.read(POD, 0, 1)
        assert logs.has(POD)
        await logs.tend()
        assert not logs.has(POD)

    played(tmp_path, scenario)


def test_who_comes_back_reads_all_that_was_said_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not only what comes first of it."""
    monkeypatch.setattr(live_logs, "UNREAD_S_MAX", 0.0)
    monkeypatch.setattr(live_logs, "FIRST_PART_S_MAX", 20.0)
    monkeypatch.setattr(live_logs, "LOOK_S", 1.0)  # a machine that does much else pauses, too

    async def scenario(kubelet: Kubelet, logs: LiveLogs, outputs: OutputFiles) -> None:
        for number in range(1, 4):
            await kubelet.says(b"x" * 3 * MIB + b"%d\n" % number)
            assert await logs.read(POD, -2, 2) == (b"%d\n" % number, number * (3 * MIB + 2))
            await logs.tend()
            assert not logs.has(POD)

    played(tmp_path, scenario)


def test_who_only_watches_gives_way_to_a_pod_that_is_being_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_logs, "FOLLOWERS_MAX", 1)

    async def scenario(kubelet: Kubelet, logs: LiveLogs, outputs: OutputFiles) -> None:
        await kubelet.says(b"up\n")
        await shows(logs, b"up\n")
        ending = a_kube_pod("ending", status=running())
        await logs.hold(ending)
        assert (logs.has(POD), logs.has(PodName("ending"))) == (False, True)
        await logs.hold(kubelet.pod)
        assert (logs.has(POD), logs.has(PodName("ending"))) == (False, True)

    played(tmp_path, scenario)


def test_of_a_huge_output_the_last_part_is_there_and_it_is_sent_once(tmp_path: Path) -> None:
    """1. more comes than anybody keeps; 2. its end is read live; 3. the pod ends, and its end is kept."""

    async def scenario(kubelet: Kubelet, logs: LiveLogs, outputs: OutputFiles) -> None:
        size, part = 0, b"x" * (MIB - 1) + b"\n"
        for _ in range(70):
            await kubelet.says(part)
            size += len(part)
        last = b"ValueError: what people look for\n"
        await kubelet.says(last)
        size += len(last)

        async def is_at_end() -> bool:
            return await logs.read(POD, -len(last), MIB) == (last, size)

        await until(is_at_end)
        assert kubelet.sent_bytes == size
        (file,) = (tmp_path / "live").iterdir()
        assert file.stat().st_blocks * 512 < 40 * MIB
        await kubelet.ends(ended(1))
        await logs.keep(POD)
        assert outputs.read(POD, -len(last), MIB) == (last, size)
        first = outputs.read(POD, 0, 4)
        assert first is not None
        assert first[0] == b"xxxx"
        assert first[1] > size - 20 * MIB
        assert kubelet.sent_bytes == size

    played(tmp_path, scenario)


def test_the_end_of_a_huge_output_is_kept_also_of_a_pod_that_nobody_followed(
    tmp_path: Path,
) -> None:
    async def scenario(kubelet: Kubelet, logs: LiveLogs, outputs: OutputFiles) -> None:
        await kubelet.says(b"x" * 80 * MIB + b"ValueError\n")
        await kubelet.ends(ended(1))
        await logs.keep(POD)
        assert outputs.read(POD, -11, 100) == (b"ValueError\n", 80 * MIB + 11)

    played(tmp_path, scenario)


def test_a_sidecar_is_followed_beside_the_others(tmp_path: Path) -> None:
    """It begins before them and ends after them."""
    state = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}
    over = {"terminated": {"exitCode": 0}}
    inits = [{"name": "mesh", "state": state}, {"name": "first", "state": over}]

    async def scenario(kubelet: Kubelet, logs: LiveLogs, outputs: OutputFiles) -> None:
        kubelet.pod = a_kube_pod(spec=SPEC, status={**running(), "initContainerStatuses": inits})
        kubelet.over, kubelet.files["mesh"] = {"first"}, bytearray(b"mesh up\n")
        await kubelet.says(b"main up\n")
        await shows(logs, b"main up\n")
        await shows(logs, b"mesh up\n")

    played(tmp_path, scenario)


# ---- the file


def test_a_file_that_grows_is_read_by_offsets_in_the_whole(tmp_path: Path) -> None:
    file = GrowingFile(tmp_path / "f.part", kept_bytes=10)
    assert file.read(0, 10) is None
    for number in range(10):
        file.append(b"%d" % number * 3)
    assert file.read(-3, 10) == (b"999", 30)
    assert file.read(25, 3) == (b"889", 28)
    # It was cut once, when 21 bytes were there.
    assert file.read(0, 5) == (b"34445", 16)
    assert file.read(-1000, 2) == (b"34", 13)
    assert file.read(40, 2) == (b"", 30)
    assert (tmp_path / "f.part").stat().st_size == 30
    assert [path.name for path in tmp_path.iterdir()] == ["f.part"]
