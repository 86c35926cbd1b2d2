"""A real Airflow on this machine: its four processes and their database, started, watched and stopped.

with Airflow(home, dags_folder) as airflow:
    airflow.rest.trigger("hello")
"""

from __future__ import annotations

import base64
import fcntl
import os
import random
import secrets
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.airflow.metadata import Metadata
from tests.airflow.processes import Child, Gone, stop_children, wait_for
from tests.airflow.rest import AirflowRest

HEALTHY_WITHIN_S = 180.0  # 30 s here; a machine that has to compile Airflow first needs longer
DAG_WITHIN_S = 180.0
COMMANDS = {
    "api-server": ["api-server"],
    # Logs are read from the common directory; two log servers and their ports are saved.
    "scheduler": ["scheduler", "--skip-serve-logs"],
    "dag-processor": ["dag-processor"],
    "triggerer": ["triggerer", "--skip-serve-logs"],
}


def free_port() -> int:
    """Below the ports that the system gives to clients, and never given to two test processes of this machine."""
    taken = Path(tempfile.gettempdir()) / "eksbatch-ports"
    taken.mkdir(exist_ok=True)
    while True:
        port = random.randrange(20_000, 32_000)
        lock = os.open(taken / str(port), os.O_CREAT | os.O_RDWR)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port  # its lock goes with this process
        os.close(lock)


class Airflow:
    """Airflow of `python`'s environment with a home, a port and a database of its own."""

    def __init__(
        self,
        home: Path,
        dags_folder: Path,
        env: Mapping[str, str] | None = None,
        *,
        python: str = sys.executable,
        only: tuple[str, ...] = tuple(COMMANDS),
    ) -> None:
        self.home = home
        self.python = python
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.rest = AirflowRest(self.url)
        self.children: dict[str, Child] = {}
        self.metadata: Metadata | None = None
        self._only = only
        self._env = {
            **{k: v for k, v in os.environ.items() if not k.startswith("AIRFLOW")},
            **settings(home, dags_folder, self.port),
            **(env or {}),
        }

    # -- from nothing to healthy, and back --

    def __enter__(self) -> Airflow:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        self.launch()
        self.wait_until_healthy()

    def launch(self) -> None:
        """The database and all processes; they wait for each other."""
        self.home.mkdir(parents=True, exist_ok=True)
        # Whoever does not find one writes one, while others may read half of it; all we say is in the environment.
        (self.home / "airflow.cfg").touch()
        self.metadata = Metadata(self.home / "postgres", self._migrate)
        self._env["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"] = self.metadata.url
        for name in self._only:
            self.start_process(name)

    def wait_until_healthy(self) -> None:
        parts = {name.replace("-", "_") for name in self._only}

        def look() -> bool:
            return not parts & {*self.rest.unhealthy()}

        wait_for(
            "Airflow to be healthy",
            look,
            within_s=HEALTHY_WITHIN_S,
            children=tuple(self.children.values()),
            poll_s=0.25,
        )

    def start_process(self, name: str) -> Child:
        child = Child(
            f"airflow {name}",
            [self.python, "-m", "airflow", *COMMANDS[name]],
            env=self._env,
            log=self.home / f"{name}.log",
            cwd=self.home,
        )
        self.children[name] = child
        return child

    def stop_process(self, name: str) -> None:
        stop_children([self.children.pop(name)])

    def stop(self) -> None:
        """Everything that was started here, by its own id; the database last."""
        self.rest.close()
        stop_children(self.children.values())
        self.children.clear()
        if self.metadata is not None:
            self.metadata.stop()
            self.metadata = None

    def leave_running(self) -> None:
        """For people who want to look around; they stop it by its pids."""
        if self.metadata is not None:
            self.metadata.leave_running()

    def check(self) -> None:
        """Raise Gone if any of the processes has died."""
        for child in self.children.values():
            child.check()

    def pids(self) -> list[int]:
        """Of all that runs here, in the order in which to stop it."""
        found = [child.pid for child in self.children.values()]
        return [*found, self.metadata.pid] if self.metadata else found

    # -- what tests ask for --

    def wait_for_dag(self, dag_id: str) -> None:
        """Parsed and known; a DAG file that does not import fails here, with Airflow's words."""

        def look() -> bool:
            for error in self.rest.import_errors():
                raise Gone(f"{error['filename']} does not import:\n{error['stack_trace']}")
            return self.rest.find_dag(dag_id) is not None

        children = tuple(self.children.values())
        wait_for(f"DAG {dag_id}", look, within_s=DAG_WITHIN_S, children=children, poll_s=0.25)

    def wait_for_run(self, dag_id: str, run_id: str, *, within_s: float = 120.0) -> str:
        """How the run ended: success or failed."""

        def look() -> str | None:
            state = self.rest.run(dag_id, run_id)["state"]
            return state if state in ("success", "failed") else None

        children = tuple(self.children.values())
        what = f"run {run_id} of {dag_id}"
        return wait_for(what, look, within_s=within_s, children=children, poll_s=0.25)

    def wait_for_task(
        self, dag_id: str, run_id: str, task_id: str, *states: str, within_s: float = 120.0
    ) -> dict[str, Any]:
        """Its task instance once it is in one of these states."""

        def look() -> dict[str, Any] | None:
            rows = self.rest.task_instances(dag_id, run_id)
            return next((r for r in rows if r["task_id"] == task_id and r["state"] in states), None)

        children = tuple(self.children.values())
        what = f"{dag_id}.{task_id} to be {' or '.join(states)}"
        return wait_for(what, look, within_s=within_s, children=children, poll_s=0.25)

    def connect(self, conn_id: str, url: str) -> None:
        """A connection to a service of ours; one of that name goes."""
        self.rest.call("DELETE", f"connections/{conn_id}", allow=(404,))
        wanted = {"connection_id": conn_id, "conn_type": "eksbatch", "host": url}
        self.rest.call("POST", "connections", wanted)

    def cli(self, *arguments: str) -> str:
        """One `airflow` command against this installation; its output."""
        done = subprocess.run(
            [self.python, "-m", "airflow", *arguments],
            env=self._env,
            cwd=self.home,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise Gone(f"airflow {' '.join(arguments)}: {done.stderr[-2000:]}")
        return done.stdout

    def _migrate(self, url: str) -> None:
        self._env["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"] = url
        self.cli("db", "migrate")


def settings(home: Path, dags_folder: Path, port: int) -> dict[str, str]:
    """What this Airflow needs to know: its place, who may come in (all), and a quick pace."""
    own = {
        "core": {
            "dags_folder": dags_folder,
            "load_examples": False,
            "executor": "LocalExecutor",
            "parallelism": 2 * (os.cpu_count() or 2),
            "simple_auth_manager_all_admins": True,
            "execution_api_server_url": f"http://127.0.0.1:{port}/execution/",
            "internal_api_secret_key": secrets.token_hex(16),
            "fernet_key": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
            "dags_are_paused_at_creation": False,
        },
        "api": {
            "host": "127.0.0.1",
            "port": port,
            "base_url": f"http://127.0.0.1:{port}",
            "workers": 1,
            "secret_key": secrets.token_hex(16),
        },
        "api_auth": {"jwt_secret": secrets.token_hex(32)},
        "scheduler": {
            "scheduler_idle_sleep_time": 0.2,
            # Airflow 3.3.2 looks at 20 runs at a time, those of backfills last: they would starve.
            "max_dagruns_per_loop_to_schedule": 200,
            "max_dagruns_to_create_per_loop": 100,
            "trigger_timeout_check_interval": 1,
            "enable_health_check": False,
        },
        "triggerer": {"capacity": 10_000, "job_heartbeat_sec": 2},
        "dag_processor": {
            "refresh_interval": 5,
            "min_file_process_interval": 10,
            "parsing_processes": 1,
            "print_stats_interval": 60,
        },
        "logging": {"base_log_folder": home / "logs", "colored_console_log": False},
        "usage_data_collection": {"enabled": False},
    }
    named = {
        f"AIRFLOW__{section}__{name}".upper(): str(value)
        for section, values in own.items()
        for name, value in values.items()
    }
    # Own words before those of whoever sits at this machine: no ~/airflow.cfg is read.
    return {**named, "AIRFLOW_HOME": str(home), "NO_PROXY": "127.0.0.1,localhost"}
