"""Sets of array indices as sorted, disjoint, half-open ranges: an array of 10,000 costs one pair."""

from collections.abc import Iterator

Ranges = tuple[tuple[int, int], ...]

EMPTY: Ranges = ()
ONE: Ranges = ((0, 1),)


def whole(size: int) -> Ranges:
    """All indices of an array of that size."""
    return ONE if size == 1 else ((0, size),)


def count(ranges: Ranges) -> int:
    """How many indices the set holds."""
    return sum(stop - start for start, stop in ranges)


def contains(ranges: Ranges, index: int) -> bool:
    """Whether the index is in the set."""
    return any(start <= index < stop for start, stop in ranges)


def indices(ranges: Ranges) -> Iterator[int]:
    """Every index, ascending."""
    for start, stop in ranges:
        yield from range(start, stop)


def take(ranges: Ranges, limit: int) -> tuple[list[int], Ranges]:
    """The first `limit` indices, and the set that is left."""
    taken: list[int] = []
    for position, (start, stop) in enumerate(ranges):
        room = limit - len(taken)
        if room <= 0:
            return taken, ranges[position:]
        taken.extend(range(start, min(stop, start + room)))
        if stop - start > room:
            return taken, ((start + room, stop), *ranges[position + 1 :])
    return taken, EMPTY


def add(ranges: Ranges, index: int) -> Ranges:
    """The set with the index in it."""
    return union(ranges, ((index, index + 1),))


def remove(ranges: Ranges, index: int) -> Ranges:
    """The set without the index."""
    return minus(ranges, ((index, index + 1),))


def union(left: Ranges, right: Ranges) -> Ranges:
    """Both sets together, neighbours merged."""
    if not left or not right:
        return left or right
    merged: list[tuple[int, int]] = []
    for start, stop in sorted((*left, *right)):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
        else:
            merged.append((start, stop))
    return tuple(merged)


def minus(left: Ranges, right: Ranges) -> Ranges:
    """What is in the left set and not in the right one."""
    if not left or not right:
        return left
    kept: list[tuple[int, int]] = []
    for start, stop in left:
        for cut_start, cut_stop in right:
            if cut_stop <= start or stop <= cut_start:
                continue
            if start < cut_start:
                kept.append((start, cut_start))
            start = min(stop, cut_stop)
            if start == stop:
                break
        if start < stop:
            kept.append((start, stop))
    return tuple(kept)


def intersect(left: Ranges, right: Ranges) -> Ranges:
    """What is in both."""
    return minus(left, minus(left, right))
