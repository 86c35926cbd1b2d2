"""The database looked at: it can be reached and written, its schema, and who leads."""

from __future__ import annotations

import os
from pathlib import Path

from airflow_eksbatch.core.planner.words import span
from airflow_eksbatch.doctor.clocks import Stopwatch, judge_clock, lease_patience
from airflow_eksbatch.doctor.findings import Group
from airflow_eksbatch.service import embedded
from airflow_eksbatch.service.settings import Settings
from airflow_eksbatch.service.wiring import make_store
from airflow_eksbatch.store.by_url import BadUrl, sqlite_file
from airflow_eksbatch.store.port import StoreError, StoreView

AS_SERVE = "Give doctor and serve the same --database (EKSBATCH_DATABASE)."


def look_at_database(group: Group, settings: Settings) -> StoreView | None:
    """None when nothing of it could be read. Raises BadUrl for a URL that is none."""
    file = sqlite_file(settings.database_url)
    if file is not None and not file.exists():
        _judge_new_file(group, file)
        return None
    watch = Stopwatch()
    try:
        store = make_store(settings)
        try:
            view = store.look()
        finally:
            store.close()
    except BadUrl:
        raise
    except StoreError as error:
        group.wrong("database", str(error), AS_SERVE)
        return None
    _judge_schema(group, view, place_of(settings))
    if settings.cluster != "local" and file is not None:
        group.warn(
            "kind",
            "The database is a file of this machine: a second replica cannot stand by, and without a volume that "
            "lasts, jobs are lost with the pod.",
            "eksbatch serve --database postgresql://USER:PASSWORD@HOST/NAME",
        )
    if view.clock_ms is not None:
        skew = watch.skew_to(view.clock_ms / 1000)
        judge_clock(group, "the database", skew, lease_patience(settings.lease_s))
    _judge_lead(group, view)
    return view


def place_of(settings: Settings) -> str:
    """The database without its password."""
    file = sqlite_file(settings.database_url)
    if file is not None:
        return f"SQLite file {file}"
    from sqlalchemy import make_url

    url = make_url(settings.database_url)
    return f"PostgreSQL at {url.host or 'the local socket'}, database {url.database}"


def _judge_new_file(group: Group, file: Path) -> None:
    """It is made by the first `serve`; then its directory must let it."""
    there = next(parent for parent in file.absolute().parents if parent.exists())
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        group.ok(
            "database", f"The database file {file} is not there yet; the first start makes it."
        )
    else:
        group.wrong(
            "database",
            f"The database file {file} is not there, and {there} does not let us make it.",
            f"chmod u+rwx {there}    # or name another file: --database sqlite:///FILE",
        )


def _judge_schema(group: Group, view: StoreView, place: str) -> None:
    if view.schema_version > view.newest_version:
        group.wrong(
            "database",
            f"{place}: schema version {view.schema_version}, of a newer release; this one knows up to "
            f"{view.newest_version}.",
            "Run the release that wrote it, or a newer one.",
        )
    elif not view.schema_version:
        group.ok("database", f"{place}: reachable and empty; the first start makes its tables.")
    elif view.schema_version < view.newest_version:
        behind = (
            f"{place}: schema version {view.schema_version}; a service of this release brings it to "
            f"{view.newest_version} when it leads, and older replicas cannot go on then"
        )
        if view.lease_left_ms > 0:
            group.ok("database", f"{behind}. An older one leads now; there is nothing to do.")
        else:
            group.warn("database", f"{behind}.", "eksbatch migrate    # with the same --database")
    else:
        group.ok(
            "database", f"{place}: reachable and writable, schema version {view.schema_version}."
        )


def _judge_lead(group: Group, view: StoreView) -> None:
    left_ms = view.lease_left_ms
    who = view.leader.partition("#")[0]
    if left_ms > 0:
        group.ok("leader", f"{who} leads; its lease lasts {span(left_ms)} more.")
    elif who and view.compute_environments:
        # `serve` would leave an embedded one's home open to everybody of this machine.
        fix = (
            "eksbatch local    # with the same --home"
            if who.startswith(f"{embedded.OWNER} ")
            else "kubectl -n eksbatch get pods,events    # or start it: eksbatch serve"
        )
        group.warn(
            "leader",
            f"Nobody leads: {who} did last, and let go {span(-left_ms)} ago. Jobs wait.",
            fix,
        )
    else:
        group.ok("leader", "Nobody leads yet: no service runs.")
