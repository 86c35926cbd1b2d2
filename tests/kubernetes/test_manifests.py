"""What docker/ installs is taken by a real API server, and put in anew it stays what it was."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

from tests.kubernetes.rig.control_plane import ControlPlane

DOCKER = Path(__file__).resolve().parents[2] / "docker"
DEPLOYMENT = "/apis/apps/v1/namespaces/eksbatch/deployments/eksbatch"


def test_rights_policies_and_the_service_are_installed_as_they_are(plane: ControlPlane) -> None:
    plane.apply(DOCKER / "kubernetes.yaml")
    plane.apply(DOCKER / "service.yaml")
    found = plane.admin.get(DEPLOYMENT)
    assert found["spec"]["replicas"] == 2


def test_an_upgrade_as_it_is_written_down_changes_the_image_and_nothing_that_was_set(
    plane: ControlPlane,
) -> None:
    """The lines of docker/eks.md and docker/operating.md, with kubectl itself."""
    plane.apply(DOCKER / "kubernetes.yaml")
    (apply,) = set(re.findall(r'^sed "s\|image.*', guide("operating.md"), re.MULTILINE))
    assert apply in guide("eks.md")
    (set_env,) = re.findall(r"^kubectl .* set env .*", guide("eks.md"), re.MULTILINE)

    def run(*lines: str, image: str) -> None:
        environ = {"IMAGE": image, "AWS_DEFAULT_REGION": "eu-west-1", "PATH": os.environ["PATH"]}
        kubeconfig = {"KUBECONFIG": str(plane.kubeconfig()), "HOME": "/nonexistent"}
        script = "\n".join(("set -eo pipefail", *lines))
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=DOCKER.parent,
            env=environ | kubeconfig,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr

    run(apply, set_env, image="registry/eksbatch:1")
    before = container(plane)
    run(apply, image="registry/eksbatch:2")
    assert before["image"] == "registry/eksbatch:1"
    assert {"name": "EKSBATCH_REGION", "value": "eu-west-1"} in before["env"]
    assert container(plane) == {**before, "image": "registry/eksbatch:2"}


def guide(name: str) -> str:
    return (DOCKER / name).read_text()


def container(plane: ControlPlane) -> dict[str, Any]:
    (found,) = plane.admin.get(DEPLOYMENT)["spec"]["template"]["spec"]["containers"]
    return found
