"""Asks an API server as one identity, plainly and in order: what tests do themselves, not what they test."""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import yaml

Json = dict[str, Any]
ANSWER_WITHIN_S = 60.0


class SaidNo(Exception):
    """The API server's no."""

    def __init__(self, answer: httpx.Response) -> None:
        super().__init__(f"{answer.request.method} {answer.request.url}: {answer.text}")
        self.status = answer.status_code


class Api:
    """`api.get("/api/v1/nodes")`: paths as Kubernetes documents them, objects as JSON."""

    def __init__(self, url: str, certificate: Path, token: str) -> None:
        self.url = url
        self._http = httpx.Client(
            base_url=url,
            verify=ssl.create_default_context(cafile=certificate),
            headers={"Authorization": f"Bearer {token}"},
            timeout=ANSWER_WITHIN_S,
            trust_env=False,
        )
        self._kinds: dict[str, dict[str, Json]] = {}

    def close(self) -> None:
        self._http.close()

    def is_ready(self) -> bool:
        try:
            return self._http.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def get(self, path: str, **query: str) -> Json:
        return self._ask("GET", path, params=query).json()

    def text(self, path: str, **query: str) -> str:
        return self._ask("GET", path, params=query).text

    def list(self, path: str, **query: str) -> list[Json]:
        return self.get(path, **query)["items"]

    def watch(self, path: str, **query: str) -> Iterator[str]:
        """Lines of JSON, an event each, until nobody wants more of them."""
        params = {"watch": "true", **query}
        with self._http.stream("GET", path, params=params, timeout=None) as answer:
            yield from answer.iter_lines()

    def find(self, path: str) -> Json | None:
        """None if it is not there."""
        try:
            return self.get(path)
        except SaidNo as no:
            if no.status == 404:
                return None
            raise

    def create(self, path: str, body: Json) -> Json:
        return self._ask("POST", path, json=body).json()

    def replace(self, path: str, body: Json) -> Json:
        return self._ask("PUT", path, json=body).json()

    def patch(self, path: str, change: Json) -> Json:
        headers = {"Content-Type": "application/merge-patch+json"}
        return self._ask("PATCH", path, json=change, headers=headers).json()

    def delete(self, path: str, **query: str) -> None:
        self._ask("DELETE", path, params=query)

    def apply(self, *manifests: Path | Json) -> None:
        """What `kubectl apply --server-side` does with files and objects, in their order."""
        for one in _objects(manifests):
            query = {"fieldManager": "tests", "force": "true"}
            headers = {"Content-Type": "application/apply-patch+yaml"}
            self._ask("PATCH", self.path_of(one), params=query, json=one, headers=headers)

    def path_of(self, one: Mapping[str, Any]) -> str:
        group, kind, metadata = one["apiVersion"], one["kind"], one["metadata"]
        root = f"/api/{group}" if group == "v1" else f"/apis/{group}"
        if kind not in self._kinds.get(root, {}):
            known = self.get(root)["resources"]
            self._kinds[root] = {each["kind"]: each for each in known if "/" not in each["name"]}
        resource = self._kinds[root][kind]
        if resource["namespaced"]:
            root = f"{root}/namespaces/{metadata.get('namespace', 'default')}"
        return f"{root}/{resource['name']}/{metadata['name']}"

    def _ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        answer = self._http.request(method, path, **more)
        if answer.status_code >= 300:
            raise SaidNo(answer)
        return answer


def _objects(manifests: Iterable[Path | Json]) -> Iterable[Json]:
    for manifest in manifests:
        if isinstance(manifest, Path):
            yield from filter(None, yaml.safe_load_all(manifest.read_text()))
        else:
            yield manifest
