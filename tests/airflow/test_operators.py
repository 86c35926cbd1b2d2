"""Where a task starts and ends, decided from its DAG alone, and what the scheduler gets to see."""

from __future__ import annotations

import inspect
import re
import runpy
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from airflow.sdk import DAG, Asset, ExceptionRetryPolicy, task, task_group
from airflow.sdk.api.datamodels._generated import DagRunType
from airflow.sdk.exceptions import TaskDeferred

from airflow_eksbatch.arguments import FIELDS, BadArguments
from airflow_eksbatch.hooks import EKSBatchHook, Endpoint
from airflow_eksbatch.operators import EKSBatchOperator
from airflow_eksbatch.sensors import EKSBatchJobQueueSensor, EKSBatchJobSensor
from airflow_eksbatch.submission import (
    DEFAULT_IMAGE,
    DEFAULT_MEMORY_MIB,
    DEFAULT_VCPUS,
    RunFacts,
    build_submission,
    task_key,
)
from airflow_eksbatch.triggers import EKSBatchJobTrigger

ROOT = Path(__file__).resolve().parents[2]


def a_dag(**more: Any) -> DAG:
    return DAG("weather", schedule=None, start_date=datetime(2012, 1, 1, tzinfo=UTC), **more)


def an_operator(dag: DAG | None = None, **more: Any) -> EKSBatchOperator:
    with dag or a_dag():
        return EKSBatchOperator(task_id="month", **more)


@pytest.mark.parametrize(
    "command",
    [
        None,
        ["run", "plain"],
        "run {{ ds }} {{ data_interval_start | ds_nodash }} {{ dag_run.run_type }} {{ task.task_id }}",
        ["run", "{{ ti.try_number }}", "{{ params.x }}", "{% if ds %}a{% endif %}"],
        "run {{ macros.ds_add(ds, 1) }} {{ var.value.x }}",
    ],
)
def test_no_worker_is_needed_for_what_the_triggerer_can_render(command: Any) -> None:
    operator = an_operator(command=command)
    assert operator.why_worker == []
    assert operator.start_from_trigger is True
    assert operator.start_trigger_args is not None
    assert operator.start_trigger_args.next_method == "execute_complete"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"command": "x {{ ti.xcom_pull('a') }}"}, "command uses ti.xcom_pull"),
        ({"command": "x {{ task_instance.xcom_pull('a') }}"}, "uses task_instance.xcom_pull"),
        ({"command": "x {{ ti }}"}, "command uses ti as a whole"),
        ({"command": "x {{ prev_start_date_success }}"}, "prev_start_date_success"),
        # The triggerer has these, but other ones: what the file says is not all there.
        ({"command": "x {{ task.table | default('none') }}"}, "command uses task.table"),
        ({"command": "{% if task.table is defined %}x{% endif %}"}, "command uses task.table"),
        ({"command": "x {{ dag.params }}"}, "command uses dag.params"),
        ({"command": "x {{ dag_run.state }}"}, "command uses dag_run.state"),
        ({"command": "x {{ dag_run }}"}, "command uses dag_run as a whole"),
        ({"command": "x {{ my_macro() }}"}, "command uses my_macro"),
        ({"command": "x {{ ds | mine }}"}, "the filter mine"),
        ({"env": {"A": "{{ inlet_events }}"}}, "env uses inlet_events"),
        ({"command": "x {{ ds"}, "a template with a mistake"),
        ({"deferrable": False}, "deferrable is False"),
        ({"on_execute_callback": print}, "on_execute_callback"),
        ({"pre_execute": print}, "pre_execute"),
        ({"map_index_template": "{{ ds }}"}, "map_index_template"),
        ({"command": "{% include 'run.sh' %}"}, "command takes in another template file"),
        ({"command": "{% from 'run.sh' import x %}{{ ds }}"}, "command takes in another template"),
        # The scheduler starts in the triggerer before it looks at these.
        ({"pool": "oracle"}, "pool oracle"),
        ({"max_active_tis_per_dag": 1}, "max_active_tis_per_dag"),
        ({"max_active_tis_per_dagrun": 1}, "max_active_tis_per_dagrun"),
    ],
)
def test_a_worker_starts_what_only_a_worker_can(arguments: dict[str, Any], says: str) -> None:
    operator = an_operator(**arguments)
    assert any(says in reason for reason in operator.why_worker), operator.why_worker
    assert operator.start_from_trigger is False
    assert operator.start_trigger_args is None


def test_a_field_fed_by_another_task_starts_on_a_worker_and_depends_on_it() -> None:
    with a_dag():

        @task
        def years() -> list[str]:
            return ["2012"]

        operator = EKSBatchOperator(task_id="month", env={"YEARS": years()})
    assert operator.why_worker == ["env is fed by PlainXComArg"]
    assert operator.upstream_task_ids == {"years"}


def test_an_argument_of_a_mapped_task_group_starts_on_a_worker() -> None:
    made: list[EKSBatchOperator] = []
    with a_dag():

        @task_group
        def one(year: str) -> None:
            made.append(EKSBatchOperator(task_id="month", command=["run", year]))

        group: Any = one
        group.expand(year=["2012", "2013"])
    assert made[0].start_from_trigger is False


@pytest.mark.parametrize("native", [True, False])
def test_a_run_has_the_same_type_on_a_worker_and_in_the_triggerer(native: bool) -> None:
    operator = an_operator(a_dag(render_template_as_native_obj=native), env={"T": "{{ r }}"})
    operator.render_template_fields(cast(Any, {"r": DagRunType.SCHEDULED}))
    assert operator.env == {"T": "scheduled"}


def test_inside_a_mapped_task_group_a_task_id_means_the_job_of_the_same_map_index() -> None:
    """On a worker, and in the triggerer, which has the DAG as the scheduler reads it."""
    from airflow.serialization.serialized_objects import DagSerialization

    with a_dag() as dag:
        EKSBatchOperator(task_id="fetch")

        @task_group
        def one(year: str) -> None:
            EKSBatchOperator(task_id="split", command=["run", year])
            EKSBatchOperator(task_id="month", depends_on=["one.split", "fetch"])

        group: Any = one
        group.expand(year=["2012", "2013"])
    told = {"dag_id": "weather", "run_id": "r", "task_id": "one.month", "try_number": 1}
    for read in (dag, DagSerialization.from_dict(DagSerialization.to_dict(dag))):
        ti = SimpleNamespace(**told, map_index=1, task=read.get_task("one.month"))
        fields = {"job_queue": "q", "depends_on": ["one.split", "fetch"]}
        request = build_submission(fields, task=task_key(ti), run=RunFacts()).request
        assert request["dependsOn"] == [
            {"jobId": "airflow:weather|r|one.split|1"},
            {"jobId": "airflow:weather|r|fetch|-1"},
        ]


def test_mapped_tasks_start_on_a_worker() -> None:
    with a_dag():
        mapped: Any = EKSBatchOperator.partial(task_id="month").expand(command=[["a"], ["b"]])
    assert mapped.start_from_trigger is False
    assert mapped.start_trigger_args is None


def test_native_rendering_needs_a_worker_only_where_there_is_a_template() -> None:
    native = a_dag(render_template_as_native_obj=True)
    assert an_operator(native, command=["run"]).why_worker == []
    assert an_operator(a_dag(render_template_as_native_obj=True), command="{{ ds }}").why_worker


def test_a_cluster_policy_that_changes_the_task_later_is_seen() -> None:
    operator = an_operator(command=["run"])
    assert operator.start_from_trigger is True
    operator.on_execute_callback = [print]
    assert operator.start_from_trigger is False


@pytest.mark.parametrize(
    "arguments",
    [
        {"outlets": [Asset("s3://bucket/x")]},
        {"post_execute": print},
        {"multiple_outputs": True},
        {"on_success_callback": print},
    ],
)
def test_what_follows_a_success_only_on_a_worker_ends_there(arguments: dict[str, Any]) -> None:
    assert ends(an_operator(command=["run"], **arguments)) == (True, False)


@pytest.mark.parametrize(
    "arguments",
    [
        {"on_failure_callback": print},
        {"on_retry_callback": print},
        {"email": "who@example.com"},
        {"retry_policy": ExceptionRetryPolicy([])},
    ],
)
@pytest.mark.filterwarnings("ignore:Setting email")
def test_what_follows_a_failure_only_on_a_worker_costs_one_only_then(
    arguments: dict[str, Any],
) -> None:
    assert ends(an_operator(command=["run"], **arguments)) == (False, True)


def test_only_a_worker_ends_the_others_of_a_dag_that_fails_fast() -> None:
    assert ends(an_operator(a_dag(fail_fast=True), command=["run"])) == (False, True)


def test_what_nothing_follows_needs_no_worker_at_its_end() -> None:
    assert ends(an_operator(command=["run"])) == (False, False)


def ends(operator: EKSBatchOperator) -> tuple[bool, bool]:
    """Whether it ends on a worker: always, and where its job failed."""
    assert operator.start_from_trigger is True
    assert operator.start_trigger_args is not None
    kwargs = operator.start_trigger_args.trigger_kwargs or {}
    return kwargs["resume"], kwargs["resume_failed"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, (False, False)),
        ({"soft_fail": True}, (False, True)),
        ({"on_failure_callback": print}, (False, True)),
        ({"on_success_callback": print}, (True, False)),
    ],
)
def test_a_sensor_ends_on_a_worker_where_an_operator_would(
    monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], expected: tuple[bool, bool]
) -> None:
    monkeypatch.setattr(EKSBatchHook, "endpoint", lambda _: Endpoint(url="http://here"))
    with a_dag():
        sensor = EKSBatchJobSensor(task_id="wait", job_id="1", **arguments)
    with pytest.raises(TaskDeferred) as deferred:
        sensor.execute({})
    kwargs = deferred.value.trigger.serialize()[1]
    assert (kwargs["resume"], kwargs["resume_failed"]) == expected


def test_a_subclass_with_an_execute_of_its_own_runs_it() -> None:
    class Mine(EKSBatchOperator):
        def execute(self, context: Any) -> Any:
            return super().execute(context)

    with a_dag():
        assert Mine(task_id="month").start_from_trigger is False


def test_the_scheduler_reads_back_what_the_trigger_needs() -> None:
    from airflow.serialization.decoders import smart_decode_trigger_kwargs
    from airflow.serialization.serialized_objects import DagSerialization

    dag = a_dag()
    an_operator(
        dag,
        command=["run", "{{ ds }}"],
        env={"A": "1"},
        array_size=12,
        depends_on=["other"],
        execution_timeout=timedelta(minutes=5),
    )
    read_back: Any = DagSerialization.from_dict(DagSerialization.to_dict(dag)).get_task("month")
    assert read_back.start_from_trigger is True
    kwargs = smart_decode_trigger_kwargs(read_back.start_trigger_args.trigger_kwargs)
    trigger = EKSBatchJobTrigger(**kwargs)
    _, again = trigger.serialize()
    assert {name: again[name] for name in ("command", "env", "array_size", "timeout_s")} == {
        "command": ["run", "{{ ds }}"],
        "env": {"A": "1"},
        "array_size": 12,
        "timeout_s": 300,
    }
    assert set(FIELDS) <= set(read_back.template_fields)


def test_how_many_nodes_may_be_a_template_that_the_triggerer_renders() -> None:
    operator = an_operator(command=["run"], num_nodes="{{ params.n }}")
    assert operator.why_worker == []
    assert operator.start_trigger_args is not None
    trigger = EKSBatchJobTrigger(**(operator.start_trigger_args.trigger_kwargs or {}))
    assert trigger.serialize()[1]["num_nodes"] == "{{ params.n }}"


def test_the_example_over_several_nodes_is_a_dag_whose_task_starts_in_the_triggerer() -> None:
    """Its job is run by test_in_airflow.py."""
    dag = runpy.run_path(str(ROOT / "dags" / "several_nodes.py"))["dag"]
    pi: Any = dag.get_task("pi")
    assert (pi.why_worker, pi.num_nodes) == ([], 3)


def test_the_job_gets_the_time_limit_of_the_task() -> None:
    limit = timedelta(seconds=20)
    assert an_operator(execution_timeout=limit).timeout_s == 60  # AWS Batch knows no less
    assert an_operator(timeout=timedelta(hours=1), execution_timeout=limit).timeout_s == 3600


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"vcpus": 0.3}, "task month: vcpus must be a multiple of 0.25"),
        ({"env": {"A": "1"}, "env_vars": {"B": "2"}}, "give env or env_vars, not both"),
        ({"array_size": 3, "array_properties": {"size": 3}}, "not both"),
        ({"num_nodes": 3, "array_properties": {"size": 3}}, "num_nodes or array_size, not both"),
        ({"logging_interval": 0}, "logging_interval must be .* at least 1 s, got 0"),
        ({"logging_interval": "often"}, "logging_interval must be .*, got 'often'"),
        ({"timeout": "1h"}, "task month: timeout must be seconds or a timedelta, .* got '1h'"),
        ({"timeout": "{{ params.t }}"}, "task month: timeout .* takes no template"),
        ({"timeout": float("inf")}, "task month: timeout must be seconds"),
        ({"submit_within": "1h"}, "task month: submit_within must be seconds or a timedelta"),
        ({"job_queue": None}, "task month: job_queue is empty"),
        ({"array_properties": "{{ params.size }}"}, "array_properties must be a dict .* got str"),
    ],
)
def test_a_dag_with_a_mistake_does_not_import(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(BadArguments, match=says):
        an_operator(**arguments)


@pytest.mark.parametrize("operator", [EKSBatchOperator, EKSBatchJobSensor, EKSBatchJobQueueSensor])
def test_every_argument_is_told_in_the_docstring_and_nothing_else_is(operator: type) -> None:
    taken = inspect.signature(vars(operator)["__init__"]).parameters
    own = [name for name, one in taken.items() if one.kind is inspect.Parameter.KEYWORD_ONLY]
    assert re.findall(r":param (\w+):", operator.__doc__ or "") == own


def test_the_docstring_names_the_defaults_that_are_not_in_the_signature() -> None:
    told = EKSBatchOperator.__doc__ or ""
    for default in (
        DEFAULT_IMAGE,
        f"(default {DEFAULT_VCPUS:g})",
        f"(default {DEFAULT_MEMORY_MIB})",
    ):
        assert default in told


def test_an_array_described_by_another_task_is_told_where_that_goes() -> None:
    with a_dag():
        described: Any = EKSBatchOperator(task_id="other").output
        with pytest.raises(BadArguments, match="goes into array_size"):
            EKSBatchOperator(task_id="month", array_properties=described)


def test_a_misspelt_argument_is_refused() -> None:
    with pytest.raises(TypeError, match="comand"):
        an_operator(comand=["run"])


def test_importing_the_operator_costs_little_more_than_airflow() -> None:
    program = """
import sys, airflow.sdk
from airflow.sdk import BaseOperator, DAG
before = set(sys.modules)
from airflow_eksbatch import EKSBatchOperator, EKSBatchJobSensor
with DAG("d"):
    EKSBatchOperator(task_id="t", command="echo {{ ds }}")
heavy = ("aiohttp", "botocore", "boto3", "starlette", "uvicorn", "structlog.dev")
print(len(set(sys.modules) - before), [m for m in heavy if m in set(sys.modules) - before])
"""
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    count, _, heavy = found.stdout.strip().splitlines()[-1].partition(" ")
    assert heavy == "[]"
    assert int(count) < 40, found.stdout
