"""What the API asks of the service: whose fault it is when the store does not answer."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from airflow_eksbatch.api.port import ApiSettings
from airflow_eksbatch.core.model.errors import Rejected
from airflow_eksbatch.service.desk import ServiceDesk
from airflow_eksbatch.store.port import StoreError, Unstorable


class FailingStore:
    """The store's thread, of a store that fails so."""

    def __init__(self, error: StoreError) -> None:
        self._error = error

    async def ask(self, question: object) -> None:
        raise self._error


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Unstorable("no text holds that"), "ClientException"),
        (StoreError("away"), "ServerException"),
    ],
)
def test_a_question_that_no_database_takes_is_the_fault_of_who_asks(
    error: StoreError, code: str
) -> None:
    nothing: Any = None
    store: Any = FailingStore(error)
    desk = ServiceDesk(
        ApiSettings(),
        loop=nothing,
        inbox=nothing,
        store=store,
        broadcast=nothing,
        cluster=nothing,
        control=None,
        metrics_text=lambda: b"",
        tell_changed=lambda operation, what, by: None,
        tell_denied=lambda operation, what, by: None,
    )
    with pytest.raises(Rejected, match=str(error)) as refused:
        asyncio.run(desk.ask(lambda store: store.first_event_seq()))
    assert refused.value.code == code
