"""Can the triggerer render this field? It knows the run, but no XCom and nothing of the DAG file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

# Names whose values the triggerer has at hand. Everything else in the context asks the
# database in a way that the triggerer's supervisor does not answer: the trigger would hang.
KNOWN_NAMES = frozenset(
    {
        "conn",
        "dag",
        "dag_run",
        "data_interval_end",
        "data_interval_start",
        "ds",
        "ds_nodash",
        "logical_date",
        "macros",
        "params",
        "run_id",
        "task",
        "task_instance_key_str",
        "ts",
        "ts_nodash",
        "ts_nodash_with_tz",
        "var",
    }
)
TASK_INSTANCE_NAMES = frozenset({"ti", "task_instance"})
KNOWN_TASK_INSTANCE_PARTS = frozenset({"dag_id", "run_id", "task_id", "map_index", "try_number"})


def needs_worker_to_render(fields: Mapping[str, Any], *, native: bool) -> list[str]:
    """Why a worker has to render these fields; empty if the triggerer can."""
    reasons = []
    for name, value in fields.items():
        for leaf in _leaves(value):
            if isinstance(leaf, str):
                reason = _why_template(leaf, native)
            else:
                reason = f"is fed by {type(leaf).__name__}"
            if reason:
                reasons.append(f"{name} {reason}")
    return reasons


def _leaves(value: Any) -> Iterator[Any]:
    """Templates, and whatever is no plain data."""
    if isinstance(value, Mapping):
        for key, one in value.items():
            yield from _leaves(key)
            yield from _leaves(one)
    elif isinstance(value, (list, tuple, set)):
        for one in value:
            yield from _leaves(one)
    elif isinstance(value, str):
        if "{{" in value or "{%" in value:
            yield value
    elif value is not None and not isinstance(value, (int, float, bool)):
        yield value


def _why_template(template: str, native: bool) -> str:
    if native:
        return "is a template of a DAG that renders native objects"
    import jinja2
    from airflow.sdk.definitions._internal.templater import SandboxedEnvironment
    from jinja2 import meta, nodes

    environment = SandboxedEnvironment(cache_size=0)
    try:
        tree = environment.parse(template)
    except jinja2.TemplateError:
        return "is a template with a mistake"  # a worker reports it as Airflow always does
    filters = {node.name for node in tree.find_all((nodes.Filter, nodes.Test))}
    if unknown := sorted(filters - environment.filters.keys() - environment.tests.keys()):
        return f"uses the filter {', '.join(unknown)}"
    names = meta.find_undeclared_variables(tree)
    if unknown := sorted(names - KNOWN_NAMES - TASK_INSTANCE_NAMES):
        return f"uses {', '.join(unknown)}"
    return _why_task_instance(tree, nodes) if names & TASK_INSTANCE_NAMES else ""


def _why_task_instance(tree: Any, nodes: Any) -> str:
    """`ti` is fine where only its identity is read; `ti.xcom_pull` would hang."""
    reads = [
        node
        for node in tree.find_all(nodes.Getattr)
        if isinstance(node.node, nodes.Name) and node.node.name in TASK_INSTANCE_NAMES
    ]
    uses = [node for node in tree.find_all(nodes.Name) if node.name in TASK_INSTANCE_NAMES]
    unknown = sorted({node.attr for node in reads} - KNOWN_TASK_INSTANCE_PARTS)
    if unknown:
        return f"uses ti.{unknown[0]}"
    return "" if len(reads) == len(uses) else "uses ti as a whole"
