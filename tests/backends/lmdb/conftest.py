"""An LMDB store of the test's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lmdb
import pytest

from kvreplay.backends.lmdb import LMDBStore
from kvreplay.backends.lmdb.environment import Environment
from kvreplay.errors import OutcomeUnknownError


@pytest.fixture
def store(root: Path) -> Iterator[LMDBStore]:
    with LMDBStore(root) as store:
        yield store


@pytest.fixture
def after_the_next_commit(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """``after_the_next_commit(error)`` lets the next commit happen, and then raises the error."""

    def arm(error: BaseException) -> None:
        commit = Environment.commit

        def fail(*args: Any) -> None:
            monkeypatch.setattr(Environment, "commit", commit)
            commit(*args)
            raise error

        monkeypatch.setattr(Environment, "commit", fail)

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
