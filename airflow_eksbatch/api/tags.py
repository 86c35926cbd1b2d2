"""Tags of whatever has an ARN."""

from __future__ import annotations

import re
from typing import Any

from airflow_eksbatch.api.port import Call, Operation
from airflow_eksbatch.api.wire.names import check_tags
from airflow_eksbatch.core.engine.facts import TagsChanged
from airflow_eksbatch.core.model.errors import Rejected
from airflow_eksbatch.core.model.job import JobId
from airflow_eksbatch.core.model.job_definition import split_revision

ARN = re.compile(
    r"arn:[a-z-]+:batch:[a-z0-9-]+:[0-9]{12}:"
    r"(job-queue|compute-environment|scheduling-policy|job-definition|job)/([A-Za-z0-9_:-]+)"
)


def kind_and_name(arn: str) -> tuple[str, str]:
    match = ARN.fullmatch(arn)
    if match is None:
        raise Rejected(
            f"{arn!r} is not the ARN of a job queue, compute environment, scheduling policy, "
            "job definition or job."
        )
    return match[1], match[2]


async def tags_of(call: Call, kind: str, name: str) -> dict[str, str] | None:
    """Tags of a thing, or None when it does not exist."""
    await call.desk.settled()
    world = call.desk.world
    if kind == "job-definition":
        plain, revision = split_revision(name)
        definition = world.definitions.get(plain, {}).get(revision or 0)
        return definition.tags if definition is not None else None
    if kind == "job":
        job_id = JobId(name)
        jobs = [world.jobs[job_id]] if job_id in world.jobs else []
        jobs = jobs or await call.desk.ask(lambda store: store.find_jobs([job_id]))
        return jobs[0].spec.tags if jobs else None
    things: dict[str, Any] = {
        "job-queue": world.queues,
        "compute-environment": world.compute_environments,
        "scheduling-policy": world.policies,
    }[kind]
    return things[name].tags if name in things else None


async def change(call: Call, added: dict[str, str], removed: list[str]) -> dict[str, Any]:
    kind, name = kind_and_name(call.input["resourceArn"])
    if kind == "job":
        raise Rejected("Tags of a job are given with SubmitJob and stay as they are.")
    await call.desk.offer(
        TagsChanged(kind=kind, name=name, added=added, removed=tuple(removed))  # type: ignore[arg-type]
    )
    return {}


async def tag(call: Call) -> dict[str, Any]:
    return await change(call, check_tags(call.input["tags"]), [])


async def untag(call: Call) -> dict[str, Any]:
    return await change(call, {}, call.input["tagKeys"])


async def list_tags(call: Call) -> dict[str, Any]:
    kind, name = kind_and_name(call.input["resourceArn"])
    tags = await tags_of(call, kind, name)
    if tags is None:
        raise Rejected(f"{call.input['resourceArn']} does not exist.")
    return {"tags": tags}


OPERATIONS: dict[str, Operation] = {
    "TagResource": tag,
    "UntagResource": untag,
    "ListTagsForResource": list_tags,
}
