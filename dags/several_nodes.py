"""Pi on three machines at once: a multi-node job, whose nodes find each other by what AWS Batch tells them."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from airflow.sdk import DAG

from airflow_eksbatch import EKSBatchOperator

PROGRAM = (Path(__file__).parent / "jobs" / "pi.py").read_text()

with DAG("several_nodes", schedule=None, doc_md=__doc__, tags=["eksbatch", "example"]) as dag:
    EKSBatchOperator(
        task_id="pi",
        command=["python3", "-c", PROGRAM],
        num_nodes=3,
        vcpus=0.5,
        memory=256,
        timeout=timedelta(minutes=10),
    )
