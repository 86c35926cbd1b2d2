"""What etcd remembers of every pod there ever was: who tests a scheduler need not believe its books."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.kubernetes.rig.control_plane import ControlPlane

# etcd gives all keys from one up to another; the mark is behind everything Kubernetes keeps of pods.
PODS, MARK, BEHIND = "/registry/pods/", "/rig/mark", "/rig0"
# Everything stays as it was written, in words that can be read here.
API_FLAGS = ("--storage-media-type=application/json", "--etcd-compaction-interval=0")
ENDED = ("Succeeded", "Failed")
Json = dict[str, Any]


@dataclass
class PodLife:
    """One pod, told apart by its uid. Times are etcd's revisions."""

    name: str
    uid: str
    node: str
    created: int
    phases: list[str] = field(default_factory=list)
    ended: int | None = None
    """When it was over or gone, whichever came first."""
    is_there: bool = True

    @property
    def index(self) -> str:
        """The job, and the index in its array: all but the number of the attempt."""
        return self.name.rpartition("-")[0]


class History:
    """From now on, of one namespace. The control plane has API_FLAGS."""

    def __init__(self, plane: ControlPlane, namespace: str) -> None:
        self._plane = plane
        self._prefix = f"{PODS}{namespace}/"
        self._since = self._mark()
        self._lives: dict[str, PodLife] = {}
        self._names: dict[str, str] = {}

    def read(self) -> list[PodLife]:
        """Every pod so far, by name; whatever the API server has told anybody."""
        until = self._mark()
        for at, key, value in self._changes(self._since, until):
            if key.startswith(self._prefix):
                self._put(at, key, value)
        self._since = until
        return sorted(self._lives.values(), key=lambda life: (life.name, life.created))

    def compact(self) -> None:
        """etcd forgets everything but how things are now; we do not."""
        self.read()
        self._ask("compaction", {"revision": str(self._since)})

    def _put(self, at: int, key: str, value: str | None) -> None:
        if value is None:
            self._lives[self._names[key]].is_there = False
            self._end(self._names[key], at)
            return
        pod = json.loads(value)
        uid, phase = pod["metadata"]["uid"], pod.get("status", {}).get("phase", "Pending")
        self._names[key] = uid
        if uid not in self._lives:
            name, node = pod["metadata"]["name"], pod["spec"].get("nodeName", "")
            self._lives[uid] = PodLife(name, uid, node, at)
        if self._lives[uid].phases[-1:] != [phase]:
            self._lives[uid].phases.append(phase)
        if phase in ENDED:
            self._end(uid, at)

    def _end(self, uid: str, at: int) -> None:
        life = self._lives[uid]
        life.ended = life.ended or at

    def _mark(self) -> int:
        """Now, as etcd counts, and so that the history can be read up to here."""
        put = self._ask("put", {"key": _encoded(MARK), "value": _encoded("here")})
        return int(put["header"]["revision"])

    def _changes(self, since: int, until: int) -> Iterator[tuple[int, str, str | None]]:
        """Revision, key and value (None: deleted) of everything written from one mark to another."""
        wanted: Json = {
            "key": _encoded(PODS),
            "range_end": _encoded(BEHIND),
            "start_revision": str(since + 1),
            "fragment": True,
        }
        url = f"{self._plane.etcd_url}/v3/watch"
        with httpx.stream("POST", url, json={"create_request": wanted}, timeout=60) as answer:
            for line in answer.iter_lines():
                for event in json.loads(line)["result"].get("events", ()):
                    kv = event["kv"]
                    at = int(kv["mod_revision"])
                    if at >= until:
                        return
                    gone = event.get("type") == "DELETE"
                    yield at, _decoded(kv["key"]), None if gone else _decoded(kv["value"])

    def _ask(self, what: str, body: Json) -> Json:
        answer = httpx.post(f"{self._plane.etcd_url}/v3/kv/{what}", json=body, timeout=60)
        return answer.raise_for_status().json()


def _encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _decoded(text: str) -> str:
    return base64.b64decode(text).decode()
