"""What nodes of an instance type really had for pods when they joined: it takes the place of the estimate.

In memory only: after a restart it is known of the nodes that are there, and one more of another type may be bought to
learn it again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

from airflow_eksbatch.core.model.node import Node, NodeId, Offering
from airflow_eksbatch.core.model.resources import Resources

if TYPE_CHECKING:
    from airflow_eksbatch.core.world.world import World

Kind = tuple[str, str]
"""Compute environment and instance type: DaemonSets are chosen by clusters, room by types."""

# Instances of one type differ by some MiB: nodes on their way are not counted anew for less than this part.
ALIKE = 0.02


def kind_of(node: Node) -> Kind:
    return node.compute_environment, node.offering.instance_type


class Measured:
    """The last node of a kind that joined speaks for those to come; what grows afterwards on one that is there counts too.

    What shrinks afterwards does not: that may be a stranger's pod on one node.
    """

    def __init__(self) -> None:
        self.rooms: dict[Kind, Resources] = {}
        """Only where it is not as estimated."""
        self.forgotten: Counter[Kind] = Counter()
        """How often in a row nobody was left to ask."""
        self._without_gpus: dict[str, Kind] = {}
        """Environments whose last node with GPUs showed none: a device plugin is missing, for types not bought yet as well."""
        self._changed: dict[Kind, Resources | None] = {}
        """With what was believed before."""

    def join(self, node: Node) -> bool:
        """A node has just become ready; whether this is news of its kind."""
        kind, estimate = kind_of(node), node.offering.allocatable
        is_new = kind not in self.rooms and node.allocatable != estimate
        self._believe(kind, node.allocatable, estimate)
        return is_new

    def grow(self, node: Node) -> None:
        """A node that is ready reports another room than before: a DaemonSet has gone, a device has come."""
        kind = kind_of(node)
        if kind in self.rooms and self.rooms[kind].fits(node.allocatable):
            self._believe(kind, node.allocatable, node.offering.allocatable)

    def forget(self, kind: Kind) -> None:
        """The estimate counts again; the next node of the kind tells."""
        if kind in self.rooms:
            self._changed.setdefault(kind, self.rooms.pop(kind))
            self.forgotten[kind] += 1
            if self._without_gpus.get(kind[0]) == kind:
                del self._without_gpus[kind[0]]

    def forget_environment(self, name: str) -> None:
        """Somebody changed it."""
        for kind in [kind for kind in self.rooms if kind[0] == name]:
            self.forget(kind)
        for kind in [kind for kind in self.forgotten if kind[0] == name]:
            del self.forgotten[kind]

    def corrected(self, environment: str, offerings: Iterable[Offering]) -> tuple[Offering, ...]:
        return tuple(
            offering.with_room(self._room_of(environment, offering)) for offering in offerings
        )

    def take_changes(self) -> dict[Kind, Resources | None]:
        """Kinds of which something else is believed than at the last call, with what that was."""
        changed, self._changed = self._changed, {}
        return changed

    def _room_of(self, environment: str, offering: Offering) -> Resources | None:
        room = self.rooms.get((environment, offering.instance_type))
        if room is None and offering.gpu and environment in self._without_gpus:
            return msgspec.structs.replace(offering.as_listed.allocatable, gpu=0)
        return room

    def _note_gpus(self, kind: Kind, room: Resources, estimate: Resources) -> None:
        """The last node with GPUs speaks for all."""
        before = self._without_gpus.get(kind[0])
        if estimate.gpu and not room.gpu:
            self._without_gpus[kind[0]] = kind
        elif estimate.gpu:
            self._without_gpus.pop(kind[0], None)
        if self._without_gpus.get(kind[0]) != before:
            self._changed.setdefault(kind, self.rooms.get(kind))

    def _believe(self, kind: Kind, room: Resources, estimate: Resources) -> None:
        before = self.rooms.get(kind)
        self._note_gpus(kind, room, estimate)
        if room == estimate:
            self.rooms.pop(kind, None)
        else:
            self.rooms[kind] = room
        if self.rooms.get(kind) != before:
            self._changed.setdefault(kind, before)


def apply_measures(world: World) -> None:
    """Correct what may be bought, and what is on its way; costs nothing while nothing new was measured."""
    changed = world.measured.take_changes()
    for name in {name for name, _ in changed} & world.offerings.keys():
        world.offerings[name] = world.measured.corrected(name, world.offerings[name])
    doubtful = {
        kind
        for kind, before in changed.items()
        if not are_alike(world.measured.rooms.get(kind), before)
    }
    if doubtful:
        on_their_way: list[NodeId] = [
            node_id
            for (name, _, _), nodes in world.coming.items()
            if any(name == environment for environment, _ in doubtful)
            for node_id in nodes
        ]
        for node in (world.nodes[node_id] for node_id in on_their_way):
            room = world.measured.rooms.get(kind_of(node), node.offering.allocatable)
            if kind_of(node) in doubtful and node.allocatable != room:
                world.set_allocatable(node, room)


def are_alike(one: Resources | None, other: Resources | None) -> bool:
    if one is None or other is None:
        return False
    return (one.cpu_m, one.gpu, one.pods) == (other.cpu_m, other.gpu, other.pods) and abs(
        one.memory_mib - other.memory_mib
    ) <= ALIKE * other.memory_mib
