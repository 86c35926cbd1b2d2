"""make_plan(): group, order, fit, provision, retire."""

from __future__ import annotations

from airflow_eksbatch.core.planner.fit import Fit
from airflow_eksbatch.core.planner.plan import Plan
from airflow_eksbatch.core.planner.provision import provision
from airflow_eksbatch.core.planner.retire import retire_nodes
from airflow_eksbatch.core.world.world import World


def make_plan(world: World, now: int, idle_s: float, *, buys: bool = True) -> Plan:
    """What follows from the world as it is; reads it and changes nothing.

    `now` is epoch ms; `idle_s` the grace of empty nodes where their environment does not say; without `buys` nothing is
    launched this time.
    """
    fit = Fit(world, now)
    demand = fit.buyable_demand() if buys else {}
    launches = provision(world, demand, now, fit) if buys else []
    return Plan(
        placements=fit.placements,
        launches=launches,
        retirements=retire_nodes(
            world,
            fit.placements,
            now,
            idle_s,
            kept_back=fit.kept_back | fit.together.claims.keys(),
            emptied=fit.ways.emptied | fit.together.emptied,
            exchanged=fit.exchanged,
        ),
        claims=fit.together.claims,
        exchanged=fit.exchanged,
        unplaced={
            job_class: count for demand in fit.left.values() for job_class, count in demand.items()
        },
    )
