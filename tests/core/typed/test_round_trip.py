"""A response of each supported type comes back equal, and type for type."""

# ruff: noqa: UP007, UP045  # both spellings of a union

from __future__ import annotations

import enum
import ipaddress
import pathlib
import sys
from collections.abc import Awaitable, Coroutine, Mapping, MutableMapping, Sequence, Set
from dataclasses import InitVar, dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import (
    Annotated,
    Any,
    Final,
    Generic,
    Literal,
    NamedTuple,
    NewType,
    NotRequired,
    Optional,
    Required,
    TypedDict,
    TypeVar,
    Union,
)
from uuid import UUID

import attrs
import msgpack
import pydantic
import pydantic.dataclasses
import pytest
import typing_extensions

from kvreplay._protocol.steps import NotStored
from kvreplay._typed.codecs import codec_of
from kvreplay._typed.sameness import difference

T = TypeVar("T")
Sats = NewType("Sats", int)
Day = NewType("Day", date)
NEPAL = timezone(timedelta(hours=5, minutes=45))


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Text(enum.StrEnum):
    ONE = "one"


class Number(enum.IntEnum):
    ONE = 1


class Mixed(enum.Enum):
    ONE = 1
    TRUE = "1"


class ByName(enum.Enum):
    PAIR = (1, 2)
    LIST = frozenset({1})


class Rights(enum.Flag):
    READ = 1
    WRITE = 2


class Point(NamedTuple):
    x: int
    when: date = date(2026, 1, 1)


class Plain(TypedDict):
    a: int
    b: NotRequired[list[str]]


class Dated(TypedDict, total=False):
    when: datetime
    note: str


class Partly(TypedDict):
    when: date
    note: NotRequired[str]


class Extended(typing_extensions.TypedDict):
    when: date


class PartlyRequired(TypedDict, total=False):
    when: Required[date]
    note: str


@attrs.frozen
class Item:
    owner: str
    price: Decimal


@attrs.frozen
class Paid:
    kind: Literal["paid"]
    at: datetime


@attrs.frozen
class Refused:
    kind: Literal["refused"]
    why: str


@dataclass
class Cash:
    coins: int


@dataclass
class Card:
    number: str


@dataclass
class Node:
    value: int
    children: list[Node] = field(default_factory=list)
    up: Node | str | None = None


@attrs.define
class Page(Generic[T]):
    items: list[T]
    first: T | None = None


@attrs.define(eq=False)
class NoEquality:
    x: int


@attrs.define
class Private:
    _secret: int
    shown: int = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.shown = self._secret + 1


class Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True)
    a: int = pydantic.Field(alias="A")
    when: datetime
    numbers: set[int] = {1, 2}
    raw: bytes = b"\xff\x00"
    url: pydantic.AnyUrl = pydantic.AnyUrl("https://kvreplay.example/x")
    pair: tuple[int, str] = (1, "a")
    took: timedelta = timedelta(days=1, microseconds=3)
    by_id: dict[UUID, Decimal] = {UUID(int=1): Decimal("1.10")}


class Open(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    a: int


class Root(pydantic.RootModel[list[date]]):
    pass


class GenericModel(pydantic.BaseModel, Generic[T]):
    item: T


class One(pydantic.BaseModel):
    a: int


class Two(pydantic.BaseModel):
    a: int
    b: int


@pydantic.dataclasses.dataclass
class Checked:
    a: int
    when: date


class Aliased(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(serialize_by_alias=True, extra="forbid")
    a: int = pydantic.Field(validation_alias="x", serialization_alias="y")


class Parent(pydantic.BaseModel):
    child: Parent | None = None
    rate: float = 1  # which pydantic leaves an int

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def twice(self) -> float:
        return self.rate * 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Slots:
    when: date
    given: InitVar[int] = 3


@attrs.define
class Bare:
    field = attrs.field()
    nothing: tuple[None, int] = (None, 1)


@attrs.frozen
class Invoice:
    """Much at once, and a model inside."""

    amount: int
    rate: float
    items: tuple[Item, ...]
    end: Paid | Refused | None
    model: Model
    models: list[Model]
    anything: Any
    colour: Colour = Colour.RED
    path: pathlib.Path | None = None
    note: Annotated[str, "a note"] = ""
    constant: Final[int] = 7


ITEM = Item("owner", Decimal("1.10"))
MODEL = Model(A=1, when=datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=NEPAL))
INVOICE = Invoice(
    *(1, 2, (ITEM, ITEM), Refused("refused", "why"), MODEL, [MODEL], {"a": [1, None, b"x"]}),
    path=pathlib.Path("/a/b"),
)

CASES: list[tuple[Any, Any]] = [
    (datetime, datetime(2026, 1, 2, 3, 4, 5, 678)),
    (datetime, datetime(2026, 1, 2, tzinfo=UTC)),
    (datetime, datetime(2026, 1, 2, tzinfo=NEPAL)),
    (date, date(2026, 1, 2)),
    (time, time(1, 2, 3, 4)),
    (time, time(1, 2, tzinfo=NEPAL)),
    (timedelta, timedelta(days=-3, microseconds=1)),
    (timedelta, timedelta(days=100_000_000, microseconds=1)),  # a float would lose it
    (Decimal, Decimal("1.10")),
    (Decimal, Decimal("NaN")),
    (UUID, UUID(int=7)),
    (ipaddress.IPv4Address, ipaddress.ip_address("10.0.0.1")),
    (ipaddress.IPv4Interface, ipaddress.ip_interface("10.0.0.1/24")),
    (ipaddress.IPv4Network, ipaddress.ip_network("10.0.0.0/24")),
    (ipaddress.IPv6Address, ipaddress.ip_address("fe80::1%lo")),
    (ipaddress.IPv6Interface, ipaddress.ip_interface("fe80::1/64")),
    (ipaddress.IPv6Network, ipaddress.ip_network("fe80::/64")),
    (pathlib.Path, pathlib.Path("/a/b")),
    (pathlib.PurePosixPath, pathlib.PurePosixPath("a")),
    (pathlib.PureWindowsPath, pathlib.PureWindowsPath("C:/a")),
    (Colour, Colour.BLUE),
    (Text, Text.ONE),
    (Number, Number.ONE),
    (Mixed, Mixed.ONE),
    (Mixed, Mixed.TRUE),
    (ByName, ByName.LIST),
    (Rights, Rights.READ | Rights.WRITE),
    (Literal[Colour.RED, 1], Colour.RED),
    (Literal[Colour.RED, 1], 1),
    (tuple, (1, [2])),
    (tuple[int, ...], (1, 2)),
    (tuple[()], ()),
    (tuple[int, str, Item], (1, "a", ITEM)),
    (set, {1, "a"}),
    (set[int], {1, 2}),
    (frozenset[UUID], frozenset({UUID(int=1)})),
    (set[tuple[int, str]], {(1, "a")}),
    (Sequence[int], [1, 2]),
    (Sequence[Item], [ITEM]),
    (Set[int], {1}),
    (Mapping[str, date], {"a": date(2026, 1, 2)}),
    (MutableMapping[Colour, Day], {Colour.RED: date(2026, 1, 2)}),
    (dict[UUID, list[Item]], {UUID(int=1): [ITEM]}),
    (dict[int, date], {1: date(2026, 1, 2)}),
    (list[date | None], [None, date(2026, 1, 2)]),
    (Optional[date], None),
    (Union[Item, str], "text"),
    (Union[Item, str], ITEM),
    (Union[list[date], int, None], [date(2026, 1, 2)]),
    (Paid | Refused, Refused("refused", "why")),
    (Paid | Refused | int | None, 5),
    (Cash | Card, Card("number")),
    (Cash | Card | None, None),
    (Point, Point(1)),
    (list[Point], [Point(1, date(2026, 1, 3))]),
    (Dated, {"when": datetime(2026, 1, 2), "more": 1}),
    (Dated, {}),
    (Partly, {"when": date(2026, 1, 2)}),
    (Partly, {"when": date(2026, 1, 2), "note": ""}),
    (Extended, {"when": date(2026, 1, 2)}),
    (PartlyRequired, {"when": date(2026, 1, 2)}),
    (Node, Node(1, [Node(2, [], "text"), Node(3, [], Node(4))])),
    (Page[Item], Page([ITEM], ITEM)),
    (Page[Page[date]], Page([Page([date(2026, 1, 2)])])),
    (Page[Model], Page([MODEL])),
    (NoEquality, NoEquality(1)),
    (Private, Private(1)),
    (Day, date(2026, 1, 2)),
    (Annotated[date, ["unhashable"]], date(2026, 1, 2)),
    (Model, MODEL),
    (Model | None, None),
    (list[Model], [MODEL]),
    (dict[str, Model], {"a": MODEL}),
    (One | Two, Two(a=1, b=2)),
    (One | Two, One(a=1)),
    (One | Two | None, None),
    (list[One | Two], [Two(a=1, b=2), One(a=1)]),
    (Open, Open(a=1, more="kept")),
    (Root, Root([date(2026, 1, 2)])),
    (GenericModel[One], GenericModel[One](item=One(a=1))),
    (Aliased, Aliased(x=1)),
    (Parent, Parent(child=Parent(rate=0.5))),
    (list[Parent], [Parent(child=Parent())]),
    (Slots, Slots(when=date(2026, 1, 2))),
    (Bare, Bare({"a": [1]})),
    (Checked, Checked(1, date(2026, 1, 2))),
    (list[pydantic.AnyUrl], [pydantic.AnyUrl("https://kvreplay.example/x")]),
    (Invoice, INVOICE),
    (Invoice | NotStored[Invoice], INVOICE),
    (NotStored[Invoice], INVOICE),
    (Awaitable[Item], ITEM),
    (Coroutine[Any, Any, Item | NotStored[Item] | None], ITEM),
]


@pytest.mark.parametrize(("annotation", "value"), CASES, ids=lambda each: type(each).__name__)
def test_it_comes_back_equal_and_type_for_type(annotation: Any, value: Any) -> None:
    codec = codec_of(annotation, "request_invoice returns")
    assert codec is not None
    stored = msgpack.packb(codec.encode(value))
    again = codec.decode(msgpack.unpackb(stored, strict_map_key=False))
    assert difference(value, again) is None
    assert type(again) is type(value)
    if annotation is not NoEquality and value == value:
        assert again == value


@pytest.mark.parametrize(
    "annotation",
    [
        *(None, Any, object, T, str, int, float, bool, bytes, dict, list, Plain, Sats),
        *(list[int], dict[str, Any], list[dict[str, list[bytes | None]]], dict[int, float]),
        *(int | str | None, Optional[list[int]], Union[dict[str, int], int], Literal["a", 1]),
        *(Annotated[int, "x"], Annotated[int, []], list[Plain], Awaitable[dict[str, int]]),
        *(NotStored[int], int | NotStored[int], NotStored, Mapping[str, int]),
    ],
)
def test_what_msgpack_holds_needs_no_codec(annotation: Any) -> None:
    assert codec_of(annotation, "it returns") is None


@pytest.mark.parametrize("annotation", [tuple, set, tuple[int], Sequence[int], Dated, Colour, date])
def test_what_msgpack_gives_back_otherwise_needs_one(annotation: Any) -> None:
    assert codec_of(annotation, "it returns") is not None


@pytest.mark.skipif(sys.version_info < (3, 12), reason="type X = … is new in Python 3.12")
def test_type_aliases() -> None:
    names: dict[str, Any] = {"Item": Item}
    exec("type Json = dict[str, Json] | list[Json] | str | int\ntype Items = list[Item]", names)
    assert codec_of(names["Json"], "it returns") is None
    codec = codec_of(names["Items"], "it returns")
    assert codec is not None
    assert codec.decode(codec.encode([ITEM])) == [ITEM]


def test_a_type_is_looked_at_once() -> None:
    assert codec_of(Invoice, "one returns") is codec_of(Invoice, "one returns")


def test_the_name_of_a_type() -> None:
    def name(annotation: Any) -> str:
        codec = codec_of(annotation, "it returns")
        assert codec is not None
        return codec.name

    assert name(Item) == "Item"
    assert name(Item | None) == "Item | None"
    assert name(dict[str, tuple[Item, ...]]) == "dict[str, tuple[Item, ...]]"
    assert name(Page[Item]) == "Page[Item]"


def test_a_float_may_be_an_int_and_stays_one() -> None:
    @attrs.frozen
    class Rated:
        rate: float
        many: int

    codec = codec_of(Rated, "it returns")
    assert codec is not None
    again = codec.decode(codec.encode(Rated(1, True)))
    assert type(again.rate) is int
    assert again.many is True


def test_bytes_stay_bytes_inside_a_model() -> None:
    codec = codec_of(Model, "it returns")
    assert codec is not None
    stored = codec.encode(MODEL)
    assert isinstance(stored, dict)
    assert stored["raw"] == b"\xff\x00"
