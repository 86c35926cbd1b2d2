"""The store that a database URL names; commands that need no more import no service."""

from __future__ import annotations

from pathlib import Path

from airflow_eksbatch.store.port import Store, StoreError


class BadUrl(StoreError):
    """No store can be meant by it."""


def store_at(url: str, *, sqlite_pages: int | None = None) -> Store:
    """Nothing is opened yet. `sqlite_pages`: how large its file may become, None for any. Raises BadUrl."""
    file = sqlite_file(url)
    if file is not None:
        from airflow_eksbatch.store.sqlite import sqlite_store

        return sqlite_store(file, pages_max=sqlite_pages)
    if is_postgres(url):
        from airflow_eksbatch.store.postgres import postgres_store

        return postgres_store(url)
    raise BadUrl(
        "--database must be sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME, "
        f"not one that begins with {url.partition(':')[0]!r}."
    )


def sqlite_file(url: str) -> Path | None:
    """The file that is the database; None for any other."""
    scheme, _, rest = url.partition(":")
    is_file = scheme == "sqlite" and rest.startswith("///")
    return Path(rest.removeprefix("///")).expanduser() if is_file else None


def is_postgres(url: str) -> bool:
    return url.partition(":")[0].partition("+")[0] in ("postgresql", "postgres")
