"""Where the demo lives: its own environment with the wheel that we build, and what was left running."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import psutil

from tests.airflow.processes import stop_all

ROOT = Path(__file__).resolve().parents[2]
HOME = ROOT / ".demo"
RESULTS = HOME / "results"
CHART = RESULTS / "seattle_weather.png"
_RUNNING = HOME / "running.json"


class Trouble(Exception):
    """The demo cannot go on; the message is one sentence for whoever started it."""


def clean() -> None:
    """Begin from nothing; an Airflow that an earlier demo left up is in the way."""
    stop_left()
    shutil.rmtree(HOME, ignore_errors=True)
    HOME.mkdir()


def install_wheel() -> Path:
    """Build our wheel and install it beside, not over, what `make` has set up; its python.

    The dependencies are those of .venv, seen through a path file: nothing is downloaded twice.
    """
    wheels = HOME / "dist"
    _run(sys.executable, "-m", "pip", "wheel", *QUIET, "--no-build-isolation", "-w", wheels, ROOT)
    venv = HOME / "venv"
    _run(sys.executable, "-m", "venv", "--without-pip", venv)
    python = venv / "bin" / "python"
    (wheel,) = wheels.glob("*.whl")
    _run(sys.executable, "-m", "pip", "--python", python, "install", *QUIET, "--no-index", wheel)
    (own,) = venv.glob("lib/python*/site-packages")
    (own / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    found = _run(python, "-c", "import airflow_eksbatch; print(airflow_eksbatch.__file__)")
    if not Path(found.strip()).is_relative_to(venv):
        raise Trouble(f"the wheel is not what Python finds: {found.strip()}")
    return python


QUIET = ("-q", "--disable-pip-version-check", "--no-deps")


def _run(*command: str | Path) -> str:
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=HOME, capture_output=True, text=True)
    if done.returncode:
        raise Trouble(f"{' '.join(words)} failed: {(done.stderr or done.stdout)[-1500:]}")
    return done.stdout


def remember_running(pids: Sequence[int]) -> None:
    """With their start times: a pid that another process has by then is left alone."""
    rows = [[pid, psutil.Process(pid).create_time()] for pid in pids]
    _RUNNING.write_text(json.dumps(rows))


def stop_left() -> bool:
    """Stop what `KEEP=1` left up; whether there was anything. The database goes last."""
    if not _RUNNING.exists():
        return False
    left = []
    for pid, started in json.loads(_RUNNING.read_text()):
        if psutil.pid_exists(pid) and abs(psutil.Process(pid).create_time() - started) < 0.01:
            left.append(psutil.Process(pid))
    stop_all(left[:-1])
    stop_all(left[-1:])
    _RUNNING.unlink()
    return bool(left)
