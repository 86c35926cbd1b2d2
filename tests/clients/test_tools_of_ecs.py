"""Nextflow and Metaflow, which know ECS's words only: what they register, look for, submit and read, member by member.

Their requests are written out here as both send them (Nextflow's AwsBatchTaskHandler, Metaflow's batch_client).
"""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

from tests.service.running import RunningService

# Stands for the AWS command line on the machine image: `-` means stdout, a path of S3 a file of $BUCKET.
AWS = """#!/bin/sh
[ "$1 $2 $3" = "s3 cp --only-show-errors" ] || exit 64
file() { case "$1" in s3:*) echo "$BUCKET/${1##*/}" ;; *) echo "$1" ;; esac; }
if [ "$5" = - ]; then cat "$(file "$4")"; else cp "$(file "$4")" "$(file "$5")"; fi
"""


def a_command_line(home: Path) -> Path:
    """<home>/bin/aws and a bucket beside it."""
    tool = home / "bin" / "aws"
    tool.parent.mkdir()
    tool.write_text(AWS)
    tool.chmod(tool.stat().st_mode | stat.S_IEXEC)
    (home / "bucket").mkdir()
    return tool


def described(batch: Any, job_id: str) -> dict[str, Any]:
    (job,) = batch.describe_jobs(jobs=[job_id])["jobs"]
    return dict(job)


def nextflow_registers(batch: Any, tool: Path) -> str:
    """Looks for a definition of its own by its token, and makes one where there is none."""
    name, token = "nf-quay-io-nextflow-bash", "2d5c1a0f3cc28ef9bc5d0d3c9cbb2a9e"
    for found in batch.describe_job_definitions(jobDefinitionName=name)["jobDefinitions"]:
        if found["status"] == "ACTIVE" and found.get("parameters", {}).get("nf-token") == token:
            return f"{name}:{found['revision']}"
    prefix = str(tool.parent.parent)
    made = batch.register_job_definition(
        jobDefinitionName=name,
        type="container",
        parameters={"nf-token": token},
        containerProperties={
            "image": "quay.io/nextflow/bash",
            "command": ["true"],
            "resourceRequirements": [
                {"type": "VCPU", "value": "1"},
                {"type": "MEMORY", "value": "1024"},
            ],
            "jobRoleArn": "arn:aws:iam::000000000000:role/nextflow",
            "executionRoleArn": "arn:aws:iam::000000000000:role/execution",
            "logConfiguration": {
                "logDriver": "awslogs",
                "options": {"awslogs-region": "us-east-1", "awslogs-group": "/nextflow"},
            },
            "mountPoints": [
                {"sourceVolume": "aws-cli", "containerPath": prefix, "readOnly": True},
                {"sourceVolume": "vol-1", "containerPath": "/scratch", "readOnly": False},
            ],
            "volumes": [
                {"name": "aws-cli", "host": {"sourcePath": prefix}},
                {"name": "vol-1", "host": {"sourcePath": "/mnt/scratch"}},
            ],
        },
        tags={"nextflow.io/createdAt": "2026-11-26T05:00:00Z", "nextflow.io/version": "25.10.0"},
    )
    return f"{made['jobDefinitionName']}:{made['revision']}"


def nextflow_submits(batch: Any, queue: str, definition: str, tool: Path) -> str:
    """Its launcher fetches the task's script, runs it, and puts its log away, whatever comes of it."""
    aws = f"{tool} s3 cp --only-show-errors"
    script = (
        f'trap "{{ ret=$?; {aws} .command.log s3://bucket/.command.log||true; exit $ret; }}" EXIT; '
        f"{aws} s3://bucket/.command.run - | bash 2>&1 | tee .command.log"
    )
    made = batch.submit_job(
        jobName="sayHello_1",
        jobQueue=queue,
        jobDefinition=definition,
        tags={"pipeline": "hello"},
        propagateTags=True,
        retryStrategy={
            "attempts": 5,
            "evaluateOnExit": [
                {"action": "RETRY", "onStatusReason": "Host EC2*"},
                {"action": "EXIT", "onReason": "*"},
            ],
        },
        timeout={"attemptDurationSeconds": 3600},
        containerOverrides={
            "command": ["bash", "-o", "pipefail", "-c", script],
            "resourceRequirements": [
                {"type": "MEMORY", "value": "512"},
                {"type": "VCPU", "value": "2"},
            ],
            "environment": [
                {"name": "AWS_RETRY_MODE", "value": "standard"},
                {"name": "BUCKET", "value": str(tool.parent.parent / "bucket")},
            ],
        },
    )
    return str(made["jobId"])


def test_nextflow_runs_a_task(
    service: RunningService, batch: Any, queue: str, tmp_path: Path
) -> None:
    """1 a definition, found again the second time 2 a task that works 3 one that fails: exit code and log."""
    tool = a_command_line(tmp_path)
    bucket = tmp_path / "bucket"
    definition = nextflow_registers(batch, tool)
    assert nextflow_registers(batch, tool) == definition
    (bucket / ".command.run").write_text("echo hello $(expr $$ '*' 0); test -n $AWS_RETRY_MODE\n")
    job_id = nextflow_submits(batch, queue, definition, tool)
    assert service.wait_for_ends({job_id}) == {job_id: "SUCCEEDED"}
    job = described(batch, job_id)
    assert job["container"]["exitCode"] == 0
    assert job["container"]["image"] == "quay.io/nextflow/bash"
    assert (bucket / ".command.log").read_text() == "hello 0\n"
    pod = job["eksProperties"]["podProperties"]
    assert pod["containers"][0]["resources"]["requests"] == {"cpu": "2", "memory": "512Mi"}
    assert [v["hostPath"]["path"] for v in pod["volumes"]] == [str(tmp_path), "/mnt/scratch"]

    (bucket / ".command.run").write_text("echo no good; exit 7\n")
    job_id = nextflow_submits(batch, queue, definition, tool)
    assert service.wait_for_ends({job_id}) == {job_id: "FAILED"}
    job = described(batch, job_id)
    assert job["container"]["exitCode"] == 7
    assert len(job["eksAttempts"]) == 1, "its rules say that only a lost host is tried again"
    stream = job["container"]["logStreamName"]
    assert service.get(f"/v1/eksbatch/jobs/{job_id}/log") == "no good\n"
    assert stream


def metaflow_registers(batch: Any, queue: str) -> str:
    """Asks what the queue's environment is made of, and looks for an ACTIVE definition under a name it has hashed."""
    (found,) = batch.describe_job_queues(jobQueues=[queue])["jobQueues"]
    name = found["computeEnvironmentOrder"][0]["computeEnvironment"]
    (environment,) = batch.describe_compute_environments(computeEnvironments=[name])[
        "computeEnvironments"
    ]
    assert environment["computeResources"]["type"] in ("EC2", "SPOT")
    name = "metaflow_0d4c1ab2c0b8bd7f2f5c6f0b6b5a0a51e1a5f8f65ed1a1f4a7f3a1aa"
    definitions = batch.describe_job_definitions(jobDefinitionName=name, status="ACTIVE")
    if definitions["jobDefinitions"]:
        return str(definitions["jobDefinitions"][0]["jobDefinitionArn"])
    made = batch.register_job_definition(
        jobDefinitionName=name,
        type="container",
        containerProperties={
            "image": "python:3.12",
            "jobRoleArn": "arn:aws:iam::000000000000:role/metaflow",
            "command": ["echo", "hello world"],
            "resourceRequirements": [
                {"value": "1", "type": "VCPU"},
                {"value": "4096", "type": "MEMORY"},
            ],
            "linuxParameters": {
                "sharedMemorySize": 64,
                "tmpfs": [
                    {"containerPath": "/metaflow_temp", "size": 128, "mountOptions": ["defaults"]}
                ],
            },
            "volumes": [{"name": "_home_data", "host": {"sourcePath": "/home.data"}}],
            "mountPoints": [{"sourceVolume": "_home_data", "containerPath": "/home.data"}],
        },
        propagateTags=True,
    )
    return str(made["jobDefinitionArn"])


def test_metaflow_runs_a_step(service: RunningService, batch: Any, queue: str) -> None:
    """1 a definition, found again 2 a step 3 its end as Metaflow reads it: stoppedAt, exit code, reason."""
    definition = metaflow_registers(batch, queue)
    assert metaflow_registers(batch, queue) == definition
    step = "true && mkdir -p $PWD/.logs && (echo $METAFLOW_USER of $$ | wc -w); c=$?; exit $c"
    ids: list[str] = []
    for command in (step, "exit 3"):
        made = batch.submit_job(
            jobDefinition=definition,
            jobName="me-Flow-1-start-2-0",
            jobQueue=queue,
            containerOverrides={
                "command": ["bash", "-c", command],
                "resourceRequirements": [
                    {"value": "1.0", "type": "VCPU"},
                    {"value": "256", "type": "MEMORY"},
                ],
                "environment": [
                    {"name": "AWS_DEFAULT_REGION", "value": "us-east-1"},
                    {"name": "METAFLOW_USER", "value": "me"},
                    {"name": "METAFLOW_SERVICE_HEADERS", "value": '{"x-api-key": "$(none)"}'},
                ],
            },
            timeout={"attemptDurationSeconds": 432000},
            retryStrategy={"attempts": 1},
            tags={"app": "metaflow"},
            parameters={"metaflow.owner": "me"},
        )
        ids.append(made["jobId"])
    assert service.wait_for_ends(set(ids)) == {ids[0]: "SUCCEEDED", ids[1]: "FAILED"}
    good, bad = (described(batch, job_id) for job_id in ids)
    assert good["stoppedAt"] > 0
    assert (good["container"]["exitCode"], bad["container"]["exitCode"]) == (0, 3)
    assert service.get(f"/v1/eksbatch/jobs/{ids[0]}/log").strip() == "3"
    assert bad["statusReason"]
    running = batch.list_jobs(jobQueue=queue, jobStatus="RUNNING")["jobSummaryList"]
    assert not {job["jobId"] for job in running} & set(ids)
