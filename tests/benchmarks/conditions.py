"""Under what conditions something was measured: numbers without them say nothing."""

from __future__ import annotations

import datetime
import os
import platform
import statistics
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any


def conditions(*packages: str, **more: Any) -> dict[str, Any]:
    """Machine, load, date, versions of these packages, and whatever the benchmark adds."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processor": processor(),
        "cpus": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 1),
        "versions": {name: metadata.version(name) for name in packages},
        **more,
    }


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if "model name" in line), "")


def fsync_ms(rounds: int = 25) -> float:
    """What one small durable write costs on the disk of temporary files; the median of some."""
    times: list[float] = []
    with tempfile.TemporaryFile() as file:
        for _ in range(rounds):
            file.write(bytes(4096))
            file.flush()
            began = time.perf_counter()
            os.fsync(file.fileno())
            times.append((time.perf_counter() - began) * 1000)
    return round(statistics.median(times), 2)


def quantile(values: list[float], part: float) -> float:
    """Of sorted values: the smallest that so large a part does not exceed."""
    return values[min(len(values) - 1, int(len(values) * part))]
