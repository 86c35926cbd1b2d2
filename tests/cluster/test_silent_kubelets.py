"""Kubelets that do not say what their pods have said, as with a port 10250 that a security group blocks."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web

from airflow_eksbatch.cluster.kube import live_logs
from airflow_eksbatch.cluster.kube.connection import Kubeconfig
from airflow_eksbatch.cluster.kube.live_logs import TRIES_MAX, LiveLogs
from airflow_eksbatch.cluster.outputs import OutputFiles
from airflow_eksbatch.cluster.port import ClusterDown
from airflow_eksbatch.core.model.job import PodName
from tests.cluster.objects import a_kube_pod, ended
from tests.cluster.test_connection import a_kubeconfig, served

FIRST, SECOND = PodName("first"), PodName("second")


class Kubelet:
    """Of one node; the API server waits for it, and so does whoever asks."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.ends = asyncio.Event()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked[request.path.split("/")[-2]] += 1
        await self.ends.wait()
        return web.Response(status=503)


def played(
    home: Path, scenario: Callable[[Kubelet, LiveLogs, OutputFiles], Awaitable[None]]
) -> None:
    kubelet = Kubelet()

    async def run(url: str) -> None:
        file = a_kubeconfig(home / "config", ("c", "c"), server=url)
        connection = await Kubeconfig(file).connect("c")
        outputs = OutputFiles(home / "logs")
        outputs.open()
        pods = {name: a_kube_pod(name, status=ended()) for name in (FIRST, SECOND)}
        logs = LiveLogs(connection, home / "live", outputs, look=pods.get, is_there=lambda _: True)
        try:
            await scenario(kubelet, logs, outputs)
        finally:
            kubelet.ends.set()
            await logs.close()
            await connection.close()

    served(kubelet.answer, run)


async def in_vain(logs: LiveLogs, pod: PodName) -> None:
    """To be asked again later."""
    with pytest.raises(ClusterDown, match=f"The output of {pod} cannot be read"):
        await logs.keep(pod)


def test_a_kubelet_that_let_one_wait_is_left_alone_and_nothing_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_logs, "REST_S_MAX", 0.1)

    async def scenario(kubelet: Kubelet, logs: LiveLogs, outputs: OutputFiles) -> None:
        await in_vain(logs, FIRST)
        for _ in range(TRIES_MAX + 1):
            await in_vain(logs, SECOND)
            await in_vain(logs, FIRST)
        assert kubelet.asked == {FIRST: 1}
        assert not outputs.has(FIRST)

    played(tmp_path, scenario)


def test_what_was_asked_for_in_vain_often_enough_is_lost_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what others of that node have said, as long as it is left alone."""
    monkeypatch.setattr(live_logs, "REST_S_MAX", 0.1)
    monkeypatch.setattr(live_logs, "SILENT_S", 0.0)

    async def scenario(kubelet: Kubelet, logs: LiveLogs, outputs: OutputFiles) -> None:
        for _ in range(TRIES_MAX - 1):
            await in_vain(logs, FIRST)
        monkeypatch.setattr(live_logs, "SILENT_S", 30.0)
        for pod in (FIRST, SECOND):
            await logs.keep(pod)
            kept = outputs.read(pod, 0, 1000)
            assert kept is not None
            assert kept[0].startswith(f"eksbatch: the output of {pod} on ".encode())
        assert kubelet.asked == {FIRST: TRIES_MAX}
        # Who asks again, because the pod could not be deleted, finds it done.
        await logs.keep(FIRST)
        assert list((tmp_path / "live").iterdir()) == []

    played(tmp_path, scenario)
