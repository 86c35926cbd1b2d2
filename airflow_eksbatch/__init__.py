"""AWS Batch on Amazon EKS for Airflow: a job needs no Airflow worker."""

from importlib import import_module, metadata
from typing import Any

_HOME_BY_NAME = {
    "EKSBatchOperator": "operators",
    "EKSBatchHook": "hooks",
    "EKSBatchJobSensor": "sensors",
    "EKSBatchJobQueueSensor": "sensors",
}

__all__ = [
    "EKSBatchHook",
    "EKSBatchJobQueueSensor",
    "EKSBatchJobSensor",
    "EKSBatchOperator",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return metadata.version("airflow-eksbatch")
    if name in _HOME_BY_NAME:
        return getattr(import_module(f"{__name__}.{_HOME_BY_NAME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
