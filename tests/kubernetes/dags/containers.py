"""DAGs of test_airflow.py and test_ec2.py: what becomes of containers on real nodes."""

from datetime import UTC, datetime
from typing import Any

from airflow.sdk import DAG

from airflow_eksbatch import EKSBatchOperator

SMALL: dict[str, Any] = {"image": "eksbatch.test/busybox:1", "vcpus": 0.25, "memory": 64}
# Of a node's two; two such jobs are on two nodes.
MOST: dict[str, Any] = {"vcpus": 1.25, "memory": 64}
DEAF = "trap 'echo told to stop' TERM; echo up; while :; do sleep 0.2; done"
# Until its node is lost, and then it is not tried again.
LOST = [{"onStatusReason": "Host EC2*", "action": "EXIT"}]


def a_dag(dag_id: str) -> DAG:
    return DAG(dag_id, schedule=None, start_date=datetime(2012, 1, 1, tzinfo=UTC))


with a_dag("containers"):
    nodes: dict[str, Any] = {"conn_id": "nodes", "job_queue": "queue"}
    EKSBatchOperator(task_id="speaks", command="echo hello from $HOSTNAME", **SMALL, **nodes)
    EKSBatchOperator(task_id="fails", command="echo no such month; exit 3", **SMALL, **nodes)
    EKSBatchOperator(
        task_id="again",
        # The second one is heard of while it runs, also by a triggerer that has much to do.
        command="echo attempt $AWS_BATCH_JOB_ATTEMPT; [ $AWS_BATCH_JOB_ATTEMPT = 2 ] && sleep 5",
        attempts=2,
        **SMALL,
        **nodes,
    )
    EKSBatchOperator(task_id="late", command=DEAF, timeout=60, **(SMALL | MOST), **nodes)
    EKSBatchOperator(task_id="moved", job_definition="until-told", **MOST, **nodes)

with a_dag("mortal"):
    EKSBatchOperator(
        task_id="mortal",
        command="echo last words; while :; do sleep 0.2; done",
        retry_strategy={"attempts": 1, "evaluateOnExit": LOST},
        **SMALL,
        conn_id="nodes",
        job_queue="queue",
    )

with a_dag("bought"):
    EKSBatchOperator(
        task_id="bought", job_definition="until-told", conn_id="ec2", job_queue="queue"
    )
