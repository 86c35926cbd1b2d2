"""What the triggerer cannot do: start some tasks, render fields that need XCom or the DAG file, and what follows an end."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Mapping
from typing import Any

# Names whose values the triggerer has at hand. Everything else in the context asks the
# database in a way that the triggerer's supervisor does not answer: the trigger would hang.
KNOWN_NAMES = frozenset(
    {
        "conn",
        "data_interval_end",
        "data_interval_start",
        "ds",
        "ds_nodash",
        "logical_date",
        "macros",
        "params",
        "run_id",
        "task_instance_key_str",
        "ts",
        "ts_nodash",
        "ts_nodash_with_tz",
        "var",
    }
)
_TASK_INSTANCE_PARTS = frozenset({"dag_id", "run_id", "task_id", "map_index", "try_number"})
# Of these it has what the database knows, which renders otherwise or not at all: `ti.xcom_pull` would hang, `task.params`
# is another object, and attributes of a subclass are not there. The parts named are the same in both places.
KNOWN_PARTS = {
    "ti": _TASK_INSTANCE_PARTS,
    "task_instance": _TASK_INSTANCE_PARTS,
    "task": frozenset({"task_id", "dag_id"}),
    "dag": frozenset({"dag_id"}),
    "dag_run": frozenset(
        {
            *("conf", "dag_id", "data_interval_end", "data_interval_start"),
            *("logical_date", "run_id", "run_type"),
        }
    ),
}
DEFAULT_POOL = "default_pool"


class WhenAsked:
    """An attribute computed when it is read, so it also sees what a cluster policy has changed.

    Read from the class, as mapped operators do, it is the value that means: on a worker.
    """

    def __init__(self, on_class: Any, compute: Callable[[Any], Any]) -> None:
        self._on_class = on_class
        self._compute = compute

    def __get__(self, operator: Any, owner: type) -> Any:
        if operator is None or not operator.__dict__.get("_arguments_are_set"):
            return self._on_class
        return self._compute(operator)


def needs_worker_to_start(task: Any) -> list[str]:
    """Why a worker has to start this task, whatever its fields are; empty if the triggerer can."""
    reasons = [
        (not task.deferrable, "deferrable is False"),
        (task.on_execute_callback, "it has an on_execute_callback"),
        (task._pre_execute_hook, "it has a pre_execute"),
        (task.map_index_template, "it has a map_index_template"),
        # Airflow starts in the triggerer before it looks at any of these.
        (task.pool != DEFAULT_POOL, f"it takes slots of pool {task.pool}"),
        (task.max_active_tis_per_dag, "it has a max_active_tis_per_dag"),
        (task.max_active_tis_per_dagrun, "it has a max_active_tis_per_dagrun"),
    ]
    return [text for applies, text in reasons if applies]


def needs_worker_to_render(fields: Mapping[str, Any], dag: Any) -> list[str]:
    """Why a worker has to render these fields; empty if the triggerer can."""
    special = _special_rendering(dag)
    reasons = []
    for name, value in fields.items():
        for leaf in _leaves(value):
            if isinstance(leaf, str):
                reason = _why_template(leaf, special)
            else:
                reason = f"is fed by {type(leaf).__name__}"
            if reason:
                reasons.append(f"{name} {reason}")
    return reasons


def needs_worker_to_succeed(task: Any) -> bool:
    """Outlet events, these hooks and the callback exist only there.

    Airflow 3.3 drops the request for an `on_success_callback` of a task that its trigger ends.
    """
    return bool(
        task.outlets
        or task._post_execute_hook
        or task.multiple_outputs
        or task.has_on_success_callback
    )


def needs_worker_to_fail(task: Any) -> bool:
    """Retry policies exist only there, only there do callbacks and mails know the run, and ends others of a DAG that
    is to fail fast.

    For a task that its trigger ends, Airflow 3.3 sends no mail and calls back with a context that
    lacks `dag_run`, `exception` and all dates.
    """
    mailed = task.email and (task.email_on_failure or task.email_on_retry)
    dag = task.get_dag()
    return bool(
        task.has_retry_policy
        or (dag is not None and dag.fail_fast)
        or task.has_on_failure_callback
        or task.has_on_retry_callback
        or mailed
    )


def _special_rendering(dag: Any) -> str:
    """What the DAG says about rendering stays in its file; the triggerer would not follow it."""
    import jinja2

    if dag is None:
        return ""
    if dag.render_template_as_native_obj:
        return "render_template_as_native_obj"
    if dag.jinja_environment_kwargs:
        return "jinja_environment_kwargs"
    return "" if dag.template_undefined is jinja2.StrictUndefined else "template_undefined"


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


def strict_environment() -> Any:
    """Airflow's filters, and a mistake instead of nothing for a name that is not there."""
    import jinja2
    from airflow.sdk.definitions._internal.templater import SandboxedEnvironment

    return SandboxedEnvironment(
        undefined=jinja2.StrictUndefined, extensions=["jinja2.ext.do"], cache_size=0
    )


def plain(value: Any) -> Any:
    """`scheduled`, as the triggerer has it, where Airflow 3.3 on a worker renders `DagRunType.SCHEDULED`."""
    return value.value if isinstance(value, enum.Enum) else value


def _why_template(template: str, special: str) -> str:
    if special:
        return f"is a template of a DAG with {special}"
    import jinja2
    from jinja2 import meta, nodes

    environment = strict_environment()
    try:
        tree = environment.parse(template)
    except jinja2.TemplateError:
        return "is a template with a mistake"  # a worker reports it as Airflow always does
    if next(tree.find_all((nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)), None):
        return "takes in another template file"  # found beside the DAG file
    filters = {node.name for node in tree.find_all((nodes.Filter, nodes.Test))}
    if unknown := sorted(filters - environment.filters.keys() - environment.tests.keys()):
        return f"uses the filter {', '.join(unknown)}"
    names = meta.find_undeclared_variables(tree)
    if unknown := sorted(names - KNOWN_NAMES - KNOWN_PARTS.keys()):
        return f"uses {', '.join(unknown)}"
    reasons = [_why_parts(tree, nodes, name) for name in sorted(names & KNOWN_PARTS.keys())]
    return next(filter(None, reasons), "")


def _why_parts(tree: Any, nodes: Any, name: str) -> str:
    """Fine where only known parts of it are read."""
    reads = [
        node
        for node in tree.find_all(nodes.Getattr)
        if isinstance(node.node, nodes.Name) and node.node.name == name
    ]
    uses = [node for node in tree.find_all(nodes.Name) if node.name == name]
    if unknown := sorted({node.attr for node in reads} - KNOWN_PARTS[name]):
        return f"uses {name}.{unknown[0]}"
    return "" if len(reads) == len(uses) else f"uses {name} as a whole"
