"""One cluster looked at, group by group: what every group's look is given, and their order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import msgspec

from airflow_eksbatch.cluster.kube.connection import ApiError, BadKubeconfig, Connection, Ways
from airflow_eksbatch.cluster.port import ClusterDown
from airflow_eksbatch.core.model.compute_environment import ComputeEnvironment
from airflow_eksbatch.doctor.clocks import Patience
from airflow_eksbatch.doctor.findings import Report
from airflow_eksbatch.doctor.kube.look import Look
from airflow_eksbatch.doctor.kube.namespaces import look_at_namespace
from airflow_eksbatch.doctor.kube.nodes import look_at_nodes
from airflow_eksbatch.doctor.kube.policies import look_at_policies
from airflow_eksbatch.doctor.kube.reach import look_at_cluster
from airflow_eksbatch.doctor.kube.rights import look_at_rights


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What to look at, beside the compute environments."""

    acts_as: str = ""
    """Whose rights are judged; empty: those of whoever looks."""
    namespaces: tuple[str, ...] = ()
    patience: Patience
    """With the API server's clock."""


async def look_at_clusters(
    report: Report, ways: Ways, environments: Sequence[ComputeEnvironment] | None, wanted: Wanted
) -> None:
    """Every cluster that a compute environment names; without any, the one that would be used then.

    None: no database could be read that knows them.
    """
    arns: dict[str, list[ComputeEnvironment]] = {} if environments else {"": []}
    for environment in environments or ():
        arns.setdefault(environment.cluster_arn, []).append(environment)
    places: dict[str, list[ComputeEnvironment]] = {}
    for arn, several in arns.items():
        try:
            places.setdefault(ways.place_of(arn), []).extend(several)
        except BadKubeconfig as error:
            names = ", ".join(environment.name for environment in several)
            report.group(f"Kubernetes of {names}").wrong("reach", str(error), _WAY)
    for place, several in places.items():
        known = None if environments is None else several
        await look_at_place(report, ways, place, known, wanted)


async def look_at_place(
    report: Report,
    ways: Ways,
    place: str,
    environments: Sequence[ComputeEnvironment] | None,
    wanted: Wanted,
) -> None:
    group = report.group(f"Kubernetes {place}")
    try:
        async with _look(ways, place, environments, wanted.acts_as) as look:
            if not await look_at_cluster(group, look, wanted.patience):
                return
            namespaces = sorted({e.namespace for e in environments or ()} | {*wanted.namespaces})
            for namespace in namespaces:
                await look_at_rights(
                    report.group(f"rights in {place}, namespace {namespace}"), look, namespace
                )
                await look_at_namespace(
                    report.group(f"namespace {namespace} in {place}"), look, namespace
                )
            policies = report.group(f"policies in {place}")
            await look_at_policies(policies, look, namespaces)
            await look_at_nodes(report.group(f"nodes in {place}"), look)
    except BadKubeconfig as error:
        group.wrong("reach", str(error), _WAY)
    except (ClusterDown, ApiError, msgspec.MsgspecError) as error:
        group.wrong("reach", f"It stopped answering while we looked: {error}", "Look again.")


_WAY = "kubectl config get-contexts    # and --kubeconfig, KUBECONFIG"


@asynccontextmanager
async def _look(
    ways: Ways, place: str, environments: Sequence[ComputeEnvironment] | None, acts_as: str
) -> AsyncIterator[Look]:
    """With two connections where rights of somebody else are judged."""
    opened: list[Connection] = []
    try:
        eyes = await ways.connect(place)
        opened.append(eyes)
        account = eyes
        if acts_as:
            account = await ways.connect(place)
            opened.append(account)
            account.acts_as = acts_as
        known = None if environments is None else tuple(environments)
        yield Look(eyes=eyes, account=account, environments=known)
    finally:
        await asyncio.gather(*(connection.close() for connection in opened))
