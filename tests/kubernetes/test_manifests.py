"""What docker/ installs is taken by a real API server."""

from __future__ import annotations

from pathlib import Path

from tests.kubernetes.rig.control_plane import ControlPlane

DOCKER = Path(__file__).resolve().parents[2] / "docker"


def test_rights_policies_and_the_service_are_installed_as_they_are(plane: ControlPlane) -> None:
    plane.apply(DOCKER / "kubernetes.yaml")
    plane.apply(DOCKER / "service.yaml")
    found = plane.admin.get("/apis/apps/v1/namespaces/eksbatch/deployments/eksbatch")
    assert found["spec"]["replicas"] == 2
