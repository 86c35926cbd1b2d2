"""Airflow's public REST API, as far as the demo and the tests ask it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

import httpx

Json = dict[str, Any]
PAGE = 100  # Airflow gives no more at once
PARTS = ("metadatabase", "scheduler", "triggerer", "dag_processor")


class Refused(Exception):
    """Airflow said no; the message has its words."""


class AirflowRest:
    """A client with a token of its own, which it renews when Airflow no longer takes it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._http = httpx.Client(base_url=url, timeout=60, trust_env=False)

    def close(self) -> None:
        self._http.close()

    # -- Airflow as a whole --

    def unhealthy(self) -> list[str]:
        """The parts that are not up yet."""
        try:
            answer = self._http.get("/api/v2/monitor/health")
        except httpx.HTTPError:
            return ["api_server"]
        if answer.status_code != 200:
            return ["api_server"]
        said = answer.json()
        return [part for part in PARTS if (said.get(part) or {}).get("status") != "healthy"]

    def providers(self) -> dict[str, str]:
        return {one["package_name"]: one["version"] for one in self.pages("providers", "providers")}

    # -- DAGs and runs --

    def find_dag(self, dag_id: str) -> Json | None:
        answer = self._ask("GET", f"dags/{quote(dag_id)}", allow=(404,))
        return None if answer.status_code == 404 else answer.json()

    def import_errors(self) -> list[Json]:
        return list(self.pages("importErrors", "import_errors"))

    def unpause(self, dag_id: str) -> Json:
        return self.call("PATCH", f"dags/{quote(dag_id)}", {"is_paused": False})

    def trigger(self, dag_id: str, **run: Any) -> Json:
        """Start a run by hand; `logical_date` may be None, which Airflow wants said."""
        return self.call("POST", f"dags/{quote(dag_id)}/dagRuns", {"logical_date": None, **run})

    def runs(self, dag_id: str, **wanted: Any) -> list[Json]:
        return list(self.pages(f"dags/{quote(dag_id)}/dagRuns", "dag_runs", **wanted))

    def run(self, dag_id: str, run_id: str) -> Json:
        return self.call("GET", f"{_run_path(dag_id, run_id)}")

    def set_run_state(self, dag_id: str, run_id: str, state: str) -> Json:
        return self.call("PATCH", _run_path(dag_id, run_id), {"state": state})

    def create_backfill(self, dag_id: str, **backfill: Any) -> Json:
        """`from_date`, `to_date`, `max_active_runs`, `reprocess_behavior`, ... as Airflow names them."""
        return self.call("POST", "backfills", {"dag_id": dag_id, **backfill})

    def backfill(self, backfill_id: int) -> Json:
        return self.call("GET", f"backfills/{backfill_id}")

    # -- tasks --

    def task_instances(self, dag_id: str, run_id: str = "~", **wanted: Any) -> list[Json]:
        path = f"{_run_path(dag_id, run_id)}/taskInstances"
        return list(self.pages(path, "task_instances", **wanted))

    def set_task_state(self, dag_id: str, run_id: str, task_id: str, state: str) -> Json:
        path = f"{_run_path(dag_id, run_id)}/taskInstances/{quote(task_id)}"
        return self.call("PATCH", path, {"new_state": state})

    def clear(self, dag_id: str, run_id: str, task_ids: list[str]) -> Json:
        body = {
            "dry_run": False,
            "dag_run_id": run_id,
            "task_ids": task_ids,
            "only_failed": False,
            "reset_dag_runs": True,
        }
        return self.call("POST", f"dags/{quote(dag_id)}/clearTaskInstances", body)

    def task_log(self, dag_id: str, run_id: str, task_id: str, try_number: int = 1) -> str:
        """What the task's page shows, one line an event."""
        path = f"{_run_path(dag_id, run_id)}/taskInstances/{quote(task_id)}/logs/{try_number}"
        answer = self._ask("GET", path, params={"full_content": True})
        return "\n".join(_log_line(one) for one in answer.json()["content"])

    def xcom(self, dag_id: str, run_id: str, task_id: str, key: str = "return_value") -> Any:
        path = (
            f"{_run_path(dag_id, run_id)}/taskInstances/{quote(task_id)}/xcomEntries/{quote(key)}"
        )
        answer = self._ask("GET", path, params={"deserialize": True}, allow=(404,))
        return None if answer.status_code == 404 else answer.json()["value"]

    # -- the wire --

    def call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        allow: tuple[int, ...] = (),
    ) -> Json:
        answer = self._ask(method, path, json=None if body is None else dict(body), allow=allow)
        return answer.json() if answer.content else {}

    def pages(self, path: str, rows: str, **wanted: Any) -> Iterator[Json]:
        """Every row of a listing, page by page."""
        offset = 0
        while True:
            params = {**wanted, "limit": PAGE, "offset": offset}
            page = self._ask("GET", path, params=params).json()[rows]
            yield from page
            if len(page) < PAGE:
                return
            offset += PAGE

    def _ask(
        self, method: str, path: str, *, allow: tuple[int, ...] = (), **request: Any
    ) -> httpx.Response:
        if "Authorization" not in self._http.headers:
            self._take_token()
        answer = self._http.request(method, f"/api/v2/{path}", **request)
        if answer.status_code == 401:
            self._take_token()
            answer = self._http.request(method, f"/api/v2/{path}", **request)
        if answer.status_code >= 400 and answer.status_code not in allow:
            raise Refused(f"{method} {path}: HTTP {answer.status_code}: {answer.text[:500]}")
        return answer

    def _take_token(self) -> None:
        answer = self._http.get("/auth/token")
        if answer.status_code >= 400:
            raise Refused(f"no token: HTTP {answer.status_code}: {answer.text[:500]}")
        self.use_token(answer.json()["access_token"])

    def use_token(self, token: str) -> None:
        self._http.headers["Authorization"] = f"Bearer {token}"


def _run_path(dag_id: str, run_id: str) -> str:
    return f"dags/{quote(dag_id)}/dagRuns/{quote(run_id, safe='~')}"


def _log_line(one: Any) -> str:
    return str(one.get("event", one)) if isinstance(one, dict) else str(one)
