"""A control plane by hand, until Ctrl-C: `python -m tests.kubernetes.rig --nodes 100`."""

from __future__ import annotations

import argparse
import signal
import tempfile
from pathlib import Path

from tests.kubernetes.rig.control_plane import ControlPlane
from tests.kubernetes.rig.fake_nodes import FakeNodes


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.kubernetes.rig", description=__doc__)
    parser.add_argument("--nodes", type=int, default=3, help="how many nodes KWOK plays")
    parser.add_argument("--instance-type", default="m6i.large", help="what they look like")
    parser.add_argument("--scheduler", action="store_true", help="with kube-scheduler")
    parser.add_argument("--directory", type=Path, help="for data and logs; otherwise a new one")
    chosen = parser.parse_args()
    directory = chosen.directory or Path(tempfile.mkdtemp(prefix="eksbatch-rig-"))
    with ControlPlane(directory, audited=True, with_scheduler=chosen.scheduler) as plane:
        FakeNodes(plane).add_many(chosen.nodes, instance_type=chosen.instance_type)
        for identity in ("admin", "eksbatch", "ordinary"):
            print(f"{identity}: KUBECONFIG={plane.kubeconfig(identity)}")
        print(f"{chosen.nodes} nodes; logs in {directory}; Ctrl-C ends it", flush=True)
        signal.sigwait({signal.SIGINT, signal.SIGTERM})


if __name__ == "__main__":
    main()
