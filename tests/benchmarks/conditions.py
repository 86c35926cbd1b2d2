"""Under what conditions something was measured: numbers without them say nothing."""

from __future__ import annotations

import datetime
import os
import platform
from pathlib import Path
from typing import Any


def conditions(**more: Any) -> dict[str, Any]:
    """Machine, load, versions and date, and whatever the benchmark adds."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processor": processor(),
        "cpus": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 1),
        **more,
    }


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if "model name" in line), "")
