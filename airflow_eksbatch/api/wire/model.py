"""The wire format from botocore's own batch model: operations, validation, errors."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Any

import botocore.session
from botocore.model import ListShape, MapShape, ServiceModel, StructureShape

from airflow_eksbatch.core.model.errors import Rejected

Check = Callable[[Any, str], Any]
# What else is not in the model is left out; a job whose wish for a place is left out would run at the wrong one.
POD_SHAPES = ("EksPodProperties", "EksPodPropertiesOverride")
SAID_ELSEWHERE = (
    "affinity",
    "nodeName",
    "nodeSelector",
    "tolerations",
    "topologySpreadConstraints",
)
NAMES = {
    "string": "a string",
    "integer": "a whole number",
    "long": "a whole number",
    "double": "a number",
    "float": "a number",
    "boolean": "true or false",
    "list": "a list",
    "map": "an object",
    "structure": "an object",
}
# Shapes whose values AWS takes in small letters too, which their enum does not say.
CASELESS = frozenset({"RetryAction"})
INT_MAX = 2**63 - 1


@cache
def service_model() -> ServiceModel:
    return botocore.session.get_session().get_service_model("batch")


@cache
def operations() -> dict[str, str]:
    """Last part of the path -> operation name."""
    names: Any = service_model().operation_names
    return {name.lower(): name for name in names}


@cache
def request_check(operation: str) -> Check:
    """Validates the input of an operation and drops what its model does not know."""
    shape = service_model().operation_model(operation).input_shape
    return (lambda value, path: value) if shape is None else check_of(shape)


def bad(path: str, problem: str) -> Rejected:
    return Rejected(f"Error executing request, Exception : {path.lstrip('.') or 'body'} {problem}")


def check_of(shape: Any) -> Check:
    """Compiled once for each shape of the model."""
    if isinstance(shape, StructureShape):
        return structure_check(shape)
    if isinstance(shape, ListShape):
        return list_check(shape)
    if isinstance(shape, MapShape):
        return map_check(shape)
    if shape.type_name == "string":
        return string_check(shape)
    return number_check(shape)


def structure_check(shape: Any) -> Check:
    members = {name: check_of(member) for name, member in shape.members.items()}
    required = frozenset(shape.required_members)
    elsewhere = SAID_ELSEWHERE if shape.name in POD_SHAPES else ()

    def check(value: Any, path: str) -> Any:
        if not isinstance(value, dict):
            raise bad(path, "must be an object.")
        for name in elsewhere:
            if value.get(name) is not None:
                raise bad(
                    f"{path}.{name}",
                    "is not in AWS Batch's model: tags of the job say where it may run (kubernetes.io/arch, "
                    "topology.kubernetes.io/zone, node.kubernetes.io/instance-type).",
                )
        for name in required:
            if value.get(name) is None:
                raise bad(f"{path}.{name}", "is required.")
        return {
            name: members[name](member, f"{path}.{name}")
            for name, member in value.items()
            if member is not None and name in members
        }

    return check


def list_check(shape: Any) -> Check:
    member = check_of(shape.member)
    least, most = limits_of(shape)

    def check(value: Any, path: str) -> Any:
        if not isinstance(value, list):
            raise bad(path, "must be a list.")
        if not least <= len(value) <= most:
            raise bad(path, f"must have {between(least, most)} entries, not {len(value)}.")
        return [member(one, f"{path}[{number}]") for number, one in enumerate(value)]

    return check


def map_check(shape: Any) -> Check:
    key, member = check_of(shape.key), check_of(shape.value)
    _, most = limits_of(shape)

    def check(value: Any, path: str) -> Any:
        if not isinstance(value, dict):
            raise bad(path, "must be an object.")
        if len(value) > most:
            raise bad(path, f"must have at most {most} entries, not {len(value)}.")
        return {
            key(name, f"{path} key"): member(one, f"{path}.{name}")
            for name, one in value.items()
            if one is not None
        }

    return check


def string_check(shape: Any) -> Check:
    least, most = limits_of(shape)
    enum = frozenset(shape.metadata.get("enum", ()))
    is_caseless = shape.name in CASELESS
    pattern = shape.metadata.get("pattern")
    matches = re.compile(pattern).search if pattern else None

    def check(value: Any, path: str) -> Any:
        if not isinstance(value, str):
            raise bad(path, "must be a string.")
        if not least <= len(value) <= most:
            raise bad(path, f"must have {between(least, most)} characters, not {len(value)}.")
        value = value.upper() if is_caseless else value
        if enum and value not in enum:
            raise bad(path, f"must be one of {', '.join(sorted(enum))}, not {value!r}.")
        if matches is not None and not matches(value):
            raise bad(path, f"must match {pattern}, which {value!r} does not.")
        return value

    return check


def number_check(shape: Any) -> Check:
    kinds: tuple[type, ...] = {
        "boolean": (bool,),
        "double": (int, float),
        "float": (int, float),
    }.get(shape.type_name, (int,))
    least = shape.metadata.get("min", -INT_MAX)
    most = shape.metadata.get("max", INT_MAX)

    def check(value: Any, path: str) -> Any:
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise bad(path, f"must be {NAMES[shape.type_name]}.")
        if not least <= value <= most:
            raise bad(path, f"must be {between(least, most)}, not {value}.")
        return value

    return check


def limits_of(shape: Any) -> tuple[int, int]:
    return int(shape.metadata.get("min", 0)), int(shape.metadata.get("max", INT_MAX))


def between(least: float, most: float) -> str:
    if most >= INT_MAX:
        return f"at least {least}" if least > -INT_MAX else "a number of 64 bits"
    return f"{least} to {most}" if least > -INT_MAX else f"at most {most}"


def check_text(given: object, body: bytes) -> None:
    """Refuse NUL in any string; looked for only where the body can have one."""
    if b"\\u0000" in body and has_nul(given):
        raise bad("", "has a NUL character, which no text here can hold: leave it out.")


def has_nul(value: object) -> bool:
    if isinstance(value, str):
        return "\0" in value
    if isinstance(value, dict):
        return any(has_nul(key) or has_nul(one) for key, one in value.items())
    return isinstance(value, list) and any(has_nul(one) for one in value)
