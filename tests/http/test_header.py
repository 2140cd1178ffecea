"""The header's value: ours reads what a parser of Structured Fields reads as an Item that is a String."""

from __future__ import annotations

import re
import string
import sys
from base64 import b64encode
from collections.abc import Callable, Iterator
from typing import Any

import http_sfv
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kvreplay._http.header import (
    LONGEST,
    MalformedKeyError,
    _bare,
    _item,
    _plain,
    _printable,
    quoted_key,
    raw_key,
)
from support.http_apps import KEY, Web

LONGEST_FIELD = 4096


def ours(field: str, *, or_bare: bool = False) -> str | None:
    try:
        return quoted_key(field, or_bare=or_bare)
    except MalformedKeyError as error:
        assert "it " in str(error)
        return None


def theirs(field: str) -> str | None:
    """The key as another parser reads it, with the two rules of our own: its length, and not empty."""
    item = http_sfv.Item()
    if _ends_with_a_point(field):
        return None  # RFC 9651, 4.2.4, step 9: a Decimal has a digit after its point
    try:
        item.parse(field.encode("latin-1"))
    except Exception:  # it raises whatever it meets
        return None
    if type(item.value) is not str:
        return None
    return item.value if 1 <= len(item.value) <= LONGEST else None


_ends_with_a_point: Any = re.compile(
    r".*; *[a-z*][a-z0-9_\-.*]*=-?[0-9]+\. *(?:;.*)?", re.DOTALL
).fullmatch
"""Where the other parser is wrong: it reads ``1.`` as a Decimal."""


# Texts that are nearly right.
characters = st.characters(min_codepoint=0, max_codepoint=255)
nearly = st.sampled_from('" \\;=,:?@%*()!az019.-_\tAZ/+#$&\x7f\xe4\0')
texts = st.text(nearly, max_size=20) | st.text(characters, max_size=20)
inside = st.text(st.sampled_from(string.printable[:95]), max_size=30)
quoted = inside.map(lambda text: '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"')
keys = st.from_regex(r"[a-z*][a-z0-9_\-.*]{0,5}", fullmatch=True)
values = st.one_of(
    quoted,
    st.integers(-(10**16), 10**16).map(str),
    st.from_regex(r"-?[0-9]{0,14}\.[0-9]{0,4}", fullmatch=True),
    st.from_regex(r"[A-Za-z*][!#$%&'*+\-.^_`|~0-9A-Za-z:/]{0,5}", fullmatch=True),
    st.binary(max_size=9).map(lambda data: b64encode(data).decode()).map(":{}:".format),
    st.sampled_from(
        ["?0", "?1", "?2", "@1659578233", "@-1", "@1.5", '%"f%c3%bc"', '%"%C3"', "(a b)"]
    ),
)
parameters = st.lists(
    st.tuples(st.sampled_from(["", " ", "  "]), keys, st.none() | values), max_size=3
).map(lambda each: "".join(f";{s}{k}" + ("" if v is None else f"={v}") for s, k, v in each))
fields = st.tuples(
    st.sampled_from(["", " "]), quoted | values, parameters, st.sampled_from(["", " "])
)


@settings(deadline=None)
@given(texts)
@example("")
@example('"a"\t')
@example('\t"a"')
@example('"\\a"')
@example('"a";')
@example('"a" ;b')
@example('"a";b=')
@example('"a";B')
@example('"a","b"')
@example('"\x7f"')
@example("\xa0")
def test_any_text_is_read_as_another_parser_reads_it(field: str) -> None:
    assert ours(field) == theirs(field)


@settings(deadline=None)
@given(fields.map("".join))
@example('"a";b=999999999999999')
@example('"a";b=9999999999999999')
@example('"a";b=999999999999.999')
@example('"a";b=9999999999999.9')
@example('"a";b=1.')
@example('"a";b=-')
@example('"a";b=:aGVsbG8=:')
@example('"a";b=::')
@example('"a";b=?1;c;d=tok/en:x')
def test_items_and_their_parameters_are_read_as_another_parser_reads_them(field: str) -> None:
    assert ours(field) == theirs(field)


DIFFERENT: dict[str, tuple[str, str | None, str | None]] = {
    # ours is the stricter one
    "a field that is very long": ('"a"' + ";b" * LONGEST_FIELD, None, "a"),
}


@pytest.mark.parametrize(("field", "mine", "other"), DIFFERENT.values(), ids=DIFFERENT)
def test_where_it_differs_on_purpose(field: str, mine: str | None, other: str | None) -> None:
    assert (ours(field), theirs(field)) == (mine, other)


@settings(deadline=None)
@given(st.text(st.sampled_from(string.printable[:95]), min_size=1, max_size=LONGEST))
def test_what_another_library_writes_is_read(key: str) -> None:
    written = str(http_sfv.Item(key))
    assert ours(written) == key
    item = http_sfv.Item(key)
    item.params["a"] = 1
    item.params["b"] = http_sfv.Token("t")
    assert ours(str(item)) == key


@pytest.mark.parametrize(
    ("field", "key"),
    [
        ('"8e03978e-40d5-43e8-bc93-6894a57f9324"', "8e03978e-40d5-43e8-bc93-6894a57f9324"),
        ('"clkyoesmbgybucifusbbtdsbohtyuuwz"', "clkyoesmbgybucifusbbtdsbohtyuuwz"),
        ('"a b"', "a b"),
        (r'"a\"b"', 'a"b'),
        (r'"a\\b"', "a\\b"),
        (r'"\\\""', '\\"'),
        ('"a";v=1', "a"),
        ('  "a"  ', "a"),
        (f'"{"k" * LONGEST}"', "k" * LONGEST),
        ('"' + '\\"' * LONGEST + '"', '"' * LONGEST),
    ],
)
def test_a_string_is_a_key(field: str, key: str) -> None:
    assert ours(field) == ours(field, or_bare=True) == key


@pytest.mark.parametrize(
    ("field", "why"),
    [
        ('""', "it is empty"),
        (f'"{"k" * (LONGEST + 1)}"', "it is longer than 255 characters"),
        ('"' + '\\"' * (LONGEST + 1) + '"', "it is longer than 255 characters"),
        ("", "it is not one Structured Fields String"),
        ("abc", "it is not one Structured Fields String"),
        ("42", "it is not one Structured Fields String"),
        ('"a", "b"', "it is not one Structured Fields String"),
        ('"a', "it is not one Structured Fields String"),
        (r'"\a"', "it is not one Structured Fields String"),
        ('"\xe4"', "it is not one Structured Fields String"),
        ('"a\n"', "it is not one Structured Fields String"),
        ('"a"\n', "it is not one Structured Fields String"),
        ('"a\0"', "it is not one Structured Fields String"),
        ('("a" "b")', "it is not one Structured Fields String"),
    ],
)
def test_anything_else_is_none_and_is_told_why(field: str, why: str) -> None:
    with pytest.raises(MalformedKeyError) as error:
        quoted_key(field, or_bare=False)
    assert str(error.value).startswith(why)
    assert "kkk" not in str(error.value)  # the header is not shown


# Keys without quotes.


@pytest.mark.parametrize(
    "key", ["abc", KEY, "a.b/c=", "42", "k" * LONGEST, "!#$%&'*+-.^_`|~", "<>"]
)
def test_a_bare_key_is_a_key_by_option(key: str) -> None:
    assert ours(key) is None
    assert ours(key, or_bare=True) == key
    assert ours(f" {key} ", or_bare=True) == key


@pytest.mark.parametrize(
    "field", ["", " ", "a b", "a,b", "a;b", "a, b", 'a"b', '"a', "\xe4", "a\tb", "a\n", "k" * 256]
)
def test_a_bare_key_that_is_none(field: str) -> None:
    assert ours(field, or_bare=True) is None
    assert ours("a", or_bare=True) == "a"


@settings(deadline=None)
@given(texts)
def test_a_field_with_a_key_in_quotes_is_read_the_same_with_the_option(field: str) -> None:
    strict, lenient = ours(field), ours(field, or_bare=True)
    assert lenient == strict or (strict is None and lenient == field.strip(" "))
    if '"' in field:
        assert lenient == strict


def test_a_bare_key_and_the_same_in_quotes_are_one(plain: Web) -> None:
    service = plain.serve(bare_keys=True)
    assert not service.post(field="abc").is_replay
    assert service.post(field='"abc"').is_replay
    assert plain.serve().post(field="abc").slug == "malformed-key"


# Keys that are the whole value, for other profiles.


@pytest.mark.parametrize(
    ("field", "key"), [("abc", "abc"), (" a b ", "a b"), ('"a"', '"a"'), ("k" * 255, "k" * 255)]
)
def test_a_raw_key(field: str, key: str) -> None:
    assert raw_key(field) == key


@pytest.mark.parametrize("field", ["", " ", "\xe4", "a\tb", "a\n", "k" * 256, "\x7f"])
def test_a_raw_key_that_is_none(field: str) -> None:
    with pytest.raises(MalformedKeyError):
        raw_key(field)


# Several lines.


def test_two_lines_are_no_key_even_if_they_say_the_same(plain: Web) -> None:
    service = plain.serve(bare_keys=True)
    for value in ('"a"', "a"):
        twice = [("idempotency-key", value)] * 2
        assert service.post(key=None, headers=twice).slug == "malformed-key"
        assert service.post(key=None, headers=twice[:1]).status == 201
    assert len(service.runs) == 1


# Time: a regular expression that tries again and again would not end.

HOSTILE: dict[str, Callable[[int], str]] = {
    "escapes": lambda n: '"' + "\\" * n,
    "an open string": lambda n: '"' + "a" * n,
    "parameters": lambda n: '"a"' + ";a" * (n // 2) + "!",
    "parameters with values": lambda n: '"a"' + ";a=1.1" * (n // 6) + "!",
    "spaces": lambda n: " " * n + "!\t",
    "spaces after": lambda n: '"a"' + " " * n + "!",
    "spaces between": lambda n: '"a"' + (";" + " " * 50) * (n // 51) + "!",
    "a long token": lambda n: '"a";a=' + "a" * n + '"',
    "bytes": lambda n: '"a";a=:' + "a" * n,
    "a display string": lambda n: '"a";a=%"' + "%61" * (n // 3),
    "digits": lambda n: '"a";a=' + "1" * n,
    "stars": lambda n: '"a"' + ";*" * (n // 2) + "=",
    "bare": lambda n: "a" * n + '"',
    "bare commas": lambda n: "a," * (n // 2),
}


class Steps:
    """A matcher that goes back as Python's does, and counts its steps. It reads the parsed pattern."""

    def __init__(self, pattern: str) -> None:
        self._operations = list(re._parser.parse(pattern))  # type: ignore[attr-defined]
        self._is_match, self.taken = re.compile(pattern).fullmatch, 0

    def of(self, text: str) -> int:
        """How many steps it takes to match the whole text, or to find that it does not match."""
        self._text, self.taken = text, 0
        matches = self._match(self._operations, 0, 0, lambda at: at == len(text))
        assert matches is (self._is_match(text) is not None)
        return self.taken

    def _match(self, operations: Any, number: int, at: int, then: Callable[[int], bool]) -> bool:
        self.taken += 1
        if number == len(operations):
            return then(at)
        operation, what = operations[number]

        def go_on(at: int) -> bool:
            return self._match(operations, number + 1, at, then)

        match str(operation):
            case "LITERAL":
                return self._text[at : at + 1] == chr(what) and go_on(at + 1)
            case "IN":
                return at < len(self._text) and _is_in(ord(self._text[at]), what) and go_on(at + 1)
            case "SUBPATTERN":
                return self._match(list(what[3]), 0, at, go_on)
            case "BRANCH":
                return any(self._match(list(each), 0, at, go_on) for each in what[1])
            case "MAX_REPEAT":
                least, most, repeated = what
                return self._repeat(list(repeated), 0, least, int(most), at, go_on)
        raise NotImplementedError(operation)

    def _repeat(
        self, repeated: Any, done: int, least: int, most: int, at: int, then: Callable[[int], bool]
    ) -> bool:
        def again(new: int) -> bool:
            return new > at and self._repeat(repeated, done + 1, least, most, new, then)

        return (done < most and self._match(repeated, 0, at, again)) or (done >= least and then(at))


def _is_in(character: int, members: Any) -> bool:
    for kind, member in members:
        least, most = member if str(kind) == "RANGE" else (member, member)
        assert str(kind) in ("RANGE", "LITERAL")
        if least <= character <= most:
            return True
    return False


@pytest.fixture
def deep() -> Iterator[None]:
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(50_000)
    yield
    sys.setrecursionlimit(before)


@pytest.mark.usefixtures("deep")
@pytest.mark.parametrize(
    "pattern", [_item, _plain, _bare, _printable], ids=["item", "plain", "bare", "raw"]
)
@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_field_takes_steps_by_its_length(
    hostile: Callable[[int], str], pattern: Any
) -> None:
    steps = Steps(pattern.__self__.pattern)
    for length in (100, 200, 400):
        field = hostile(length)
        assert steps.of(field) <= 10 * len(field)


@pytest.mark.usefixtures("deep")
def test_the_steps_of_a_bad_pattern_are_seen() -> None:
    steps = Steps(r"(?:a+)+b")
    assert steps.of("a" * 12) > 10 * steps.of("a" * 6)
    assert steps.of("aab") < 30


@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_field_of_any_length_has_an_answer(hostile: Callable[[int], str]) -> None:
    for length in (LONGEST_FIELD - 10, 10 * LONGEST_FIELD, 1_000_000):
        assert ours(hostile(length)) is None
