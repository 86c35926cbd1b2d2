"""DAGs of bench_airflow.py: tasks side by side whose jobs wait, at no cost, until one byte is theirs."""

import os
from datetime import UTC, datetime
from typing import Any

from airflow.sdk import DAG

from airflow_eksbatch import EKSBatchOperator

TASKS = int(os.environ["BENCH_TASKS"])
ONE_BYTE: dict[str, Any] = {
    "command": ["head", "-c", "1", os.environ["BENCH_PIPE"]],
    "vcpus": 0.25,
    "memory": 16,
}


def a_dag(dag_id: str) -> DAG:
    began = datetime(2012, 1, 1, tzinfo=UTC)
    return DAG(
        dag_id, schedule=None, start_date=began, max_active_runs=10_000, max_active_tasks=10_000
    )


with a_dag("triggerer"):
    for number in range(TASKS):
        EKSBatchOperator(task_id=f"wait{number}", **ONE_BYTE)

with a_dag("worker"):
    for number in range(TASKS):
        # Only a worker can call this.
        EKSBatchOperator(task_id=f"wait{number}", pre_execute=lambda context: None, **ONE_BYTE)
