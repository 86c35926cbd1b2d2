"""Amounts and lists as people read them."""

from __future__ import annotations

from collections.abc import Sequence

from airflow_eksbatch.core.model.resources import Resources

SHOWN = 3


def listed(names: Sequence[str], shown: int = SHOWN) -> str:
    """The first few, and how many more."""
    more = len(names) - shown
    first = ", ".join(names[:shown])
    return f"{first} and {more} more" if more > 0 else first


def number_of(count: int, one: str, many: str = "") -> str:
    """`1 job`, `2 jobs`."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def span(ms: int) -> str:
    """A length of time in its two largest units."""
    seconds = max(0, ms) // 1000
    for size, unit, small_size, small_unit in (
        (86_400, "d", 3_600, "h"),
        (3_600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if seconds >= size:
            rest = seconds % size // small_size
            return f"{seconds // size} {unit}" + (f" {rest} {small_unit}" if rest else "")
    return f"{seconds} s"


def roughly(ms: int) -> str:
    """A length of time that is estimated: not more exact than its largest unit from five of these on."""
    for unit_ms in (86_400_000, 3_600_000, 60_000):
        if ms >= 5 * unit_ms:
            return span(round(ms / unit_ms) * unit_ms)
    return span(ms)


def amount(resources: Resources) -> str:
    """`2 vCPUs, 1024 MiB, 1 GPU`."""
    parts = [f"{resources.cpu_m / 1000:g} vCPUs", f"{resources.memory_mib} MiB"]
    if resources.gpu:
        parts.append(number_of(resources.gpu, "GPU"))
    return ", ".join(parts)
