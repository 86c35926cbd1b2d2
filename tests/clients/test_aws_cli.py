"""The AWS command line, unchanged, with AWS_ENDPOINT_URL_BATCH: a whole night's work as its users type it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.service.running import RunningService

AWS = str(Path(sys.executable).with_name("aws"))
ACCOUNT = "arn:aws:batch:us-east-1:000000000000"
Aws = Callable[..., Any]


@pytest.fixture
def aws(service: RunningService, tmp_path: Path) -> Aws:
    """Run `aws`; its answer as JSON, or what it says when it fails."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("AWS")}
    environ |= {
        "AWS_ENDPOINT_URL_BATCH": service.url,
        "AWS_ENDPOINT_URL_CLOUDWATCH_LOGS": service.url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_PAGER": "",
    }

    def run(*words: str, fails: bool = False) -> Any:
        ended = subprocess.run(
            [AWS, *words], capture_output=True, text=True, env=environ, timeout=300
        )
        assert (ended.returncode != 0) == fails, ended.stderr
        if fails:
            return ended.stderr
        return json.loads(ended.stdout) if ended.stdout.strip() else None

    return run


def test_a_night_is_set_up_run_looked_at_and_cleared_away(
    aws: Aws, service: RunningService, tmp_path: Path
) -> None:
    """1 environment and queue 2 a definition from a file 3 an array 4 lists 5 output 6 all of it goes."""
    resources = "type=EC2,minvCpus=0,maxvCpus=4,subnets=subnet-1,instanceTypes=optimal"
    eks = "eksClusterArn=arn:aws:eks:us-east-1:000000000000:cluster/x,kubernetesNamespace=jobs"
    aws("batch", "create-compute-environment", "--compute-environment-name", "cli", "--type",
        "MANAGED", "--compute-resources", resources, "--eks-configuration", eks)  # fmt: skip
    made = aws("batch", "create-job-queue", "--job-queue-name", "cli", "--priority", "1",
               "--compute-environment-order", "order=1,computeEnvironment=cli")  # fmt: skip
    assert made["jobQueueArn"] == f"{ACCOUNT}:job-queue/cli"
    pod = {
        "containers": [
            {
                "image": "busybox",
                "command": ["sh", "-c", "echo child $AWS_BATCH_JOB_ARRAY_INDEX of Ref::what"],
                "resources": {"requests": {"cpu": "0.25", "memory": "64Mi"}},
            }
        ]
    }
    definition = tmp_path / "definition.json"
    definition.write_text(
        json.dumps(
            {
                "jobDefinitionName": "cli",
                "type": "container",
                "eksProperties": {"podProperties": pod},
            }
        )
    )
    found = aws("batch", "register-job-definition", "--cli-input-json", f"file://{definition}")
    assert found["revision"] == 1
    job = aws("batch", "submit-job", "--job-name", "night", "--job-queue", "cli",
              "--job-definition", "cli", "--array-properties", "size=2",
              "--parameters", "what=two", "--tags", "team=bio")  # fmt: skip
    service.wait_for_ends({job["jobId"]})

    (described,) = aws("batch", "describe-jobs", "--jobs", job["jobId"])["jobs"]
    assert described["status"] == "SUCCEEDED"
    assert described["arrayProperties"]["statusSummary"]["SUCCEEDED"] == 2
    assert aws("batch", "list-tags-for-resource", "--resource-arn", job["jobArn"]) == {
        "tags": {"team": "bio"}
    }
    listed = aws("batch", "list-jobs", "--array-job-id", job["jobId"], "--job-status", "SUCCEEDED",
                 "--page-size", "1", "--query", "jobSummaryList[].jobId")  # fmt: skip
    assert listed == [f"{job['jobId']}:0", f"{job['jobId']}:1"]

    stream = aws("batch", "describe-jobs", "--jobs", listed[1],
                 "--query", "jobs[0].container.logStreamName")  # fmt: skip
    events = aws("logs", "get-log-events", "--log-group-name", "/aws/batch/job",
                 "--log-stream-name", stream, "--query", "events[].message")  # fmt: skip
    assert events == ["child 1 of two"]

    aws("batch", "update-job-queue", "--job-queue", "cli", "--state", "DISABLED")
    aws("batch", "delete-job-queue", "--job-queue", "cli")
    aws(
        "batch", "update-compute-environment", "--compute-environment", "cli", "--state", "DISABLED"
    )
    aws("batch", "deregister-job-definition", "--job-definition", "cli:1")


def test_what_is_refused_reaches_the_terminal(aws: Aws) -> None:
    said = aws("batch", "submit-job", "--job-name", "x", "--job-queue", "nowhere",
               "--job-definition", "none", fails=True)  # fmt: skip
    assert "ClientException" in said
    assert "RegisterJobDefinition makes it" in said
