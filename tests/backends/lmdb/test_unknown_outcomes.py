"""After a commit of which nobody knows whether it happened."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import lmdb
import pytest

from kvreplay.backends.lmdb import LMDBStore, entries
from kvreplay.errors import OutcomeUnknownError, StoreUnavailableError
from kvreplay.testing.entries import content
from support.lmdb_stores import (
    environment_of,
    handle_of,
    map_size,
    nothing_is_open,
    open_files_of,
)


def test_after_an_unknown_outcome_the_files_are_opened_again(
    store: LMDBStore, unknown: Callable[[], None]
) -> None:
    for n in range(3):
        handle = handle_of(store)
        unknown()
        with pytest.raises(OutcomeUnknownError):
            store.write("p", "s", "k", b"%d" % n)
        assert store.read("p", "s", "k") == b"%d" % n
        assert handle_of(store) is not handle
    unknown()
    with pytest.raises(OutcomeUnknownError), store.transaction() as txn:
        txn.write("p", "s", "k", b"txn")
    assert store.read("p", "s", "k") == b"txn"


@pytest.mark.parametrize("transaction", [True, False])
def test_an_unknown_outcome_stays_one_when_the_files_cannot_be_opened_again(
    store: LMDBStore, root: Path, unknown: Callable[[], None], transaction: bool
) -> None:
    """*Nothing changed* would be untrue; and the store is usable once the files are back."""
    unknown()
    away = root.with_name("away")
    with pytest.raises(OutcomeUnknownError):
        if transaction:
            with store.transaction() as txn:
                txn.write("p", "s", "k", b"v")
                os.rename(root / "data.mdb", away)
        else:
            environment = environment_of(store)

            def put(txn: lmdb.Transaction[bytes]) -> None:
                entries.put(environment.handle, b"p\0s\0k", b"v", txn)
                os.rename(root / "data.mdb", away)

            environment.write(put)
    for _ in range(2):
        with pytest.raises(StoreUnavailableError, match="not there any more"):
            store.read("p", "s", "k")
        with pytest.raises(StoreUnavailableError, match="not there any more"):
            store.write("p", "s", "k", b"w")
        with pytest.raises(StoreUnavailableError, match="not there any more"), store.transaction():
            pass
    os.rename(away, root / "data.mdb")
    assert store.read("p", "s", "k") == b"v"
    store.write("p", "s", "k", b"w")


def test_closing_after_the_files_could_not_be_opened_again(
    root: Path, unknown: Callable[[], None]
) -> None:
    store = LMDBStore(root)
    unknown()
    with pytest.raises(OutcomeUnknownError):
        store.write("p", "s", "k", b"v")
    store.close()
    assert nothing_is_open()
    assert open_files_of(root) == []


def test_other_errors_inside_a_transaction_are_the_callers_own(store: LMDBStore) -> None:
    """Even if they are of another LMDB environment, or of another store."""
    handle = handle_of(store)
    for error in (lmdb.MapFullError("theirs"), OutcomeUnknownError("theirs")):
        with pytest.raises(type(error)) as caught, store.transaction() as txn:
            txn.write("p", "s", "k", b"v")
            raise error
        assert caught.value is error
        assert content(store) == {}
        assert handle_of(store) is handle
        assert map_size(store) == 16 * 1024**3
