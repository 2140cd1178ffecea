"""Without a claim, in a transaction, by lookup, by decorator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kvreplay import (
    ConfigError,
    ExpiredError,
    IndeterminateError,
    InvalidResponseError,
    ParamsMismatchError,
    StoreError,
)
from support.engines import TRANSACTIONAL
from support.replaying import FakeClock, Handler, Interrupt
from support.requesting import KEY, OTHER, PARAMS, abandon, entry


def test_without_a_lease_an_interrupt_leaves_no_trace(make: Callable[..., Any], store: Any) -> None:
    replay = make(lease=None)
    abandon(replay)
    assert entry(store) is None
    assert replay.execute(KEY, PARAMS, Handler("r")).response == "r"
    assert replay.execute(KEY, PARAMS, Handler("never")).replayed


def test_a_transaction_commits_the_effect_and_the_record_together(
    replay: Any, store: Any, engine: Any, events: list[str]
) -> None:
    def handler(transaction: Any) -> Any:
        transaction.write("ledger", "", "hash", b"paid")
        with pytest.raises(StoreError):
            store.write("ledger", "", "other", b"through the store")
        return ["done"]

    if not engine.transactional:
        with pytest.raises(ConfigError, match="transaction"):
            replay.execute_in_transaction(KEY, PARAMS, handler)
        return
    outcome = replay.execute_in_transaction(KEY, PARAMS, handler)
    assert (outcome.response, outcome.replayed) == (["done"], False)
    assert store.read("ledger", "", "hash") == b"paid"
    again = replay.execute_in_transaction(KEY, PARAMS, handler)
    assert (again.response, again.replayed) == (["done"], True)
    assert replay.execute(KEY, PARAMS, Handler("never")).response == ["done"]
    with pytest.raises(ParamsMismatchError):
        replay.execute_in_transaction(KEY, OTHER, handler)
    assert events[:3] == ["started", "completed", "replayed"]


@pytest.mark.parametrize("engine", TRANSACTIONAL, indirect=True)
@pytest.mark.parametrize("end", [ValueError("no"), Interrupt(), IndeterminateError("?"), object()])
def test_a_transaction_that_fails_leaves_nothing(
    replay: Any, store: Any, end: Any, events: list[str]
) -> None:
    def handler(transaction: Any) -> Any:
        transaction.write("ledger", "", "hash", b"paid")
        if isinstance(end, BaseException):
            raise end
        return end

    error = type(end) if isinstance(end, BaseException) else InvalidResponseError
    with pytest.raises(error):
        replay.execute_in_transaction(KEY, PARAMS, handler)
    assert store.list("ledger", "") == []
    assert entry(store) is None
    assert "completed" not in events
    done = replay.execute_in_transaction(
        KEY, PARAMS, lambda transaction: transaction.write("ledger", "", "hash", b"paid")
    )
    assert (done.response, store.read("ledger", "", "hash")) == (None, b"paid")


def test_lookup_says_what_is_stored(replay: Any, store: Any, clock: FakeClock) -> None:
    assert replay.lookup(KEY, PARAMS) is None
    replay.execute(KEY, PARAMS, Handler("r"))
    found = replay.lookup(KEY, PARAMS)
    assert (found.response, found.replayed) == ("r", True)
    with pytest.raises(ParamsMismatchError):
        replay.lookup(KEY, OTHER)
    clock.pass_seconds(60)
    with pytest.raises(ExpiredError):
        replay.lookup(KEY, PARAMS)
    assert entry(store) is None


def test_a_decorated_function_answers_once(replay: Any) -> None:
    calls = []

    def request_invoice(node: str, session: str, amount: int = 1) -> Any:
        """Makes one."""
        calls.append((node, session, amount))
        return {"bolt11": f"lnbcrt{len(calls)}"}

    decorated = replay.decorated(
        request_invoice, key=lambda node, session, amount=1: (node, session)
    )
    assert decorated("n", "s") == {"bolt11": "lnbcrt1"}
    assert decorated("n", session="s", amount=1) == {"bolt11": "lnbcrt1"}
    with pytest.raises(ParamsMismatchError):
        decorated("n", "s", 2)
    assert calls == [("n", "s", 1)]


def test_a_decorated_function_compares_the_params_that_it_is_told(replay: Any) -> None:
    decorated = replay.decorated(
        lambda node, trace: trace,
        key=lambda node, trace: (node, "1"),
        params=lambda node, trace: node,
    )
    assert decorated("n", "first") == decorated("n", "second") == "first"
