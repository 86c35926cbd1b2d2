"""Commands on the database itself, without the service: access keys, and the schema."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator
from typing import get_args

from airflow_eksbatch.floor.clock import now_ms
from airflow_eksbatch.service.settings import read_settings
from airflow_eksbatch.store.by_url import sqlite_file, store_at
from airflow_eksbatch.store.port import AccessKey, Rights, Role, Store, StoreView
from airflow_eksbatch.terminal import NotThere, Sentence, show, table, when

MAKES_ONE = (
    "name another by --home or --database; a service makes one, and so does `eksbatch keys create`."
)


def add_keys_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("action", choices=("create", "list", "delete"))
    key = command.add_argument("access_key", metavar="[ACCESS_KEY]", help="key to delete")
    # By nargs="?" argparse would take it for absent as soon as an option stands before it.
    key.required = False
    command.add_argument("--note", default="", help="whose key it is")
    command.add_argument(
        "--role",
        choices=get_args(Role),
        help="what a new key may do: viewer looks; user submits and ends jobs and registers job definitions, too, "
        "which is all that an Airflow needs; admin does everything [admin; user with --queue]",
    )
    command.add_argument(
        "--queue",
        action="append",
        default=[],
        metavar="NAME",
        help="a job queue to which a new key may submit, and whose jobs it may end; for more than one say it again [all]",
    )
    add_database_options(command)


def add_database_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="the answer as JSON")
    command.add_argument("--database", help="as of `eksbatch serve` [EKSBATCH_DATABASE]")
    command.add_argument("--home", help="as of `eksbatch serve` [EKSBATCH_HOME]")


def keys(given: argparse.Namespace) -> int:
    """Access keys are needed before the service answers."""
    if given.action != "create" and (given.role or given.queue):
        raise Sentence("--role and --queue are for `eksbatch keys create`.")
    if given.action != "delete" and given.access_key:
        raise Sentence(
            f"`eksbatch keys {given.action}` takes no name: leave out {given.access_key}, or give it to --role, --queue "
            "or --note."
        )
    rights = _rights(given)
    if given.action == "delete" and not given.access_key:
        raise Sentence("Name the key to delete; `eksbatch keys list` shows them.")
    with _store(given, may_make=given.action == "create") as store:
        _check_schema(store.prepare())
        if given.action == "list":
            return _list_keys(given, store.list_keys())
        if given.action == "create":
            return _create_key(given, store, rights)
        if not store.delete_key(given.access_key):
            raise NotThere(f"There is no key {given.access_key}.")
    return show(given, {"deleted": given.access_key}, lambda: print("deleted"))


def _rights(given: argparse.Namespace) -> Rights:
    """Of a new key."""
    from airflow_eksbatch.api.wire.names import check_name
    from airflow_eksbatch.core.model.errors import Rejected

    role: Role = given.role or ("user" if given.queue else "admin")
    if given.queue and role != "user":
        raise Sentence(
            "--queue says where a key may submit and end jobs, which is what the role user is for: leave out "
            f"--role {role}."
        )
    try:
        queues = tuple(check_name(name, "--queue") for name in dict.fromkeys(given.queue))
    except Rejected as refusal:
        raise Sentence(refusal.message) from None
    return Rights(role=role, queues=queues)


def _list_keys(given: argparse.Namespace, found: list[AccessKey]) -> int:
    told = [
        {
            "accessKeyId": key.access_key,
            "role": key.rights.role,
            "jobQueues": list(key.rights.queues),
            "note": key.note,
            "createdAt": key.created_at or None,
        }
        for key in found
    ]
    rows = [
        [
            key.access_key,
            key.rights.role,
            ", ".join(key.rights.queues) or ("" if key.rights.role == "viewer" else "all"),
            when(key.created_at or None),
            key.note,
        ]
        for key in found
    ]
    return show(given, told, lambda: table("access key id|role|job queues|created|note", rows))


def _create_key(given: argparse.Namespace, store: Store, rights: Rights) -> int:
    from airflow_eksbatch.api.auth import new_key

    access_key, secret = new_key()
    key = AccessKey(access_key=access_key, note=given.note, created_at=now_ms(), rights=rights)
    store.put_key(key, secret)

    def tell() -> None:
        print(f"AWS_ACCESS_KEY_ID={access_key}\nAWS_SECRET_ACCESS_KEY={secret}")
        print("The secret is not shown again.", file=sys.stderr)

    return show(given, {"accessKeyId": access_key, "secretAccessKey": secret}, tell)


def migrate(given: argparse.Namespace) -> int:
    with _store(given, may_make=True) as store:
        is_new = not store.look().schema_version
        _check_none_leads(store.prepare())
        store.open()
    what = "A new database was made: it" if is_new else "The database"
    return show(given, {"migrated": True}, lambda: print(f"{what} has the newest schema."))


@contextlib.contextmanager
def _store(given: argparse.Namespace, *, may_make: bool) -> Iterator[Store]:
    """The store of the settings, for one command; where it may make none, a mistyped place is said and left alone."""
    settings = read_settings(vars(given), os.environ)
    file = sqlite_file(settings.database_url)
    if not may_make and file is not None and not file.exists():
        raise Sentence(f"There is no database {file}: {MAKES_ONE}")
    store = store_at(settings.database_url, sqlite_pages=settings.sqlite_pages or None)
    try:
        if not may_make and not store.look().schema_version:
            raise Sentence(f"This database is empty: {MAKES_ONE}")
        yield store
    finally:
        store.close()


def _check_schema(view: StoreView) -> None:
    """A command that only needs the database does not take it away from an older release that runs on it."""
    if view.schema_version < view.newest_version:
        raise Sentence(
            f"The database has schema version {view.schema_version}, this release works with {view.newest_version}. "
            "Its service brings it forward when it leads; where none of an older release runs, `eksbatch migrate` does so now."
        )


def _check_none_leads(view: StoreView) -> None:
    """A service of an older release would go on in a schema that it does not know."""
    if view.schema_version < view.newest_version and view.lease_left_ms > 0:
        raise Sentence(
            "A service of an older release runs on this database. Stop it first (after a kill its lease lasts some "
            "seconds more), or start one of this release beside it, which brings the schema forward when it takes over."
        )
