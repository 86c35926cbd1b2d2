"""The wire contract that the Airflow face relies on, spoken by a small real HTTP server.

It decides nothing: a test says when a job changes. Only for tests of the face by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import uuid
from typing import Any, Self
from urllib.parse import unquote

from aiohttp import web

HEARTBEAT_S = 5


class ContractService:
    """Jobs that do what the test says, and the stream that tells of it."""

    def __init__(self) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.requests: list[tuple[str, dict[str, Any], dict[str, str]]] = []
        self.definitions: set[str] = set()
        self.events: list[dict[str, Any]] = []
        self.outputs: dict[str, list[bytes | None]] = {}
        """Of each attempt; None for one that never was."""
        self.looks = 0
        """At outputs."""
        self.most_looks_at_once = 0
        self._looking = 0
        self.refusal = ""
        self.missing_queue = ""
        self.busy = 0
        self.fifo = False
        self.first_status = "SUBMITTED"
        self.why: Any = ["It waits."]
        self.strange = False  # whether a proxy answers for the page that explains
        self.explained: list[str] = []
        self.most_explained_at_once = 0
        self._explaining = 0
        self.unanswered = 0  # so many submits are taken, and their callers wait until `answering`
        self.answering = asyncio.Event()
        self.connections = 0
        self.cursors: list[int] = []
        self.port = 0
        self._by_token: dict[str, str] = {}
        self._runner: web.AppRunner | None = None
        self._changed = asyncio.Condition()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        app = web.Application()
        app.router.add_get("/v1/eksbatch/events", self._stream)
        app.router.add_get("/v1/eksbatch/jobs/{job}/log", self._log)
        app.router.add_get("/v1/eksbatch/jobs/{job}/explain", self._explain)
        app.router.add_post("/v1/{operation}", self._operation)
        app.router.add_get("/healthz", self._health)
        runner = self._runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self.port).start()
        self.port = runner.addresses[0][1]

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def change(self, job_id: str, status: str, **more: Any) -> None:
        """What the test wants to happen to a job or to a child (`id:3`)."""
        base = job_id.partition(":")[0]
        if job_id in self.jobs:
            self.jobs[job_id]["status"] = status
            self.jobs[job_id]["statusReason"] = more.get("statusReason", "")
        self.events.append(
            {
                "seq": len(self.events) + 1,
                "time": 0,
                "jobId": job_id,
                "jobName": self.jobs[base]["jobName"],
                "jobQueue": "default",
                "status": status,
                "statusReason": "",
                "exitCode": None,
                "attempt": 1,
                "attempts": 1,
                "parent": False,
                **more,
            }
        )
        async with self._changed:
            self._changed.notify_all()

    async def submitted(self, count: int = 1) -> list[str]:
        """The ids of the jobs, once there are that many."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self.jobs) >= count)
        return list(self.jobs)

    async def connected(self, count: int = 1) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self.connections >= count)

    async def asked(self, operation: str, count: int = 1) -> list[dict[str, Any]]:
        """The bodies of so many calls of an operation, once they came."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self.bodies(operation)) >= count)
        return self.bodies(operation)

    def bodies(self, operation: str) -> list[dict[str, Any]]:
        return [body for name, body, _ in self.requests if name == operation]

    # -- the wire --

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def _operation(self, request: web.Request) -> web.Response:
        name = request.match_info["operation"]
        body = await request.json()
        self.requests.append((name, body, dict(request.headers)))
        async with self._changed:
            self._changed.notify_all()
        if self.busy:
            self.busy -= 1
            return _refused("TooManyRequestsException", "Too Many Requests", status=429)
        answer = getattr(self, f"_{name}")(body, request.headers)
        async with self._changed:
            self._changed.notify_all()
        if name == "submitjob" and body["jobDefinition"] in self.definitions and self.unanswered:
            self.unanswered -= 1
            await self.answering.wait()
        return answer if isinstance(answer, web.Response) else web.json_response(answer)

    def _submitjob(self, body: dict[str, Any], headers: Any) -> Any:
        if self.refusal:
            return _refused("ClientException", self.refusal)
        if body["jobDefinition"] not in self.definitions:
            return _refused("ClientException", f"JobDefinition {body['jobDefinition']} not found")
        if self.fifo and "shareIdentifier" in body:
            return _refused(
                "ClientException", "Job with shareIdentifier can only be submitted to ..."
            )
        token = unquote(headers.get("x-eksbatch-token", str(uuid.uuid4())))
        job_id = self._by_token.setdefault(token, str(uuid.uuid4()))
        size = body.get("arrayProperties")
        job = {"jobId": job_id, "jobName": body["jobName"], "status": self.first_status}
        self.jobs.setdefault(job_id, {**job, **({"arrayProperties": size} if size else {})})
        return {"jobId": job_id, "jobName": body["jobName"]}

    def _registerjobdefinition(self, body: dict[str, Any], headers: Any) -> Any:
        self.definitions.add(body["jobDefinitionName"])
        return {"jobDefinitionName": body["jobDefinitionName"], "revision": 1}

    def _describejobs(self, body: dict[str, Any], headers: Any) -> Any:
        return {"jobs": [self.jobs[job] for job in body["jobs"] if job in self.jobs]}

    def _describejobqueues(self, body: dict[str, Any], headers: Any) -> Any:
        found = {"status": "VALID", "state": "ENABLED"}
        names = [name for name in body["jobQueues"] if name != self.missing_queue]
        return {"jobQueues": [{"jobQueueName": name, **found} for name in names]}

    def _listjobs(self, body: dict[str, Any], headers: Any) -> Any:
        base = body["arrayJobId"]
        failed = [
            {"jobId": event["jobId"]}
            for event in self.events
            if event["jobId"].startswith(f"{base}:") and event["status"] == "FAILED"
        ]
        return {"jobSummaryList": failed[:1]}

    def _terminatejob(self, body: dict[str, Any], headers: Any) -> Any:
        self.jobs[body["jobId"]] |= {"status": "FAILED", "isTerminated": True}
        return {}

    async def _log(self, request: web.Request) -> web.Response:
        """Outputs of attempts, one after the other; the last one if none is named."""
        self.looks += 1
        self._looking += 1
        self.most_looks_at_once = max(self.most_looks_at_once, self._looking)
        async with self._changed:
            self._changed.notify_all()
        await asyncio.sleep(0.02)  # time enough for another one to come in between
        self._looking -= 1
        if self.strange:
            return web.Response(status=404, text="page not found")
        outputs = self.outputs.get(request.match_info["job"], [])
        number = int(request.query.get("attempt", len(outputs)))
        output = outputs[number - 1] if outputs else b""
        if output is None:
            return _refused("ResourceNotFoundException", f"Attempt {number} does not exist.", 404)
        headers = {"x-eksbatch-attempt": str(number), "x-eksbatch-next-offset": str(len(output))}
        tail = output.splitlines(keepends=True)[-int(request.query["tail"]) :]
        return web.Response(body=b"".join(tail), headers=headers)

    async def output_was_looked_at(self, more: int) -> None:
        """So many times from now."""
        wanted = self.looks + more
        async with self._changed:
            await self._changed.wait_for(lambda: self.looks >= wanted)

    async def _explain(self, request: web.Request) -> web.Response:
        job = request.match_info["job"]
        self.explained.append(job)
        self._explaining += 1
        self.most_explained_at_once = max(self.most_explained_at_once, self._explaining)
        async with self._changed:
            self._changed.notify_all()
        await asyncio.sleep(0.01)  # time enough for another one to come in between
        self._explaining -= 1
        if self.strange:
            return web.Response(status=404, text="page not found")
        return web.json_response({"status": self.jobs[job]["status"], "sentences": self.why})

    async def why_was_asked(self, count: int) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: len(self.explained) >= count)

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        cursor = int(request.query["cursor"])
        self.cursors.append(cursor)
        answer = web.StreamResponse()
        await answer.prepare(request)
        await answer.write(json.dumps({"hello": len(self.events)}).encode() + b"\n")
        position = len(self.events) if cursor < 0 else cursor
        self.connections += 1
        async with self._changed:
            self._changed.notify_all()
        while True:
            await self._event_after(position)
            batch, position = self.events[position:], len(self.events)
            await answer.write(json.dumps({"seq": position, "events": batch}).encode() + b"\n")

    async def _event_after(self, position: int) -> None:
        """Or a heartbeat, which is a batch without events."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(HEARTBEAT_S), self._changed:
                await self._changed.wait_for(lambda: len(self.events) > position)


def _refused(code: str, message: str, status: int = 400) -> web.Response:
    return web.json_response(
        {"message": message}, status=status, headers={"x-amzn-ErrorType": code}
    )
