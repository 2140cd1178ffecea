"""For any type out of the supported ones, and any value of it: what is stored comes back."""

from __future__ import annotations

import dataclasses
import enum
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import attrs
import msgpack
from hypothesis import given, settings
from hypothesis import strategies as st

from kvreplay._typed.codecs import codec_of
from kvreplay._typed.sameness import difference


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


# In seconds: datetime.fromisoformat takes an offset of less than one for none.
OFFSETS = st.integers(-86_399, 86_399).map(lambda each: timezone(timedelta(seconds=each)))
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
# A type, values of it, and whether they can be in a set.
Kind = tuple[Any, st.SearchStrategy[Any], bool]
LEAVES: list[Kind] = [
    (int, st.integers(-(2**63), 2**64 - 1), True),
    (float, st.floats(allow_nan=False), True),
    (str, TEXTS, True),
    (bytes, st.binary(max_size=5), True),
    (bool, st.booleans(), True),
    (datetime, st.datetimes(timezones=st.none() | OFFSETS), True),
    (date, st.dates(), True),
    (time, st.times(), True),
    (timedelta, st.timedeltas(timedelta(days=-(10**8)), timedelta(days=10**8)), True),
    (Decimal, st.decimals(allow_nan=False), True),
    (UUID, st.uuids(), True),
    (Colour, st.sampled_from(Colour), True),
]


def lists(kind: Kind) -> Kind:
    return list[kind[0]], st.lists(kind[1], max_size=3), False


def tuples(kind: Kind) -> Kind:
    return tuple[kind[0], ...], st.lists(kind[1], max_size=3).map(tuple), kind[2]


def pairs(kind: Kind) -> Kind:
    return tuple[int, kind[0]], st.tuples(st.integers(0, 9), kind[1]), kind[2]


def maps(kind: Kind) -> Kind:
    return dict[str, kind[0]], st.dictionaries(TEXTS, kind[1], max_size=3), False


def options(kind: Kind) -> Kind:
    return kind[0] | None, st.none() | kind[1], kind[2]


def sets(kind: Kind) -> Kind:
    if not kind[2]:
        return lists(kind)
    return frozenset[kind[0]], st.frozensets(kind[1], max_size=3), True


def classes(kind: Kind, by: str) -> Kind:
    if by == "attrs":
        cls: Any = attrs.make_class("Class", {"field": attrs.field(type=kind[0])}, frozen=True)
    else:
        cls = dataclasses.make_dataclass("Class", [("field", kind[0])], frozen=True)
    return cls, kind[1].map(cls), kind[2]


KINDS = st.recursive(
    st.sampled_from(LEAVES),
    lambda inner: st.one_of(
        *(st.builds(make, inner) for make in (lists, tuples, pairs, maps, options, sets)),
        st.builds(classes, inner, st.sampled_from(["attrs", "dataclasses"])),
    ),
    max_leaves=4,
)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_what_is_stored_comes_back(data: st.DataObject) -> None:
    kinds = data.draw(st.lists(KINDS, min_size=1, max_size=3))
    by = data.draw(st.sampled_from(["attrs", "dataclasses"]))
    fields = {f"field{number}": kind[0] for number, kind in enumerate(kinds)}
    if by == "attrs":
        cls: Any = attrs.make_class("Answer", {n: attrs.field(type=k) for n, k in fields.items()})
    else:
        cls = dataclasses.make_dataclass("Answer", list(fields.items()))
    value = cls(*(data.draw(kind[1]) for kind in kinds))
    codec = codec_of(cls, "it returns")
    assert codec is not None
    stored = msgpack.packb(codec.encode(value))
    again = codec.decode(msgpack.unpackb(stored, strict_map_key=False))
    assert again == value
    assert difference(value, again) is None
