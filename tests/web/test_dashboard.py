"""The dashboard over a real service: its pages in an empty, a small and a large world, and in wrong hands."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request

from airflow_eksbatch.api.dashboard import fetch_from
from airflow_eksbatch.service.inbox import unavailable
from airflow_eksbatch.web.app import make_web_app
from tests.api.asking import Raw, ask_app
from tests.api.desk import StageDesk
from tests.build import a_world
from tests.core.stage import Stage
from tests.service.running import RunningService, a_definition, submit

PAGES = ("/", "/nodes", "/plan", "/cost", "/queue/default")
VOID = frozenset({"meta", "link", "br", "path"})


class Checked(HTMLParser):
    """A page that is well formed, and where it leads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.links += [value for name, value in attrs if name in ("href", "src") and value]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def look(service: RunningService, path: str, status: int = 200) -> Checked:
    reply = Raw(service.url)("GET", path, headers={"accept": "text/html"})
    assert reply.status == status, reply.body
    assert reply.headers["content-type"].startswith("text/html")
    return Checked(reply.body.decode())


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    with RunningService(tmp_path_factory.mktemp("empty")) as service:
        yield service


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    with RunningService(tmp_path_factory.mktemp("busy"), "--launch-delay-s", "0.1") as service:
        yield service


def test_an_empty_world_says_what_to_do_first(empty: RunningService) -> None:
    assert "No job has been submitted yet" in look(empty, "/").text
    assert "nothing to pay for" in look(empty, "/nodes").text
    assert "Nothing waits" in look(empty, "/plan").text
    assert "Nothing was paid for" in look(empty, "/cost").text
    assert "first in" not in look(empty, "/queue/default").text


def test_every_page_of_a_working_world_shows_its_jobs(busy: RunningService) -> None:
    """1 a job that failed, one that runs, an array, one that waits 2 each is found where one looks."""
    batch = busy.batch()
    failing = a_definition(batch, "sh", "-c", "echo no input; exit 3", name="failing")
    failed = submit(batch, failing, "failed-job", tags={"team": "bio"})
    running = submit(batch, a_definition(batch, "sleep", "900", name="sleeping"), "running-job")
    line = "exit $((AWS_BATCH_JOB_ARRAY_INDEX == 2))"
    array = submit(
        batch,
        a_definition(batch, "sh", "-c", line, name="sweeping"),
        "array-job",
        arrayProperties={"size": 4},
    )
    busy.wait_for_ends({failed, array})
    busy.wait_for(lambda e: e["jobId"] == running and e["status"] == "RUNNING")
    large = {"requests": {"cpu": "16", "memory": "30000Mi"}}
    override = {"podProperties": {"containers": [{"resources": large}]}}
    more = [
        submit(batch, "sleeping:1", "waiting-job", eksPropertiesOverride=override)
        for _ in range(12)
    ]
    waiting = more[-1]

    front = look(busy, "/")
    for name in ("failed-job", "running-job", "array-job", "waiting-job"):
        assert name in front.text
    assert f"job/{failed}" in front.links

    page = look(busy, f"/job/{failed}").text
    for words in ("FAILED", "failing:1", "no input", "team=bio", "Attempts", "3", "on-demand"):
        assert words in page
    page = look(busy, f"/job/{running}").text
    assert "What it does" in page
    assert "It has been RUNNING for" in page

    page = look(busy, f"/job/{array}")
    assert "3 SUCCEEDED" in page.text
    assert "1 FAILED" in page.text
    assert "array-job:2" in page.text
    assert f"../job/{array}:2" in page.links
    assert array in look(busy, f"/job/{array}:2").links

    assert "Why it waits" in look(busy, f"/job/{waiting}").text
    assert "waits for" in look(busy, "/plan").text
    assert "READY" in look(busy, "/nodes").text
    queue = look(busy, "/queue/default")
    assert "today" in queue.text
    assert "running-job" in look(busy, "/queue/default?status=RUNNING").text
    only = look(busy, "/queue/default?status=FAILED").text
    assert "failed-job" in only
    assert "running-job" not in only
    assert look(busy, "/queue/default?status=NONSENSE").text

    assert "of an instance on On-Demand" in look(busy, f"/job/{failed}").text
    bill = look(busy, "/cost").text
    for words in ("of it for jobs", "jobs, On-Demand", "default", "idle", "boot", "total"):
        assert words in bill
    for by in ("share", "dag", "environment", "market", "NONSENSE"):
        assert "total" in look(busy, f"/cost?by={by}&days=7").text
    dearest = look(busy, "/cost?by=job&days=NONSENSE")
    assert "running-job" in dearest.text
    assert f"job/{failed}" in dearest.links


def test_every_link_of_every_page_leads_somewhere(busy: RunningService) -> None:
    job_id = submit(busy.batch(), a_definition(busy.batch(), "true"))
    busy.wait_for_ends({job_id})
    seen: set[str] = set()
    for path in (*PAGES, f"/job/{job_id}"):
        for link in look(busy, path).links:
            place = link if link.startswith("/") else str(Path(path).parent / link)
            parts: list[str] = []
            for part in place.split("/"):
                parts = parts[:-1] if part == ".." else [*parts, *([part] if part != "." else [])]
            seen.add("/" + "/".join(parts).lstrip("/"))
    assert any(place.endswith("style.css") for place in seen)
    for place in sorted(seen):
        path = "/queue/default" + place[place.index("?") :] if "?" in place else place
        assert Raw(busy.url)("GET", path).status == 200, path


@pytest.mark.parametrize(
    "path",
    [
        "/job/none",
        "/job/none:3",
        "/job/%3Cscript%3E",
        "/queue/none",
        "/nothing",
        "/nothing/at/all",
        "/static/none.css",
        "/static/../app.py",
        "/static/%2e%2e/app.py",
        "/job/%00",
        "/queue/%00?status=%00",
    ],
)
def test_what_there_is_not_is_a_page_that_says_so(empty: RunningService, path: str) -> None:
    page = look(empty, path, status=404)
    assert "Not here" in page.text
    assert "script" not in page.open


def test_what_users_write_is_shown_and_never_run(busy: RunningService) -> None:
    """Outputs, reasons, tags, parameters and paths are the only free text; all of it is escaped."""
    evil = "<script>alert(1)</script>"
    batch = busy.batch()
    definition = a_definition(batch, "sh", "-c", f"echo '{evil}'; sleep 900", name="evil")
    job_id = submit(batch, definition, tags={evil: f'"{evil}'})
    busy.wait_for(lambda e: e["jobId"] == job_id and e["status"] == "RUNNING")
    batch.terminate_job(jobId=job_id, reason=f"because {evil}")
    busy.wait_for_ends({job_id})
    for path in (f"/job/{job_id}", "/", "/queue/default", f"/job/{evil}", f"/queue/{evil}"):
        reply = Raw(busy.url)("GET", path.replace("<", "%3C").replace(">", "%3E"))
        assert evil.encode() not in reply.body, path
    assert evil in look(busy, f"/job/{job_id}").text


def test_a_large_world_costs_a_page_no_more_than_a_small_one(busy: RunningService) -> None:
    """Thousands of jobs and a wide array, and pages stay as long as they were: they ask for one page of rows."""
    batch = busy.batch(max_pool_connections=20)
    batch.create_compute_environment(
        computeEnvironmentName="off",
        type="MANAGED",
        state="DISABLED",
        computeResources={
            "type": "EC2", "maxvCpus": 4, "subnets": ["s"], "instanceTypes": ["optimal"]
        },
        eksConfiguration={"eksClusterArn": "arn:aws:eks:x", "kubernetesNamespace": "jobs"},
    )  # fmt: skip
    order = [{"order": 1, "computeEnvironment": "off"}]
    batch.create_job_queue(jobQueueName="large", priority=1, computeEnvironmentOrder=order)
    definition = a_definition(batch, "true")
    made: list[str] = []

    def submit_some(number: int) -> None:
        for each in range(100):
            name = f"large-{number}-{each}"
            row = batch.submit_job(jobName=name, jobQueue="large", jobDefinition=definition)
            made.append(row["jobId"])

    callers = [threading.Thread(target=submit_some, args=(number,)) for number in range(10)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    wide = batch.submit_job(
        jobName="wide",
        jobQueue="large",
        jobDefinition=definition,
        arrayProperties={"size": 10_000},
    )["jobId"]
    assert len(made) == 1_000
    for path in ("/", "/queue/large", "/queue/large?status=RUNNABLE", "/plan", f"/job/{wide}"):
        reply = Raw(busy.url)("GET", path)
        assert reply.status == 200
        assert len(reply.body) < 80_000, path
    assert re.search(r"11,000\s+RUNNABLE", look(busy, "/queue/large").text)
    assert "10,000 RUNNABLE" in look(busy, f"/job/{wide}").text


class AwayDesk(StageDesk):
    """Of a service whose database is away."""

    async def ask(self, question: object) -> Any:
        raise unavailable("The database cannot be read now: it is away.")


@pytest.mark.parametrize("path", ["/", "/job/x", "/cost"])
def test_trouble_of_the_service_is_a_page_that_says_so(path: str) -> None:
    desk = AwayDesk(Stage(a_world()))
    reply = ask_app(make_web_app(fetch_from(desk)), path)
    assert reply.status == 503
    assert "it is away" in Checked(reply.body.decode()).text


def test_a_page_asks_the_store_as_often_whatever_it_shows() -> None:
    """Each view is fetched once for a page, not once for a row."""
    asked: list[str] = []
    row = {
        "jobQueue": "q", "priority": 1, "state": "ENABLED", "status": "VALID", "policy": None,
        "computeEnvironments": [], "jobs": 1, "RUNNABLE": 1, "STARTING": 0, "RUNNING": 0,
    }  # fmt: skip
    job = {"jobId": "x", "jobName": "x", "jobQueue": "q", "status": "RUNNABLE", "createdAt": 1}

    async def fetch(name: str, **_: str) -> Any:
        asked.append(name)
        return {
            "queues": [row] * 50,
            "jobs": [job] * 50,
            "classes": [],
            "summary": {"shares": []},
        }[name]

    app = make_web_app(fetch)
    (route,) = [route for route in app.routes if getattr(route, "path", "") == "/queue/{name}"]
    scope = {
        "type": "http", "path_params": {"name": "q"}, "query_string": b"", "headers": [],
        "method": "GET", "path": "/queue/q",
    }  # fmt: skip
    reply = asyncio.run(route.endpoint(Request(scope)))  # type: ignore[attr-defined]
    assert reply.status_code == 200
    assert sorted(asked) == ["classes", "jobs", "queues", "summary"]
