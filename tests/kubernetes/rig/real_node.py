"""A real node on this machine: kubelet, containerd and containers in namespaces of their own.

Their first process is the machine: when it dies, the kernel ends every process and mount of the node. What
outlives it are its containers' cgroups, empty then; they are found by their ids.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import psutil

from tests.airflow.processes import Child, Gone, wait_for
from tests.kubernetes.rig.binaries import binary
from tests.kubernetes.rig.control_plane import ControlPlane
from tests.kubernetes.rig.fake_nodes import is_ready
from tests.kubernetes.rig.images import PAUSE, write_images
from tests.kubernetes.rig.network import Network, run

READY_WITHIN_S = 180.0
CGROUPS = Path("/sys/fs/cgroup")
NAMESPACES = ("--mount", "--net", "--pid", "--uts", "--ipc")
# A machine with empty disks; it also collects what is orphaned in it, as an init does.
MACHINE = """
for each in /run /var/lib /var/log; do mount -t tmpfs tmpfs $each; done
hostname "$1" && touch "$2" && while sleep 1000d; do :; done
"""
CONTAINERD = """
version = 2
root = "{directory}/containerd"
state = "/run/containerd"
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  # Machines without CAP_SYS_RESOURCE cannot protect one process more than another.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    # Works on every file system, also on another overlay.
    snapshotter = "native"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{directory}/cni"
"""
FULL = (
    "memory.available",
    "nodefs.available",
    "nodefs.inodesFree",
    "imagefs.available",
    "imagefs.inodesFree",
)
POD_NETWORK = {
    "cniVersion": "1.0.0",
    "name": "pods",
    "plugins": [
        {
            "type": "bridge",
            "bridge": "pods",
            "isGateway": True,
            "ipam": {"type": "host-local", "ranges": [[{"subnet": "198.19.0.0/24"}]]},
        }
    ],
}

Taint = Mapping[str, str]


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """What a machine knows of its cluster when it boots."""

    kubeconfig: Path
    authority: Path
    """Whom it believes: the API server shows a certificate of it, and so do those who ask its kubelet."""
    kubelet: Mapping[str, Any]
    """Members of KubeletConfiguration."""
    flags: tuple[str, ...]
    """Of the kubelet."""


class RealNode:
    """Ready when made. Needs root and what tests/install.sh installs."""

    def __init__(
        self,
        plane: ControlPlane,
        network: Network,
        name: str,
        *,
        labels: Mapping[str, str] | None = None,
        taints: Iterable[Taint] = (),
        max_pods: int = 29,
        told: Told | None = None,
    ) -> None:
        """`told`: everything that is said above, in the words of who made the machine."""
        self.name = name
        self.directory = plane.directory / name
        self._plane = plane
        self._told = told or Told(
            kubeconfig=plane.identities.kubeconfig_of_node(name),
            authority=plane.identities.certificate,
            kubelet={"registerWithTaints": [*taints], "maxPods": max_pods},
            flags=(f"--node-labels={','.join(f'{k}={v}' for k, v in (labels or {}).items())}",),
        )
        self._children: dict[str, Child] = {}
        (self.directory / "cni").mkdir(parents=True)
        try:
            self._pid = self._start_machine()
            self.link, self.address = network.connect(self._pid)
            self._write_files()
            self._start("containerd", "containerd", f"--config={self.directory}/containerd.toml")
            self._import_images()
            self.start_kubelet()
            self._wait("to be Ready", self._is_ready)
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> RealNode:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # -- what happens to machines --

    def kill(self) -> None:
        """As when the power goes: everything in it ends at once. Kubernetes is not told."""
        if machine := self._children.get("machine"):
            # Its first process ends after all others in it; only then does `unshare` end.
            for first in machine.process.children() or [machine.process]:
                _kill(first)
        for child in self._children.values():
            child.wait()
        self._children.clear()

    def stop(self) -> None:
        """Kill it and leave nothing behind but its log files and its Node object."""
        self.kill()
        for path in self.cgroups():
            path.rmdir()
        shutil.rmtree(self.directory / "containerd", ignore_errors=True)

    def start_kubelet(self) -> None:
        self._start(
            "kubelet",
            str(binary("kubelet")),
            f"--config={self.directory}/kubelet.json",
            f"--kubeconfig={self._told.kubeconfig}",
            f"--hostname-override={self.name}",
            f"--node-ip={self.address}",
            *self._told.flags,
        )

    def kill_kubelet(self) -> None:
        """Containers run on; the node falls silent."""
        child = self._children.pop("kubelet")
        for process in child.process.children():
            _kill(process)
        child.wait()

    def reconfigure_kubelet(self, **members: Any) -> None:
        """It begins again with these members of KubeletConfiguration, and what was said before."""
        self.kill_kubelet()
        self._write_kubelet_configuration(**members)
        self.start_kubelet()

    def cut_off(self) -> None:
        """Nothing of it is heard, and nothing reaches it."""
        run("ip", "link", "set", self.link, "down")

    def reconnect(self) -> None:
        run("ip", "link", "set", self.link, "up")

    # -- looking in --

    def run(self, *command: str) -> str:
        """The output of a command in it, such as `crictl`'s little brother `ctr`."""
        return run(*self._inside(), *command)

    def processes(self) -> list[psutil.Process]:
        """All that is alive in it, containers too."""
        mine = _pid_namespace(self._pid)
        return [one for one in psutil.process_iter() if mine and _pid_namespace(one.pid) == mine]

    def cgroups(self) -> list[Path]:
        """Of its containers: what remains of them when they are killed. The innermost first."""
        kept = self.directory.glob("containerd/io.containerd.grpc.v1.cri/*/*")
        ids = {path.name for path in kept}
        walk = os.walk(CGROUPS, topdown=False)
        return [Path(each) for each, _, _ in walk if not ids.isdisjoint(Path(each).parts)]

    # -- how it comes up --

    def _start_machine(self) -> int:
        """The id of its first process, in this machine's count."""
        up = self.directory / "up"
        script = ["sh", "-ec", MACHINE, "machine", self.name, str(up)]
        unshare = ["unshare", *NAMESPACES, "--fork", "--kill-child", "--mount-proc"]
        child = self._child("machine", [*unshare, *script])
        wait_for(f"{self.name} to be up", up.exists, within_s=READY_WITHIN_S, children=(child,))
        return child.process.children()[0].pid

    def _inside(self) -> tuple[str, ...]:
        return ("nsenter", f"--target={self._pid}", *NAMESPACES, "--")

    def _start(self, name: str, *command: str) -> None:
        self._child(name, [*self._inside(), *command])

    def _child(self, name: str, command: list[str]) -> Child:
        log = self.directory / f"{name}.log"
        environ = {"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin", "HOME": "/"}
        child = Child(f"{name} of {self.name}", command, env=environ, log=log, cwd=self.directory)
        self._children[name] = child
        return child

    def _write_files(self) -> None:
        directory = self.directory
        containerd = CONTAINERD.format(directory=directory, pause=PAUSE)
        (directory / "containerd.toml").write_text(containerd)
        (directory / "cni" / "pods.conflist").write_text(json.dumps(POD_NETWORK))
        self._write_kubelet_configuration()

    def _write_kubelet_configuration(self, **members: Any) -> None:
        given = _kubelet_configuration(self._told.authority)
        written = json.dumps({**given, **self._told.kubelet, **members})
        (self.directory / "kubelet.json").write_text(written)

    def _import_images(self) -> None:
        images = self._plane.directory / "images.tar"
        if not images.exists():
            write_images(images)

        def is_up() -> bool:
            try:
                self.run("ctr", "version")
            except RuntimeError:
                return False
            return True

        self._wait("to have containerd", is_up)
        self.run("ctr", "--namespace=k8s.io", "images", "import", str(images))
        images_there = self.run("ctr", "--namespace=k8s.io", "images", "list", "--quiet")
        if PAUSE not in images_there:
            raise Gone(f"{self.name} did not take the images: {images_there}")

    def _is_ready(self) -> bool:
        node = self._plane.admin.find(f"/api/v1/nodes/{self.name}")
        return node is not None and is_ready(node)

    def _wait(self, what: str, look: Any) -> None:
        children = tuple(self._children.values())
        wait_for(f"{self.name} {what}", look, within_s=READY_WITHIN_S, children=children)


def _kubelet_configuration(certificate: Path) -> dict[str, Any]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(certificate)},
        },
        "authorization": {"mode": "Webhook"},
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "cgroupDriver": "cgroupfs",
        # This may be a container itself, with cgroups of the old kind and swap.
        "failCgroupV1": False,
        "cgroupsPerQOS": False,
        "enforceNodeAllocatable": [],
        "failSwapOn": False,
        "oomScoreAdj": 0,
        # The machine is shared: how full its disk is says nothing about this node.
        "evictionHard": dict.fromkeys(FULL, "0%"),
        "evictionPressureTransitionPeriod": "1s",
        "volumeStatsAggPeriod": "1s",
        "imageGCHighThresholdPercent": 100,
        "resolvConf": "",
        "volumePluginDir": "/var/lib/kubelet/plugins-of-others",
        "nodeStatusUpdateFrequency": "2s",
        "registerNode": True,
    }


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return


def _pid_namespace(pid: int) -> str:
    """Empty when the process has gone."""
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return ""
