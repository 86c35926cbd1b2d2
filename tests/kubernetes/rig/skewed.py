"""`python -m tests.kubernetes.rig.skewed 3600 serve ...`: eksbatch on a machine whose clock is an hour ahead."""

from __future__ import annotations

import sys
import time


def shift(seconds: int) -> None:
    """Only the time of day: what is measured in this process goes on as it did."""
    now_s, now_ns = time.time, time.time_ns
    time.time = lambda: now_s() + seconds
    time.time_ns = lambda: now_ns() + seconds * 1_000_000_000


if __name__ == "__main__":
    shift(int(sys.argv.pop(1)))
    from airflow_eksbatch.cli import main

    sys.exit(main())
