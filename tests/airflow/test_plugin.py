"""The dashboard in Airflow's own API server, asked over HTTP: who may see it, and that a service which wants keys is asked with the connection's."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from airflow_eksbatch.hooks import EKSBatchHook, Endpoint, ServiceAway, ServiceNotNamed
from airflow_eksbatch.plugin import PagesWhenAsked
from tests.airflow.processes import wait_for
from tests.airflow.rig import Airflow
from tests.api.asking import Raw
from tests.api.test_auth import Key, a_key
from tests.service.running import RunningService, a_definition, submit


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """One that wants signatures, and shows no dashboard itself."""
    with RunningService(
        tmp_path_factory.mktemp("service"), "--auth", "sigv4", "--dashboard", "off"
    ) as running:
        yield running


@pytest.fixture(scope="module")
def key(service: RunningService) -> Key:
    return a_key(service.home)


@pytest.fixture(scope="module")
def viewer(service: RunningService) -> Key:
    """Of a connection that shows, and submits nothing."""
    return a_key(service.home, "--role", "viewer")


USERS = {"ann": "ann's secret", "bob": "bob's secret", "eve": "eve's secret"}
RULES = '''
from airflow.api_fastapi.auth.managers.models.resource_details import AccessView, DagAccessEntity
from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager

class Rules(SimpleAuthManager):
    """Nobody sees the logs of one DAG, and one user does not see what the cluster does."""

    def is_authorized_dag(self, *, access_entity=None, details=None, **rest):
        about = (access_entity, details and details.id)
        if about == (DagAccessEntity.TASK_LOGS, "payroll"):
            return False
        return super().is_authorized_dag(access_entity=access_entity, details=details, **rest)

    def is_authorized_view(self, *, access_view, user):
        if (access_view, user.get_id()) == (AccessView.CLUSTER_ACTIVITY, "eve"):
            return False
        return super().is_authorized_view(access_view=access_view, user=user)
'''


@pytest.fixture(scope="module")
def airflow(service: RunningService, viewer: Key) -> Iterator[Airflow]:
    """Its API server alone, with users, and with connections to the service and to something else."""
    # Not in pytest's own directory: another pytest would shut the database's user out of it.
    with (
        tempfile.TemporaryDirectory(prefix="plugin-", ignore_cleanup_errors=True) as home,
        an_api_server(Path(home)) as running,
    ):
        running.rest.use_token(token_of(running, "ann"))
        ours = {"conn_type": "eksbatch", "host": service.url}
        keys = {"login": viewer.access_key, "password": viewer.secret}
        for name, fields in (
            ("team", {**ours, **keys}),
            ("north", {**ours, **keys, "extra": json.dumps({"deployment": "north"})}),
            ("wrong", {**ours, **keys, "password": "wrong"}),
            ("shop", {"conn_type": "http", "host": service.url}),
        ):
            running.rest.call("POST", "connections", {"connection_id": name, **fields})
        yield running


def an_api_server(home: Path) -> Airflow:
    (home / "dags").mkdir()
    (home / "passwords.json").write_text(json.dumps(USERS))
    (home / "rules_of_tests.py").write_text(RULES)
    env = {
        "EKSBATCH_HOME": str(home / "nothing-here"),
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "False",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "ann:admin,bob:viewer,eve:viewer",
        "AIRFLOW__CORE__AUTH_MANAGER": "rules_of_tests.Rules",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(home / "passwords.json"),
        "PYTHONPATH": str(home),
    }
    return Airflow(home, home / "dags", env, only=("api-server",))


def client_of(airflow: Airflow, **more: Any) -> httpx.Client:
    """Patient: an API server that has just begun, on a machine with other work, takes long for its first answers."""
    return httpx.Client(base_url=airflow.url, timeout=60, **more)


def token_of(airflow: Airflow, user: str) -> str:
    login = {"username": user, "password": USERS[user]}
    with client_of(airflow) as client:
        return str(client.post("/auth/token", json=login).json()["access_token"])


@pytest.fixture
def browser(airflow: Airflow) -> Iterator[httpx.Client]:
    """Logged in as somebody who may only look, by the cookie that Airflow's login sets."""
    with client_of(airflow, cookies={"_token": token_of(airflow, "bob")}) as client:
        client.headers["accept"] = "text/html"
        yield client


@pytest.fixture(scope="module")
def batch(service: RunningService, key: Key) -> Any:
    return service.batch(key.access_key, key.secret)


@pytest.fixture(scope="module")
def job(batch: Any) -> str:
    """One that has ended, and has said something that is no page."""
    made = submit(batch, a_definition(batch, "sh", "-c", "echo '<b>hello</b>'"))

    def is_over() -> bool:
        return batch.describe_jobs(jobs=[made])["jobs"][0]["status"] == "SUCCEEDED"

    wait_for("the job to end", is_over, within_s=60)
    return made


def see(browser: httpx.Client, path: str, status: int = 200) -> str:
    reply = browser.get(path)
    assert reply.status_code == status, reply.text
    return reply.text


def test_airflow_lists_the_plugin_and_its_entry_in_the_menu(airflow: Airflow) -> None:
    [plugin] = [p for p in airflow.rest.pages("plugins", "plugins") if p["name"] == "eksbatch"]
    [view] = plugin["external_views"]
    assert (view["destination"], view["url_route"], view["href"]) == (
        "nav",
        "eksbatch",
        "eksbatch/",
    )
    [app] = plugin["fastapi_apps"]
    assert app["url_prefix"] == "/eksbatch"
    assert airflow.rest.call("GET", "plugins/importErrors")["import_errors"] == []


def test_who_is_not_logged_in_sees_nothing_and_a_browser_is_led_to_the_login(
    airflow: Airflow, job: str
) -> None:
    paths = [f"/eksbatch/team/{rest}" for rest in ("", "nodes", f"job/{job}", "static/style.css")]
    paths.append(f"/eksbatch/team/v1/eksbatch/jobs/{job}/log")
    wrong = {"authorization": "Bearer wrong", "accept": "text/html"}
    with client_of(airflow) as nobody:
        for path in ("/eksbatch/", *paths):
            assert nobody.get(path).status_code == 401, path
            assert nobody.get(path, headers=wrong).status_code == 403, path
            page = nobody.get(f"{path}?a=b", headers={"accept": "text/html"})
            assert page.status_code == 307
            login = f"/api/v2/auth/login?next={quote(f'{path}?a=b', safe='')}"
            assert page.headers["location"] == login
            assert nobody.get(login).status_code == 307


def test_pages_are_read_from_the_service_with_the_keys_of_the_connection(
    browser: httpx.Client, job: str
) -> None:
    assert "default" in see(browser, "/eksbatch/team/")
    for page in ("nodes", "plan", "cost", "cost?by=dag&days=7", "queue/default"):
        see(browser, f"/eksbatch/team/{page}")
    page = see(browser, f"/eksbatch/team/job/{job}")
    assert "SUCCEEDED" in page
    assert "&lt;b&gt;hello" in page
    assert "body" in see(browser, "/eksbatch/team/static/style.css")
    output = f"/eksbatch/team/v1/eksbatch/jobs/{job}/log"
    assert see(browser, f"{output}?attempt=1&offset=3") == "hello</b>\n"
    assert see(browser, f"{output}?tail=1") == "<b>hello</b>\n"
    log = browser.get(output)
    assert (log.text, log.headers["x-content-type-options"]) == ("<b>hello</b>\n", "nosniff")
    assert log.headers["content-type"].startswith("text/plain")
    assert log.headers["x-eksbatch-next-offset"] == "13"


def test_all_of_an_output_that_still_grows_is_what_there_is(
    browser: httpx.Client, batch: Any
) -> None:
    """Whatever bytes they are, and also where a client asks to follow it."""
    program = r"printf 'a\377b\n'; exec sleep 600"
    running = submit(batch, a_definition(batch, "sh", "-c", program))
    path = f"/eksbatch/team/v1/eksbatch/jobs/{running}/log?follow=1"
    wait_for(
        "its output", lambda: see(browser, path) == "a\N{REPLACEMENT CHARACTER}b\n", within_s=60
    )
    batch.terminate_job(jobId=running, reason="seen")


def test_a_node_of_a_multi_node_job_has_its_page_and_its_output(
    browser: httpx.Client, batch: Any
) -> None:
    line = "echo node $AWS_BATCH_JOB_NODE_INDEX; exec sleep 600"
    resources = {"requests": {"cpu": "0.25", "memory": "128Mi"}}
    container = {"image": "busybox", "command": ["sh", "-c", line], "resources": resources}
    every = {"targetNodes": ":", "eksProperties": {"podProperties": {"containers": [container]}}}
    nodes = {"numNodes": 2, "mainNode": 1, "nodeRangeProperties": [every]}
    batch.register_job_definition(
        jobDefinitionName="several", type="multinode", nodeProperties=nodes
    )
    job_id = submit(batch, "several")
    path = f"/eksbatch/team/v1/eksbatch/jobs/{job_id}%230/log"
    wait_for("its output", lambda: see(browser, path) == "node 0\n", within_s=60)
    assert f'<dt>node of</dt><dd><a href="{job_id}">' in see(
        browser, f"/eksbatch/team/job/{job_id}%230"
    )
    batch.terminate_job(jobId=job_id, reason="seen")


def test_paths_without_a_page(browser: httpx.Client, job: str) -> None:
    for path, leads_to in (
        ("/eksbatch/", "/eksbatch/eksbatch_default/"),
        ("/eksbatch/team", "/eksbatch/team/"),
    ):
        assert browser.get(path).headers["location"] == leads_to
    assert "does not exist" in see(browser, "/eksbatch/team/job/none", 404)
    assert "There is no page" in see(browser, "/eksbatch/team/none", 404)
    see(browser, "/eksbatch/team/v1/eksbatch/jobs/none/log", 404)
    assert browser.post(f"/eksbatch/team/job/{job}").status_code == 405


def test_what_is_wrong_with_a_connection_is_said(browser: httpx.Client) -> None:
    for name, says in (
        ("nobody", "connection nobody does not exist"),
        ("shop", "is of the type http"),
        ("wrong", "InvalidSignatureException"),
        ("eksbatch_default", "no service is running on this machine"),
    ):
        assert says in see(browser, f"/eksbatch/{name}/", 503), name


def pages_of_a_task(batch: Any, dag: str, deployment: str = "") -> tuple[str, str]:
    """Of a job that a task of this DAG has submitted: its own, and its output."""
    told = {"x-eksbatch-airflow": quote(json.dumps({"dag_id": dag}), safe="")}
    if deployment:
        told["x-eksbatch-deployment"] = deployment
    batch.meta.events.register(
        "before-call.batch.SubmitJob",
        lambda params, **_: params["headers"].update(told),
        unique_id="dag",
    )
    made = submit(batch, a_definition(batch, "true"))
    batch.meta.events.unregister("before-call.batch.SubmitJob", unique_id="dag")
    return f"job/{made}", f"v1/eksbatch/jobs/{made}/log"


def test_a_job_is_shown_to_those_who_may_see_the_logs_of_its_dag(
    browser: httpx.Client, batch: Any
) -> None:
    for page in pages_of_a_task(batch, "sales"):
        see(browser, f"/eksbatch/team/{page}")
    for page in pages_of_a_task(batch, "payroll"):
        assert "see the logs of DAG payroll" in see(browser, f"/eksbatch/team/{page}", 403)


def test_a_dag_of_the_same_name_in_another_airflow_is_another_one(
    browser: httpx.Client, batch: Any
) -> None:
    for page in pages_of_a_task(batch, "sales", "north"):
        assert "of another Airflow, of the deployment north" in see(
            browser, f"/eksbatch/team/{page}", 403
        )
        see(browser, f"/eksbatch/north/{page}")
    for page in pages_of_a_task(batch, "sales"):
        assert "without a name" in see(browser, f"/eksbatch/north/{page}", 403)
    for page in pages_of_a_task(batch, "payroll", "north"):
        assert "see the logs of DAG payroll" in see(browser, f"/eksbatch/north/{page}", 403)


def test_who_may_not_see_what_the_cluster_does_sees_none_of_it(airflow: Airflow) -> None:
    with client_of(airflow, cookies={"_token": token_of(airflow, "eve")}) as eve:
        assert eve.get("/eksbatch/team/").status_code == 403


def test_the_service_itself_shows_nothing_unsigned(service: RunningService) -> None:
    for path in ("/", "/v1/eksbatch/views/jobs"):
        assert Raw(service.url)("GET", path).status == 403


def test_pages_are_made_once_and_the_loop_does_not_wait_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The rest of the API server is answered meanwhile."""
    made: list[threading.Thread] = []
    answered = 0

    async def pages(scope: Any, receive: Any, send: Any) -> None:
        nonlocal answered
        answered += 1

    def make() -> Any:
        made.append(threading.current_thread())
        return pages

    async def many() -> None:
        app: Any = PagesWhenAsked()
        await asyncio.gather(*(app({}, None, None) for _ in range(5)))

    module = SimpleNamespace(make_airflow_pages=make)
    monkeypatch.setitem(sys.modules, "airflow_eksbatch.airflow_pages", module)
    asyncio.run(many())
    assert answered == 5
    (thread,) = made
    assert thread is not threading.current_thread()


def test_a_connection_that_is_gone_or_changed_is_not_used_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what Airflow imports
        from airflow_eksbatch import airflow_pages
    says: Endpoint | ServiceAway = Endpoint(url="http://a", access_key_id="OLD")

    async def running_endpoint(hook: EKSBatchHook) -> Endpoint:
        if isinstance(says, ServiceAway):
            raise says
        return says

    async def scenario() -> None:
        nonlocal says
        services = airflow_pages.Services()
        known = await services.client_of("team")
        says = Endpoint(url="http://a", access_key_id="NEW")
        assert await services.client_of("team") is known
        monkeypatch.setattr(airflow_pages, "LOOK_UP_S", 0.0)
        assert (await services.client_of("team")).endpoint == says
        # No embedded service comes into its place either.
        for says in (ServiceNotNamed("there is none"), ServiceAway("no service is running")):
            with pytest.raises(ServiceAway, match=str(says)):
                await services.client_of("team")
            monkeypatch.setattr(airflow_pages, "LOOK_UP_S", 60.0)
            with pytest.raises(ServiceAway, match=str(says)):
                await services.client_of("team")

    monkeypatch.setattr(EKSBatchHook, "running_endpoint", running_endpoint)
    asyncio.run(scenario())
