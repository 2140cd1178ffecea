"""The replay key and its store names: total, injective, readable, and never shown."""

from __future__ import annotations

import base64
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvreplay import InvalidParamsError, ReplayKey
from kvreplay._protocol.keys import _remembered_name, name, scope_name, stored_id
from kvreplay.store import check_name

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=300)


@pytest.mark.parametrize("text", ["a", "02ab_-Z9", "x" * 120, "sha256", "sha256_x"])
def test_a_legal_name_stands_for_itself(text: str) -> None:
    assert name(text) == text


@pytest.mark.parametrize("text", ["x" * 121, "a:b", "ü", "a b", "a/b", ".", "sha256-x", "a\n"])
def test_any_other_text_becomes_its_hash(text: str) -> None:
    digest = hashlib.sha256(text.encode()).digest()
    assert name(text) == "sha256-" + base64.urlsafe_b64encode(digest).decode().rstrip("=")


def test_golden_hashed_name() -> None:
    assert name("a:b") == "sha256-Z4OjHqv2jMwGYPk1wIJigr3SJB86gKny0Q1Zrqnrtdg"


@given(TEXTS)
def test_every_text_becomes_a_legal_name(text: str) -> None:
    check_name("p", name(text), name(text))


@given(TEXTS, TEXTS)
def test_two_texts_never_share_a_name(one: str, other: str) -> None:
    assert (name(one) == name(other)) == (one == other)


def test_a_text_that_looks_like_a_hash_does_not_collide_with_one() -> None:
    assert name(name("a:b")) != name("a:b")


def test_golden_name_of_an_operation() -> None:
    assert name("7", "refund") == "sha256-LkW_fOuuNtuRkj78zBz6X-PzqHDI7QYzSxanZ1z9_CM"
    check_name("p", "", name("7", "refund"))


@given(*[st.tuples(TEXTS, st.none() | TEXTS)] * 2)
def test_two_operations_never_share_a_name(
    one: tuple[str, str | None], other: tuple[str, str | None]
) -> None:
    assert (name(*one) == name(*other)) == (one == other)
    same = ReplayKey("", *one).digest() == ReplayKey("", *other).digest()
    assert same == (one == other)


@pytest.mark.parametrize("operation", ["ab", "b", "é", "\xff"])
def test_an_operation_and_an_id_are_parted(operation: str) -> None:
    joined = operation + "c"
    names = {name("c", operation), name("bc", operation[:-1] or "z"), name(joined), name("c")}
    assert len(names) == 4
    assert ReplayKey("s", "c", operation) != ReplayKey("s", "c")


def test_scopes_are_not_remembered_for_ever() -> None:
    for number in range(2000):
        assert scope_name(str(number)) == name(str(number))
    assert 0 < _remembered_name.cache_info().currsize < 2000


def test_a_long_scope_is_not_remembered() -> None:
    _remembered_name.cache_clear()
    assert scope_name("s" * 257) == name("s" * 257)
    assert _remembered_name.cache_info().currsize == 0
    assert scope_name("s" * 200) == name("s" * 200)
    assert _remembered_name.cache_info().currsize == 1


def test_the_empty_scope_is_the_empty_namespace() -> None:
    assert name("") == ""
    assert ReplayKey("", "id").scope == ""


@pytest.mark.parametrize(
    ("scope", "id_", "says"),
    [
        ("s", "", "id is empty"),
        (1, "i", "scope is int"),
        ("s", b"i", "id is bytes"),
        ("s", None, "id is NoneType"),
        ("\ud800", "i", "scope has a lone surrogate"),
        ("s", "x\udfff", "id has a lone surrogate"),
    ],
)
def test_a_bad_key_is_refused_with_its_part(scope: object, id_: object, says: str) -> None:
    with pytest.raises(InvalidParamsError, match=says):
        ReplayKey(scope, id_)  # type: ignore[arg-type]  # the point of the test


@pytest.mark.parametrize(
    ("operation", "says"),
    [
        ("", "operation is empty"),
        (b"o", "operation is bytes"),
        (1, "operation is int"),
        ("\ud800", "operation has a lone surrogate"),
    ],
)
def test_a_bad_operation_is_refused(operation: object, says: str) -> None:
    with pytest.raises(InvalidParamsError, match=says):
        ReplayKey("s", "i", operation)  # type: ignore[arg-type]  # the point of the test


def test_what_a_record_holds_as_the_id() -> None:
    assert stored_id("i", None) == "i"
    assert stored_id("i", "o") == ["o", "i"]


def test_a_key_shows_only_its_digest() -> None:
    key = ReplayKey("alice-node", "session-7")
    assert "alice" not in repr(key)
    assert "session" not in repr(key)
    assert key.digest() in repr(key)
    assert key.digest() == "3a94b36aa56d6545", "who searches old logs for it has to find it"
    assert key.digest() != ReplayKey("alice-nodes", "ession-7").digest()
