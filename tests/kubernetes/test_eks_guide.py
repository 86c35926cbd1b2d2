"""docker/eks.md and docker/README.md do what they say: their lines are run, against moto and a real API server."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_eksbatch.core.model import labels
from tests.cloud.account import Account
from tests.kubernetes.bed import TAINTS, a_plane, service_for
from tests.kubernetes.load import register
from tests.kubernetes.on_ec2 import a_service, an_account, wait_for_nothing
from tests.kubernetes.rig.control_plane import ControlPlane
from tests.kubernetes.rig.fake_nodes import FakeNodes, eks_node
from tests.kubernetes.rig.joiner import Joiner
from tests.kubernetes.rig.machines import KwokMachines
from tests.test_deploy import guide_environ, pod_environ

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
ELB = "kubernetes.io/role/internal-elb"
# What cannot run here; EKS is moto's, and its cluster is there already. Keys are made as in the pod, in the database of
# the service that the test starts. The AWS CLI 1 does not read for RDS and SQS where AWS is.
STUBS = """
set -euo pipefail
eksctl() { :; }
airflow() { :; }
pip() { :; }
kubectl() {
  echo "$*" >> $HOME/kubectl
  case "$*" in
    *" -- eksbatch keys create "*) env $IN_THE_POD "${@:6}" ;;
    *" -f -") cat > $HOME/applied.yaml ;;
  esac
}
docker() { [ "$1" != login ] || cat > /dev/null; }
aws() {
  case $1 in rds | sqs) command aws --endpoint-url $AWS_ENDPOINT_URL "$@" ;; *) command aws "$@" ;; esac
}
"""
# On nodes that KWOK plays a pod ends only if it says when.
POD, LASTS = '"podProperties": {', '"metadata": {"annotations": {"rig/lasts": "1s"}}'
AWS = Path(sys.executable).parent


def chapters(guide: str = "eks.md") -> dict[str, str]:
    """The lines of each."""
    parts = re.split(r"^## (.+)\n", (DOCKER / guide).read_text(), flags=re.MULTILINE)
    return {
        title: "".join(re.findall(r"^```\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
        for title, text in zip(parts[1::2], parts[2::2], strict=True)
    }


class Reader:
    """Follows the guide, a chapter at a time, in one shell."""

    def __init__(self, home: Path, endpoint: str, database: str) -> None:
        self._environ = {
            "PATH": f"{AWS}:{os.environ['PATH']}",
            "HOME": str(home),
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_PAGER": "",
            "IN_THE_POD": " ".join(
                f"{name}={value}"
                for name, value in pod_environ(
                    **guide_environ(), EKSBATCH_DATABASE=database
                ).items()
            ),
        }
        self._state, self._asked = home / "variables", home / "kubectl"

    def follow(self, lines: str) -> str:
        """What is printed; variables and functions live on."""
        there = f". {self._state}\n" if self._state.exists() else ""
        script = f"{there}{STUBS}{lines}\n{{ declare -p | grep -v ' -[a-z]*r'; declare -f; }} > {self._state}"
        ended = subprocess.run(
            ["bash", "-c", script], cwd=ROOT, env=self._environ, capture_output=True, text=True
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    def kubectl(self, *verb: str) -> list[str]:
        """The one call that begins so, less that."""
        asked = [line.split() for line in self._asked.read_text().splitlines()]
        (found,) = [words[len(verb) :] for words in asked if words[: len(verb)] == [*verb]]
        return found


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[ControlPlane]:
    with a_plane(tmp_path / "plane") as plane:
        FakeNodes(plane)
        yield plane


@pytest.fixture
def account(plane: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> Iterator[Account]:
    # moto knows AWS's own policies only if it is told to, because there are many.
    monkeypatch.setenv("MOTO_IAM_LOAD_MANAGED_POLICIES", "true")
    with an_account(plane) as account:
        subnets = list(account.subnets.values())
        account.ec2.create_tags(Resources=subnets, Tags=[{"Key": ELB, "Value": "1"}])
        account.door.cluster["resourcesVpcConfig"] = {
            "subnetIds": subnets,
            "vpcId": account.vpc,
            "clusterSecurityGroupId": account.security_group,
        }
        account.door.access_entries.clear()
        yield account


def test_the_guide_leads_from_an_empty_account_to_a_job_and_back(
    plane: ControlPlane, account: Account, tmp_path: Path
) -> None:
    """
    1. roles, access entry, queue of notices
    2. the service is applied with its image, and told where the database is
    3. it starts with them; both environments are VALID, the job runs
    4. the command line tells of it, with the key of the guide
    5. the way back: nothing is left of what the guide or the service has made
    """
    iam = account.door.client("iam")
    roles_before = {role["RoleName"] for role in iam.list_roles()["Roles"]}
    first, second, third, last = chapters().values()
    home = tmp_path / "home"
    home.mkdir()
    reader = Reader(tmp_path, account.door.url, f"sqlite:///{home / 'eksbatch.db'}")
    reader.follow(first.replace("CLUSTER=batch", "CLUSTER=main"))
    reader.follow(second)
    image, host = reader.follow("echo $IMAGE $HOST").split()
    assert f"image: {image}\n" in (tmp_path / "applied.yaml").read_text()
    (secret,) = [
        word for word in reader.kubectl("-n", "eksbatch", "create", "secret") if "://" in word
    ]
    assert secret.endswith(f"@{host}/eksbatch")
    machines = KwokMachines(plane, account.ec2)
    notices = ("--notices", "eksbatch-notices")
    with (
        Joiner(account.door.url, plane, machines),
        a_service(plane, account, home, *notices) as service,
    ):
        said = reader.follow(
            third.replace("http://127.0.0.1:8642", service.url).replace(POD, f"{POD}{LASTS}, ")
        )
        assert {"SPOT\tVALID", "EC2\tVALID"} <= {
            line.rpartition("\t")[0] for line in said.splitlines()
        }
        job = reader.follow("echo $JOB").strip()
        assert service.wait_for_ends({job}) == {job: "SUCCEEDED"}
        reader.follow(last)
        wait_for_nothing(plane, account, service)
    assert {role["RoleName"] for role in iam.list_roles()["Roles"]} == roles_before
    assert not account.door.client("sqs").list_queues().get("QueueUrls")
    assert not account.door.client("events").list_rules()["Rules"]
    rds = account.door.client("rds")
    assert not rds.describe_db_instances()["DBInstances"]
    assert not rds.describe_db_subnet_groups()["DBSubnetGroups"]


def test_jobs_run_on_nodes_of_your_own_once_they_are_labelled_as_the_readme_says(
    plane: ControlPlane, tmp_path: Path
) -> None:
    """The name of the cluster is of no context here: the only one is meant."""
    _, lines = chapters("README.md")["Nodes of your own"].split(
        "eksbatch serve --cluster kubeconfig\n"
    )
    reader = Reader(tmp_path, "", "")
    with service_for(plane.kubeconfig("eksbatch"), tmp_path / "home") as service:
        service.start()
        reader.follow(lines.replace("http://127.0.0.1:8642", service.url))
        name, label = reader.kubectl("label", "node")
        key, _, uuid = label.partition("=")
        assert key == labels.ENVIRONMENT_UUID
        _, *taints = reader.kubectl("taint", "node")
        assert taints == [f"{taint['key']}:{taint['effect']}" for taint in TAINTS]
        node = eks_node(name.lower(), labels={key: uuid}, taints=TAINTS)
        plane.admin.create("/api/v1/nodes", node)
        batch = service.batch()
        register(batch, "hello", **{"rig/lasts": "0s"})
        asked = {"jobName": "hello", "jobQueue": "default", "jobDefinition": "hello"}
        job = batch.submit_job(**asked, shareIdentifier="today")["jobId"]
        assert service.wait_for_ends({job}) == {job: "SUCCEEDED"}
