"""Which submit is which try of which Airflow task: by Airflow's own ids, apart for each deployment."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
import uuid6

from tests.api.asking import Raw, Reply
from tests.service.running import RunningService, a_definition


class Tasks:
    """Airflow tasks of one DAG run that submit jobs to a queue."""

    def __init__(self, raw: Raw, queue: str, definition: str, dag: str) -> None:
        self.raw, self.dag = raw, dag
        self.job = {"jobName": "t", "jobQueue": queue, "jobDefinition": definition}

    def ask(
        self,
        task: str = "task",
        number: int = 1,
        *,
        waits_for: str = "",
        map_index: int = -1,
        **headers: Any,
    ) -> Reply:
        token = quote(f"{self.dag}|run|{task}|-1", safe="") + f"|{number}"
        named = {f"x-eksbatch-{name.replace('_', '-')}": text for name, text in headers.items()}
        depends_on = (
            [{"jobId": f"airflow:{self.dag}|run|{waits_for}|{map_index}"}] if waits_for else []
        )
        body = json.dumps({**self.job, "dependsOn": depends_on}).encode()
        return self.raw("POST", "/v1/submitjob", body, {"x-eksbatch-token": token, **named})

    def submit(self, *given: Any, **more: Any) -> str:
        reply = self.ask(*given, **more)
        assert reply.status == 200, reply.body
        return str(json.loads(reply.body)["jobId"])


@pytest.fixture
def tasks(raw: Raw, batch: Any, idle_queue: str, unique: Callable[[str], str]) -> Tasks:
    return Tasks(raw, idle_queue, a_definition(batch, "true"), unique("dag"))


def test_a_run_that_was_made_again_does_not_get_the_job_of_the_deleted_one(
    service: RunningService, tasks: Tasks, batch: Any
) -> None:
    first, second = str(uuid6.uuid7()), str(uuid6.uuid7())
    old = tasks.submit(task_instance=first)
    batch.terminate_job(jobId=old, reason="its run was deleted")
    service.wait_for_ends({old})
    assert tasks.submit(task_instance=first) == old
    new = tasks.submit(task_instance=second)
    assert new != old
    assert tasks.submit(task_instance=second) == new


def test_deployments_with_the_same_dags_do_not_touch_each_others_jobs(
    tasks: Tasks, batch: Any
) -> None:
    prod = tasks.submit("task", 1, deployment="prod", task_instance=str(uuid6.uuid7()))
    staging = tasks.submit("task", 2, deployment="staging", task_instance=str(uuid6.uuid7()))
    waits = tasks.submit("next", waits_for="task", deployment="prod")
    jobs = {job["jobId"]: job for job in batch.describe_jobs(jobs=[prod, staging, waits])["jobs"]}
    assert {jobs[prod]["status"], jobs[staging]["status"]} == {"RUNNABLE"}
    assert [one["jobId"] for one in jobs[waits]["dependsOn"]] == [prod]
    reply = tasks.ask("next", 2, waits_for="task", deployment="elsewhere")
    assert reply.status == 400
    assert "has submitted no job yet" in reply.message


def test_who_waits_for_a_mapped_task_is_told_to_name_its_jobs(tasks: Tasks) -> None:
    told = tasks.ask(waits_for="mapped").message
    assert told.endswith("no job yet, or is a mapped task: of those it takes job ids.")
    told = tasks.ask(waits_for="mapped", map_index=3).message
    assert told.endswith("|mapped|3, which has submitted no job yet.")


def test_a_job_tells_of_which_deployment_its_task_is(raw: Raw, tasks: Tasks) -> None:
    def airflow_of(**headers: str) -> Any:
        path = f"/v1/eksbatch/jobs/{tasks.submit(**headers)}"
        return json.loads(raw("GET", path).body)["airflow"]

    story = {"airflow": quote(json.dumps({"dag_id": "sales", "deployment": "not asked"}))}
    assert airflow_of(**story, deployment="prod") == {"dag_id": "sales", "deployment": "prod"}
    assert airflow_of(**story, task="b") == {"dag_id": "sales", "deployment": ""}
    assert airflow_of(task="c") is None


@pytest.mark.parametrize(
    ("headers", "says"),
    [
        ({"deployment": "a b"}, "letters, digits"),
        ({"deployment": "x" * 65}, "up to 64"),
        ({"task_instance": "7"}, "must be the UUID"),
        ({"task_instance": ""}, "must be the UUID"),
        ({"airflow": "{"}, "must be a JSON object"),
        ({"airflow": "[]"}, "must be a JSON object"),
    ],
)
def test_names_that_are_none_are_refused(tasks: Tasks, headers: dict[str, Any], says: str) -> None:
    reply = tasks.ask(**headers)
    assert reply.status == 400
    assert says in reply.message


def test_ids_that_have_no_order_tell_repeats_and_no_more(tasks: Tasks, batch: Any) -> None:
    """UUIDs of another version are not ordered by their time."""
    a = tasks.submit(task_instance="ffffffff-ffff-4fff-bfff-ffffffffffff")
    b = tasks.submit(task_instance="00000000-0000-4000-8000-000000000000")
    assert tasks.submit(task_instance="ffffffff-ffff-4fff-bfff-ffffffffffff") == a
    assert a != b
    jobs = batch.describe_jobs(jobs=[a, b])["jobs"]
    assert [job["status"] for job in jobs] == ["RUNNABLE", "RUNNABLE"]
