"""The whole examination, in the order in which one thing needs another: database, service, clusters, AWS."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from airflow_eksbatch.core.model.compute_environment import ComputeEnvironment
from airflow_eksbatch.doctor.clocks import lease_patience
from airflow_eksbatch.doctor.endpoint import look_at_service
from airflow_eksbatch.doctor.findings import Report
from airflow_eksbatch.doctor.stores import look_at_database
from airflow_eksbatch.service.settings import Settings, add_settings, read_settings
from airflow_eksbatch.service.wiring import make_aws, make_ways
from airflow_eksbatch.store.port import StoreView

if TYPE_CHECKING:  # What needs a package that is not always there
    from airflow_eksbatch.cloud.aws.client import Aws
    from airflow_eksbatch.cluster.kube.connection import Ways

# As docker/kubernetes.yaml names it.
NAMESPACE = "batch-jobs"


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be looked at, and as whom."""

    settings: Settings
    acts_as: str = ""
    namespaces: tuple[str, ...] = ()


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="the findings as JSON")
    command.add_argument(
        "--as",
        dest="acts_as",
        default="",
        metavar="USER",
        help="judge the rights of this user of Kubernetes, as kubectl --as does; for administrators, who see more: "
        "system:serviceaccount:eksbatch:eksbatch",
    )
    command.add_argument(
        "--namespace",
        action="append",
        default=[],
        help="look at this namespace, beside those of the compute environments (may be repeated) "
        f"[{NAMESPACE}, while there are none]",
    )
    add_settings(command)


def question_from(given: argparse.Namespace, environ: Mapping[str, str]) -> Question:
    """Raises BadSetting."""
    return Question(
        settings=read_settings(vars(given), environ),
        acts_as=given.acts_as,
        namespaces=tuple(given.namespace),
    )


def examine(question: Question) -> Report:
    """Raises BadSetting, or BadUrl, when there is no way to begin: a setting, a package or a kubeconfig is missing."""
    settings, report = question.settings, Report()
    ways = make_ways(settings) if settings.cluster != "local" else None
    aws = make_aws(settings) if settings.cloud_kind == "ec2" else None
    view = look_at_database(report.group("database"), settings)
    url = leader_url(view) if view is not None else ""
    if url:
        look_at_service(report.group("service"), url, settings)
    environments = None if view is None else view.compute_environments
    if ways is not None:
        asyncio.run(_look_outside(report, question, environments, ways=ways, aws=aws))
    return report


def leader_url(view: StoreView) -> str:
    """Where the one that leads is reached; empty while nobody does, and for the embedded service."""
    url, mark, _ = view.leader.partition("#")
    return url if mark and view.lease_left_ms > 0 else ""


async def _look_outside(
    report: Report,
    question: Question,
    environments: Sequence[ComputeEnvironment] | None,
    *,
    ways: Ways,
    aws: Aws | None,
) -> None:
    from airflow_eksbatch.doctor.kube.visit import Wanted, look_at_clusters

    namespaces = question.namespaces or (() if environments else (NAMESPACE,))
    wanted = Wanted(
        acts_as=question.acts_as,
        namespaces=namespaces,
        patience=lease_patience(question.settings.lease_s),
    )
    await look_at_clusters(report, ways, environments, wanted)
    if aws is not None:
        from airflow_eksbatch.doctor.aws.visit import look_at_aws

        await look_at_aws(report, aws, environments, question.settings.notices)
