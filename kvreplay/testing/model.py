"""The store against a dictionary: Hypothesis looks for calls after which they differ."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from kvreplay.errors import KeyNotFoundError
from kvreplay.testing.entries import Address, content

__all__ = ["check_against_a_dictionary"]

# Few of each, so that many calls meet on one entry.
NAMESPACES = [("", ""), ("p", ""), ("p", "s")]
_namespaces = st.sampled_from(NAMESPACES)
_keys = st.sampled_from(["a", "b"])
_addresses: st.SearchStrategy[Address] = st.builds(
    lambda namespace, key: (*namespace, key), _namespaces, _keys
)
_values = st.sampled_from([b"", b"1", bytes(300)])
_times = st.none() | st.integers(0, 3)
_operations = st.lists(
    st.tuples(
        st.sampled_from(["write", "remove", "put"]),
        _addresses,
        _values,
        st.none() | _values,
        _times,
    ),
    max_size=5,
)

Entry = tuple[bytes, int | None]


def check_against_a_dictionary(
    open_fresh: Callable[[], Any], reopen: Callable[[Any], Any] | None
) -> None:
    """Run many short histories, each on a fresh store.

    Args:
        reopen: closes a store and opens it again; ``None`` if its entries do not outlive it.
    """

    class Machine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.store = open_fresh()
            self.entries: dict[Address, Entry] = {}

        def teardown(self) -> None:
            self.store.close()

        @invariant()
        def they_are_equal(self) -> None:
            expected = {address: value for address, (value, _) in self.entries.items()}
            assert content(self.store, *NAMESPACES) == expected

        @rule(address=_addresses)
        def read(self, address: Address) -> None:
            try:
                found = self.store.read(*address)
            except KeyNotFoundError:
                found = None
            assert found == _value(self.entries, address)

        @rule(namespace=_namespaces)
        def list(self, namespace: tuple[str, str]) -> None:
            expected = sorted(k for p, s, k in self.entries if (p, s) == namespace)
            assert sorted(self.store.list(*namespace)) == expected

        @rule(address=_addresses, value=_values)
        def write(self, address: Address, value: bytes) -> None:
            self.store.write(*address, value)
            self.entries[address] = (value, None)

        @rule(address=_addresses, lazy=st.booleans())
        def remove(self, address: Address, lazy: bool) -> None:
            self.store.remove(*address, lazy=lazy)
            self.entries.pop(address, None)

        @precondition(lambda self: hasattr(self.store, "check_and_put"))
        @rule(
            address=_addresses,
            right=st.booleans(),
            guess=st.none() | _values,
            value=st.none() | _values,
            expires_at=_times,
        )
        def check_and_put(
            self,
            address: Address,
            right: bool,
            guess: bytes | None,
            value: bytes | None,
            expires_at: int | None,
        ) -> None:
            expected = _value(self.entries, address) if right else guess
            _put(self.store, self.entries, address, expected, value, expires_at)

        @precondition(lambda self: hasattr(self.store, "sweep"))
        @rule(primary=st.sampled_from(["", "p"]), now=st.integers(0, 3), limit=st.integers(1, 4))
        def sweep(self, primary: str, now: int, limit: int) -> None:
            due = {
                address
                for address, (_, at) in self.entries.items()
                if address[0] == primary and at is not None and at <= now
            }
            result = self.store.sweep(primary, now, limit)
            gone = self.entries.keys() - content(self.store)
            assert gone <= due, "something was removed that is not due"
            assert len(gone) == result.removed <= result.visited <= limit
            assert result.more or gone == due, "due entries were left, and not announced"
            for address in gone:
                del self.entries[address]

        @precondition(lambda self: hasattr(self.store, "transaction"))
        @rule(operations=_operations, commits=st.booleans())
        def transaction(self, operations: Any, commits: bool) -> None:
            entries = dict(self.entries)
            try:
                with self.store.transaction() as txn:
                    for name, address, value, expected, expires_at in operations:
                        if name == "write":
                            txn.write(*address, value)
                            entries[address] = (value, None)
                        elif name == "remove":
                            txn.remove(*address)
                            entries.pop(address, None)
                        else:
                            _put(txn, entries, address, expected, value, expires_at)
                    for p, s in NAMESPACES:
                        assert sorted(txn.list(p, s)) == sorted(
                            address[2] for address in entries if address[:2] == (p, s)
                        )
                    if not commits:
                        raise _UndoneError
            except _UndoneError:
                return
            self.entries = entries

        @precondition(lambda self: reopen is not None)
        @rule()
        def close_and_open_again(self) -> None:
            assert reopen is not None
            self.store = reopen(self.store)

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=max(settings().max_examples // 2, 1),  # 50, unless a profile says more
            stateful_step_count=25,
            deadline=None,
            # To explain a failure would take thousands more stores.
            phases=[phase for phase in Phase if phase is not Phase.explain],
            suppress_health_check=list(HealthCheck),
        ),
    )


class _UndoneError(Exception):
    """Raised inside a transaction to undo it."""


def _value(entries: dict[Address, Entry], address: Address) -> bytes | None:
    return entries[address][0] if address in entries else None


def _put(
    store: Any,
    entries: dict[Address, Entry],
    address: Address,
    expected: bytes | None,
    value: bytes | None,
    expires_at: int | None,
) -> None:
    there = _value(entries, address)
    found = store.check_and_put(*address, expected=expected, value=value, expires_at=expires_at)
    assert found == there
    if there == expected:
        if value is None:
            entries.pop(address, None)
        else:
            entries[address] = (value, expires_at)
