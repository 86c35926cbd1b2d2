"""make_plan(): group, order, fit, provision, retire."""

from __future__ import annotations

from airflow_eksbatch.core.planner.fit import fit_classes
from airflow_eksbatch.core.planner.plan import Plan
from airflow_eksbatch.core.planner.provision import provision
from airflow_eksbatch.core.planner.retire import retire_nodes
from airflow_eksbatch.core.world.world import World


def make_plan(world: World, now: int, idle_s: float) -> Plan:
    """What follows from the world as it is; reads it and changes nothing.

    `now` is epoch ms; `idle_s` the grace of empty nodes where their environment does not say.
    """
    placements, left = fit_classes(world, now)
    return Plan(
        placements=placements,
        launches=provision(world, left, now),
        retirements=retire_nodes(world, placements, now, idle_s),
        unplaced={
            job_class: count for demand in left.values() for job_class, count in demand.items()
        },
    )
