"""The button in the task view that opens the job, also while its task waits without a worker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow.sdk import BaseOperatorLink

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator
    from airflow.sdk.types import TaskInstanceKey


class EKSBatchJobLink(BaseOperatorLink):
    """The job: a worker asks the operator for the address, the trigger writes it to XCom itself."""

    @property
    def name(self) -> str:
        return "EKS Batch job"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        return getattr(operator, "job_url", None) or ""


JOB_LINK = EKSBatchJobLink()
