"""What a share has used fades, and is forgotten when it changes nobody's turn any more: names of shares may be new every day."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_eksbatch.core.model import limits
from airflow_eksbatch.core.model.share import ShareUsage

if TYPE_CHECKING:
    from airflow_eksbatch.core.world.world import World


def watch_usage(world: World, usage: ShareUsage) -> None:
    """Nothing of it runs: look at it when it has faded. One look is enough, however often it begins and ends meanwhile."""
    if usage.name not in world.fading:
        world.fading.add(usage.name)
        world.wake_at(faded_at(world, usage), "share", usage.name)


def drop_faded(world: World, name: str, now: int) -> None:
    """That look."""
    world.fading.discard(name)
    queue, _, share = name.partition("|")
    usage = world.usages.get((queue, share))
    if usage is None or usage.running_cpu_m:
        return
    if now < faded_at(world, usage):
        watch_usage(world, usage)
    else:
        world.forget_usage(usage)


def faded_at(world: World, usage: ShareUsage) -> int:
    return usage.updated_at + world.decay_s(usage.queue) * 1000 * limits.SHARE_FADES
