"""Hold: a node kept free of younger work for a job that has waited too long."""

from __future__ import annotations

from collections.abc import Collection

from airflow_eksbatch.core.model import limits
from airflow_eksbatch.core.model.node import Node
from airflow_eksbatch.core.model.resources import Resources
from airflow_eksbatch.core.world.job_class import ClassLine
from airflow_eksbatch.core.world.where import Where
from airflow_eksbatch.core.world.world import World


def has_waited_long(world: World, line: ClassLine, now: int) -> bool:
    """Whether the oldest job in line has waited so long that back-fill must not pass it any more."""
    job = line.head(world.jobs)
    since = job.runnable_at if job is not None else None
    return since is not None and now - since >= limits.RESERVE_AFTER_S * 1000


class Roomiest:
    """The open nodes with the most free cpu, one of each environment and size: nodes alike are looked at once.

    The roomiest node that could hold a shape when empty takes nothing new; its free room only grows, so it stays
    the choice and the job starts at the latest when that node's last job ends.
    """

    def __init__(self, world: World) -> None:
        self._best: dict[tuple[str, Resources, str], Node] = {}
        for node in world.nodes.values():
            if node.is_open:
                kind = (node.compute_environment, node.allocatable, node.offering.pool)
                best = self._best.get(kind)
                if best is None or rank(node) > rank(best):
                    self._best[kind] = node

    def node_for(
        self, shape: Resources, environments: Collection[str], where: Where | None = None
    ) -> Node | None:
        """The node to keep for this shape, or None where no node could ever hold it."""
        able = (
            node
            for (name, allocatable, _), node in self._best.items()
            if name in environments
            and shape.fits(allocatable)
            and (where is None or where.allows(node.offering))
        )
        return max(able, key=rank, default=None)


def rank(node: Node) -> tuple[int, str]:
    return (node.allocatable.cpu_m - node.used.cpu_m, node.node_id)
