from airflow.sdk import DAG
from airflow_eksbatch.operators import EKSBatchOperator

with DAG("hello", schedule=None):
    EKSBatchOperator(
        task_id="hello",
        command=["python3", "-c", "print('hello from a batch job')"],
        vcpus=1,
        memory=512,
    )
