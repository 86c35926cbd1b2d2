"""A control plane for all tests of a run, real nodes for those that ask; `make test-cluster` runs them."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.airflow.rig import Airflow
from tests.kubernetes.dag_runs import an_airflow
from tests.kubernetes.rig.control_plane import ControlPlane
from tests.kubernetes.rig.fake_nodes import FakeNodes
from tests.kubernetes.rig.network import Network
from tests.kubernetes.rig.real_node import RealNode


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    """`make test` needs Python and make, no more: these tests, with Go and root, are asked for by name."""
    asked_for = [Path(argument.partition("::")[0]) for argument in config.args]
    return None if any("kubernetes" in path.parts for path in asked_for) else True


def pytest_sessionstart() -> None:
    """Asked to end, end as with Ctrl-C: control planes and nodes outlive nobody."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.fixture(scope="session")
def network() -> Iterator[Network]:
    with Network() as network:
        yield network


@pytest.fixture(scope="session")
def plane(tmp_path_factory: pytest.TempPathFactory, network: Network) -> Iterator[ControlPlane]:
    """Shared: a test has namespaces and nodes of its own, and kills nothing here."""
    directory = tmp_path_factory.mktemp("plane")
    with ControlPlane(directory, address=network.address, audited=True) as plane:
        yield plane


@pytest.fixture(scope="session")
def fake_nodes(plane: ControlPlane) -> FakeNodes:
    return FakeNodes(plane)


@pytest.fixture(scope="session")
def real_node(plane: ControlPlane, network: Network) -> Iterator[RealNode]:
    """Shared as well; its name is `real`."""
    with RealNode(plane, network, "real") as node:
        yield node


@pytest.fixture(scope="session")
def airflow() -> Iterator[Airflow]:
    """Which service is meant is said by connections, made by tests."""
    with an_airflow() as airflow:
        yield airflow
