"""From an operator's arguments to one SubmitJob and, if needed, one RegisterJobDefinition; pure.

It must not import Airflow or an HTTP client: DAG files, workers and the triggerer all use it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Any
from urllib.parse import quote

import msgspec

from airflow_eksbatch.arguments import (
    NO_JOB_QUEUE,
    BadArguments,
    as_mapping,
    check_fields,
    fields_of_overrides,
    words_of,
)

DEFAULT_IMAGE = "python:3.12-slim"
DEFAULT_VCPUS = 1.0
DEFAULT_MEMORY_MIB = 1024
ALL_NODES = "0:"
BACKFILL_SHARE = "backfill"
TODAY_SHARE = "today"
HISTORY_AFTER = timedelta(days=3)  # a long weekend: what failed on Friday is mended on Monday

_JOB_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}(:\d+)?")
_TASK_ID = re.compile(r"[\w.-]+")


class TaskKey(msgspec.Struct, frozen=True, kw_only=True):
    """Which try of which task instance."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int = -1
    try_number: int = 1
    instance: str = ""
    """Airflow's id of this try, a UUID: the same on a worker and in the triggerer, and never used again."""
    mapped_alike: frozenset[str] = frozenset()
    """The tasks of its mapped task group."""

    def key_of(self, task_id: str) -> str:
        """The task key of a task in the same run: mapped as this one is, or not mapped."""
        map_index = self.map_index if task_id in self.mapped_alike else -1
        return _joined(self.dag_id, self.run_id, task_id, map_index)

    @property
    def key(self) -> str:
        return _joined(self.dag_id, self.run_id, self.task_id, self.map_index)

    @property
    def token(self) -> str:
        """Of this try, for notes of the task itself."""
        return self.instance or f"{self.key}|{self.try_number}"


class RunFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What Airflow knows of the DAG run and AWS Batch has no field for."""

    run_type: str = "manual"
    logical_date: str | None = None
    team: str | None = None
    late: timedelta = timedelta()
    """How long after it was due the run began; a clear of a run that has ended begins it anew."""
    interval: timedelta = timedelta()

    @property
    def is_history(self) -> bool:
        """A run of a backfill, or one of the schedule that catches up (`catchup=True`, an old run cleared).

        Nothing here goes on while the run does: all tries of all its tasks say the same.
        """
        late = self.late > max(HISTORY_AFTER, self.interval)
        return self.run_type == "backfill" or (self.run_type == "scheduled" and late)

    @property
    def share(self) -> str:
        return BACKFILL_SHARE if self.is_history else TODAY_SHARE


class Submission(msgspec.Struct, frozen=True, kw_only=True):
    """One job, ready to be sent; `definition` is registered only when the service lacks it."""

    request: dict[str, Any]
    definition: dict[str, Any] | None
    headers: dict[str, str]
    share_was_chosen: bool


def _joined(dag_id: str, run_id: str, task_id: str, map_index: int) -> str:
    return "|".join((dag_id, run_id, task_id, str(map_index)))


def task_key(ti: Any) -> TaskKey:
    """Of a task instance as a worker or the triggerer has it."""
    return TaskKey(
        dag_id=ti.dag_id,
        run_id=ti.run_id,
        task_id=ti.task_id,
        map_index=-1 if ti.map_index is None else ti.map_index,
        try_number=ti.try_number,
        instance=str(getattr(ti, "id", None) or ""),
        mapped_alike=_mapped_alike(getattr(ti, "task", None)),
    )


def _mapped_alike(task: Any) -> frozenset[str]:
    group = None if task is None else task.get_closest_mapped_task_group()
    return frozenset(one.task_id for one in group.iter_tasks()) if group else frozenset()


def run_facts(dag_run: Any) -> RunFacts:
    """Of the `dag_run` of a context."""
    logical_date = getattr(dag_run, "logical_date", None)
    due = getattr(dag_run, "data_interval_end", None)
    since = getattr(dag_run, "data_interval_start", None)
    began = getattr(dag_run, "start_date", None)
    return RunFacts(
        run_type=str(getattr(dag_run.run_type, "value", dag_run.run_type)),
        logical_date=logical_date.isoformat() if logical_date else None,
        team=getattr(dag_run, "team_name", None),
        late=began - due if began and due else timedelta(),
        interval=due - since if due and since else timedelta(),
    )


def build_submission(fields: Mapping[str, Any], *, task: TaskKey, run: RunFacts) -> Submission:
    """What to send for these rendered fields."""
    given = {name: value for name, value in fields.items() if value is not None and value != {}}
    if not given.get("job_queue"):
        raise BadArguments(NO_JOB_QUEUE)
    check_fields(given)
    given = _with_container_overrides(given)
    if _array_size(given) == 1:
        given["command"] = _as_only_child(given)
    definition = None if given.get("job_definition") else _definition(given)
    name = given.get("job_definition") or (definition or {})["jobDefinitionName"]
    return Submission(
        request=_request(given, str(name), task, run),
        definition=definition,
        headers=_headers(task, run),
        share_was_chosen="share_identifier" in given,
    )


def job_name_from_task(task_id: str) -> str:
    name = re.sub(r"[^A-Za-z0-9_-]", "-", task_id)[:128].lstrip("-_")
    return name or "task"


def _request(given: Mapping[str, Any], definition: str, task: TaskKey, run: RunFacts) -> dict:
    size = _array_size(given)
    request = {
        "jobName": given.get("job_name") or job_name_from_task(task.task_id),
        "jobQueue": given["job_queue"],
        "jobDefinition": definition,
        **_overrides(given),
        "parameters": _strings(given.get("parameters")),
        "arrayProperties": {"size": size} if size > 1 else None,
        "dependsOn": [_dependency(one, task) for one in given.get("depends_on", ())],
        "retryStrategy": _retry_strategy(given),
        "timeout": _timeout(given.get("timeout_s")),
        "shareIdentifier": given.get("share_identifier", run.share),
        "tags": _strings(given.get("tags")),
    }
    if (priority := given.get("scheduling_priority_override")) is not None:
        request["schedulingPriorityOverride"] = int(str(priority))
    return {key: value for key, value in request.items() if value not in (None, {}, [], "")}


def _headers(task: TaskKey, run: RunFacts) -> dict[str, str]:
    story = {
        "dag_id": task.dag_id,
        "run_id": task.run_id,
        "task_id": task.task_id,
        "map_index": task.map_index,
        "try_number": task.try_number,
        "run_type": run.run_type,
        "logical_date": run.logical_date,
    }
    if run.team:
        story["team"] = run.team
    headers = {
        "x-eksbatch-token": f"{quote(task.key, safe='')}|{task.try_number}",
        "x-eksbatch-airflow": quote(json.dumps(story), safe=""),
    }
    if task.instance:
        headers["x-eksbatch-task-instance"] = task.instance
    return headers


def _with_container_overrides(given: Mapping[str, Any]) -> dict[str, Any]:
    rest = {name: value for name, value in given.items() if name != "container_overrides"}
    rest |= fields_of_overrides(given.get("container_overrides", {}))
    check_fields(rest)
    return rest


def _array_size(given: Mapping[str, Any]) -> int:
    """0 means no array. One child is a plain job that believes to be child 0 of 1."""
    return int(str(given["array_size"])) if "array_size" in given else 0


def _as_only_child(given: Mapping[str, Any]) -> list[str]:
    if "command" not in given:
        raise BadArguments(
            "array_size is 1: AWS Batch starts arrays at 2, so the job runs alone and needs a "
            "command that can be told its index; give command, or make the array larger"
        )
    words = _words(given["command"])
    return ["env", "AWS_BATCH_JOB_ARRAY_INDEX=0", "AWS_BATCH_JOB_ARRAY_SIZE=1", *words]


def _words(value: Any) -> list[str]:
    return ["sh", "-c", value] if isinstance(value, str) else [str(word) for word in value]


def _strings(value: Any) -> dict[str, str]:
    return {str(key): str(one) for key, one in (value or {}).items()}


def _resources(given: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """A job may use idle vCPUs (request only) but never more memory or GPUs than it asked for."""
    requests: dict[str, str] = {}
    limits: dict[str, str] = {}
    if "vcpus" in given:
        requests["cpu"] = f"{float(given['vcpus']):g}"
    if "memory" in given:
        requests["memory"] = limits["memory"] = f"{int(str(given['memory']))}Mi"
    if int(str(given.get("gpus", 0))):
        requests["nvidia.com/gpu"] = limits["nvidia.com/gpu"] = str(given["gpus"])
    found = {"requests": requests, "limits": limits}
    return {side: amounts for side, amounts in found.items() if amounts}


def _definition(given: Mapping[str, Any]) -> dict[str, Any]:
    """What stays the same from run to run, named by its content; the rest is an override."""
    needs = {"vcpus": DEFAULT_VCPUS, "memory": DEFAULT_MEMORY_MIB, **given}
    pod: dict[str, Any] = {
        "containers": [{"image": given.get("image", DEFAULT_IMAGE), "resources": _resources(needs)}]
    }
    if "service_account" in given:
        pod["serviceAccountName"] = given["service_account"]
    body = _body_of_all_nodes(pod) if "num_nodes" in given else _body_of_one(pod)
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return {"jobDefinitionName": f"airflow-{digest[:16]}", **body}


def _body_of_one(pod: dict[str, Any]) -> dict[str, Any]:
    return {"type": "container", "eksProperties": {"podProperties": pod}}


def _body_of_all_nodes(pod: dict[str, Any]) -> dict[str, Any]:
    """Of any number of nodes: each submit says its own."""
    alike = {"targetNodes": ALL_NODES, "eksProperties": {"podProperties": pod}}
    nodes = {"numNodes": 1, "mainNode": 0, "nodeRangeProperties": [alike]}
    return {"type": "multinode", "nodeProperties": nodes}


def _overrides(given: Mapping[str, Any]) -> dict[str, Any]:
    """What this job changes of its definition: of the one pod, or of the nodes."""
    override = _override(given)
    if "num_nodes" in given:
        nodes: dict[str, Any] = {"numNodes": given["num_nodes"]}
        if override:
            alike = {"targetNodes": ALL_NODES, "eksPropertiesOverride": override}
            nodes["nodePropertyOverrides"] = [alike]
    else:
        nodes = dict(given.get("node_overrides") or {})
    if "numNodes" in nodes:
        nodes["numNodes"] = int(str(nodes["numNodes"]))
    return {"nodeOverrides": nodes} if nodes else {"eksPropertiesOverride": override}


def _override(given: Mapping[str, Any]) -> dict[str, Any]:
    container: dict[str, Any] = {}
    if "command" in given:
        container["command"] = _words(given["command"])
    if "arguments" in given:
        container["args"] = words_of(given["arguments"])
    if "env" in given:
        container["env"] = [
            {"name": name, "value": value} for name, value in _strings(given["env"]).items()
        ]
    if given.get("job_definition"):
        if "image" in given:
            container["image"] = given["image"]
        if resources := _resources(given):
            container["resources"] = resources
    return _merged_override(given, container)


def _merged_override(given: Mapping[str, Any], container: dict[str, Any]) -> dict[str, Any]:
    pod = dict(as_mapping(given.get("eks_properties_override")).get("podProperties") or {})
    if container:
        pod["containers"] = [container]
    metadata = dict(pod.get("metadata") or {})
    for name in ("labels", "annotations"):
        if name in given:
            metadata[name] = {**metadata.get(name, {}), **_strings(given[name])}
    if metadata:
        pod["metadata"] = metadata
    return {"podProperties": pod} if pod else {}


def _retry_strategy(given: Mapping[str, Any]) -> dict[str, Any]:
    strategy = dict(given.get("retry_strategy") or {})
    if "attempts" in given:
        strategy["attempts"] = int(str(given["attempts"]))
    return strategy


def _timeout(seconds: Any) -> dict[str, int]:
    return {} if seconds is None else {"attemptDurationSeconds": int(float(seconds))}


def _dependency(one: Any, task: TaskKey) -> dict[str, str]:
    if isinstance(one, Mapping):
        found = {"type": one["type"]} if "type" in one else {}
        target = one.get("jobId") or one.get("job_id") or one.get("task_id")
        return {**_dependency(target, task), **found} if target else found
    if not isinstance(one, str) or not one:
        raise BadArguments(f"depends_on takes job ids, task ids and dicts, got {one!r}")
    if _JOB_ID.fullmatch(one) or one.startswith(("airflow:", "arn:")):
        return {"jobId": one}
    if not _TASK_ID.fullmatch(one):
        raise BadArguments(f"depends_on: {one!r} is neither a job id nor a task id")
    return {"jobId": f"airflow:{task.key_of(one)}"}
