"""DAGs of test_in_airflow.py: each way in which a task can start, wait and end."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, Asset, CronDataIntervalTimetable, task

from airflow_eksbatch import EKSBatchJobQueueSensor, EKSBatchJobSensor, EKSBatchOperator

SMALL: dict[str, Any] = {"vcpus": 0.25, "memory": 64}
FOREVER = ["sleep", "600"]
PI = (Path(__file__).parents[3] / "dags" / "jobs" / "pi.py").read_text()


def a_dag(dag_id: str) -> DAG:
    return DAG(dag_id, schedule=None, start_date=datetime(2012, 1, 1, tzinfo=UTC))


with a_dag("no_worker"):
    EKSBatchOperator(
        task_id="hello",
        command="echo hello $WHO from {{ dag_run.run_type }} {{ ti.try_number }} {{ params.x }}",
        env={"WHO": "{{ var.value.get('nobody', 'world') }}"},
        params={"x": 7},
        **SMALL,
    )
    EKSBatchOperator(
        task_id="nodes",
        command=["python3", "-c", PI],
        num_nodes="{{ params.n }}",
        params={"n": 3},
        **SMALL,
    )

with a_dag("worker"):

    @task
    def words() -> list[str]:
        return ["echo", "from xcom"]

    hello = EKSBatchOperator(task_id="hello", command=["true"], **SMALL)
    EKSBatchOperator(task_id="fed", command=words(), **SMALL)  # type: ignore[arg-type]
    EKSBatchOperator(task_id="blocking", command=["true"], deferrable=False, **SMALL)
    EKSBatchOperator(task_id="outlets", command=["true"], outlets=[Asset("x://y")], **SMALL)
    EKSBatchOperator.partial(task_id="mapped", **SMALL).expand(command=[["true"], ["echo", "b"]])
    EKSBatchJobSensor(task_id="sensor", job_id=hello.output)  # type: ignore[arg-type]
    EKSBatchJobQueueSensor(task_id="queue", job_queue="default")

with a_dag("failing"):
    loud = "echo no such month >&2; exit 3"
    again = {"retries": 1, "retry_delay": timedelta(seconds=1)}
    EKSBatchOperator(task_id="retried", command=loud, **again, **SMALL)
    EKSBatchOperator(task_id="blocking", command=loud, deferrable=False, **SMALL)
    EKSBatchOperator(task_id="refused", command=["true"], job_queue="nowhere", **again, **SMALL)
    EKSBatchOperator(
        task_id="late", command=FOREVER, execution_timeout=timedelta(seconds=5), **SMALL
    )


def told(kind: str) -> Any:
    """A callback that writes down what it knows."""

    def tell(context: Any) -> None:
        place = Path(os.environ["AIRFLOW_HOME"]) / f"{context['ti'].task_id}.{kind}"
        place.write_text(f"{context['dag_run'].run_id}: {context.get('exception')}")

    return tell


with a_dag("callbacks"):
    EKSBatchOperator(task_id="good", command=["true"], on_success_callback=told("success"), **SMALL)
    EKSBatchOperator(
        task_id="bad",
        command="exit 3",
        on_retry_callback=told("retry"),
        on_failure_callback=told("failure"),
        **again,
        **SMALL,
    )

with DAG(
    "catches_up",
    schedule=CronDataIntervalTimetable("@yearly", timezone="UTC"),
    start_date=datetime(2015, 1, 1, tzinfo=UTC),
    end_date=datetime(2015, 1, 1, tzinfo=UTC),
    catchup=True,
    is_paused_upon_creation=True,  # until its test lets it run
):
    EKSBatchOperator(task_id="direct", command=["true"], **SMALL)
    EKSBatchOperator(task_id="worker", command=["true"], pre_execute=lambda context: None, **SMALL)

with a_dag("forever"):
    EKSBatchOperator(task_id="direct", command=FOREVER, **SMALL)
    EKSBatchOperator(task_id="worker", command=FOREVER, pre_execute=lambda context: None, **SMALL)

with a_dag("orphan"):
    EKSBatchOperator(
        task_id="blocking",
        command="sleep 15",
        deferrable=False,
        retries=1,
        retry_delay=timedelta(seconds=1),
        **SMALL,
    )

with a_dag("talking"):
    DONE = Path(os.environ["AIRFLOW_HOME"]) / "heard"
    TALK = f"echo early; until test -e {DONE}; do sleep 0.1; done; echo late"
    EKSBatchOperator(task_id="direct", command=TALK, logging_interval=1, **SMALL)
    EKSBatchOperator(
        task_id="blocking", command=TALK, logging_interval=1, deferrable=False, **SMALL
    )

with a_dag("slow"):
    WOKEN = Path(os.environ["AIRFLOW_HOME"]) / "woken"
    EKSBatchOperator(task_id="slow", command=f"until test -e {WOKEN}; do sleep 0.2; done", **SMALL)
