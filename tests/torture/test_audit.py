"""The audit itself: each broken promise is found, and a kept one is not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from kvreplay import Replay
from torture.audit import State, audit
from torture.ledger import PARAMS, SCOPE, Ledger, answer
from torture.node import MODES, Node
from torture.strike import doom

KEY = "key"


def lose(store: Any, ledger: Ledger) -> None:
    store.remove("ns", SCOPE, KEY)


def answer_otherwise(store: Any, ledger: Ledger) -> None:
    lose(store, ledger)
    Node(store, ledger, MODES["sync-without-lease"]).ask(KEY)


def store_another(store: Any, ledger: Ledger) -> None:
    lose(store, ledger)
    Replay(store, "ns", ttl=60).execute((SCOPE, KEY), PARAMS, lambda: answer("f" * 16))


def tear(store: Any, ledger: Ledger) -> None:
    data = store.read("ns", SCOPE, KEY)
    store.write("ns", SCOPE, KEY, data[: len(data) // 2])


@pytest.mark.parametrize(
    ("harm", "complaint"),
    [
        (lose, "lost its answer"),
        (answer_otherwise, "was answered"),
        (store_another, "an answer that no run gave"),
        (tear, "checksum"),
        (lambda _, ledger: ledger.note("effect", KEY, "0" * 16), "2 times"),
        (lambda _, ledger: ledger.note("answer", KEY, "0" * 16), "was answered"),
        (lambda _, ledger: ledger.note("doubt", KEY), "out of doubt"),
        (lambda _, ledger: ledger.note("failure", KEY, "StoreError"), "StoreError"),
        (lambda _, ledger: ledger.note("bug", KEY, "OSError"), "OSError"),
        (lambda _, ledger: ledger.note("effect", "other", "0" * 16), "lost all trace"),
    ],
)
def test_a_broken_promise_is_found(
    store: Any, ledger: Ledger, harm: Callable[[Any, Ledger], None], complaint: str
) -> None:
    Node(store, ledger, MODES["sync"]).ask(KEY)
    kept = audit(store, ledger, [KEY, "other"])
    assert kept == Counter({State.ANSWERED: 1, State.FREE: 1})
    harm(store, ledger)
    with pytest.raises(Exception, match=complaint):
        audit(store, ledger, [KEY, "other"])


def test_a_run_that_claims_too_late_is_found(durable: Any, ledger: Ledger, fork: Any) -> None:
    """Killed between the handler and the answer, which a claim beforehand would have survived."""

    def act() -> None:
        with durable.open() as store:
            doom(4)  # before the answer is stored
            Node(store, ledger, MODES["sync-without-lease"]).ask(KEY)

    assert fork(act).wait() == -9
    with durable.open() as store:
        assert audit(store, ledger, [KEY], claims=False) == Counter({State.FREE: 1})
        with pytest.raises(AssertionError, match="lost all trace"):
            audit(store, ledger, [KEY])
