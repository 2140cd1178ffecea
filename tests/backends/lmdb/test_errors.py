"""What an error of LMDB means: those that nothing here could make real."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import lmdb
import pytest

from kvreplay.backends.lmdb import LMDBStore
from kvreplay.backends.lmdb import errors as lmdb_errors
from kvreplay.errors import (
    CorruptStoreError,
    OutcomeUnknownError,
    StoreError,
    StoreFullError,
    StoreUnavailableError,
)
from support.lmdb_stores import environment_of


class Stub:
    """An environment whose ``begin`` answers with a real error of LMDB's."""

    def __init__(self, error: lmdb.Error | None) -> None:
        self._error = error

    def begin(self) -> Any:
        if self._error is not None:
            raise self._error
        return self

    def abort(self) -> None:
        pass


def an_error(kind: type[lmdb.Error], code: int = 0) -> Any:
    error: Any = kind(f"mdb_txn_commit: {os.strerror(code) if code > 0 else 'told'}")
    error.code, error.what, error.reason = code, "mdb_txn_commit", "told"
    return error


@pytest.mark.parametrize("kind", [lmdb.PanicError, lmdb.ReadersFullError, lmdb.Error])
def test_a_commit_whose_outcome_cannot_be_told_is_unknown(root: Path, kind: Any) -> None:
    """LMDB looks for a reader slot before it reports a panic: then no slot hides the panic."""
    failure = an_error(lmdb.Error, errno.EIO)
    env: Any = Stub(an_error(kind))
    assert type(lmdb_errors.commit_error(env, failure, root)) is OutcomeUnknownError
    env = Stub(None)
    assert type(lmdb_errors.commit_error(env, failure, Path("/proc"))) is not OutcomeUnknownError


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (an_error(lmdb.PanicError, -30795), StoreUnavailableError),
        (an_error(lmdb.MapResizedError, -30785), StoreUnavailableError),
        (an_error(lmdb.MemoryError, errno.ENOMEM), StoreUnavailableError),
        (an_error(lmdb.CorruptedError, -30796), CorruptStoreError),
        (an_error(lmdb.PageNotFoundError, -30797), CorruptStoreError),
        (an_error(lmdb.DiskError, errno.ENOSPC), StoreFullError),
        (an_error(lmdb.Error, errno.EFBIG), StoreFullError),
        (an_error(lmdb.BadTxnError, -30782), CorruptStoreError),
        (an_error(lmdb.BadValsizeError, -30781), StoreError),
        (StoreFullError("as it is"), StoreFullError),
    ],
)
def test_what_an_error_means(root: Path, error: Any, expected: type[StoreError]) -> None:
    root.mkdir()
    assert type(lmdb_errors.store_error(error, root)) is expected


def test_a_failure_on_a_disk_that_cannot_be_asked(root: Path) -> None:
    error = an_error(lmdb.Error, errno.EIO)
    assert type(lmdb_errors.store_error(error, root / "gone")) is StoreError


def transact(store: LMDBStore) -> None:
    with store.transaction() as txn:
        txn.write("p", "s", "k", txn.read("p", "s", "k"))


def test_a_panic_that_is_met_later(store: LMDBStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread's commit has panicked the environment: whoever meets that opens it again."""
    store.write("p", "s", "k", b"v")
    gate = environment_of(store).handle.gate
    for use in (
        lambda: store.read("p", "s", "k"),
        lambda: store.write("p", "s", "k", b"v"),
        lambda: transact(store),
    ):
        handle = gate.handle
        assert handle is not None

        class Panicked:
            def begin(self, write: bool = False) -> Any:
                raise an_error(lmdb.PanicError, -30795)

            def info(self, handle: Any = handle) -> Any:
                return handle.info()

            def stat(self, handle: Any = handle) -> Any:
                return handle.stat()

            def close(self, handle: Any = handle) -> None:
                handle.close()

        gate.handle = Panicked()  # type: ignore[assignment]
        use()
        assert isinstance(gate.handle, lmdb.Environment)
        assert gate.handle is not handle
