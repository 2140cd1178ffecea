"""A stored failure is built again as it was, or another error stands for it and says why."""

from __future__ import annotations

import pytest

from kvreplay import ReplayKey, ReplayRecord, State, StoredFailureError
from kvreplay._protocol.failures import built_again, encode_failure
from support.final_failures import KeywordOnly


class Counted(Exception):
    """Its arguments are not those that it is built from."""

    by = 0

    def __init__(self, number: int) -> None:
        super().__init__(number + self.by)


def stored(error: Exception) -> ReplayRecord:
    key = ReplayKey("lsp", "session")
    return ReplayRecord(State.FAILED, key, b"", encode_failure(error), 0, 1, None)


@pytest.mark.parametrize("by", [-1, 0, 1])
def test_what_is_built_again_is_equal(by: int, monkeypatch: pytest.MonkeyPatch) -> None:
    record = stored(Counted(7))
    monkeypatch.setattr(Counted, "by", by)
    again = built_again(record, (Counted,))
    if by == 0:
        assert type(again) is Counted
        assert again.args == (7,)
    else:  # greater bytes, or less
        assert type(again) is StoredFailureError
        assert again.__cause__ is None


def test_what_cannot_be_built_says_why() -> None:
    again = built_again(stored(KeywordOnly(7, reason="x")), (KeywordOnly,))
    assert type(again) is StoredFailureError
    assert type(again.__cause__) is TypeError
