"""Members of requests that only another service has: refused, because a job without them would be another job; pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow_eksbatch.core.model.errors import Rejected

OF_SUBMIT = {
    "ecsPropertiesOverride": "jobs are pods: eksPropertiesOverride or containerOverrides changes what runs",
    "consumableResourcePropertiesOverride": "nobody counts consumable resources",
}
OF_CONTAINER_OVERRIDES = {
    "instanceType": "the job's tag node.kubernetes.io/instance-type chooses one",
}
OF_DEFINITION = {
    "ecsProperties": "jobs are pods: give eksProperties.podProperties",
    "consumableResourceProperties": "nobody counts consumable resources",
}


def refuse(given: Mapping[str, Any], elsewhere: Mapping[str, str], within: str = "") -> None:
    """Refuse whatever of `elsewhere` (member -> why) says something; clients send empty ones."""
    for name, why in elsewhere.items():
        if not is_empty(given.get(name)):
            raise Rejected(f"{within}{name} is not supported here ({why}): leave it out.")


def is_empty(value: object) -> bool:
    """Whether a member says nothing, however deep."""
    if isinstance(value, dict):
        return all(is_empty(one) for one in value.values())
    if isinstance(value, list):
        return all(is_empty(one) for one in value)
    return value is None or value == ""
