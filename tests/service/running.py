"""A real service process for tests: started, asked over HTTP, killed, and never left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

Event = dict[str, Any]
START_S = 120  # on a machine that does much else
END_S = 60


class RunningService:
    """`eksbatch local` (or `serve`) with a home of its own."""

    program: tuple[str, ...] = ("-m", "airflow_eksbatch.cli")
    """What Python runs."""
    is_open = True
    """Whether `eksbatch local` lets in who does not sign, as tests mostly do not."""

    def __init__(self, home: Path, *options: str, command: str = "local") -> None:
        self.home = home
        self.options = options
        self.command = command
        self.process: subprocess.Popen[str] | None = None
        self.url = ""
        """Where it listens, or last did: who asks while it is down is refused."""
        self.output: list[str] = []
        self._is_up = False
        self._ready, self._stands_by = threading.Event(), threading.Event()
        self._reader: threading.Thread | None = None

    def __enter__(self) -> RunningService:
        try:
            return self.start()
        except BaseException:
            self.end()
            raise

    def __exit__(self, *_: object) -> None:
        self.end()

    def start(self) -> RunningService:
        """Until it says where it listens."""
        self._start_reading()
        self.wait_until_ready()
        return self

    def start_beside(self) -> None:
        """Until it says that it stands by for another."""
        self._start_reading()
        assert self._stands_by.wait(START_S), f"does not stand by: {self.text}"

    def wait_until_ready(self) -> None:
        assert self._ready.wait(START_S), f"did not start: {self.text}"
        assert self._is_up, f"ended at once: {self.text}"

    def _start_reading(self) -> None:
        self._ready, self._stands_by = threading.Event(), threading.Event()
        self.begin()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def begin(self) -> None:
        """Start it, whether or not it will be ready."""
        self._is_up = False
        environ = {name: value for name, value in os.environ.items() if "EKSBATCH" not in name}
        command = [sys.executable, *self.program, self.command]
        if self.command == "local" and self.is_open and "--auth" not in self.options:
            command += ["--auth", "open"]
        self.process = subprocess.Popen(
            [*command, "--home", str(self.home), "--log-format", "json", *self.options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environ,
        )

    @property
    def text(self) -> str:
        return "".join(self.output)

    def _read(self) -> None:
        assert self.process is not None
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output.append(line)
            if "standing by" in line:
                self._stands_by.set()
            if line.startswith("http://"):
                self.url = line.strip()
            elif '"event": "ready"' in line:
                self.url = json.loads(line)["url"]
            else:
                continue
            self._is_up = True
            self._ready.set()
        self._ready.set()

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.process.kill()
        self._reap()

    def stop(self) -> int:
        """SIGTERM, and how it ended."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self._reap()

    def ended(self) -> int:
        """How it ended by itself."""
        return self._reap()

    def _reap(self) -> int:
        assert self.process is not None
        code = self.process.wait(END_S)
        if self._reader is not None:
            self._reader.join(END_S)
        if self.process.stdout is not None:
            self.process.stdout.close()
        return code

    def end(self) -> None:
        """Leave nothing behind: neither the service nor the pods it would have found again."""
        if self.process is not None:
            self.kill()
        for pid in pod_pids(self.home):
            try:
                os.killpg(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    # ---- asking

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=30) as reply:
            body = reply.read()
        return json.loads(body) if body[:1] in (b"{", b"[") else body.decode()

    def status_of(self, path: str) -> int:
        try:
            with urllib.request.urlopen(self.url + path, timeout=30) as reply:
                return reply.status
        except urllib.error.HTTPError as error:
            return error.code

    def post(self, path: str, body: Any) -> Any:
        request = urllib.request.Request(self.url + path, data=json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=30) as reply:
            return json.loads(reply.read())

    def batch(self, access_key: str = "test", secret: str = "test", **config: Any) -> Any:
        """boto3 itself, unchanged."""
        return boto3.client(
            "batch",
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id=access_key,
            aws_secret_access_key=secret,
            config=Config(**{"retries": {"max_attempts": 3, "mode": "standard"}, **config}),
        )

    def events(self, cursor: int = 0) -> Iterator[Event]:
        """Events since a cursor, for as long as the service lives."""
        url = f"{self.url}/v1/eksbatch/events?cursor={cursor}"
        with urllib.request.urlopen(url, timeout=30) as stream:
            for line in stream:
                yield from json.loads(line).get("events", ())

    def wait_for(self, wanted: Callable[[Event], bool], cursor: int = 0) -> Event:
        """The first event like that; fails when the service goes quiet for 30 s."""
        for event in self.events(cursor):
            if wanted(event):
                return event
        raise AssertionError("the stream ended before it came")

    def wait_for_ends(self, job_ids: set[str], cursor: int = 0) -> dict[str, str]:
        """How these jobs ended."""
        ends: dict[str, str] = {}
        for event in self.events(cursor):
            if event["jobId"] in job_ids and event["status"] in ("SUCCEEDED", "FAILED"):
                ends[event["jobId"]] = event["status"]
                if len(ends) == len(job_ids):
                    return ends
        raise AssertionError(f"the stream ended before {job_ids - ends.keys()} did")


def pod_pids(home: Path) -> list[int]:
    """Process groups of pods that live."""
    pids = []
    for path in (home / "pods").glob("*/pid"):
        words = path.read_text().split()
        if words and words[0].isdigit() and Path(f"/proc/{words[0]}").exists():
            pids.append(int(words[0]))
    return pids


def a_definition(batch: Any, *command: str, name: str = "shell") -> str:
    """A job definition that runs a command; its revision's ARN."""
    container = {
        "image": "busybox",
        "command": list(command),
        "resources": {"requests": {"cpu": "0.25", "memory": "128Mi"}},
    }
    made = batch.register_job_definition(
        jobDefinitionName=name,
        type="container",
        eksProperties={"podProperties": {"containers": [container]}},
    )
    return str(made["jobDefinitionArn"])


def submit(batch: Any, definition: str, name: str = "job", **fields: Any) -> str:
    fields.setdefault("shareIdentifier", "today")
    made = batch.submit_job(jobName=name, jobQueue="default", jobDefinition=definition, **fields)
    return str(made["jobId"])
