"""Airflow's own BatchOperator, unchanged: only its connection names another endpoint."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.service.running import RunningService, a_definition

WAIT_S = 300
# The operator as a DAG would make it, run as a worker would, its log on stdout.
TASK = """
import json, logging, sys
from datetime import timedelta
from airflow.providers.amazon.aws.operators.batch import BatchOperator

logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s", force=True)
task = BatchOperator(
    task_id="night",
    aws_conn_id="eksbatch",
    awslogs_fetch_interval=timedelta(seconds=1),
    do_xcom_push=False,
    **json.loads(sys.argv[1]),
)
print("returned", task.execute({}))
"""


def run_task(
    service: RunningService, home: Path, **fields: Any
) -> subprocess.CompletedProcess[str]:
    """The whole connection is where the service is; keys are any where it is open."""
    connection = {
        "conn_type": "aws",
        "login": "key",
        "password": "secret",
        "extra": {"endpoint_url": service.url, "region_name": "us-east-1"},
    }
    environ = {
        **os.environ,
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__UNIT_TEST_MODE": "False",
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW_CONN_EKSBATCH": json.dumps(connection),
    }
    return subprocess.run(
        [sys.executable, "-c", TASK, json.dumps(fields)],
        capture_output=True,
        text=True,
        env=environ,
        cwd=home,
        timeout=WAIT_S,
    )


def test_a_task_submits_waits_and_prints_the_output_of_its_pod(
    service: RunningService, batch: Any, queue: str, tmp_path: Path
) -> None:
    """Against AWS itself, awslogs_enabled fails every EKS job: its answer names no container."""
    ended = run_task(
        service,
        tmp_path,
        job_name="night",
        job_queue=queue,
        job_definition=a_definition(batch, "false"),
        container_overrides={"command": ["sh", "-c", "for i in 1 2 3; do echo step $i; done"]},
        awslogs_enabled=True,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    for step in ("step 1", "step 2", "step 3"):
        assert step in ended.stdout
    job_id = ended.stdout.rpartition("returned ")[2].strip()
    (job,) = batch.describe_jobs(jobs=[job_id])["jobs"]
    assert job["status"] == "SUCCEEDED"


def test_a_task_on_several_nodes_prints_the_output_of_the_main_one(
    service: RunningService, batch: Any, queue: str, tmp_path: Path
) -> None:
    """The operator looks for its log stream in the job's attempts, while it runs."""
    line = "for i in 1 2 3; do echo step $i of node $AWS_BATCH_JOB_NODE_INDEX; done"
    resources = {"requests": {"cpu": "0.25", "memory": "128Mi"}}
    container = {"image": "busybox", "command": ["sh", "-c", line], "resources": resources}
    every = {"targetNodes": "0:", "eksProperties": {"podProperties": {"containers": [container]}}}
    made = batch.register_job_definition(
        jobDefinitionName="several",
        type="multinode",
        nodeProperties={"numNodes": 2, "mainNode": 1, "nodeRangeProperties": [every]},
    )
    ended = run_task(
        service,
        tmp_path,
        job_name="night",
        job_queue=queue,
        job_definition=made["jobDefinitionArn"],
        node_overrides={"numNodes": 3},
        awslogs_enabled=True,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    for step in ("step 1 of node 1", "step 2 of node 1", "step 3 of node 1"):
        assert step in ended.stdout
    assert "of node 0" not in ended.stdout


def test_a_job_that_fails_fails_its_task_and_its_output_is_printed(
    service: RunningService, batch: Any, queue: str, tmp_path: Path
) -> None:
    ended = run_task(
        service,
        tmp_path,
        job_name="night",
        job_queue=queue,
        job_definition=a_definition(batch, "sh", "-c", "echo about to fail; exit 4"),
        eks_properties_override={
            "podProperties": {"containers": [{"env": [{"name": "A", "value": "b"}]}]}
        },
        array_properties=None,
        awslogs_enabled=True,
    )
    assert ended.returncode != 0
    assert "about to fail" in ended.stdout
    assert "failed" in ended.stderr
    assert "'exitCode': 4" in ended.stderr
