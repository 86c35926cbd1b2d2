"""What tests of multi-node jobs share: stages of equal machines, and what happens to a job's nodes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from airflow_eksbatch.core.engine.effects import CreatePod
from airflow_eksbatch.core.engine.facts import (
    LaunchRefused,
    PodRefused,
    PodRunning,
)
from airflow_eksbatch.core.model import limits
from airflow_eksbatch.core.model.job import Attempt, MultiNode
from airflow_eksbatch.core.model.node import Node, NodeStatus, Offering
from tests.build import (
    a_node,
    a_policy,
    a_queue,
    a_world,
    an_environment,
    an_offering,
)
from tests.core.stage import Stage

LARGE = an_offering("m5.large", vcpus=2, memory_mib=8_192)
LARGE_B = an_offering("m5.large", vcpus=2, memory_mib=8_192, zone="us-east-1b")
MAIN = "10.0.0.7"


def nodes(count: int, main: int = 0) -> MultiNode:
    return MultiNode(nodes=count, main=main, pods=((0, b"{}"),))


def a_stage(*ready: Node, max_vcpus: int = 64, offerings: Iterable[Offering] = (LARGE,)) -> Stage:
    world = a_world(offerings=offerings)
    return Stage(world.with_(an_environment(max_vcpus=max_vcpus), *ready))


def refused(stage: Stage, *, quota: bool = False) -> list[LaunchRefused]:
    """Whatever is asked for and was not answered."""
    return [
        LaunchRefused(
            node_id=node.node_id,
            code="InsufficientInstanceCapacity",
            message="none",
            at=stage.now,
            quota=quota,
        )
        for node in stage.world.nodes.values()
        if node.status is NodeStatus.REQUESTED
    ]


def ready(count: int, offering: Offering = LARGE) -> list[Node]:
    return [a_node(offering=offering) for _ in range(count)]


def live(stage: Stage, job_id: str) -> list[Attempt]:
    """Its attempts, the main node's first."""
    running = stage.job(job_id).running
    return [stage.live(job_id, index) for index in sorted(running)]


def run_main(stage: Stage, job_id: str) -> list[CreatePod]:
    """Its main node runs, and the others are asked for."""
    main = stage.live(job_id)
    stage.step(PodRunning(pod=main.pod_name, at=stage.now, address=MAIN))
    return stage.of(CreatePod)


def a_running(stage: Stage, job_id: str, count: int, **fields: object) -> list[Attempt]:
    stage.submit(job_id, multi_node=nodes(count), **fields)
    stage.join()
    run_main(stage, job_id)
    stage.run()
    return live(stage, job_id)


def end_others(stage: Stage, job_id: str) -> None:
    """What was stopped after its main node has ended."""
    stage.step(
        *(
            stage.ended(job_id, attempt.index, exit_code=143)
            for attempt in live(stage, job_id)
            if attempt.stopping is not None
        )
    )


def waited_long(stage: Stage, job_id: str, **fields: object) -> None:
    stage.submit(job_id, **fields)
    stage.wait(limits.RESERVE_AFTER_S + 1)


def a_fair_stage(*, reservation: int = 0, **fields: Any) -> Stage:
    environment = an_environment(**fields)
    return Stage(
        a_world(offerings=(LARGE,)).with_(
            environment,
            a_policy("fair", reservation=reservation),
            a_queue("queue", policy="fair"),
        )
    )


def refuse(stage: Stage, job_id: str, index: int, reason: str, **how: bool) -> None:
    """The pod of a node is not taken."""
    pod = stage.live(job_id, index).pod_name
    stage.step(PodRefused(pod=pod, at=stage.now, reason=reason, **how))
