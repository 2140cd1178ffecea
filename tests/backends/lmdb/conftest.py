"""An LMDB store of the test's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lmdb
import pytest

from kvreplay.backends import group_commit
from kvreplay.backends.lmdb import LMDBStore
from kvreplay.backends.lmdb import store as lmdb_store
from kvreplay.backends.lmdb.handle import Handle
from kvreplay.errors import OutcomeUnknownError


@pytest.fixture
def store(root: Path) -> Iterator[LMDBStore]:
    with LMDBStore(root) as store:
        yield store


@pytest.fixture
def after_the_next_commit(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """``after_the_next_commit(error)`` lets the next commit happen, and then raises the error."""

    def arm(error: BaseException) -> None:
        commit = Handle.commit

        def fail(*args: Any) -> None:
            monkeypatch.setattr(Handle, "commit", commit)
            commit(*args)
            raise error

        monkeypatch.setattr(Handle, "commit", fail)

    return arm


@pytest.fixture
def unknown(after_the_next_commit: Callable[[BaseException], None]) -> Callable[[], None]:
    """``unknown()``: of the next commit, which happens, it is reported that nobody knows.

    For what comes after an unknown outcome; ``test_crashes.py`` makes real ones.
    """

    def arm() -> None:
        error = OutcomeUnknownError("may or may not")
        error.__cause__ = lmdb.Error("the meta page")
        after_the_next_commit(error)

    return arm


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``limits(changes=2)`` makes a limit of the group commit so small that a test meets it."""
    places = {
        "changes": (group_commit, "_MAX_WRITES"),  # of a batch
        "size": (group_commit, "MAX_BYTES"),  # of a batch
        "look_again": (group_commit, "_LOOK_AGAIN"),  # seconds after which nobody relies on a call
        "sweep": (lmdb_store, "_SWEEP_BATCH"),  # entries of one of a sweep's transactions
    }

    def limit(**limits: float) -> None:
        for name, value in limits.items():
            monkeypatch.setattr(*places[name], value)

    return limit
