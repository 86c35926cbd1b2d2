"""kill -9, ten times, at any moment of a running workload."""

from __future__ import annotations

import random
import shutil
import threading
from collections import Counter
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from tests.service.conftest import MakeService
from tests.service.running import RunningService, a_definition, pod_pids, submit

KILLS = 10
SEED = 20260105


class Submitter(threading.Thread):
    """Submits until told to stop; what fails is repeated with the same token, so it is the same job."""

    def __init__(self, service: RunningService, definition: str) -> None:
        super().__init__(daemon=True)
        self._service = service
        self._definition = definition
        self.enough = threading.Event()
        self.accepted: dict[str, str] = {}
        """name -> job id"""

    def run(self) -> None:
        number = 0
        while not self.enough.wait(0.03):
            name = f"job-{number}"
            fields: dict[str, Any] = {"arrayProperties": {"size": 3}} if number % 10 == 9 else {}
            if self._submit(name, fields):
                number += 1

    def _submit(self, name: str, fields: dict[str, Any]) -> bool:
        batch = self._service.batch(retries={"total_max_attempts": 1}, connect_timeout=2)

        def add_token(request: Any, **_: Any) -> None:
            request.headers["x-eksbatch-token"] = f"test|kill|{name}|-1|1"

        batch.meta.events.register("before-sign.batch.SubmitJob", add_token)
        try:
            self.accepted[name] = submit(batch, self._definition, name, **fields)
        except (ClientError, BotoCoreError):
            return False
        return True


def script(marks: Path) -> str:
    """Notes its beginning and end, and whether another process of the same job lives meanwhile."""
    me = '"$AWS_BATCH_JOB_ID.${AWS_BATCH_JOB_ARRAY_INDEX:-x}"'
    return (
        f"exec 9> {marks}/lock.{me}; flock -n 9 || echo {me} >> {marks}/twice; "
        f"echo {me} >> {marks}/begun; sleep 0.$((RANDOM % 9 + 1)); echo {me} >> {marks}/ended"
    )


def lines(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


def test_nothing_accepted_is_lost_and_nothing_runs_twice(
    make_service: MakeService, tmp_path: Path
) -> None:
    """1 submits go on 2 ten kills at random moments, a start after each 3 all ends are good, each ran once."""
    assert shutil.which("flock"), "the test needs flock of util-linux"
    marks = tmp_path / "marks"
    marks.mkdir()
    chance = random.Random(SEED)
    service = make_service("--launch-delay-s", "0.1", "--idle-s", "2", "--check-plans").start()
    definition = a_definition(service.batch(), "bash", "-c", script(marks))
    submitter = Submitter(service, definition)
    submitter.start()
    moment = threading.Event()
    for _ in range(KILLS):
        moment.wait(chance.uniform(0.1, 1.5))
        service.kill()
        service.start()
    submitter.enough.set()
    submitter.join()

    accepted = set(submitter.accepted.values())
    assert len(accepted) == len(submitter.accepted) > 20
    ends = service.wait_for_ends(accepted)
    assert Counter(ends.values()) == {"SUCCEEDED": len(accepted)}
    assert lines(marks / "twice") == []
    assert Counter(lines(marks / "begun")) == Counter(lines(marks / "ended"))
    assert set(Counter(lines(marks / "ended")).values()) == {1}, "a pod was not found again"
    summary = service.get("/v1/eksbatch/summary")
    assert summary["free_retries"] == 0
    assert summary["jobs"]["SUCCEEDED"] == len(lines(marks / "ended"))
    assert pod_pids(service.home) == []
    check_money(service, accepted)


def check_money(service: RunningService, accepted: set[str]) -> None:
    """All that instances cost is in the accounts, and jobs have of it what they say, to the nano-dollar."""
    earlier = service.get("/v1/eksbatch/summary")["price_usd"]
    found = service.get("/v1/eksbatch/costs?by=market")
    later = service.get("/v1/eksbatch/summary")["price_usd"]
    # Instances may still live, and told is what both agree on to the micro-dollar.
    assert earlier - 1e-6 <= found["total"]["total"]["usd"] <= later + 1e-6
    by_use: Counter[str] = Counter()
    for row in found["rows"]:
        by_use[row["use"]] += row["total"]["nanoUsd"]
    told = [service.get(f"/v1/eksbatch/jobs/{job_id}")["cost"]["total"] for job_id in accepted]
    assert by_use["JOBS"] == sum(cost["nanoUsd"] for cost in told) > 0
    assert by_use["IDLE"] > 0
