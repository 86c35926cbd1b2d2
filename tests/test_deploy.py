"""What docker/ deploys: only settings that exist, only files that are there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from airflow_eksbatch.cli import make_parser
from airflow_eksbatch.service.settings import SETTINGS

ROOT = Path(__file__).resolve().parent.parent
DOCKER = ROOT / "docker"
VARIABLES = {setting.variable for setting in SETTINGS}


def documents(name: str) -> list[dict[str, Any]]:
    return [one for one in yaml.safe_load_all((DOCKER / name).read_text()) if one]


def test_every_file_an_image_is_made_of_is_there() -> None:
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (DOCKER / "Dockerfile").read_text(), re.M)
    for name in " ".join(copied).split():
        assert (ROOT / name).exists(), name


def test_compose_sets_what_can_be_set() -> None:
    services = documents("compose.yaml")[0]["services"]
    named = {name for one in services.values() for name in one.get("environment", {})}
    assert {name for name in named if name.startswith("EKSBATCH_")} <= VARIABLES


def test_the_deployment_starts_a_service_that_understands_it() -> None:
    deployment = next(one for one in documents("service.yaml") if one["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    make_parser().parse_args(container["args"])
    named = {variable["name"] for variable in container["env"]}
    assert {name for name in named if name.startswith("EKSBATCH_")} <= VARIABLES


def test_the_deployment_runs_as_the_account_that_has_the_rights() -> None:
    deployment = next(one for one in documents("service.yaml") if one["kind"] == "Deployment")
    name = deployment["spec"]["template"]["spec"]["serviceAccountName"]
    accounts = [one for one in documents("kubernetes.yaml") if one["kind"] == "ServiceAccount"]
    assert (name, deployment["metadata"]["namespace"]) in {
        (one["metadata"]["name"], one["metadata"]["namespace"]) for one in accounts
    }
