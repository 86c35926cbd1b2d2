"""The button in the task view that opens the job, also while its task waits without a worker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperatorLink

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator
    from airflow.sdk.types import TaskInstanceKey


class EKSBatchJobLink(BaseOperatorLink):
    """The job: a worker asks the operator for the address, the trigger writes it to XCom itself.

    A worker asks at whatever end of the task, and overwrites: so what an operator does not know,
    as after a wait that failed, stays what it was.
    """

    @property
    def name(self) -> str:
        return "EKS Batch job"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        known = getattr(operator, "job_url", None)
        ti: Any = ti_key  # what Airflow gives there on a worker is the task instance itself
        if not known and hasattr(ti, "xcom_pull"):
            known = ti.xcom_pull(ti.task_id, key=self.xcom_key, map_indexes=ti.map_index)
        return known or ""


JOB_LINK = EKSBatchJobLink()
