"""The connections that a store keeps: lost ones are replaced, whoever still holds what."""

from __future__ import annotations

import threading
from typing import Any

import psycopg
import pytest

from kvreplay import OutcomeUnknownError, open_store
from kvreplay.backends.postgresql.pooling import OwnPool
from support.postgres import Schema, execute
from support.waiting import until

pytestmark = pytest.mark.any_python

END_WAITING = """
    SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity
    WHERE application_name = %s AND wait_event_type = 'Lock'"""


def test_lost_connections_are_replaced_while_their_errors_are_kept(postgres: Schema) -> None:
    """A traceback holds what its functions had, and so did it hold the connection's place in the pool."""
    url = f"{postgres.url}&pool_size=2&lock_timeout=30s&application_name={postgres.name}"
    kept: list[BaseException] = []
    with open_store(url) as store:
        store.write("p", "s", "k", b"1")
        for _ in range(2):
            with psycopg.connect(postgres.server.url) as other:
                other.execute(f"SELECT 1 FROM {postgres.name}.kvreplay_entries FOR UPDATE".encode())
                ender = threading.Thread(
                    target=lambda: until(
                        lambda: execute(postgres.server.url, END_WAITING, postgres.name)
                    )
                )
                ender.start()
                with pytest.raises(OutcomeUnknownError) as caught:
                    store.write("p", "s", "k", b"2")
                kept.append(caught.value)
                ender.join()
        store.write("p", "s", "k", b"3")
    assert len(kept) == 2


def test_no_interrupt_can_come_into_the_pool(
    postgres: Schema, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupts come to the main thread; any other one needs no thread beside it."""
    called: list[tuple[str, int]] = []

    def noted(name: str) -> None:
        original = getattr(OwnPool, name)

        def call(*given: Any, **options: Any) -> Any:
            called.append((name, threading.get_ident()))
            return original(*given, **options)

        monkeypatch.setattr(OwnPool, name, call)

    for name in ("open", "getconn", "putconn", "close"):
        noted(name)

    def use() -> None:
        with open_store(f"{postgres.url}&pool_size=2") as store:
            store.write("p", "s", "k", b"v")
            assert store.read("p", "s", "k") == b"v"

    assert threading.current_thread() is threading.main_thread()
    use()
    assert {name for name, _ in called} >= {"open", "getconn", "close"}
    assert threading.get_ident() not in {thread for _, thread in called}
    called.clear()
    elsewhere: list[int] = []
    other = threading.Thread(target=lambda: (elsewhere.append(threading.get_ident()), use()))
    other.start()
    other.join()
    assert {thread for _, thread in called} == set(elsewhere)
