"""The rig itself: what the other tests of Kubernetes stand on."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.airflow.processes import wait_for
from tests.kubernetes.rig.api import SaidNo
from tests.kubernetes.rig.control_plane import ControlPlane
from tests.kubernetes.rig.fake_nodes import FakeNodes, eks_node
from tests.kubernetes.rig.images import BUSYBOX
from tests.kubernetes.rig.network import Network
from tests.kubernetes.rig.real_node import RealNode

PODS = "/api/v1/namespaces/default/pods"
NODES = "/api/v1/nodes"
ENDED = ("Succeeded", "Failed")

Json = dict[str, Any]


def a_pod(name: str, node: str, script: str = "true", **more: Any) -> Json:
    """Straight on a node, as we place them."""
    container = {"name": "main", "image": BUSYBOX, "command": ["sh", "-c", script]}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "annotations": more.pop("annotations", {})},
        "spec": {
            "nodeName": node,
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            "containers": [container | more.pop("container", {})],
            **more,
        },
    }


def wait_for_pod(plane: ControlPlane, name: str, is_it: Callable[[Json], bool]) -> Json:
    def look() -> Json | None:
        pod = plane.admin.get(f"{PODS}/{name}")
        return pod if is_it(pod) else None

    return plane.wait_for(f"pod {name}", look)


def phase_is(*phases: str) -> Callable[[Json], bool]:
    return lambda pod: pod["status"]["phase"] in phases


def ended(pod: Json) -> Json:
    """How its one container ended."""
    return pod["status"]["containerStatuses"][0]["state"]["terminated"]


# -- the control plane --


def test_the_api_server_says_its_version_and_knows_who_asks(plane: ControlPlane) -> None:
    assert plane.admin.get("/version")["gitVersion"] == "v1.37.2"
    ordinary = plane.api("ordinary")
    assert ordinary.list(PODS) is not None
    with pytest.raises(SaidNo, match=r'User \\"ordinary\\" cannot list resource \\"nodes\\"'):
        ordinary.list(NODES)
    with pytest.raises(SaidNo, match="system:serviceaccount:eksbatch:eksbatch"):
        plane.api("eksbatch").list("/api/v1/secrets")


def test_every_request_is_on_record(plane: ControlPlane) -> None:
    with pytest.raises(SaidNo):
        plane.api("ordinary").get(f"{NODES}/nowhere")

    def find() -> Json | None:
        seen = [one for one in plane.requests() if "nowhere" in one["requestURI"]]
        return seen[0] if seen else None

    request = plane.wait_for("the request in the audit log", find)
    assert (request["verb"], request["user"]["username"]) == ("get", "ordinary")
    assert request["responseStatus"]["code"] == 403


def test_the_control_plane_comes_back_with_what_it_knew(tmp_path: Path) -> None:
    """1. An API server is killed, 2. etcd stops for a while, 3. all is there, 4. nothing is left."""
    with ControlPlane(tmp_path) as plane:
        plane.create_namespace("kept")
        plane.kill_part("kube-apiserver")
        assert not plane.admin.is_ready()
        plane.start_api()
        with plane.paused("etcd"):
            plane.wait_for("it to miss etcd", lambda: not plane.admin.is_ready())
        plane.wait_for("the API server", plane.admin.is_ready)
        assert plane.admin.get("/api/v1/namespaces/kept")["status"]["phase"] == "Active"
        started = [child.process for child in plane.children.values()]
    assert [one for one in started if one.is_running()] == []


# -- nodes that KWOK plays --


def test_a_fake_node_looks_like_one_of_eks(fake_nodes: FakeNodes, plane: ControlPlane) -> None:
    taint = {"key": "test", "effect": "NoSchedule"}
    fake_nodes.add(eks_node("looks", labels={"a": "b"}, taints=[taint], zone="us-east-1c"))
    node = plane.admin.get(f"{NODES}/looks")
    assert node["metadata"]["labels"]["a"] == "b"
    # Kubernetes adds a taint of its own until the node is ready.
    assert taint in node["spec"]["taints"]
    assert node["status"]["allocatable"]["cpu"] == "1930m"
    fake_nodes.remove("looks")
    assert plane.admin.find(f"{NODES}/looks") is None


def test_a_pod_on_a_fake_node_runs_and_ends_as_it_says(
    fake_nodes: FakeNodes, plane: ControlPlane
) -> None:
    [node, _] = fake_nodes.add_many(2)
    plane.admin.create(PODS, a_pod("stays", node))
    says = {"rig/lasts": "1s", "rig/exit-code": "3"}
    plane.admin.create(PODS, a_pod("fails", node, annotations=says))
    says = {"rig/lasts": "1s"}
    plane.admin.create(PODS, a_pod("succeeds", node, annotations=says))
    assert ended(wait_for_pod(plane, "fails", phase_is("Failed")))["exitCode"] == 3
    assert ended(wait_for_pod(plane, "succeeds", phase_is("Succeeded")))["exitCode"] == 0
    wait_for_pod(plane, "stays", phase_is("Running"))
    plane.admin.delete(f"{PODS}/stays")
    plane.wait_for("its end", lambda: plane.admin.find(f"{PODS}/stays") is None)


def test_the_scheduler_places_what_names_no_node(tmp_path: Path) -> None:
    with ControlPlane(tmp_path, with_scheduler=True) as plane:
        [node] = FakeNodes(plane).add_many(1)
        pod = a_pod("placed", "")
        del pod["spec"]["nodeName"]
        plane.admin.create(PODS, pod)
        assert wait_for_pod(plane, "placed", phase_is("Running"))["spec"]["nodeName"] == node


# -- real nodes --


def test_a_real_container_ends_with_its_code_and_leaves_its_words(
    real_node: RealNode, plane: ControlPlane
) -> None:
    plane.admin.create(PODS, a_pod("real", real_node.name, "echo said by $(hostname); exit 3"))
    pod = wait_for_pod(plane, "real", phase_is(*ENDED))
    assert (pod["status"]["phase"], ended(pod)["exitCode"]) == ("Failed", 3)
    assert plane.admin.text(f"{PODS}/real/log") == "said by real\n"


def test_a_real_container_has_the_memory_it_was_given(
    real_node: RealNode, plane: ControlPlane
) -> None:
    greedy = {"resources": {"limits": {"memory": "16Mi", "cpu": "100m"}}}
    script = "head -c 64m /dev/zero | tail"
    plane.admin.create(PODS, a_pod("greedy", real_node.name, script, container=greedy))
    pod = wait_for_pod(plane, "greedy", phase_is(*ENDED))
    assert (ended(pod)["reason"], ended(pod)["exitCode"]) == ("OOMKilled", 137)


def test_a_host_network_pod_lives_at_its_node_s_address(
    real_node: RealNode, plane: ControlPlane
) -> None:
    script = "ip -o address show eth0; echo named $(hostname)"
    plane.admin.create(PODS, a_pod("hosted", real_node.name, script, hostNetwork=True))
    wait_for_pod(plane, "hosted", phase_is("Succeeded"))
    said = plane.admin.text(f"{PODS}/hosted/log")
    assert real_node.address in said
    assert f"named {real_node.name}" in said


def test_a_node_dies_and_leaves_nothing(plane: ControlPlane, network: Network) -> None:
    """1. Two nodes, one pod each. 2. The kubelet of one dies and comes back: its container runs on.
    3. The other dies with all that is in it. 4. Neither leaves processes, cgroups or links.
    """
    with RealNode(plane, network, "one") as one, RealNode(plane, network, "two") as two:
        for node in (one, two):
            plane.admin.create(PODS, a_pod(f"on-{node.name}", node.name, "sleep 1000"))
            wait_for_pod(plane, f"on-{node.name}", phase_is("Running"))
        sleeping = {each.pid for each in one.processes() if each.name() == "sleep"}
        one.kill_kubelet()
        assert sleeping <= {each.pid for each in one.processes()}
        one.start_kubelet()
        plane.admin.delete(f"{PODS}/on-one")
        plane.wait_for("its end", lambda: plane.admin.find(f"{PODS}/on-one") is None)
        cgroups = two.cgroups()
        assert cgroups
        two.kill()
        assert two.processes() == []
        assert plane.admin.find(f"{PODS}/on-two")
    assert [path for path in cgroups if path.exists()] == []
    for node in (one, two):
        assert node.processes() == []
        wait_for(f"{node.link} to go", lambda link=node.link: not is_there(link), within_s=60)
        plane.admin.delete(f"{NODES}/{node.name}")


def is_there(link: str) -> bool:
    shown = subprocess.run(["ip", "link", "show", link], capture_output=True, check=False)
    return shown.returncode == 0


def test_a_node_that_is_cut_off_is_noticed(plane: ControlPlane, network: Network) -> None:
    with RealNode(plane, network, "far", labels={"far": "away"}) as node:
        assert plane.admin.list(NODES, labelSelector="far=away")
        node.cut_off()

        def is_unreachable() -> bool:
            taints = plane.admin.get(f"{NODES}/far")["spec"].get("taints", ())
            return any(taint["key"] == "node.kubernetes.io/unreachable" for taint in taints)

        plane.wait_for("the controllers to notice", is_unreachable, within_s=300)
        node.reconnect()
        plane.wait_for("it to be back", lambda: not is_unreachable())
    plane.admin.delete(f"{NODES}/far")
