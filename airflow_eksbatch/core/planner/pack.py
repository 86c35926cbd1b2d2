"""Fit: job classes onto what is free, tightest room first; cost follows distinct rooms, not nodes."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable

from airflow_eksbatch.core.model.node import NodeId
from airflow_eksbatch.core.model.resources import Resources

Key = tuple[int, int, int, int]
"""cpu, memory, gpu, pods: sorted so, the first that fits has the least cpu left over."""

Shapes = dict[Resources, int]


class KeptNode:
    """An empty node, kept for the load it was bought for."""

    def __init__(
        self, node_id: NodeId, free: Resources, load: Iterable[tuple[Resources, int]]
    ) -> None:
        self.node_id = node_id
        self.missing, self.spare = fill(free, load)
        """What of the load is not there yet, and what the whole load leaves free."""

    def place(self, shape: Resources, wanted: int) -> int:
        """How many of these have their place here."""
        count = min(wanted, self.missing[shape])
        self.missing[shape] -= count
        if not self.missing[shape]:
            del self.missing[shape]
        return count

    def whole(self) -> Resources:
        """What is free if the rest of the load gives way."""
        free = self.spare
        for shape, count in self.missing.items():
            free = free.plus(shape.times(count))
        return free


class Floor:
    """The free rooms of one compute environment, as this plan leaves them.

    Rooms are kept by what memory they have, to a power of two, and whether they have GPUs: a cluster full of cpu that
    nobody can use for want of memory is then not looked through for every turn.
    """

    def __init__(self) -> None:
        self._nodes: dict[Key, list[NodeId]] = {}
        self._keys: dict[tuple[bool, int], list[Key]] = {}
        self._failed: list[Resources] = []
        """Shapes that fitted nowhere; rooms only shrink, so nothing as large will."""
        self._kept: dict[NodeId, KeptNode] = {}
        self._kept_for: dict[Resources, list[KeptNode]] = {}

    def add(self, free: Resources, nodes: Iterable[NodeId]) -> None:
        """More nodes with so much free each."""
        if free.cpu_m < 0 or free.memory_mib < 0 or free.pods <= 0:
            return
        key = (free.cpu_m, free.memory_mib, free.gpu, free.pods)
        there = self._nodes.get(key)
        if there is None:
            self._nodes[key] = list(nodes)
            insort(self._keys.setdefault(kind_of(key), []), key)
        else:
            there.extend(nodes)

    def keep(self, node_id: NodeId, free: Resources, load: Iterable[tuple[Resources, int]]) -> None:
        """A node kept for its load: others get its room when they fit nowhere else."""
        node = KeptNode(node_id, free, load)
        if not node.missing:
            self.add(free, [node_id])
            return
        self._kept[node_id] = node
        for shape in node.missing:
            self._kept_for.setdefault(shape, []).append(node)

    def hold(self, node_id: NodeId, free: Resources) -> None:
        """Take a node out of this plan; `free` is where it was when the plan began."""
        if self._kept.pop(node_id, None) is not None:
            return
        first = (free.cpu_m, free.memory_mib, free.gpu, free.pods)
        keys = [first] if node_id in self._nodes.get(first, ()) else list(self._nodes)
        for key in keys:
            if node_id in self._nodes[key]:
                self._nodes[key].remove(node_id)
                self._drop_if_empty(key)
                return

    def fit(self, shape: Resources, wanted: int, patient: int = 0) -> list[tuple[NodeId, int]]:
        """Place up to `wanted` pods of this shape; (node, how many) for each node used.

        The last `patient` of them stay out rather than take a place that is kept for others.
        """
        if any(failed.fits(shape) for failed in self._failed):
            return []
        placed = self.fit_kept(shape, wanted)
        placed += self._fit_rooms(shape, wanted - total(placed))
        if self._kept:
            placed += self._fit_spare(shape, wanted - total(placed))
            while total(placed) < wanted - patient and self._open_one_for(shape):
                placed += self._fit_rooms(shape, wanted - patient - total(placed))
        if total(placed) < wanted - patient or (total(placed) < wanted and not self._kept):
            self._failed = [failed for failed in self._failed if not shape.fits(failed)]
            self._failed.append(shape)
        return placed

    def fit_where(
        self, shape: Resources, wanted: int, allows: Callable[[NodeId], bool]
    ) -> list[tuple[NodeId, int]]:
        """The same on some nodes only: they are looked at one by one, first those kept for it, then the tightest."""
        placed: list[tuple[NodeId, int]] = []
        for node in [n for n in self._kept.values() if shape in n.missing and allows(n.node_id)]:
            if count := min(wanted - total(placed), node.missing[shape]):
                placed.append((node.node_id, node.place(shape, count)))
                if not node.missing:
                    self._open(node)
        placed += self._fit_rooms_where(shape, wanted - total(placed), allows)
        for node in list(self._kept.values()):
            missing = wanted - total(placed)
            if missing and shape.fits(node.whole()) and allows(node.node_id):
                self._open(node)
                placed += self._fit_rooms_where(shape, missing, allows)
        return placed

    def _fit_rooms_where(
        self, shape: Resources, wanted: int, allows: Callable[[NodeId], bool]
    ) -> list[tuple[NodeId, int]]:
        placed: list[tuple[NodeId, int]] = []
        for key in sorted(self._nodes, key=lambda key: (key[2] > 0, key)):
            free = Resources(cpu_m=key[0], memory_mib=key[1], gpu=key[2], pods=key[3])
            each = shape.count_in(free)
            for node_id in [n for n in self._nodes[key] if allows(n)] if each else []:
                if count := min(each, wanted):
                    wanted -= count
                    placed.append((node_id, count))
                    self._nodes[key].remove(node_id)
                    self.add(free.minus(shape.times(count)), [node_id])
            self._drop_if_empty(key)
        return placed

    def fit_kept(self, shape: Resources, wanted: int) -> list[tuple[NodeId, int]]:
        """Only those whose place is kept."""
        placed: list[tuple[NodeId, int]] = []
        nodes = self._kept_for.get(shape, [])
        while nodes and wanted > 0:
            node = nodes[0]
            if node.node_id in self._kept and shape in node.missing:
                count = node.place(shape, wanted)
                placed.append((node.node_id, count))
                wanted -= count
                if not node.missing:
                    self._open(node)
            else:
                nodes.pop(0)
        return placed

    def _fit_spare(self, shape: Resources, wanted: int) -> list[tuple[NodeId, int]]:
        """What loads leave of the nodes that are kept for them."""
        placed: list[tuple[NodeId, int]] = []
        for node in self._kept.values():
            count = min(wanted, shape.count_in(node.spare))
            if count:
                node.spare = node.spare.minus(shape.times(count))
                placed.append((node.node_id, count))
                wanted -= count
        return placed

    def _open_one_for(self, shape: Resources) -> bool:
        """A kept node that is large enough goes to whoever comes."""
        for node in self._kept.values():
            if shape.fits(node.whole()):
                self._open(node)
                return True
        return False

    def _open(self, node: KeptNode) -> None:
        del self._kept[node.node_id]
        self.add(node.whole(), [node.node_id])

    def _fit_rooms(self, shape: Resources, wanted: int) -> list[tuple[NodeId, int]]:
        placed: list[tuple[NodeId, int]] = []
        while wanted > 0 and (key := self._tightest(shape)) is not None:
            free = Resources(cpu_m=key[0], memory_mib=key[1], gpu=key[2], pods=key[3])
            each = min(shape.count_in(free), wanted)
            used = self._fill(key, free, shape.times(each), wanted // each)
            placed.extend((node_id, each) for node_id in used)
            wanted -= len(used) * each
        return placed

    def _tightest(self, shape: Resources) -> Key | None:
        """The room with the least cpu left over; one with GPUs only for want of another."""
        best: Key | None = None
        cpu_m, memory_mib, gpu, pods = shape.cpu_m, shape.memory_mib, shape.gpu, shape.pods
        for (has_gpu, _), keys in self._kinds_for(gpu > 0, memory_mib):
            if has_gpu and not gpu and best is not None:
                break
            for position in range(bisect_left(keys, (cpu_m, 0, 0, 0)), len(keys)):
                key = keys[position]
                if best is not None and key >= best:
                    break
                if key[1] >= memory_mib and key[2] >= gpu and key[3] >= pods:
                    best = key
                    break
        return best

    def _kinds_for(self, gpu: bool, memory_mib: int) -> list[tuple[tuple[bool, int], list[Key]]]:
        """Kinds of rooms that may hold so much, those without GPUs first."""
        least = memory_mib.bit_length()
        kinds = [
            (kind, keys)
            for kind, keys in self._keys.items()
            if kind[1] >= least and (kind[0] or not gpu)
        ]
        return sorted(kinds) if any(kind[0] for kind, _ in kinds) else kinds

    def _fill(self, key: Key, free: Resources, load: Resources, number: int) -> list[NodeId]:
        """Put one load on each of up to `number` nodes of a room; the nodes used, oldest first."""
        nodes = self._nodes[key]
        used, self._nodes[key] = nodes[:number], nodes[number:]
        self._drop_if_empty(key)
        self.add(free.minus(load), used)
        return used

    def _drop_if_empty(self, key: Key) -> None:
        if not self._nodes[key]:
            del self._nodes[key]
            keys = self._keys[kind_of(key)]
            del keys[bisect_left(keys, key)]
            if not keys:
                del self._keys[kind_of(key)]


def fill(room: Resources, wanted: Iterable[tuple[Resources, int]]) -> tuple[Shapes, Resources]:
    """What of it goes into a room, as much of each as there is and fits, in this order; and what that leaves free."""
    load: Shapes = {}
    cpu_m, memory_mib, pods = room.cpu_m, room.memory_mib, room.pods
    for shape, count in wanted:
        if shape.cpu_m > cpu_m or shape.memory_mib > memory_mib or shape.gpu > room.gpu:
            continue
        number = min(count, shape.count_in(room))
        if number:
            load[shape] = number
            room = room.minus(shape.times(number))
            cpu_m, memory_mib, pods = room.cpu_m, room.memory_mib, room.pods
            if not (cpu_m and memory_mib and pods):
                break
    return load, room


def total(placed: Iterable[tuple[NodeId, int]]) -> int:
    return sum(count for _, count in placed)


def kind_of(key: Key) -> tuple[bool, int]:
    """Whether it has GPUs, and the power of two of its memory."""
    return key[2] > 0, key[1].bit_length()
