"""A multi-node job on two real nodes: its pods find each other over the network, and the main one's end is the job's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from airflow_eksbatch.core.model import labels
from tests.contracts.test_cluster import BUSYBOX
from tests.kubernetes.bed import a_plane, service_for
from tests.kubernetes.load import PODS, set_up, submit
from tests.kubernetes.rig.control_plane import ControlPlane
from tests.kubernetes.rig.network import Network
from tests.kubernetes.rig.real_node import RealNode
from tests.service.running import RunningService

# The main node's pod has its machine's network: nobody else listens there.
PORT = 18081
# Its input stays open: at its end `nc` would say so to the other one, which may then leave before it has said anything.
MAIN = f"echo main; mkfifo /tmp/open; nc -l -p {PORT} 0<>/tmp/open"
OTHER = f"""
trap 'echo told to end; exit 0' TERM
main=$$AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS
echo main is at $$main
until echo hello from node $$AWS_BATCH_JOB_NODE_INDEX | nc -w 5 $$main {PORT}; do sleep 0.1; done
while :; do sleep 0.05; done
"""


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory, network: Network) -> Iterator[ControlPlane]:
    with a_plane(tmp_path_factory.mktemp("plane"), address=network.address) as plane:
        yield plane


@pytest.fixture
def service(plane: ControlPlane, tmp_path: Path) -> Iterator[RunningService]:
    home = tmp_path / "home"
    with service_for(plane.kubeconfig("eksbatch"), home, "--check-plans") as service:
        yield service.start()


def a_range(targets: str, script: str) -> dict[str, object]:
    container = {
        "image": BUSYBOX,
        "command": ["sh", "-c", script],
        "resources": {"requests": {"cpu": "0.25", "memory": "32Mi"}},
    }
    properties = {"podProperties": {"containers": [container]}}
    return {"targetNodes": targets, "eksProperties": properties}


def output_of(service: RunningService, job_id: str) -> str:
    return service.get(f"/v1/eksbatch/jobs/{quote(job_id, safe='')}/log")


def test_the_other_node_reaches_the_main_one_and_ends_after_it(
    plane: ControlPlane, network: Network, service: RunningService
) -> None:
    """
    1. the job waits while there is one machine, and runs when there are two
    2. the other node's pod connects to the main node's address, and goes on
    3. the main node has heard from it and ends: the other one is told to, and the job has SUCCEEDED
    4. they were on two machines; no pod is left
    """
    batch = service.batch()
    given = {labels.ENVIRONMENT_UUID: set_up(batch, plane)}
    batch.register_job_definition(
        jobDefinitionName="pair",
        type="multinode",
        nodeProperties={
            "numNodes": 2,
            "mainNode": 0,
            "nodeRangeProperties": [a_range("0", MAIN), a_range("1:", OTHER)],
        },
    )
    with RealNode(plane, network, "left", labels=given):
        job_id = submit(batch, "pair")
        alone = "Of a kind there are 1 that could hold one of its pods."
        reasons = f"/v1/eksbatch/jobs/{job_id}/explain"
        plane.wait_for("one machine to be too few", lambda: alone in str(service.get(reasons)))
        assert not plane.admin.list(PODS)
        with RealNode(plane, network, "right", labels=given):
            assert service.wait_for_ends({job_id}) == {job_id: "SUCCEEDED"}
            main, other = batch.describe_jobs(jobs=[f"{job_id}#0", f"{job_id}#1"])["jobs"]
            hosts = [one["eksProperties"]["podProperties"]["nodeName"] for one in (main, other)]
            assert sorted(hosts) == ["left", "right"]
            addresses = plane.admin.get(f"/api/v1/nodes/{hosts[0]}")["status"]["addresses"]
            (address,) = (a["address"] for a in addresses if a["type"] == "InternalIP")
            assert output_of(service, job_id) == "main\nhello from node 1\n"
            assert output_of(service, f"{job_id}#1") == f"main is at {address}\ntold to end\n"
            assert other["status"] == "FAILED"
            assert other["statusReason"] == "The main node of its multi-node parallel job has ended"
            plane.wait_for("no pod to be left", lambda: not plane.admin.list(PODS))
