"""What an operator can be told to run, and what is wrong with it; pure, and cheap to import."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from airflow_eksbatch.core.model import limits

LOGGING_INTERVAL_S_MIN = 1.0

# What may be templated. The operator's template fields, the trigger's keyword arguments and the
# keys read here are this one list: Airflow renders in the triggerer only what all three name.
FIELDS = (
    "job_name",
    "job_queue",
    "job_definition",
    "image",
    "command",
    "arguments",
    "env",
    "vcpus",
    "memory",
    "gpus",
    "container_overrides",
    "eks_properties_override",
    "parameters",
    "array_size",
    "num_nodes",
    "node_overrides",
    "depends_on",
    "attempts",
    "retry_strategy",
    "timeout_s",
    "share_identifier",
    "scheduling_priority_override",
    "tags",
    "service_account",
    "labels",
    "annotations",
)

MIN_MEMORY_MIB = 4
NO_JOB_QUEUE = "job_queue is empty: name a job queue, or leave it out for the one named default"

_JOB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
_SHARE = re.compile(r"[A-Za-z0-9]{1,255}")
# What only a job definition of our own making can take; a named one has its own.
_OWN_DEFINITION_ONLY = ("service_account",)
_CONTAINER_FIELDS = ("image", "command", "arguments", "env", "vcpus", "memory", "gpus")
_POD_FIELDS = (*_CONTAINER_FIELDS, "labels", "annotations")
_OVERRIDES = ("container_overrides", "eks_properties_override")
_RESOURCES = {"VCPU": "vcpus", "MEMORY": "memory", "GPU": "gpus"}


class BadArguments(ValueError):
    """The operator was asked for something that no job can be; the message says what to change."""


def check_fields(fields: Mapping[str, Any]) -> None:
    """Raise BadArguments for whatever is certainly wrong; templates are checked once rendered."""
    if not fields.get("job_queue", True):
        raise BadArguments(NO_JOB_QUEUE)
    for name, check in _CHECKS.items():
        value = fields.get(name)
        if value is not None and _is_known(value):
            check(value)
    _check_mix({name: value for name, value in fields.items() if value is not None})


def _is_known(value: Any) -> bool:
    if isinstance(value, str):
        return "{{" not in value and "{%" not in value
    return isinstance(value, (int, float, list, tuple, dict))


def _whole(name: str, value: Any, low: int, high: int, why: str = "") -> int:
    try:
        number = int(str(value).strip())
    except ValueError:
        raise BadArguments(f"{name} must be a whole number, got {value!r}") from None
    if not low <= number <= high:
        raise BadArguments(f"{name} must be between {low} and {high}{why}, got {number}")
    return number


def _check_vcpus(value: Any) -> None:
    try:
        quarters = float(value) * 4
    except (TypeError, ValueError):
        raise BadArguments(f"vcpus must be a number such as 0.25 or 2, got {value!r}") from None
    if not 1 <= quarters < math.inf or quarters != int(quarters):
        raise BadArguments(f"vcpus must be a multiple of 0.25 and at least 0.25, got {value}")


def _check_command(value: Any) -> None:
    words = [value] if isinstance(value, str) else value
    if not isinstance(words, Sequence) or not words or not str(words[0]).strip():
        raise BadArguments(
            "command is empty: give a list of words, or a string for `sh -c`; "
            "leave it out to run what the image or the job definition says"
        )


def words_of(value: Any, name: str = "arguments") -> list[str]:
    """Of a list; the characters of a string would be words, too."""
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise BadArguments(
            f"{name} must be a list of words, got {value!r}; a shell line goes into the operator's "
            "command, which takes a string"
        )
    return [str(word) for word in value]


def _check_mapping(name: str) -> Any:
    def check(value: Any) -> None:
        if not isinstance(value, Mapping):
            raise BadArguments(f"{name} must be a dict, got {type(value).__name__}")

    return check


def _check_env(value: Any) -> None:
    _check_mapping("env")(value)
    reserved = sorted(name for name in value if str(name).startswith("AWS_BATCH"))
    if reserved:
        raise BadArguments(
            f"env may not set {', '.join(reserved)}: AWS_BATCH* is set by the service"
        )


def _check_container_overrides(value: Any) -> None:
    _check_mapping("container_overrides")(value)
    fields_of_overrides({name: _known_of(one) for name, one in value.items() if _is_known(one)})


def _known_of(value: Any) -> Any:
    """Without the entries that templates are to fill in."""
    if not isinstance(value, (list, tuple)):
        return value
    parts = [(one, one.values() if isinstance(one, Mapping) else [one]) for one in value]
    return [one for one, inside in parts if all(map(_is_known, inside))]


def fields_of_overrides(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """ECS-style overrides, as BatchOperator takes them, in the words of this operator."""
    _check_mapping("container_overrides")(overrides)
    unknown = sorted(set(overrides) - {"command", "environment", "resourceRequirements"})
    if unknown:
        raise BadArguments(
            f"container_overrides cannot take {', '.join(unknown)} on Amazon EKS; "
            "it takes command, environment and resourceRequirements"
        )
    found: dict[str, Any] = {}
    if "command" in overrides:  # an ECS command replaces CMD, which Kubernetes calls args
        found["arguments"] = words_of(overrides["command"], "command of container_overrides")
    if "environment" in overrides:
        pairs = _entries("environment", overrides["environment"], "name")
        found["env"] = {str(one["name"]): one["value"] for one in pairs}
    needs = _entries("resourceRequirements", overrides.get("resourceRequirements", ()), "type")
    for need in needs:
        if (kind := str(need["type"])) not in _RESOURCES:
            raise BadArguments(
                "type in resourceRequirements of container_overrides must be one of "
                f"{', '.join(_RESOURCES)}, got {kind}"
            )
        found[_RESOURCES[kind]] = need["value"]
    return found


def _entries(member: str, value: Any, key: str) -> Sequence[Mapping[str, Any]]:
    is_list = isinstance(value, (list, tuple))
    if not is_list or not all({key, "value"} <= set(as_mapping(one)) for one in value):
        raise BadArguments(
            f"{member} of container_overrides must be a list of dicts, each with {key} and value, "
            f"got {value!r}"
        )
    return value


def _check_eks_properties_override(value: Any) -> None:
    _check_mapping("eks_properties_override")(value)
    if unknown := sorted(set(value) - {"podProperties"}):
        raise BadArguments(
            f"eks_properties_override takes podProperties only, got {', '.join(unknown)}: "
            "what the pod is to have goes into that"
        )
    pod = value.get("podProperties")
    if _is_known(pod):
        _check_mapping("podProperties of eks_properties_override")(pod)


def _check_array_size(value: Any) -> None:
    _whole("array_size", value, 1, limits.ARRAY_SIZE_MAX)


def _check_num_nodes(value: Any) -> None:
    _whole("num_nodes", value, 1, limits.NODES_MAX)


def _check_node_overrides(value: Any) -> None:
    _check_mapping("node_overrides")(value)
    number = value.get("numNodes")
    if number is not None and _is_known(number):
        _whole("numNodes of node_overrides", number, 1, limits.NODES_MAX)


def _check_depends_on(value: Any) -> None:
    if not isinstance(value, (list, tuple)):
        raise BadArguments("depends_on must be a list of job ids, task ids or dicts")
    if len(value) > limits.DEPENDENCIES_MAX:
        raise BadArguments(
            f"depends_on takes at most {limits.DEPENDENCIES_MAX} jobs, got {len(value)}"
        )


def _check_name(name: str, pattern: re.Pattern[str], rule: str) -> Any:
    def check(value: Any) -> None:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise BadArguments(f"{name} {rule}, got {value!r}")

    return check


def _check_share(value: Any) -> None:
    if value:  # the empty string says: none, this job queue has no scheduling policy
        _check_name("share_identifier", _SHARE, "takes letters and digits only")(value)


def _check_timeout(value: Any) -> None:
    _whole("timeout", value, limits.TIMEOUT_S_MIN, 2**31, why=" seconds")


_CHECKS: dict[str, Any] = {
    "job_name": _check_name(
        "job_name", _JOB_NAME, "takes up to 128 letters, digits, - and _, beginning with a letter"
    ),
    "command": _check_command,
    "arguments": words_of,
    "env": _check_env,
    "vcpus": _check_vcpus,
    "memory": lambda value: _whole("memory", value, MIN_MEMORY_MIB, 2**31, why=" MiB"),
    "gpus": lambda value: _whole("gpus", value, 0, 1024),
    "array_size": _check_array_size,
    "num_nodes": _check_num_nodes,
    "node_overrides": _check_node_overrides,
    "depends_on": _check_depends_on,
    "attempts": lambda value: _whole("attempts", value, 1, limits.ATTEMPTS_MAX),
    "retry_strategy": _check_mapping("retry_strategy"),
    "timeout_s": _check_timeout,
    "share_identifier": _check_share,
    "scheduling_priority_override": lambda value: _whole(
        "scheduling_priority_override", value, 0, limits.SCHEDULING_PRIORITY_MAX
    ),
    "parameters": _check_mapping("parameters"),
    "tags": _check_mapping("tags"),
    "labels": _check_mapping("labels"),
    "annotations": _check_mapping("annotations"),
    "container_overrides": _check_container_overrides,
    "eks_properties_override": _check_eks_properties_override,
}


def _check_mix(given: Mapping[str, Any]) -> None:
    _check_nodes(given)
    if all(name in given for name in _OVERRIDES):
        raise BadArguments("give container_overrides or eks_properties_override, not both")
    described = "container_overrides" in given or _names_containers(given)
    if described and (twice := [name for name in _CONTAINER_FIELDS if name in given]):
        raise BadArguments(f"the overrides describe the container already: leave out {twice}")
    if "job_definition" in given:
        for name in _OWN_DEFINITION_ONLY:
            if name in given:
                raise BadArguments(
                    f"{name} belongs to the job definition {given['job_definition']}"
                )
    elif "parameters" in given:
        raise BadArguments("parameters fill the placeholders of a job_definition: name one")
    if "attempts" in given and "attempts" in dict(as_mapping(given.get("retry_strategy"))):
        raise BadArguments("attempts is given twice: in attempts and in retry_strategy")


def _check_nodes(given: Mapping[str, Any]) -> None:
    for name in ("num_nodes", "node_overrides"):
        if name in given and "array_size" in given:
            raise BadArguments(
                f"give {name} or array_size, not both: AWS Batch has no arrays of multi-node jobs; "
                "map the task for several of them"
            )
    if "node_overrides" not in given:
        return
    if "num_nodes" in given:
        raise BadArguments("give num_nodes, or numNodes in node_overrides, not both")
    if "job_definition" not in given:
        raise BadArguments(
            "node_overrides change a job_definition of type multinode: name one, or give num_nodes "
            "for a job whose nodes all run the same"
        )
    if twice := [name for name in (*_POD_FIELDS, *_OVERRIDES) if name in given]:
        raise BadArguments(f"node_overrides say what the nodes run: leave out {twice}")


def _names_containers(given: Mapping[str, Any]) -> bool:
    override = as_mapping(given.get("eks_properties_override"))
    return bool(as_mapping(override.get("podProperties")).get("containers"))


def as_mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def seconds(name: str, value: Any) -> float:
    try:
        found = value.total_seconds() if isinstance(value, timedelta) else float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise BadArguments(
            f"{name} must be seconds or a timedelta, and takes no template, got {value!r}"
        )
    return found


def logging_interval_s(value: Any) -> float | None:
    """How often to look at an output; each look is a request."""
    if value is None:
        return None
    interval_s = seconds("logging_interval", value)
    if interval_s < LOGGING_INTERVAL_S_MIN:
        raise BadArguments(
            f"logging_interval must be seconds or a timedelta, at least {LOGGING_INTERVAL_S_MIN:g} s, "
            f"got {value!r}"
        )
    return interval_s


def job_timeout_s(timeout: Any, execution_timeout: timedelta | None) -> int | None:
    """The job's own limit. AWS Batch knows none below 60 s; Airflow's is kept by Airflow itself."""
    if timeout is not None:
        return int(seconds("timeout", timeout))
    if execution_timeout is not None:
        return max(limits.TIMEOUT_S_MIN, int(execution_timeout.total_seconds()))
    return None


def one_of(name: str, value: Any, other: str, other_value: Any) -> Any:
    """What has two names, by the one that was used."""
    if value is not None and other_value is not None:
        raise BadArguments(f"give {name} or {other}, not both")
    return other_value if value is None else value


def size_in(array_properties: Any) -> Any:
    """Of an array, as BatchOperator takes it."""
    if array_properties is None:
        return None
    if not isinstance(array_properties, Mapping):
        raise BadArguments(
            f'array_properties must be a dict such as {{"size": 12}}, got '
            f"{type(array_properties).__name__}; what a template or a task gives goes into array_size"
        )
    return array_properties.get("size")
