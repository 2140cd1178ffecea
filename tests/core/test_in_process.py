"""The wrapper around a node's own plain store; what it shares with engines is in the contract."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import pytest

from kvreplay.errors import (
    ConfigError,
    InvalidNameError,
    KeyNotFoundError,
    KVReplayError,
    OutcomeUnknownError,
    StoreError,
)
from kvreplay.store import AtomicKVStore, ExpiringKVStore, KVStoreSync, TransactionalKVStore
from kvreplay.store.in_process import InProcessAtomicStore


class NotFound(Exception):
    """What another library raises for an absent key."""


class NodesOwn:
    """LDK's four calls and nothing more; it counts them, and may be made to fail or to wait."""

    def __init__(self) -> None:
        self.entries: dict[tuple[str, str, str], Any] = {}
        self.calls: list[str] = []
        self.absent: Exception = KeyError("absent")
        self.fails: Exception | None = None
        self.reading: threading.Barrier | None = None
        self.called = threading.Event()

    def _called(self, name: str) -> None:
        self.calls.append(name)
        self.called.set()
        if self.fails is not None:
            raise self.fails

    def read(self, primary_namespace: str, secondary_namespace: str, key: str) -> bytes:
        self._called("read")
        try:
            found: bytes = self.entries[primary_namespace, secondary_namespace, key]
        except KeyError:
            raise self.absent from None
        if self.reading is not None:
            self.reading.wait(30)
        return found

    def write(
        self, primary_namespace: str, secondary_namespace: str, key: str, value: bytes
    ) -> None:
        self._called("write")
        self.entries[primary_namespace, secondary_namespace, key] = value

    def remove(
        self, primary_namespace: str, secondary_namespace: str, key: str, lazy: bool = False
    ) -> None:
        self._called(f"remove lazy={lazy}")
        self.entries.pop((primary_namespace, secondary_namespace, key), None)

    def list(self, primary_namespace: str, secondary_namespace: str) -> list[str]:
        self._called("list")
        return [k for p, s, k in self.entries if (p, s) == (primary_namespace, secondary_namespace)]


def test_what_it_claims() -> None:
    inner: KVStoreSync = NodesOwn()
    store: AtomicKVStore = InProcessAtomicStore(inner)
    assert isinstance(store, AtomicKVStore)
    assert not isinstance(store, ExpiringKVStore)
    assert not isinstance(store, TransactionalKVStore)
    assert repr(store) == "<InProcessAtomicStore over NodesOwn>"
    assert not hasattr(store, "reads_are_local")


@pytest.mark.parametrize("absent", [KeyError("p/s/secret"), KeyNotFoundError("no entry")])
def test_absent_by_default(absent: Exception) -> None:
    inner = NodesOwn()
    inner.absent = absent
    store = InProcessAtomicStore(inner)
    with pytest.raises(KeyNotFoundError) as caught:
        store.read("p", "s", "k")
    assert "secret" not in str(caught.value)
    assert store.check_and_put("p", "s", "k", expected=None, value=b"v") is None
    assert store.read("p", "s", "k") == b"v"


@pytest.mark.parametrize("not_found", [NotFound, (FileNotFoundError, NotFound)])
def test_absent_in_the_nodes_own_way(not_found: Any) -> None:
    inner = NodesOwn()
    inner.absent = NotFound()
    store = InProcessAtomicStore(inner, not_found=not_found)
    with pytest.raises(KeyNotFoundError):
        store.read("p", "s", "k")
    assert store.check_and_put("p", "s", "k", expected=None, value=b"v") is None
    assert store.check_and_put("p", "s", "k", expected=b"v", value=None) == b"v"
    inner.absent = KeyError("a bug, here")
    with pytest.raises(StoreError, match="KeyError") as caught:
        store.read("p", "s", "k")
    assert not isinstance(caught.value, KeyNotFoundError)


@pytest.mark.parametrize(
    "not_found",
    [
        *(BaseException, Exception, OSError, StoreError, KVReplayError, (KeyError, OSError)),
        *("KeyError", KeyError("k"), None, (), ((KeyError,),), int),
    ],
)
def test_what_says_more_than_absence_is_refused(not_found: Any) -> None:
    """Else each failure to read would look like an absent entry."""
    with pytest.raises(ConfigError, match="not_found"):
        InProcessAtomicStore(NodesOwn(), not_found=not_found)


def test_only_bytes_are_a_value() -> None:
    """``bytes(5)`` would be five zeros."""
    inner = NodesOwn()
    store = InProcessAtomicStore(inner)
    for value in (5, True, None, "text", [1, 2]):
        inner.entries["p", "s", "k"] = value
        for call in (
            lambda: store.read("p", "s", "k"),
            lambda: store.check_and_put("p", "s", "k", expected=None, value=b"v"),
        ):
            with pytest.raises(StoreError, match="is no bytes") as caught:
                call()
            assert not isinstance(caught.value, KeyNotFoundError)
        assert inner.entries["p", "s", "k"] is value
    inner.entries["p", "s", "k"] = memoryview(b"v")
    assert store.read("p", "s", "k") == b"v"


class Walks(NodesOwn):
    def list_all_keys(self) -> Any:
        self._called("list_all_keys")
        yield from self.entries


FOREIGN = ["a.tmp", "", "a/b", "ключ", "N" * 121, "a\0", b"a", None, 5]


def test_no_foreign_name_is_shown() -> None:
    inner = Walks()
    for name in FOREIGN:
        for address in [("p", "s", name), (name, "s", "k"), ("p", name, "k")]:
            inner.entries[address] = b"foreign"  # type: ignore[index]
    inner.entries.pop(("p", "", "k"))  # that one is legal
    inner.entries["p", "s", "k"] = b"v"
    store = InProcessAtomicStore(inner)
    assert store.list("p", "s") == ["k"]
    assert list(store.list_all_keys()) == [("p", "s", "k")]


def test_a_walk_that_fails_says_so() -> None:
    inner = Walks()
    inner.entries["p", "s", "k"] = b"v"
    store = InProcessAtomicStore(inner)
    walk = store.list_all_keys()
    inner.fails = KeyError("a bug, here")
    with pytest.raises(StoreError, match="KeyError") as caught:
        list(walk)
    assert not isinstance(caught.value, KeyNotFoundError)
    inner.fails = KeyNotFoundError("no such namespace")
    for call in (
        lambda: store.list("p", "s"),
        lambda: [*store.list_all_keys()],
        lambda: store.write("p", "s", "k", b"v"),
        lambda: store.remove("p", "s", "k"),
    ):
        with pytest.raises(StoreError) as caught:
            call()
        assert not isinstance(caught.value, KeyNotFoundError), "only what is read can be absent"


def test_no_other_failure_is_an_absence() -> None:
    inner = NodesOwn()
    store = InProcessAtomicStore(inner)
    inner.fails = OSError(5, "broken")
    for call in (
        lambda: store.read("p", "s", "k"),
        lambda: store.write("p", "s", "k", b"v"),
        lambda: store.remove("p", "s", "k"),
        lambda: store.list("p", "s"),
        lambda: store.check_and_put("p", "s", "k", expected=None, value=b"v"),
    ):
        with pytest.raises(StoreError, match="OSError") as caught:
            call()
        assert caught.value.__cause__ is inner.fails
    for call in (
        lambda: store.write("p", "s", "k", b"v"),
        lambda: store.remove("p", "s", "k"),
    ):
        with pytest.raises(OutcomeUnknownError):
            call()
    inner.fails = None
    store.write("p", "s", "k", b"v")
    assert inner.entries == {("p", "s", "k"): b"v"}


def test_it_answers_in_bytes() -> None:
    inner = NodesOwn()
    inner.entries["p", "s", "k"] = bytearray(b"v")
    store = InProcessAtomicStore(inner)
    assert type(store.read("p", "s", "k")) is bytes
    assert type(store.check_and_put("p", "s", "k", expected=None, value=b"w")) is bytes
    assert store.check_and_put("p", "s", "k", expected=b"v", value=b"w") == b"v"
    assert inner.entries["p", "s", "k"] == b"w"


def test_what_it_calls() -> None:
    inner = NodesOwn()
    store = InProcessAtomicStore(inner)
    store.check_and_put("p", "s", "k", expected=b"x", value=b"v")
    store.check_and_put("p", "s", "k", expected=None, value=None)
    assert inner.calls == ["read", "read"]
    store.check_and_put("p", "s", "k", expected=None, value=b"v", expires_at=5)
    store.check_and_put("p", "s", "k", expected=b"v", value=None)
    store.remove("p", "s", "k", lazy=True)
    assert inner.calls[2:] == ["read", "write", "read", "remove lazy=False", "remove lazy=True"]
    inner.calls.clear()
    with pytest.raises(InvalidNameError):
        store.write("p", "s", "a/b", b"v")
    assert inner.calls == []


def test_a_writer_does_not_come_between() -> None:
    inner = NodesOwn()
    inner.entries["p", "s", "k"] = b"1"
    store = InProcessAtomicStore(inner)
    inner.reading = threading.Barrier(2)
    with ThreadPoolExecutor(2) as pool:
        putting = pool.submit(store.check_and_put, "p", "s", "k", expected=b"1", value=b"2")
        writing = pool.submit(store.write, "p", "s", "k", b"3")
        wait([writing], 0.1)
        inner.reading.wait(30)
        assert putting.result(30) in (b"1", b"3")
        writing.result(30)
    assert inner.entries["p", "s", "k"] == b"3", "before it or after it"


def test_a_walk_needs_one_underneath() -> None:
    store = InProcessAtomicStore(NodesOwn())
    with pytest.raises(ConfigError, match="list_all_keys"):
        store.list_all_keys()


def test_closing_it_leaves_the_nodes_store_open() -> None:
    inner = NodesOwn()
    with InProcessAtomicStore(inner) as store:
        store.write("p", "s", "k", b"v")
    with pytest.raises(StoreError, match="closed"):
        store.read("p", "s", "k")
    assert inner.read("p", "s", "k") == b"v"


def test_a_child_finds_its_lock_free(fork: Any) -> None:
    inner = NodesOwn()
    inner.entries["p", "s", "k"] = b"1"
    store = InProcessAtomicStore(inner)
    inner.reading = threading.Barrier(2)
    inside = threading.Thread(
        target=lambda: store.check_and_put("p", "s", "k", expected=b"1", value=b"2")
    )
    inside.start()
    assert inner.called.wait(30)

    def child() -> None:
        inner.reading = None
        assert store.check_and_put("p", "s", "k", expected=b"1", value=b"3") == b"1"

    fork(child).join()
    inner.reading.wait(30)
    inside.join()
    assert inner.entries["p", "s", "k"] == b"2"
