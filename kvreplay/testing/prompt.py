"""``PromptKVStore``: a change at once, or a refusal, but never a wait."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from kvreplay.errors import InvalidNameError, InvalidValueError, StoreError, StoreUnavailableError
from kvreplay.store import PromptKVStore
from kvreplay.testing.entries import content
from kvreplay.testing.threads import elsewhere

__all__ = ["PromptTests"]


class PromptTests:
    """``check_and_put_at_once`` is ``check_and_put``, which waits for nobody."""

    def test_a_change_at_once_is_a_check_and_put(self, prompt: PromptKVStore) -> None:
        put = prompt.check_and_put_at_once
        assert put("p", "s", "k", expected=b"other", value=b"v") is None
        assert put("p", "s", "k", expected=None, value=b"v", expires_at=5) is None
        assert put("p", "s", "k", expected=None, value=b"late") == b"v"
        assert put("p", "s", "k", expected=b"v", value=b"w") == b"v"
        assert put("p", "s", "gone", expected=None, value=b"v") is None
        assert put("p", "s", "gone", expected=b"v", value=None) == b"v"
        assert content(prompt) == {("p", "s", "k"): b"w"}

    def test_a_bad_change_at_once(self, prompt: PromptKVStore) -> None:
        wrong: Any = "text"
        with pytest.raises(InvalidNameError):
            prompt.check_and_put_at_once("p", "s", "not legal", expected=None, value=b"v")
        with pytest.raises(InvalidValueError):
            prompt.check_and_put_at_once("p", "s", "k", expected=None, value=wrong)
        assert content(prompt) == {}

    def test_changes_at_once_of_many_threads_agree_on_a_winner(self, prompt: PromptKVStore) -> None:
        def take(own: int) -> list[bytes | None]:
            return [_patiently(prompt, f"k{n}", b"%d" % own) for n in range(50)]

        with ThreadPoolExecutor(4) as executor:
            found = list(executor.map(take, range(4)))
        for n in range(50):
            winner = int(prompt.read("p", "s", f"k{n}"))
            assert [each[n] for each in found] == [
                None if own == winner else b"%d" % winner for own in range(4)
            ]

    def test_a_change_at_once_does_not_wait_for_a_transaction(
        self, prompt: Any, transactional: Any
    ) -> None:
        def put() -> bytes | None:
            found: bytes | None = prompt.check_and_put_at_once(
                "p", "s", "k", expected=None, value=b"v"
            )
            return found

        with transactional.transaction() as transaction:
            transaction.write("p", "s", "other", b"v")
            with pytest.raises(StoreUnavailableError):
                elsewhere(put)
            with pytest.raises(StoreError):  # nor for its own
                put()
        assert content(prompt) == {("p", "s", "other"): b"v"}
        assert elsewhere(put) is None
        assert prompt.read("p", "s", "k") == b"v"


def _patiently(prompt: PromptKVStore, key: str, value: bytes) -> bytes | None:
    try:
        return prompt.check_and_put_at_once("p", "s", key, expected=None, value=value)
    except StoreUnavailableError:  # another thread was in a change
        return prompt.check_and_put("p", "s", key, expected=None, value=value)
