"""One form of all JSON texts that say the same, and none of what says two things."""

from __future__ import annotations

import json
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvreplay._http.canonical import canonical

SAME = [
    ('{"a": 1, "b": 2}', '{"b":2,"a":1}'),
    ('{"a": {"c": 1, "b": [2]}}', ' {\n"a" : {"b":[2 ],"c":1}}\t'),
    ("1.0", "1"),
    ("[1.50, 100, -0.25]", "[1.5, 1e2, -25E-2]"),
    ("10e-1", "1.000"),
    ("0.0", "-0"),
    ("0e5", "0"),
    ("1e400", "1" + "0" * 400),
    ('"\\u00e9\\/"', '"é/"'),
    ('"\\ud83d\\ude00"', '"😀"'),
    ('{"\\u0061": null}', '{"a":null}'),
]
OTHER = [
    ('{"a": null}', "{}"),
    ('{"a": null}', '{"a": false}'),
    ("[1, 2]", "[2, 1]"),
    ("1", "true"),
    ("1", '"1"'),
    ("1e0", '"1e0"'),
    ("1", "-1"),
    ("[]", "{}"),
    ("[]", "[[]]"),
    ('[["a"], "b"]', '[["a", "b"]]'),
    ("9007199254740993", "9007199254740992"),
    ("0.1", "0.1000000000000000055511151231257827"),
    ("1e400", "1e401"),
    ('"é"', '"e\\u0301"'),
    ('"a"', '"A"'),
    ('{"a,b": 1}', '{"a": 1, "b": 1}'),
]
NO_FORM = [
    "",
    " ",
    "amount=5",
    '{"a": 1,}',
    '{"a": 1} {"a": 1}',
    "{'a': 1}",
    "[NaN]",
    "[Infinity]",
    "[-Infinity]",
    "01",
    "1.",
    '"a\nb"',
    '{"amount": 5, "amount": 6}',
    '{"a": {"b": 1, "\\u0062": 1}}',
    '\ufeff{"a": 1}',
    "1e" + "9" * 5000,
    "[" * 65 + "]" * 65,
    "[" * 100_000 + "]" * 100_000,
    '{"a":' * 100_000 + "1" + "}" * 100_000,
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_what_says_the_same_has_one_form(one: str, other: str) -> None:
    form = canonical(one.encode())
    assert form is not None
    assert form == canonical(other.encode())


@pytest.mark.parametrize(("one", "other"), OTHER)
def test_what_says_something_else_has_another_form(one: str, other: str) -> None:
    forms = {canonical(one.encode()), canonical(other.encode())}
    assert None not in forms
    assert len(forms) == 2


@pytest.mark.parametrize("text", NO_FORM, ids=lambda text: repr(text[:20]))
def test_what_can_be_read_in_two_ways_has_no_form(text: str) -> None:
    assert canonical(text.encode()) is None


@pytest.mark.parametrize("body", [b"\xff", '{"a": 1}'.encode("utf-16"), b'"\xc3"'])
def test_what_is_not_utf_8_has_no_form(body: bytes) -> None:
    assert canonical(body) is None


def test_as_deep_as_may_be() -> None:
    assert canonical(b"[" * 64 + b"]" * 64) == b"[" * 64 + b"]" * 64


def test_a_lone_surrogate_is_a_text_too() -> None:
    assert canonical(b'"\\ud800"') == b'"\\ud800"'
    assert canonical(b'"\\ud800"') != canonical(b'"\\ud801"')


def test_many_digits_are_no_work() -> None:
    """Python's int() gives up at 4300 digits, and would take a second long before."""
    assert canonical(b"1" * 100_000) == b"1" * 100_000 + b"e0"


JSON = st.recursive(
    st.none() | st.booleans() | st.text(max_size=4) | st.integers() | st.sampled_from([0.5, 1e30]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3)
    ),
    max_leaves=8,
)


def backwards(value: Any) -> Any:
    """The same value, its members in the other order."""
    if isinstance(value, list):
        return [backwards(each) for each in value]
    if isinstance(value, dict):
        return {name: backwards(value[name]) for name in reversed(value)}
    return value


def sense(text: str) -> Any:
    """What a text says, by another way: something that Python compares as JSON should be."""

    def tagged(value: Any) -> Any:
        if isinstance(value, list):
            return ("array", [tagged(each) for each in value])
        if isinstance(value, dict):
            return ("object", {name: tagged(each) for name, each in value.items()})
        return (type(value).__name__, value)

    return tagged(json.loads(text, parse_int=Fraction, parse_float=lambda each: Fraction(each)))


@given(JSON)
def test_a_spelling_makes_no_difference(value: Any) -> None:
    form = canonical(json.dumps(value).encode())
    assert form is not None
    assert canonical(json.dumps(backwards(value), indent=3, ensure_ascii=False).encode()) == form
    assert canonical(form) == form, "the form is JSON, and its own form"
    assert sense(form.decode()) == sense(json.dumps(value))


@given(JSON, JSON)
def test_forms_are_equal_if_and_only_if_the_texts_say_the_same(one: Any, other: Any) -> None:
    texts = json.dumps(one), json.dumps(other)
    are_equal = canonical(texts[0].encode()) == canonical(texts[1].encode())
    assert are_equal == (sense(texts[0]) == sense(texts[1]))


@given(st.integers(-(10**25), 10**25), st.integers(-40, 40), st.integers(0, 5))
def test_each_way_to_write_a_number_has_one_form(digits: int, power: int, zeros: int) -> None:
    scientific = f"{digits * 10**zeros}E{power - zeros:+}"
    plain = f"{Decimal(digits).scaleb(power, None) if digits else Decimal(0):f}"
    assert Fraction(plain) == Fraction(scientific)
    assert canonical(plain.encode()) == canonical(scientific.encode())
