"""A multi-node job on this machine: its nodes are processes that find each other, and its main node decides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.service.running import RunningService, submit

NODES, MAIN = 3, 1
# Each says what it was told; the main one waits for all of them, and fails at first.
SCRIPT = """
cd {told}
me=$AWS_BATCH_JOB_ATTEMPT.$AWS_BATCH_JOB_NODE_INDEX
trap 'touch $me.stopped; exit 0' TERM
env | grep AWS_BATCH > $me.new; mv $me.new $me.env
if [ $AWS_BATCH_JOB_NODE_INDEX = $AWS_BATCH_JOB_MAIN_NODE_INDEX ]; then
  for n in 0 1 2; do until [ -e $AWS_BATCH_JOB_ATTEMPT.$n.env ]; do sleep 0.02; done; done
  [ $AWS_BATCH_JOB_ATTEMPT = 2 ]; exit
fi
while :; do sleep 0.02; done
"""


def register(batch: Any, told: Path) -> str:
    container = {
        "image": "busybox",
        "command": ["sh", "-c", SCRIPT.format(told=told).replace("$", "$$")],
        "resources": {"requests": {"cpu": "0.25", "memory": "128Mi"}},
    }
    pod = {"podProperties": {"containers": [container]}}
    nodes = [{"targetNodes": "0:", "eksProperties": pod}]
    made = batch.register_job_definition(
        jobDefinitionName="together",
        type="multinode",
        nodeProperties={"numNodes": NODES, "mainNode": MAIN, "nodeRangeProperties": nodes},
    )
    return str(made["jobDefinitionArn"])


def variables(file: Path) -> dict[str, str]:
    lines = (line.partition("=") for line in file.read_text().splitlines())
    return {name.removeprefix("AWS_BATCH_JOB_"): value for name, _, value in lines}


def test_nodes_find_each_other_and_all_run_again_when_the_main_one_fails(
    service: RunningService, tmp_path: Path
) -> None:
    """
    1. three nodes run at once, each on a machine of its own, and know who and where the main one is
    2. the main one fails: the others are told to end, and all run again
    3. the main one succeeds, and so has the job, though the others never ended by themselves
    """
    batch = service.batch()
    job_id = submit(batch, register(batch, tmp_path), retryStrategy={"attempts": 2})
    assert service.wait_for_ends({job_id}) == {job_id: "SUCCEEDED"}
    for attempt in (1, 2):
        for number in range(NODES):
            told = variables(tmp_path / f"{attempt}.{number}.env")
            assert told["ID"] == f"{job_id}#{number}"
            assert told["ATTEMPT"] == str(attempt)
            assert told["NODE_INDEX"] == str(number)
            assert told["MAIN_NODE_INDEX"] == str(MAIN)
            assert told["NUM_NODES"] == str(NODES)
            address = told.get("MAIN_NODE_PRIVATE_IPV4_ADDRESS")
            assert address == (None if number == MAIN else "127.0.0.1")
    stopped = {path.name for path in tmp_path.glob("*.stopped")}
    others = [number for number in range(NODES) if number != MAIN]
    assert stopped == {f"{attempt}.{number}.stopped" for attempt in (1, 2) for number in others}

    (job,) = batch.describe_jobs(jobs=[job_id])["jobs"]
    codes = [each["containers"][0].get("exitCode") for each in job["eksAttempts"]]
    assert codes == [1, 0]
    nodes = batch.describe_jobs(jobs=[f"{job_id}#{number}" for number in range(NODES)])["jobs"]
    machines = {node["eksProperties"]["podProperties"]["nodeName"] for node in nodes}
    assert len(machines) == NODES
