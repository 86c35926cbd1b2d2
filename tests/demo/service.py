"""The scheduler service of the demo as a process, and the few things the demo asks it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from tests.airflow.processes import Child, stop_children, wait_for
from tests.demo.place import Trouble

Json = dict[str, Any]
READY_WITHIN_S = 60.0
# Small on purpose: on-demand is full after a few arrays, so the rest overflows to Spot, and two
# cores are not asked to run more processes at once than they can.
SETTINGS = {
    "EKSBATCH_PORT": "0",
    # Airflow finds it by its URL alone, and whoever keeps it running asks it as they like.
    "EKSBATCH_AUTH": "open",
    "EKSBATCH_IDLE_S": "5",
    "EKSBATCH_LAUNCH_DELAY_S": "2",
    "EKSBATCH_ON_DEMAND_VCPUS": "4",
    "EKSBATCH_SPOT_VCPUS": "8",
}


class Service:
    """`eksbatch local` with SQLite, its embedded cluster and its embedded cloud."""

    def __init__(self, python: Path, home: Path) -> None:
        home.mkdir(parents=True)
        self._announcement = home / "service.json"
        others = {k: v for k, v in os.environ.items() if not k.startswith("EKSBATCH_")}
        self.child = Child(
            "eksbatch local",
            [str(python.parent / "eksbatch"), "local"],
            env={**others, **SETTINGS, "EKSBATCH_HOME": str(home)},
            log=home / "service.log",
            cwd=home,
        )
        self.url = ""
        self._http = httpx.Client(timeout=30, trust_env=False)

    def wait_until_ready(self) -> None:
        announced = wait_for(
            "the service",
            lambda: self._announcement.read_text() if self._announcement.exists() else None,
            within_s=READY_WITHIN_S,
            children=(self.child,),
        )
        self.url = json.loads(announced)["url"]
        ready = f"{self.url}/readyz"
        wait_for(
            "the service to be ready",
            lambda: self._http.get(ready).status_code == 200,
            within_s=READY_WITHIN_S,
            children=(self.child,),
        )

    def stop(self) -> None:
        self._http.close()
        stop_children([self.child])

    def summary(self) -> Json:
        return self._ask("GET", "summary")

    def job(self, job_id: str) -> Json:
        return self._ask("GET", f"jobs/{quote(job_id, safe=':')}")

    def reclaim_busiest_spot(self) -> str | None:
        """Take a Spot instance back; its node id, None if there is none.

        EC2 gives two minutes of notice to jobs that run for hours; these run for a second and get a tenth.
        """
        try:
            answer = self._ask("POST", "cloud", {"reclaim_notice_s": 0.1, "reclaim": "any-spot"})
        except Trouble:
            return None
        return str(answer["reclaimed"])

    def _ask(self, method: str, path: str, body: Json | None = None) -> Json:
        answer = self._http.request(method, f"{self.url}/v1/eksbatch/{path}", json=body)
        if answer.status_code != 200:
            raise Trouble(f"{method} {path}: the service says {answer.status_code} {answer.text}")
        return answer.json()
