"""The step: facts in, changes and effects out. Same world, same facts, same time: same outcome."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from airflow_eksbatch.core.engine import (
    effects,
    facts,
    on_api,
    on_cloud,
    on_cluster,
    on_jobs,
    on_time,
)
from airflow_eksbatch.core.engine.effects import Outcome
from airflow_eksbatch.core.engine.lives import start_attempt, wake_dependents
from airflow_eksbatch.core.engine.turn import StepSettings, Turn
from airflow_eksbatch.core.model import limits
from airflow_eksbatch.core.model.errors import Rejected
from airflow_eksbatch.core.model.node import Node, NodeStatus, Offering
from airflow_eksbatch.core.planner.check import check_plan
from airflow_eksbatch.core.planner.plan import Launch, Placement, Plan
from airflow_eksbatch.core.planner.planning import make_plan
from airflow_eksbatch.core.world.measured import apply_measures
from airflow_eksbatch.core.world.world import World

REACTIONS: dict[type[facts.Fact], Callable[[Turn, Any], object]] = {
    facts.JobSubmitted: on_jobs.on_job_submitted,
    facts.JobTried: on_jobs.on_job_tried,
    facts.JobStopped: on_jobs.on_job_stopped,
    facts.QueuePut: on_api.on_queue_put,
    facts.ComputeEnvironmentPut: on_api.on_compute_environment_put,
    facts.PolicyPut: on_api.on_policy_put,
    facts.Deleted: on_api.on_deleted,
    facts.DefinitionRegistered: on_api.on_definition_registered,
    facts.DefinitionDeregistered: on_api.on_definition_deregistered,
    facts.TagsChanged: on_api.on_tags_changed,
    facts.EnvironmentChecked: on_api.on_environment_checked,
    facts.PodSeen: on_cluster.on_pod_seen,
    facts.PodRunning: on_cluster.on_pod_running,
    facts.PodEnded: on_cluster.on_pod_ended,
    facts.PodRefused: on_cluster.on_pod_refused,
    facts.PodsListed: on_cluster.on_pods_listed,
    facts.PodStuck: on_cluster.on_pod_stuck,
    facts.NodeReady: on_cluster.on_node_ready,
    facts.NodeFound: on_cluster.on_node_found,
    facts.NodeClosed: on_cluster.on_node_closed,
    facts.NodeLost: on_cluster.on_node_lost,
    facts.NodesListed: on_cluster.on_nodes_listed,
    facts.OfferingsListed: on_cloud.on_offerings_listed,
    facts.InstanceLaunched: on_cloud.on_instance_launched,
    facts.LaunchAlone: on_cloud.on_launch_alone,
    facts.LaunchRefused: on_cloud.on_launch_refused,
    facts.SpotInterrupted: on_cloud.on_spot_interrupted,
    facts.RebalanceRecommended: on_cloud.on_rebalance_recommended,
    facts.InstanceGone: on_cloud.on_instance_gone,
    facts.InstancesListed: on_cloud.on_instances_listed,
    facts.ClockTicked: lambda turn, fact: None,
}


def step(world: World, news: Sequence[facts.Fact], now: int, settings: StepSettings) -> Outcome:
    """One turn of the world. Raises nothing for bad news: a caller's mistake is that caller's answer."""
    turn = Turn(world=world, now=now, settings=settings)
    answers = [react(turn, fact) for fact in news]
    on_time.on_time(turn)
    wake_dependents(turn)
    on_cluster.begin_other_nodes(turn)
    apply_measures(world)
    due = world.gathering.due(now, int(settings.gather_s * 1000))
    if due > now:
        world.wake_at(due, "gather", "")
    plan = make_plan(world, now, settings.idle_s, buys=due <= now)
    if settings.check_plans:
        check_plan(world, plan, now)
    carry_out(turn, plan)
    on_api.finish_deletions(turn)
    return Outcome(
        changes=world.take_changes(),
        effects=turn.effects,
        answers=answers,
        plan=plan,
        wake_at=world.deadlines[0][0] if world.deadlines else None,
    )


def react(turn: Turn, fact: facts.Fact) -> object:
    """One fact and all that follows from it; a refused one leaves the world as it was."""
    try:
        answer = REACTIONS[type(fact)](turn, fact)
    except Rejected as refusal:
        return refusal
    wake_dependents(turn)
    return answer


def carry_out(turn: Turn, plan: Plan) -> None:
    """Turn the plan into attempts, nodes and their effects."""
    for retirement in plan.retirements:
        turn.terminate_node(turn.world.nodes[retirement.node_id], retirement.reason)
    for node_id, job_id in plan.claims.items():
        turn.world.reserve_node(turn.world.nodes[node_id], job_id)
    for placement in plan.placements:
        place(turn, placement)
    order_nodes(turn, plan.launches)


def place(turn: Turn, placement: Placement) -> None:
    """Draw the oldest indices of a class and start them on the node."""
    line = turn.world.lines[placement.job_class]
    node, left = turn.world.nodes[placement.node_id], placement.count
    while left > 0:
        job = line.head(turn.world.jobs)
        assert job is not None, "the plan places more than stands in line"
        for index in turn.world.draw_runnable(job, left):
            start_attempt(turn, job, index, node)
            left -= 1
        if not job.runnable:
            turn.world.release_nodes(job)


def order_nodes(turn: Turn, launches: Iterable[Launch]) -> None:
    """Note the nodes first, then ask for them: a crash between leaves nodes that are asked for again.

    Equal machines are asked for together, those of a multi-node job all or none, and which ones is kept: so a repeated request
    is the same request.
    """
    alike: defaultdict[tuple[str, Offering, str | None], list[Node]] = defaultdict(list)
    for launch in launches:
        for _ in range(launch.count):
            node = Node(
                node_id=turn.world.next_node_id(launch.compute_environment),
                compute_environment=launch.compute_environment,
                offering=launch.offering.as_listed,
                allocatable=launch.offering.allocatable,
                bought_for=launch.load,
                reserved_for=launch.reserved_for,
                requested_at=turn.now,
            )
            alike[node.compute_environment, node.offering, node.reserved_for].append(node)
        turn.world.totals.overflows += launch.count * (launch.choice > 0)
    for nodes in alike.values():
        for start in range(0, len(nodes), limits.LAUNCH_TOGETHER_MAX):
            lot = nodes[start : start + limits.LAUNCH_TOGETHER_MAX]
            for node in lot:
                node.together = tuple(n.node_id for n in lot) if len(lot) > 1 else ()
                node.all_or_none = bool(node.together and node.reserved_for)
                turn.world.add_node(node)
                on_time.ask_launch(turn, node)


def derive_effects(world: World, now: int, settings: StepSettings) -> list[effects.Effect]:
    """After a load: everything that was asked of the outside and may not have been done."""
    turn = Turn(world=world, now=now, settings=settings)
    for environment in world.compute_environments.values():
        turn.effects.append(effects.CheckEnvironment(compute_environment=environment.name))
    for node in list(world.nodes.values()):
        if node.status is NodeStatus.REQUESTED:
            on_time.ask_launch(turn, node)
        elif node.status is NodeStatus.TERMINATING:
            turn.terminate_node(node, node.reason or "")
    for attempt in list(world.attempts.values()):
        if attempt.stopping is not None:
            turn.delete_pod(attempt)
        elif attempt.seen_at is None:
            node = world.nodes[attempt.node_id]
            turn.create_pod(attempt, world.jobs[attempt.job_id], node)
    on_time.derive_deadlines(turn)
    return turn.effects
