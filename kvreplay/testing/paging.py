"""``PaginatedKVStore``: pages in the order of creation, as LDK's own tests want them, and more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kvreplay.errors import InvalidNameError, InvalidValueError
from kvreplay.store import PaginatedKVStore
from kvreplay.testing.entries import put
from kvreplay.testing.threads import elsewhere, watched_by

__all__ = ["PagingTests"]


class PagingTests:
    """What was created last comes first; an update moves nothing; tokens stay good."""

    def test_fifty_entries_are_one_page(self, paginated: PaginatedKVStore) -> None:
        created = _create(paginated, 50)
        page = paginated.list_paginated("p", "s")
        assert list(page.keys) == created[::-1]
        assert page.next_page_token is None

    def test_one_more_is_on_a_second_page(self, paginated: PaginatedKVStore) -> None:
        created = _create(paginated, 51)
        first = paginated.list_paginated("p", "s")
        assert list(first.keys) == created[:0:-1]
        assert isinstance(first.next_page_token, str)
        second = paginated.list_paginated("p", "s", first.next_page_token)
        assert list(second.keys) == created[:1]
        assert second.next_page_token is None

    @pytest.mark.parametrize("limit", [1, 2, 7, 20, 21, 1000])
    def test_the_pages_show_each_entry_once(self, paginated: PaginatedKVStore, limit: int) -> None:
        created = _create(paginated, 20)
        pages = list(_pages(paginated, limit))
        assert [key for page in pages for key in page] == created[::-1]
        assert all(len(page) == limit for page in pages[:-1])
        assert len(pages) == -(-20 // limit), "a token although nothing remains"

    def test_an_empty_namespace_is_an_empty_page(self, paginated: PaginatedKVStore) -> None:
        paginated.write("p", "s", "k", b"v")
        paginated.write("p", "s", "gone", b"v")
        paginated.remove("p", "s", "gone")
        for primary, secondary in [("p", ""), ("p", "other"), ("other", "s"), ("", "")]:
            page = paginated.list_paginated(primary, secondary)
            assert (list(page.keys), page.next_page_token) == ([], None)
            values = paginated.list_paginated_with_values(primary, secondary)
            assert (list(values.entries), values.next_page_token) == ([], None)
        paginated.write("", "", "top", b"v")
        assert list(paginated.list_paginated("", "").keys) == ["top"]
        assert list(paginated.list_paginated("p", "s").keys) == ["k"]

    def test_a_page_with_values_is_that_page(self, paginated: PaginatedKVStore) -> None:
        created = _create(paginated, 9)
        page = paginated.list_paginated_with_values("p", "s", limit=5)
        assert list(page.entries) == [(key, key.encode()) for key in created[:3:-1]]
        rest = paginated.list_paginated_with_values("p", "s", page.next_page_token, limit=5)
        assert list(rest.entries) == [(key, key.encode()) for key in created[3::-1]]
        assert rest.next_page_token is None
        keys = paginated.list_paginated("p", "s", limit=5)
        assert keys.next_page_token == page.next_page_token, "both kinds of page share the tokens"

    def test_an_update_moves_nothing(self, paginated: Any) -> None:
        created = _create(paginated, 5)
        paginated.write("p", "s", created[1], b"")
        if hasattr(paginated, "check_and_put"):
            put(paginated, created[0], b"new", 5)
            put(paginated, created[3], b"new")
        if hasattr(paginated, "transaction"):
            with paginated.transaction() as txn:
                txn.write("p", "s", created[2], b"new")
        assert list(paginated.list_paginated("p", "s").keys) == created[::-1]

    def test_what_is_removed_and_written_again_is_new(self, paginated: Any) -> None:
        created = _create(paginated, 6)
        again = [created[1]]
        paginated.remove("p", "s", created[1])
        paginated.write("p", "s", created[1], b"v")
        if hasattr(paginated, "check_and_put"):
            put(paginated, created[2], None)
            put(paginated, created[2], b"v", 5)
            again.append(created[2])
        if hasattr(paginated, "sweep"):
            assert paginated.sweep("p", 5, 10).removed == 1
            put(paginated, created[2], b"v")
        if hasattr(paginated, "transaction"):
            with paginated.transaction() as txn:
                txn.remove("p", "s", created[3])
                txn.write("p", "s", "other", b"v")
                txn.write("p", "s", created[3], b"v")
                txn.write("p", "s", "other", b"w")
            again += ["other", created[3]]
        stayed = [key for key in created if key not in again]
        assert list(paginated.list_paginated("p", "s").keys) == (stayed + again)[::-1]

    def test_a_token_outlives_its_entry(self, paginated: PaginatedKVStore) -> None:
        created = _create(paginated, 6)
        first = paginated.list_paginated("p", "s", limit=2)
        for key in first.keys:
            paginated.remove("p", "s", key)
        assert first.keys[-1] == created[4]
        second = paginated.list_paginated("p", "s", first.next_page_token, limit=2)
        assert list(second.keys) == [created[3], created[2]]
        paginated.write("p", "s", created[4], b"v")  # it is new, so it is on no later page
        again = paginated.list_paginated("p", "s", first.next_page_token, limit=50)
        assert list(again.keys) == created[3::-1]
        for key in created:
            paginated.remove("p", "s", key)
        empty = paginated.list_paginated("p", "s", first.next_page_token)
        assert (list(empty.keys), empty.next_page_token) == ([], None)

    def test_pages_while_others_write(self, paginated: PaginatedKVStore) -> None:
        """What stays is shown once and in order; what comes later is not shown at all."""
        created = _create(paginated, 40)

        def look() -> None:
            shown = [key for page in _pages(paginated, 7) for key in page]
            assert [key for key in shown if key in created] == created[::-1]
            assert len(shown) == len(set(shown))

        with watched_by(look, look):
            for n in range(60):
                paginated.write("p", "s", created[n % 40], b"changed")
                paginated.write("p", "s", f"passes-{n % 3}", b"v")
                paginated.remove("p", "s", f"passes-{(n + 1) % 3}")
        pages = _pages(paginated, 7)
        shown = list(next(pages))
        elsewhere(lambda: _create(paginated, 5, "late"))
        shown += [key for page in pages for key in page]
        assert not [key for key in shown if key.startswith("late")]

    def test_order_and_tokens_survive_a_restart(
        self, paginated: PaginatedKVStore, reopen: Callable[[], Any]
    ) -> None:
        """Even if the newest entry was removed before it: no creation number is used twice."""
        created = _create(paginated, 6)
        first = paginated.list_paginated("p", "s", limit=1)
        assert list(first.keys) == created[:4:-1]
        paginated.remove("p", "s", created[5])
        again = reopen()
        again.write("p", "s", "after", b"v")
        page = again.list_paginated("p", "s", first.next_page_token)
        assert list(page.keys) == created[4::-1]
        assert list(again.list_paginated("p", "s").keys) == ["after", *created[4::-1]]

    def test_a_token_of_another_namespace_or_of_nobody(self, paginated: PaginatedKVStore) -> None:
        _create(paginated, 3)
        paginated.write("p", "other", "a", b"v")
        paginated.write("p", "other", "b", b"v")
        token = paginated.list_paginated("p", "other", limit=1).next_page_token
        assert token is not None
        wrong: list[Any] = [
            token,
            "",
            "x",
            "1",
            f"{token}0",
            token[1:],
            "1.k.",
            "..",
            5,
            b"1",
            True,
        ]
        for each in wrong:
            with pytest.raises(InvalidValueError, match="token"):
                paginated.list_paginated("p", "s", each)
            with pytest.raises(InvalidValueError, match="token"):
                paginated.list_paginated_with_values("p", "s", each)
        assert list(paginated.list_paginated("p", "other", token).keys) == ["a"]

    @pytest.mark.parametrize("limit", [0, -1, 1001, 2**70, True, 5.0, "5", None])
    def test_a_limit_that_is_none(self, paginated: PaginatedKVStore, limit: Any) -> None:
        paginated.write("p", "s", "k", b"v")
        for call in (paginated.list_paginated, paginated.list_paginated_with_values):
            with pytest.raises(InvalidValueError, match="limit"):
                call("p", "s", limit=limit)

    def test_a_namespace_that_breaks_the_rules(self, paginated: PaginatedKVStore) -> None:
        for call in (paginated.list_paginated, paginated.list_paginated_with_values):
            for namespace in (("", "s"), ("p/q", ""), ("p", "s.t")):
                with pytest.raises(InvalidNameError):
                    call(*namespace)

    def test_no_key_and_no_value_is_in_a_repr(self, paginated: PaginatedKVStore) -> None:
        for n in range(2):
            paginated.write("p", "s", f"secret-{n}", b"secret")
        assert "secret" not in repr(paginated.list_paginated("p", "s", limit=1))
        assert "secret" not in repr(paginated.list_paginated_with_values("p", "s", limit=1))


def _create(store: PaginatedKVStore, count: int, name: str = "k") -> list[str]:
    """Write entries whose keys say nothing about their order; return the keys in that order."""
    keys = [f"{name}-{n * 37 % 101}" for n in range(count)]
    for key in keys:
        store.write("p", "s", key, key.encode())
    return keys


def _pages(store: PaginatedKVStore, limit: int) -> Iterator[list[str]]:
    token: str | None = None
    while True:
        page = store.list_paginated("p", "s", token, limit=limit)
        yield list(page.keys)
        token = page.next_page_token
        if token is None:
            return
