"""What containers ask for, in the units that AWS Batch allows; pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from airflow_eksbatch.core.model.errors import Rejected
from airflow_eksbatch.core.model.resources import NOTHING, Resources

Wire = dict[str, Any]
CPU = re.compile(r"[0-9]{1,7}(\.[0-9]{1,3})?")
MEMORY = re.compile(r"[0-9]{1,12}Mi")
WHOLE = re.compile(r"[0-9]{1,9}")
GPU = "nvidia.com/gpu"
# AWS's three, and whether their limits may be more than their requests.
MAY_BURST = {"cpu": True, "memory": False, GPU: False}


def resources_of_pod(pod: Wire) -> Resources:
    """Effective request of the pod: the larger of its largest init container and the sum of the others."""
    total, largest = NOTHING, NOTHING
    for container in pod.get("containers", []):
        total = total.plus(resources_of_container(container))
    for container in pod.get("initContainers", []):
        one = resources_of_container(container)
        largest = Resources(
            cpu_m=max(largest.cpu_m, one.cpu_m),
            memory_mib=max(largest.memory_mib, one.memory_mib),
            gpu=max(largest.gpu, one.gpu),
        )
    return Resources(
        cpu_m=max(total.cpu_m, largest.cpu_m),
        memory_mib=max(total.memory_mib, largest.memory_mib),
        gpu=max(total.gpu, largest.gpu),
        pods=1,
    )


def resources_of_container(container: Wire) -> Resources:
    """Requests, filled from limits. What Kubernetes would refuse later is refused here: it would cost an instance."""
    given, name = container.get("resources") or {}, container.get("name", "Default")
    requests = amounts_from(given.get("requests") or {}, name)
    limits = amounts_from(given.get("limits") or {}, name)
    for key in requests.keys() & limits.keys():
        check_limit(name, key, requests[key], limits[key])
    wanted = {**limits, **requests}
    for key in ("cpu", "memory"):
        if key not in wanted:
            raise Rejected(f"Container {name}: resources needs a request or a limit for {key}.")
    return Resources(cpu_m=wanted["cpu"], memory_mib=wanted["memory"], gpu=wanted.get(GPU, 0))


def amounts_from(given: Mapping[str, str], name: str) -> dict[str, int]:
    """Millicores, MiB and whole GPUs by their names."""
    found: dict[str, int] = {}
    for key, text in given.items():
        if key not in MAY_BURST:
            raise Rejected(
                f"Container {name}: resources takes {', '.join(MAY_BURST)}, not {key!r} (AWS Batch)."
            )
        found[key] = PARSERS[key](str(text), name)
    return found


def check_limit(name: str, key: str, request: int, limit: int) -> None:
    if request > limit if MAY_BURST[key] else request != limit:
        bound = "at least" if MAY_BURST[key] else "equal to"
        raise Rejected(f"Container {name}: the limit for {key} must be {bound} its request.")


def cpu_m_from(text: str, name: str) -> int:
    cpu_m = float(text) * 1000 if CPU.fullmatch(text) else 0
    if cpu_m < 250 or cpu_m % 250:
        raise Rejected(
            f"Container {name}: cpu must be a multiple of 0.25 from 0.25 on, not {text!r}."
        )
    return int(cpu_m)


def memory_from(text: str, name: str) -> int:
    if not MEMORY.fullmatch(text) or int(text[:-2]) < 4:
        raise Rejected(
            f"Container {name}: memory must be a whole number of Mi from 4Mi on, such as 512Mi, "
            f"not {text!r}."
        )
    return int(text[:-2])


def gpu_from(text: str, name: str) -> int:
    if not WHOLE.fullmatch(text):
        raise Rejected(f"Container {name}: {GPU} must be a whole number, not {text!r}.")
    return int(text)


PARSERS = {"cpu": cpu_m_from, "memory": memory_from, GPU: gpu_from}
