"""Canonical params: equal params have equal bytes, and different ones never do."""

from __future__ import annotations

import math
from collections import OrderedDict, namedtuple
from decimal import Decimal
from enum import IntEnum, StrEnum
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvreplay import InvalidParamsError
from kvreplay._protocol.params import MAX_DEPTH, _form_of, canonical, comparable

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
    | st.binary(max_size=20)
)
PARAMS = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(SCALARS, inner, max_size=6),
    max_leaves=20,
)


class Color(IntEnum):
    RED = 1


class Unit(StrEnum):
    MSAT = "msat"


Point = namedtuple("Point", "x y")


def shuffled(value: Any) -> Any:
    """The same params with every map written in another order, and lists as tuples."""
    if isinstance(value, dict):
        return {key: shuffled(value[key]) for key in reversed(value)}
    if isinstance(value, list):
        return tuple(shuffled(item) for item in value)
    return value


def exact(value: Any) -> Any:
    """A value that is equal for equal params only: types and the sign of zero count."""
    if isinstance(value, dict):
        return ("map", frozenset((exact(key), exact(item)) for key, item in value.items()))
    if isinstance(value, list | tuple):
        return ("list", tuple(exact(item) for item in value))
    sign = math.copysign(1, value) if isinstance(value, float) else 0
    return (type(value).__name__, value, sign)


@given(PARAMS)
def test_order_does_not_matter(params: Any) -> None:
    assert canonical(shuffled(params)) == canonical(params)


@given(PARAMS, PARAMS)
def test_bytes_are_equal_exactly_if_params_are(one: Any, other: Any) -> None:
    assert (canonical(one) == canonical(other)) == (exact(one) == exact(other))


@given(PARAMS)
def test_the_bytes_are_msgpack_of_the_params(params: Any) -> None:
    back = msgpack.unpackb(canonical(params), strict_map_key=False)
    assert exact(back) == exact(params)


TEXTS = st.text(st.characters(max_codepoint=127), max_size=3)


@given(st.dictionaries(TEXTS, SCALARS, min_size=1, max_size=32))
def test_the_quick_bytes_of_a_flat_map_are_the_canonical_ones(params: dict[str, Any]) -> None:
    assert comparable(dict(reversed(params.items()))) == canonical(params)


@pytest.mark.parametrize(
    ("most", "more"),
    [
        ({str(n): n for n in range(32)}, {str(n): n for n in range(33)}),
        ({"k" * 1024: 1}, {"k" * 1025: 1}),
    ],
    ids=["keys", "characters"],
)
def test_a_map_with_more_has_no_quick_bytes(most: dict[str, int], more: dict[str, int]) -> None:
    assert comparable(most) == canonical(most)
    assert comparable(more) is None
    assert msgpack.unpackb(canonical(more)) == more


@given(PARAMS | st.dictionaries(TEXTS, PARAMS))
def test_quick_bytes_that_are_canonical_ones_are_the_own(params: Any) -> None:
    """Nested maps may come in any order, and then the bytes equal those of no params at all."""
    quick = comparable(shuffled(params))
    if quick is not None:
        again = canonical(msgpack.unpackb(quick, strict_map_key=False))
        assert quick == canonical(params) or quick != again


@pytest.mark.parametrize(
    "params",
    [
        {"a": Color.RED},
        {"a": Point(1, 2)},
        {"a": OrderedDict()},
        {"a": 2**64},
        {"a": "\ud800"},
        {"a": object()},
        {"é": 1},
        {1: 1},
        OrderedDict(a=1),
        [("a", 1)],
        None,
        1,
    ],
)
def test_what_needs_a_check_or_an_order_has_no_quick_bytes(params: Any) -> None:
    assert comparable(params) is None


class Name(str):
    """Equal to a text, and none."""


@pytest.mark.parametrize(
    "params",
    [
        {Name("b"): 1, "a": 2},
        {"b": Name("x"), "a": 2},
        {"a": [1.5]},
        {"a": {"z": 1, "b": 2}},
        {"a": float("nan")},
    ],
)
def test_quick_bytes_do_not_spare_the_check(params: Any) -> None:
    canonical({"b": 1, "a": 2})  # so that these names are known
    packed = comparable(params)
    try:
        expected = canonical(params)
    except InvalidParamsError:
        with pytest.raises(InvalidParamsError):
            canonical(params, packed)
    else:
        assert canonical(params, packed) == expected


@given(st.dictionaries(st.text("ab\u00e9", max_size=3), SCALARS))
def test_quick_bytes_are_canonical_where_all_is_plain(params: dict[str, Any]) -> None:
    assert canonical(params, comparable(params)) == canonical(params)


def test_the_names_of_params_are_not_remembered_for_ever() -> None:
    for number in range(1000):
        comparable({str(number): 1})
    assert 0 < _form_of.cache_info().currsize < 1000


def test_texts_beyond_ascii_are_sorted_by_their_bytes() -> None:
    params = {"é": 1, "ab": 2, "z": 3}
    assert list(msgpack.unpackb(canonical(params))) == ["z", "ab", "é"]
    assert list(msgpack.unpackb(canonical({"in": params}))["in"]) == ["z", "ab", "é"]


@given(st.dictionaries(SCALARS, st.none(), max_size=12))
def test_maps_are_sorted_by_their_encoded_keys(mapping: dict[Any, None]) -> None:
    keys = [msgpack.packb(k) for k in msgpack.unpackb(canonical(mapping), strict_map_key=False)]
    assert keys == sorted(keys)


ALL_DIFFERENT = [1, 1.0, True, "1", b"1", 0, 0.0, -0.0, False, None, "", b"", [], {}, [1], {"1": 1}]


def test_values_that_python_confuses_are_all_different() -> None:
    assert len({canonical(value) for value in ALL_DIFFERENT}) == len(ALL_DIFFERENT)


def test_text_is_compared_as_given() -> None:
    assert canonical("é") != canonical("e\u0301")
    assert canonical("AB") != canonical("ab")


def test_golden_bytes() -> None:
    params = {"b": [1, -1.5, b"\x00"], "aa": {"z": None, "y": True}, "a": "é"}
    assert canonical(params).hex() == (
        "83a161a2c3a9a1629301cbbff8000000000000c40100a2616182a179c3a17ac0"
    )


@pytest.mark.parametrize("edge", [2**64 - 1, -(2**63)])
def test_integers_of_64_bits_are_the_edge(edge: int) -> None:
    assert msgpack.unpackb(canonical(edge)) == edge
    beyond = edge + (1 if edge > 0 else -1)
    with pytest.raises(InvalidParamsError, match="64 bits"):
        canonical({"amount": beyond})


def nested(depth: int) -> object:
    value: object = 1
    for level in range(depth):
        value = [value] if level % 2 else {"k": value}
    return value


def test_depth_has_a_limit() -> None:
    assert canonical(nested(MAX_DEPTH))
    with pytest.raises(InvalidParamsError, match="deeper than 64"):
        canonical(nested(MAX_DEPTH + 1))


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (float("nan"), "NaN"),
        ({"a": [float("nan")]}, "NaN"),
        ({float("nan"): 1}, "NaN"),
        (Decimal(10), "Decimal"),
        ({1, 2}, "set"),
        (object(), "object"),
        (bytearray(b"x"), "bytearray"),
        (Color.RED, "Color"),
        (OrderedDict(a=1), "OrderedDict"),
        (Point(1, 2), "Point"),
        ({(1, 2): 3}, "tuple as key"),
        ({Color.RED: 3}, "Color as key"),
        ({Unit.MSAT: 3}, "Unit as key"),
        ({"a": Unit.MSAT}, "Unit"),
        ("\ud800", "surrogate"),
        ({"\ud800": 1}, "surrogate"),
        ({1: "\ud800"}, "surrogate"),
        (1j, "complex"),
    ],
)
def test_what_cannot_be_compared_is_refused(bad: object, says: str) -> None:
    with pytest.raises(InvalidParamsError, match=says):
        canonical(bad)


def test_an_error_never_shows_the_value() -> None:
    with pytest.raises(InvalidParamsError) as error:
        canonical({"secret-name": Decimal("123456")})
    assert "123456" not in str(error.value)
    assert "secret" not in str(error.value)
