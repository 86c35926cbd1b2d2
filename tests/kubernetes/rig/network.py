"""A bridge on this machine that real nodes hang from; the API server listens at its address."""

from __future__ import annotations

import itertools
import subprocess

# 198.18.0.0/15 is set aside for tests of networks: nobody's VPN or cluster is there.
NETWORKS = range(1, 250)
FIRST_NODE = 10


class Network:
    """The first of some networks that no other test has; its nodes' addresses are given out in order."""

    def __init__(self) -> None:
        self.number = next(number for number in NETWORKS if _is_ours(number))
        self.bridge = f"eksb{self.number}"
        self.address = f"198.18.{self.number}.1"
        self._free = itertools.count(FIRST_NODE)
        run("ip", "address", "add", f"{self.address}/24", "dev", self.bridge)
        run("ip", "link", "set", self.bridge, "up")

    def __enter__(self) -> Network:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> None:
        run("ip", "link", "delete", self.bridge)

    def connect(self, pid: int) -> tuple[str, str]:
        """Give that process's network namespace an `eth0` here; the link's name on our side, its address.

        The link goes when the namespace goes.
        """
        number = next(self._free)
        link, address = f"{self.bridge}-{number}", f"198.18.{self.number}.{number}"
        inside = ("nsenter", f"--target={pid}", "--net")
        run("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", str(pid))
        run("ip", "link", "set", link, "master", self.bridge, "up")
        run(*inside, "ip", "address", "add", f"{address}/24", "dev", "eth0")
        run(*inside, "ip", "link", "set", "lo", "up")
        run(*inside, "ip", "link", "set", "eth0", "up")
        # Kubelets ask which way is out to learn who they are.
        run(*inside, "ip", "route", "add", "default", "via", self.address)
        return link, address


def _is_ours(number: int) -> bool:
    """Making the bridge is how to claim a number: only one can."""
    made = ["ip", "link", "add", f"eksb{number}", "type", "bridge"]
    return subprocess.run(made, capture_output=True, check=False).returncode == 0


def run(*command: str) -> str:
    """Its output; an exception with what it said if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr or done.stdout}")
    return done.stdout
