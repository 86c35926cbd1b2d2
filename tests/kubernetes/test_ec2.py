"""From submit to nothing left: moto is AWS, and a joiner boots what is bought, from its user data alone."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_eksbatch.cloud.aws.user_data import ClusterAddress, node_config, user_data
from tests.airflow.rig import Airflow
from tests.cloud.account import PROFILE, Account
from tests.kubernetes.bed import a_plane
from tests.kubernetes.dag_runs import job_of, pod_of, register_until_told, start_run
from tests.kubernetes.on_ec2 import (
    a_service,
    an_account,
    create_environment,
    create_queue,
    wait_for_nothing,
)
from tests.kubernetes.rig.control_plane import ControlPlane
from tests.kubernetes.rig.fake_nodes import FakeNodes
from tests.kubernetes.rig.identities import Identities
from tests.kubernetes.rig.images import BUSYBOX
from tests.kubernetes.rig.joiner import Joiner, Machine
from tests.kubernetes.rig.machines import KwokMachines, RealMachines
from tests.kubernetes.rig.network import Network
from tests.service.running import RunningService

Json = dict[str, Any]
HASTE_S = 20
SHAPES = {"thin": ("0.25", "512Mi"), "wide": ("1.5", "512Mi"), "fat": ("0.25", "5120Mi")}


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory, network: Network) -> Iterator[ControlPlane]:
    """With a scheduler, which DaemonSets need."""
    directory = tmp_path_factory.mktemp("plane")
    with a_plane(directory, address=network.address, with_scheduler=True) as plane:
        FakeNodes(plane)
        yield plane


@pytest.fixture(scope="module")
def account(plane: ControlPlane) -> Iterator[Account]:
    with an_account(plane) as account:
        yield account


@pytest.fixture
def service(plane: ControlPlane, account: Account, tmp_path: Path) -> Iterator[RunningService]:
    with a_service(plane, account, tmp_path / "home") as service:
        yield service


@pytest.fixture
def hasty(plane: ControlPlane, account: Account, tmp_path: Path) -> Iterator[RunningService]:
    """It does not wait long for machines."""
    home = tmp_path / "home"
    with a_service(plane, account, home, "--join-s", str(HASTE_S)) as service:
        yield service


@pytest.fixture
def joiner(plane: ControlPlane, account: Account) -> Iterator[Joiner]:
    """Machines that KWOK plays."""
    with Joiner(account.door.url, plane, KwokMachines(plane, account.ec2)) as joiner:
        yield joiner


@pytest.fixture
def builder(plane: ControlPlane, account: Account, network: Network) -> Iterator[Joiner]:
    """Real machines."""
    with Joiner(account.door.url, plane, RealMachines(plane, network)) as joiner:
        yield joiner


@pytest.fixture
def daemons(plane: ControlPlane) -> Iterator[str]:
    """A DaemonSet for every node, which takes a moment to come up; its label."""
    container = {"name": "main", "image": BUSYBOX, "command": ["sleep", "1000d"]}
    first = {"name": "first", "image": BUSYBOX, "command": ["sleep", "2"]}
    pod = {
        "tolerations": [{"operator": "Exists"}],
        "initContainers": [first],
        "containers": [container],
        "hostNetwork": True,
        "terminationGracePeriodSeconds": 0,
    }
    marked = {"app": "daemon"}
    daemon_set = {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": "daemon", "namespace": "kube-system"},
        "spec": {
            "selector": {"matchLabels": marked},
            "template": {"metadata": {"labels": marked}, "spec": pod},
        },
    }
    plane.apply(daemon_set)
    yield "app=daemon"
    plane.admin.delete(plane.admin.path_of(daemon_set), propagationPolicy="Foreground")


def register(service: RunningService, name: str, cpu: str, memory: str, **notes: str) -> str:
    container = {
        "image": BUSYBOX,
        "command": ["true"],
        "resources": {"requests": {"cpu": cpu, "memory": memory}},
    }
    pod = {"containers": [container], "metadata": {"annotations": notes}}
    made = service.batch().register_job_definition(
        jobDefinitionName=name, type="container", eksProperties={"podProperties": pod}
    )
    return str(made["jobDefinitionArn"])


def submit(service: RunningService, definition: str, **fields: Any) -> str:
    made = service.batch().submit_job(
        jobName="j", jobQueue="queue", jobDefinition=definition, **fields
    )
    return str(made["jobId"])


# ---- what a machine makes of its user data

CLUSTERS = {
    "no name": ({"name": ""}, "Name is missing in cluster configuration"),
    "another name": ({"name": "other"}, "Unauthorized: the token is for the cluster other"),
    "no endpoint": ({"apiServerEndpoint": ""}, "Apiserver endpoint is missing"),
    "nobody there": ({"apiServerEndpoint": "https://127.0.0.1:1"}, "Connection refused"),
    "no authority": ({"certificateAuthority": ""}, "Certificate authority is missing"),
    "no base64": ({"certificateAuthority": "-----"}, "cluster configuration: "),
    "no addresses": ({"cidr": "ten"}, "cluster configuration: 'ten' does not appear"),
}
DOCUMENTS = {
    "a script": ("#!/bin/sh\ntrue", "NodeConfig: not an object"),
    "no YAML": ("kind: [NodeConfig", "NodeConfig: while parsing"),
    "another kind": ("apiVersion: v1\nkind: Pod", "no kind 'Pod' is known in 'v1'"),
    "no part for it": (
        "Content-Type: multipart/mixed; boundary=b\n\n--b\n\ntrue\n--b--\n",
        "could not find NodeConfig within UserData",
    ),
}


def a_node_config(plane: ControlPlane, account: Account, **labelled: str) -> Json:
    """What the service tells a node of this account."""
    address = ClusterAddress(
        name="main",
        endpoint=plane.url,
        certificate_authority=account.door.cluster["certificateAuthority"]["data"],
        service_cidr="10.96.0.0/16",
    )
    return node_config(address, labelled, 29)


def never_joins(plane: ControlPlane, account: Account, joiner: Joiner, document: str) -> str:
    """What the console of a machine with this user data says."""
    made = account.ec2.run_instances(
        ImageId=account.image,
        InstanceType="m5.large",
        MinCount=1,
        MaxCount=1,
        UserData=document,
        NetworkInterfaces=[
            {
                "DeviceIndex": 0,
                "SubnetId": account.subnets["us-east-1a"],
                "DeleteOnTermination": True,
            }
        ],
        IamInstanceProfile={"Name": PROFILE},
    )
    instance_id = made["Instances"][0]["InstanceId"]
    said = plane.wait_for("a word of why it does not join", lambda: joiner.misled.get(instance_id))
    assert not plane.admin.list("/api/v1/nodes")
    account.ec2.terminate_instances(InstanceIds=[instance_id])
    return said


@pytest.mark.parametrize("name", CLUSTERS)
def test_a_machine_that_is_told_of_a_wrong_cluster_never_joins(
    plane: ControlPlane, account: Account, joiner: Joiner, name: str
) -> None:
    changes, sentence = CLUSTERS[name]
    config = a_node_config(plane, account)
    config["spec"]["cluster"] |= changes
    assert sentence in never_joins(plane, account, joiner, user_data(config))


def test_a_machine_joins_nobody_but_whom_it_was_told_to_believe(
    plane: ControlPlane, account: Account, joiner: Joiner, tmp_path: Path
) -> None:
    strangers = Identities(tmp_path / "strangers", "127.0.0.1", "").certificate.read_bytes()
    config = a_node_config(plane, account)
    authority = base64.b64encode(strangers).decode()
    config["spec"]["cluster"]["certificateAuthority"] = authority
    said = never_joins(plane, account, joiner, user_data(config))
    assert "certificate verify failed" in said


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_machine_that_is_told_nothing_it_understands_never_joins(
    plane: ControlPlane, account: Account, joiner: Joiner, name: str
) -> None:
    document, sentence = DOCUMENTS[name]
    assert sentence in never_joins(plane, account, joiner, document)


def test_a_kubelet_refuses_labels_that_are_kubernetes_own(
    plane: ControlPlane, account: Account, joiner: Joiner
) -> None:
    config = a_node_config(plane, account, **{"node.k8s.io/mine": "1"})
    said = never_joins(plane, account, joiner, user_data(config))
    assert "unknown 'kubernetes.io' or 'k8s.io' labels" in said


# ---- from zero to zero


def test_a_burst_of_jobs_of_several_shapes_gets_its_instances_and_leaves_nothing(
    plane: ControlPlane, account: Account, service: RunningService, joiner: Joiner
) -> None:
    """
    1. at zero, 201 jobs of three shapes are submitted
    2. instances are bought, join from their user data, and every job ends
    3. no instance, node, pod or vCPU is left; each instance was a node of ours
    """
    create_environment(service, account)
    create_queue(service, "ce")
    definitions = [
        register(service, name, *shape, **{"rig/lasts": "1s"}) for name, shape in SHAPES.items()
    ]
    arrays = {submit(service, each, arrayProperties={"size": 67}) for each in definitions}
    assert set(service.wait_for_ends(arrays).values()) == {"SUCCEEDED"}
    wait_for_nothing(plane, account, service)
    summary = service.get("/v1/eksbatch/summary")
    assert summary["jobs"]["SUCCEEDED"] == 201
    assert summary["instances"]["launched"] == len(joiner.nodes)


def test_a_machine_that_takes_its_time_is_waited_for(
    plane: ControlPlane, account: Account, service: RunningService, joiner: Joiner
) -> None:
    joiner.delay_s = lambda machine: 5.0
    create_environment(service, account)
    create_queue(service, "ce")
    job = submit(service, register(service, "short", "1", "512Mi", **{"rig/lasts": "0s"}))
    assert service.wait_for_ends({job}) == {job: "SUCCEEDED"}
    wait_for_nothing(plane, account, service)
    assert service.get("/v1/eksbatch/summary")["instances"]["launched"] == 1


def test_where_a_machine_never_joins_another_is_tried_elsewhere(
    plane: ControlPlane, account: Account, hasty: RunningService, joiner: Joiner
) -> None:
    """1. what is bought first never comes up; 2. it is ended in time; 3. its job runs in the other zone; 4. nothing is left."""
    never: set[str] = set()

    def delay_s(machine: Machine) -> float | None:
        never.update({machine.zone} if not never else ())
        return None if machine.zone in never else 0.0

    joiner.delay_s = delay_s
    create_environment(hasty, account, instanceTypes=["m5.large"])
    create_queue(hasty, "ce")
    job = submit(hasty, register(hasty, "short", "1", "512Mi", **{"rig/lasts": "0s"}))
    assert hasty.wait_for_ends({job}) == {job: "SUCCEEDED"}
    assert f"did not join within {HASTE_S} s" in hasty.text
    wait_for_nothing(plane, account, hasty)
    assert hasty.get("/v1/eksbatch/summary")["instances"]["launched"] == 2


def test_a_task_of_airflow_buys_a_machine_whose_kubelet_runs_its_container(
    plane: ControlPlane,
    account: Account,
    service: RunningService,
    builder: Joiner,
    daemons: str,
    airflow: Airflow,
    tmp_path: Path,
) -> None:
    """
    1. at zero, a task submits a job; an instance is bought, and a kubelet boots from its user data
    2. the DaemonSet's pod runs first, then the job's container
    3. its output is in the task's log, and of the machine nothing is left
    """
    create_environment(service, account)
    create_queue(service, "ce")
    register_until_told(service, tmp_path)
    run = start_run(airflow, service, "bought", "ec2")
    pod = pod_of(plane, job_of(airflow, "bought", run, "bought"))
    node = plane.admin.get(f"/api/v1/nodes/{pod['spec']['nodeName']}")
    (instance,) = account.instances("running")
    zone = instance["Placement"]["AvailabilityZone"]
    assert node["spec"]["providerID"] == f"aws:///{zone}/{instance['InstanceId']}"
    assert node["metadata"]["labels"]["node.kubernetes.io/instance-type"] == "m5.large"
    assert pod["metadata"]["creationTimestamp"] >= daemon_ready_at(plane, daemons, node)
    (tmp_path / "go").touch()
    assert airflow.wait_for_run("bought", run) == "success"
    assert "] told" in airflow.rest.task_log("bought", run, "bought")
    wait_for_nothing(plane, account, service)
    assert builder.machine_of(instance["InstanceId"]) is None
    assert service.get("/v1/eksbatch/summary")["instances"]["launched"] == 1


def daemon_ready_at(plane: ControlPlane, label: str, node: Json) -> str:
    """When the DaemonSet's pod on this node was ready, to the second."""
    pods = plane.admin.list("/api/v1/namespaces/kube-system/pods", labelSelector=label)
    (pod,) = [pod for pod in pods if pod["spec"].get("nodeName") == node["metadata"]["name"]]
    (ready,) = [one for one in pod["status"]["conditions"] if one["type"] == "Ready"]
    assert ready["status"] == "True"
    return ready["lastTransitionTime"]
