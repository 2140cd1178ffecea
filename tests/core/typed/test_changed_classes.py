"""A class that has changed since its answer was stored: what still fits comes back, the rest raises."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable
from datetime import date, timedelta
from decimal import Decimal
from ipaddress import IPv4Address
from typing import Any, Literal, NamedTuple, TypedDict

import attrs
import msgpack
import pydantic
import pytest

from kvreplay._typed.codecs import codec_of

Make = Callable[[dict[str, Any], dict[str, Any]], Any]


def of_attrs(fields: dict[str, Any], defaults: dict[str, Any]) -> Any:
    made = {
        name: attrs.field(type=kind, **({"default": defaults[name]} if name in defaults else {}))
        for name, kind in fields.items()
    }
    return attrs.make_class("Invoice", made)


def of_dataclasses(fields: dict[str, Any], defaults: dict[str, Any]) -> Any:
    made = [
        (name, kind, *([defaults[name]] if name in defaults else []))
        for name, kind in fields.items()
    ]
    return dataclasses.make_dataclass("Invoice", made)


def of_tuples(fields: dict[str, Any], defaults: dict[str, Any]) -> Any:
    made: Any = NamedTuple("Invoice", list(fields.items()))
    made.__new__.__defaults__ = tuple(defaults.values())
    made._field_defaults = defaults
    return made


def of_pydantic(fields: dict[str, Any], defaults: dict[str, Any]) -> Any:
    made: dict[str, Any] = {name: (kind, defaults.get(name, ...)) for name, kind in fields.items()}
    return pydantic.create_model("Invoice", **made)


def decoded(cls: Any, stored: bytes) -> Any:
    codec = codec_of(cls, "it returns")
    assert codec is not None
    return codec.decode(msgpack.unpackb(stored, strict_map_key=False))


class Colour(enum.Enum):
    RED = "red"


class Number(enum.IntEnum):
    ONE = 1


class Rights(enum.Flag):
    READ = 1
    WRITE = 2


@attrs.define
class Item:
    x: int


MAKERS = [of_attrs, of_dataclasses, of_tuples, of_pydantic]
BEFORE = {"amount": int, "bolt11": str}


@pytest.mark.parametrize("make", MAKERS)
def test_what_has_changed(make: Make) -> None:
    before = make(BEFORE, {})
    codec = codec_of(before, "it returns")
    assert codec is not None
    stored = msgpack.packb(codec.encode(before(amount=1, bolt11="ln")))

    assert decoded(before, stored) == before(amount=1, bolt11="ln")
    added = make({**BEFORE, "fee": int}, {"fee": 7})
    assert decoded(added, stored) == added(amount=1, bolt11="ln", fee=7)
    for changed in (
        make({**BEFORE, "fee": int}, {}),
        make({"amount": int}, {}),
        make({"amount": int, "renamed": str}, {}),
        make({"amount": int, "renamed": str}, {"renamed": ""}),
        make({**BEFORE, "amount": bytes if make is not of_pydantic else list[int]}, {}),
        make({**BEFORE, "bolt11": int}, {}),
        make({**BEFORE, "bolt11": list[str]}, {}),
    ):
        with pytest.raises(Exception):  # noqa: B017, PT011  # whatever the library raises
            decoded(changed, stored)


def test_a_number_in_a_text_is_no_number() -> None:
    stored = msgpack.packb({"amount": "5", "bolt11": "ln"})
    for make in (of_attrs, of_dataclasses, of_tuples):
        with pytest.raises(
            TypeError, match=r"^a str was stored, which the type does not have there$"
        ):
            decoded(make(BEFORE, {}), stored)


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        *((int, 1, 1.0), (int, 1, None), (float, 1, "1"), (bool, True, 1), (str, "a", b"a")),
        *((bytes, b"a", "a"), (list[str], ["a"], "ab"), (list[str], ["a"], {"a": 1})),
        *((tuple[int, ...], [1], "12"), (tuple[int, str], [1, "a"], [1]), (set[int], [1], {1: 2})),
        *((tuple[int, str], [1, "a"], [1, "a", 2]), (dict[str, int], {"a": 1}, ["a"])),
        *((dict[str, int], {"a": 1}, {1: 1}), (int | None, None, "1"), (int | str, 1, 1.5)),
        *((int | list[int], [1], ["a"]), (list[date], ["2026-01-02"], {"2026-01-02": 1})),
        (tuple[date, date], ["2026-01-02", "2026-01-02"], {"2026-01-02": 1, "2026-01-03": 1}),
        *(
            (Decimal, "5", 5),
            (timedelta, 5, 5.5),
            (IPv4Address, "10.0.0.1", 5),
            (date, "2026-01-02", 5),
        ),
        *((Colour, "red", "blue"), (Number, 1, True), (Rights, 3, True), (Literal[1], 1, True)),
        *(
            (Item | str, {"x": 1}, 5),
            (Item | None, None, "x"),
            (dict[date, int], {"2026-01-02": 1}, {1: 1}),
        ),
    ],
)
def test_nothing_is_coerced(kind: Any, good: Any, bad: Any) -> None:
    cls = of_attrs({"field": kind}, {})
    decoded(cls, msgpack.packb({"field": good}))
    with pytest.raises((TypeError, ValueError, AttributeError)):
        decoded(cls, msgpack.packb({"field": bad}))


class Kept(TypedDict):
    a: int
    b: set[int]


def test_a_typed_dict_lacks_a_key() -> None:
    assert decoded(Kept, msgpack.packb({"a": 1, "b": [2]})) == {"a": 1, "b": {2}}
    for stored in ({"a": 1}, [], {"a": "1", "b": []}):
        with pytest.raises(TypeError):
            decoded(Kept, msgpack.packb(stored))


class Inner(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    a: int


class Outer(pydantic.BaseModel):
    inner: Inner


def test_a_model_that_allows_more_keeps_more() -> None:
    codec = codec_of(Outer, "it returns")
    assert codec is not None
    value = Outer(inner=Inner(a=1, more=2))  # type: ignore[call-arg]
    assert codec.decode(codec.encode(value)) == value
