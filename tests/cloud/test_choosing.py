"""`eksbatch serve --cloud`: which cloud a service gets, and what cannot be put together."""

from __future__ import annotations

from pathlib import Path

import pytest

from airflow_eksbatch.cloud.ec2 import Ec2Cloud
from airflow_eksbatch.cloud.embedded import EmbeddedCloud
from airflow_eksbatch.cloud.none import NoCloud
from airflow_eksbatch.cloud.port import Cloud
from airflow_eksbatch.service.settings import BadSetting, read_settings
from airflow_eksbatch.service.telemetry import Telemetry
from airflow_eksbatch.service.wiring import make_cluster_and_cloud

KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: main
contexts: [{name: main, context: {cluster: main, user: me}}]
clusters: [{name: main, cluster: {server: "https://127.0.0.1:1"}}]
users: [{name: me, user: {token: secret}}]
"""


def cloud_of(directory: Path, **given: str) -> Cloud:
    file = directory / "kubeconfig"
    file.write_text(KUBECONFIG)
    options = {"home": str(directory), "kubeconfig": str(file), **given}
    return make_cluster_and_cloud(read_settings(options, {}), Telemetry())[1]


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ({}, EmbeddedCloud),
        ({"cloud": "embedded"}, EmbeddedCloud),
        ({"cluster": "kubeconfig"}, NoCloud),
        ({"cluster": "kubeconfig", "cloud": "none"}, NoCloud),
        ({"cluster": "kubeconfig", "cloud": "ec2"}, Ec2Cloud),
    ],
)
def test_a_service_gets_the_cloud_it_names(
    tmp_path: Path, given: dict[str, str], kind: type[Cloud]
) -> None:
    assert type(cloud_of(tmp_path, **given)) is kind


@pytest.mark.parametrize(
    "given",
    [
        {"cloud": "ec2"},
        {"cloud": "none"},
        {"cluster": "kubeconfig", "cloud": "embedded"},
    ],
)
def test_what_cannot_work_together_is_said(given: dict[str, str]) -> None:
    with pytest.raises(BadSetting, match="needs --cluster"):
        read_settings(given, {})
