"""Kubernetes clusters: each compute environment's pods run in the one that its cluster ARN names.

Nodes come from somebody else: a cloud buys them, or others own them and gave them our label. Pods are created
straight on their node (`spec.nodeName`); no kube-scheduler is asked.
"""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from airflow_eksbatch.cluster.kube.access import find_trouble
from airflow_eksbatch.cluster.kube.connection import BadKubeconfig, Ways
from airflow_eksbatch.cluster.kube.site import Site
from airflow_eksbatch.cluster.outputs import OutputFiles, Outputs
from airflow_eksbatch.cluster.port import ClusterDown
from airflow_eksbatch.core.engine.effects import CreatePod, DeletePod, ForgetPod
from airflow_eksbatch.core.engine.facts import Fact, PodEnded
from airflow_eksbatch.core.model.compute_environment import ComputeEnvironment
from airflow_eksbatch.core.model.job import PodName
from airflow_eksbatch.core.model.retry import NOT_THERE
from airflow_eksbatch.floor.clock import now_ms
from airflow_eksbatch.floor.feeds import Feeds, next_facts


class KubernetesCluster:
    """The port for any number of clusters; each is watched from its first environment's check on."""

    def __init__(
        self,
        ways: Ways,
        directory: Path,
        *,
        outputs: Outputs | None = None,
        tell_trouble: Callable[[str, int], None] = lambda trouble, failures: None,
        may_write: Callable[[], bool] = lambda: True,
    ) -> None:
        """`tell_trouble` hears why a watch broke, and how often in a row; it mends itself.

        `may_write` is asked before each write; while it says no, effects find the cluster down.
        """
        self._ways = ways
        self._parts = directory.absolute() / "logs-live"
        self._outputs = outputs or OutputFiles(directory.absolute() / "logs")
        self._tell_trouble = tell_trouble
        self._may_write = may_write
        self._sites: dict[str, Site] = {}
        self._site_of: dict[str, Site] = {}
        self._connecting = asyncio.Lock()
        self._feeds = Feeds()

    async def start(self) -> None:
        def prepare() -> None:
            self._outputs.open()
            # Parts of an earlier service cannot be gone on with.
            shutil.rmtree(self._parts, ignore_errors=True)

        await asyncio.to_thread(prepare)

    async def check(self, environment: ComputeEnvironment) -> str | None:
        try:
            place = await asyncio.to_thread(self._ways.place_of, environment.cluster_arn)
            site = await self._site_at(place)
        except BadKubeconfig as error:
            return str(error)
        trouble = await find_trouble(site.connection, environment.namespace)
        await site.add(environment)
        self._site_of[environment.name] = site
        return trouble

    async def create_pod(self, effect: CreatePod) -> Fact | None:
        site = self._site_of.get(effect.compute_environment)
        if site is None:
            raise ClusterDown(f"{effect.compute_environment} has not been checked yet")
        return await site.create(effect)

    async def delete_pod(self, effect: DeletePod) -> Fact | None:
        site = self._find(effect.pod, effect.compute_environment)
        if site is None:
            return PodEnded(pod=effect.pod, at=now_ms(), end=NOT_THERE)
        return await site.delete(effect)

    async def forget_pod(self, effect: ForgetPod) -> None:
        site = self._find(effect.pod, effect.compute_environment)
        if site is not None:
            await site.forget(effect.pod)

    async def watch(self) -> AsyncIterator[list[Fact]]:
        with self._feeds.open() as feed:
            yield [fact for site in self._sites.values() for fact in site.again()]
            while True:
                yield await next_facts(feed)

    async def read_log(self, pod: PodName, offset: int, limit: int) -> tuple[bytes, int] | None:
        if re.fullmatch(r"[a-z0-9][a-z0-9.-]{0,252}", pod) is None:
            return None
        kept = await asyncio.to_thread(self._outputs.read, pod, offset, limit)
        if kept is not None:
            return kept
        site = next((site for site in self._sites.values() if site.knows(pod)), None)
        live = await site.logs.read(pod, offset, limit) if site is not None else None
        if live is not None:
            return live
        # Meanwhile it may have been put away, and its file or its pod dropped.
        kept = await asyncio.to_thread(self._outputs.read, pod, offset, limit)
        return (b"", 0) if kept is None and site is not None else kept

    async def stop(self) -> None:
        """Pods go on; the next start finds them."""
        await asyncio.gather(*(site.close() for site in self._sites.values()))
        await asyncio.to_thread(self._outputs.close)

    async def _site_at(self, place: str) -> Site:
        async with self._connecting:
            site = self._sites.get(place)
            if site is None:
                connection = await self._ways.connect(place)
                connection.may_write = self._may_write
                site = self._sites[place] = Site(
                    connection,
                    self._parts,
                    self._outputs,
                    tell=self._feeds.tell,
                    tell_trouble=self._tell_trouble,
                )
                site.open()
            return site

    def _find(self, pod: PodName, environment: str) -> Site | None:
        """The environment's cluster; without one, whichever has the pod."""
        known = self._site_of.get(environment)
        if known is not None:
            return known
        if environment:
            raise ClusterDown(f"{environment} has not been checked yet")
        return next((site for site in self._sites.values() if site.knows(pod)), None)
