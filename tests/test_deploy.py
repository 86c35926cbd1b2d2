"""What docker/ deploys: only settings that exist, only files that are there."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from airflow.models import Connection

from airflow_eksbatch.cli import main, make_parser
from airflow_eksbatch.doctor.examination import question_from
from airflow_eksbatch.hooks import endpoint_from_connection
from airflow_eksbatch.operators import EKSBatchOperator
from airflow_eksbatch.service.settings import SETTINGS, read_settings
from tests.service.running import RunningService, a_definition

ROOT = Path(__file__).resolve().parent.parent
DOCKER = ROOT / "docker"
VARIABLES = {setting.variable for setting in SETTINGS}


def documents(name: str) -> list[dict[str, Any]]:
    return [one for one in yaml.safe_load_all((DOCKER / name).read_text()) if one]


def test_every_file_an_image_is_made_of_is_there() -> None:
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (DOCKER / "Dockerfile").read_text(), re.M)
    for name in " ".join(copied).split():
        assert (ROOT / name).exists(), name


def container_of_the_service() -> dict[str, Any]:
    deployment = next(one for one in documents("service.yaml") if one["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    return container


def pod_environ(**more: str) -> dict[str, str]:
    """What `kubectl exec` finds in the service's pod as service.yaml makes it; no argument is among it."""
    return {one["name"]: one.get("value", "") for one in container_of_the_service()["env"]} | more


def guide_environ() -> dict[str, str]:
    """What docker/eks.md adds to it, by `kubectl set env`."""
    (said,) = re.findall(r"kubectl .*set env deploy/eksbatch (.*)", (DOCKER / "eks.md").read_text())
    return dict(word.split("=") for word in said.replace("$AWS_DEFAULT_REGION", "r").split())


def commands_in_the_pod() -> Iterator[list[str]]:
    """What docker/ tells people to run there, without the program's name."""
    for path in (*DOCKER.rglob("*.md"), *DOCKER.glob("*.yaml")):
        for said in re.findall(r"exec deploy/eksbatch -- eksbatch ([^`)\n]*)", path.read_text()):
            yield shlex.split(said)


# ---- compose


def services() -> dict[str, Any]:
    return documents("compose.yaml")[0]["services"]


def test_compose_sets_what_can_be_set() -> None:
    named = {name for one in services().values() for name in one.get("environment", {})}
    assert {name for name in named if name.startswith("EKSBATCH_")} <= VARIABLES


def test_airflow_finds_the_service_of_compose_where_nobody_asks_for_a_key() -> None:
    """Airflow and the door share the network of the service, whose loopback is open."""
    command = services()["service"]["command"]
    settings = read_settings(vars(make_parser().parse_args(command)), {})
    assert settings.auth_mode == "open"
    door, airflow = services()["door"], services()["airflow"]
    assert {door["network_mode"], airflow["network_mode"]} == {"service:service"}
    uri = airflow["environment"]["AIRFLOW_CONN_EKSBATCH_DEFAULT"]
    endpoint = endpoint_from_connection(Connection(uri=uri))
    assert endpoint is not None
    assert endpoint.url == f"http://{settings.host}:{settings.port}"
    listens, connects = (word.split(":", 1)[1].split(",")[0] for word in door["command"])
    assert f"127.0.0.1:{settings.port}:{listens}" in services()["service"]["ports"]
    assert endpoint.url == f"http://{connects}"


def test_the_service_of_compose_has_the_queue_that_operators_use_when_nothing_is_said(
    tmp_path: Path,
) -> None:
    command, *options = services()["service"]["command"]
    options[options.index("--port") + 1] = "0"
    with RunningService(tmp_path, "--launch-delay-s", "0", *options, command=command) as service:
        batch = service.batch()
        queue = EKSBatchOperator(task_id="any", command=["true"]).job_queue
        definition = a_definition(batch, "python3", "-c", "print('hello')")
        asked = {"jobName": "any", "jobQueue": queue, "jobDefinition": definition}
        job = batch.submit_job(**asked, shareIdentifier="today")["jobId"]
        assert service.wait_for_ends({job}) == {job: "SUCCEEDED"}


def test_compose_mounts_dags_that_need_nothing_but_airflow_and_this_provider() -> None:
    for volume in services()["airflow"]["volumes"]:
        file = (DOCKER / volume.split(":")[0]).resolve()
        imported = set(re.findall(r"^(?:from|import) (\w+)", file.read_text(), re.MULTILINE))
        assert imported <= {"airflow", "airflow_eksbatch"}


# ---- Kubernetes


def test_job_definitions_are_taken_as_they_are_shown(tmp_path: Path) -> None:
    shown = [
        json.loads(found)
        for path in DOCKER.rglob("*.md")
        for found in re.findall(r"--eks-properties \\?\s*'([^']+)'", path.read_text())
    ]
    assert shown
    with RunningService(tmp_path, "--port", "0") as service:
        batch = service.batch()
        for number, eks in enumerate(shown):
            name = f"shown-{number}"
            batch.register_job_definition(
                jobDefinitionName=name, type="container", eksProperties=eks
            )


def test_the_deployment_starts_a_service_that_understands_it() -> None:
    given = make_parser().parse_args(container_of_the_service()["args"])
    for environ in (pod_environ(), pod_environ(**guide_environ())):
        settings = read_settings(vars(given), environ)
        assert (settings.cluster, settings.auth_mode) == ("in-cluster", "sigv4")
        assert {name for name in environ if name.startswith("EKSBATCH_")} <= VARIABLES


def test_the_service_is_never_applied_without_its_image() -> None:
    """By itself service.yaml names none that can be pulled: applied again, it would take away the one that runs."""
    manifest, found = (DOCKER / "service.yaml").read_text(), []
    for path in (*DOCKER.rglob("*.md"), *DOCKER.glob("*.yaml")):
        assert "apply -f docker/service.yaml" not in path.read_text(), path.name
        found += re.findall(r'sed "s\|([^|"]+)\|.*docker/service.yaml', path.read_text())
    assert found
    assert [len(re.findall(one, manifest, re.MULTILINE)) for one in found] == [1] * len(found)


def test_what_the_service_writes_is_mounted_because_all_else_is_read_only() -> None:
    container = container_of_the_service()
    assert container["securityContext"]["readOnlyRootFilesystem"]
    mounted = {one["mountPath"] for one in container["volumeMounts"]}
    assert mounted == {pod_environ()["EKSBATCH_HOME"], "/tmp"}


def test_the_role_in_aws_trusts_the_account_of_the_service_and_no_other() -> None:
    trust = json.loads((DOCKER / "iam" / "service-trust.json").read_text())
    (account,) = [one for one in documents("kubernetes.yaml") if one["kind"] == "ServiceAccount"]
    (statement,) = trust["Statement"]
    assert statement["Condition"]["StringEquals"] == {
        "aws:RequestTag/kubernetes-namespace": account["metadata"]["namespace"],
        "aws:RequestTag/kubernetes-service-account": account["metadata"]["name"],
    }


def test_commands_in_the_pod_are_given_the_settings_of_the_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the pod's environment alone: `kubectl exec` passes on none of its arguments."""
    found = list(commands_in_the_pod())
    assert {words[0] for words in found} == {"keys", "doctor"}
    database, key = f"sqlite:///{tmp_path / 'eksbatch.db'}", ""
    for more in ({}, guide_environ()):
        environ = pod_environ(**more, EKSBATCH_DATABASE=database, EKSBATCH_HOME=str(tmp_path))
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        for words in found:
            if words[0] == "keys":
                assert main([key if word == "ACCESS_KEY_ID" else word for word in words]) == 0
                made = re.search("AWS_ACCESS_KEY_ID=(.*)", capsys.readouterr().out)
                key = made[1] if made else key
            else:
                question = question_from(make_parser().parse_args(words), environ)
                assert question.settings.cluster == "in-cluster"


def test_the_deployment_runs_as_the_account_that_has_the_rights() -> None:
    deployment = next(one for one in documents("service.yaml") if one["kind"] == "Deployment")
    name = deployment["spec"]["template"]["spec"]["serviceAccountName"]
    accounts = [one for one in documents("kubernetes.yaml") if one["kind"] == "ServiceAccount"]
    assert (name, deployment["metadata"]["namespace"]) in {
        (one["metadata"]["name"], one["metadata"]["namespace"]) for one in accounts
    }
