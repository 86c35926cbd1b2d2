"""Runs of the DAGs in `dags/`: started against a service, and where in the cluster their jobs are."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from airflow_eksbatch.core.model import labels
from tests.airflow.processes import wait_for
from tests.airflow.rig import Airflow
from tests.kubernetes.bed import NAMESPACE
from tests.kubernetes.rig.control_plane import ControlPlane
from tests.kubernetes.rig.images import BUSYBOX
from tests.service.running import RunningService

HERE = Path(__file__).resolve().parent
# A triggerer that asks for its first connection builds Airflow's own API first: seconds of CPU, a minute on a busy machine.
JOB_WITHIN_S = 300.0
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"


@contextmanager
def an_airflow() -> Iterator[Airflow]:
    """A real one with these DAGs."""
    env = {
        "PYTHONPATH": str(HERE.parents[1]),
    }
    # Not in pytest's own directory: another pytest would shut the database's user out of it.
    with (
        tempfile.TemporaryDirectory(prefix="cluster-", ignore_cleanup_errors=True) as home,
        Airflow(Path(home), HERE / "dags", env) as running,
    ):
        yield running


def start_run(airflow: Airflow, service: RunningService, dag_id: str, conn_id: str) -> str:
    """Its run id; the DAG's connection leads to this service."""
    airflow.connect(conn_id, service.url)
    airflow.wait_for_dag(dag_id)
    return airflow.rest.trigger(dag_id, dag_run_id=f"r{uuid.uuid4().hex[:8]}")["dag_run_id"]


def job_of(airflow: Airflow, dag_id: str, run_id: str, task_id: str) -> str:
    """From the button, which is there while the task waits."""

    def look() -> str | None:
        return airflow.rest.xcom(dag_id, run_id, task_id, "_link_EKSBatchJobLink")

    found = wait_for(f"the job of {task_id}", look, within_s=JOB_WITHIN_S)
    return found.rpartition("/")[2]


def pod_of(
    plane: ControlPlane, job_id: str, *, not_on: str = "", within_s: float = 120.0
) -> dict[str, Any]:
    """The pod that runs it now, on any node but that one."""
    wanted = {"labelSelector": f"{labels.JOB_ID}={job_id}", "fieldSelector": "status.phase=Running"}

    def look() -> dict[str, Any] | None:
        running = plane.admin.list(PODS, **wanted)
        return next((pod for pod in running if pod["spec"]["nodeName"] != not_on), None)

    return plane.wait_for(f"job {job_id} to run", look, within_s=within_s)


def register_until_told(service: RunningService, told: Path) -> None:
    """The job definition `until-told`: its jobs end when `go` is in that directory, which all nodes share."""
    container = {
        "image": BUSYBOX,
        "command": ["sh", "-c", "echo up; until [ -e /told/go ]; do sleep 0.2; done; echo told"],
        "resources": {"requests": {"cpu": "0.25", "memory": "64Mi"}},
        "volumeMounts": [{"name": "told", "mountPath": "/told"}],
    }
    volume = {"name": "told", "hostPath": {"path": str(told)}}
    service.batch().register_job_definition(
        jobDefinitionName="until-told",
        type="container",
        eksProperties={"podProperties": {"containers": [container], "volumes": [volume]}},
    )
