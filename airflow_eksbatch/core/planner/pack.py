"""Fit: job classes onto what is free, tightest room first; cost follows distinct rooms, not nodes."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable

from airflow_eksbatch.core.model.node import NodeId
from airflow_eksbatch.core.model.resources import Resources

Key = tuple[int, int, int, int]


def key_of(free: Resources) -> Key:
    return (free.cpu_m, free.memory_mib, free.gpu, free.pods)


class Floor:
    """The free rooms of one compute environment, as this plan leaves them."""

    def __init__(self) -> None:
        self._nodes: dict[Key, list[NodeId]] = {}
        self._keys: list[Key] = []
        """Sorted: the first that fits is the one with the least cpu left over."""
        self._failed: list[Resources] = []
        """Shapes that fitted nowhere; rooms only shrink, so nothing as large will."""

    def add(self, free: Resources, nodes: Iterable[NodeId]) -> None:
        """More nodes with so much free each."""
        key = key_of(free)
        if key not in self._nodes:
            self._nodes[key] = []
            insort(self._keys, key)
        self._nodes[key].extend(nodes)

    def hold(self, node_id: NodeId, free: Resources) -> None:
        """Take a node out of this plan; `free` is where it was when the plan began."""
        first = key_of(free)
        keys = [first] if node_id in self._nodes.get(first, ()) else list(self._nodes)
        for key in keys:
            if node_id in self._nodes[key]:
                self._nodes[key].remove(node_id)
                self._drop_if_empty(key)
                return

    def fit(self, shape: Resources, wanted: int) -> list[tuple[NodeId, int]]:
        """Place up to `wanted` pods of this shape; (node, how many) for each node used."""
        placed: list[tuple[NodeId, int]] = []
        if any(failed.fits(shape) for failed in self._failed):
            return placed
        position = bisect_left(self._keys, (shape.cpu_m, 0, 0, 0))
        while wanted > 0 and position < len(self._keys):
            key = self._keys[position]
            free = Resources(cpu_m=key[0], memory_mib=key[1], gpu=key[2], pods=key[3])
            each = shape.count_in(free)
            if not each:
                position += 1
                continue
            each = min(each, wanted)
            used = self._fill(key, free, shape.times(each), wanted // each)
            placed.extend((node_id, each) for node_id in used)
            wanted -= len(used) * each
            position = bisect_left(self._keys, key)
        if wanted > 0:
            self._failed.append(shape)
        return placed

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
            del self._keys[bisect_left(self._keys, key)]
