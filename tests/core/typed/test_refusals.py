"""What cannot be stored is refused: a type before anything runs, a value before it is stored."""

from __future__ import annotations

import dataclasses
import enum
import re
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, NewType, TypedDict, TypeVar

import attrs
import pydantic
import pytest
import typing_extensions

from kvreplay import ConfigError
from kvreplay._typed.codecs import codec_of

if TYPE_CHECKING:
    from decimal import Decimal

T = TypeVar("T")


class Ordinary:
    pass


@attrs.define
class Invoice:
    amount: int
    note: str = ""


@attrs.define
class Larger(Invoice):
    more: int = 0


@attrs.define
class Connected:
    amount: int
    connection: socket.socket


@attrs.define
class Owned:
    owner: Ordinary


@attrs.define
class Holding:
    items: list[Owned]


@dataclasses.dataclass
class Locked:
    by_name: dict[str, tuple[int, threading.Event]]


class Row(NamedTuple):
    any: Iterator[int]


class Dict(TypedDict):
    call: Callable[[], int]


@attrs.define
class Page(Generic[T]):
    item: T


class SecretModel(pydantic.BaseModel):
    user: str
    words: list[pydantic.SecretStr]


class SecretDict(typing_extensions.TypedDict):
    word: pydantic.SecretStr


class SecretRow(NamedTuple):
    word: pydantic.SecretStr


Words = NewType("Words", SecretDict)


class Hiding(pydantic.BaseModel):
    anything: object
    by_name: dict[str, Words]


class HidingRow(pydantic.BaseModel):
    row: SecretRow


@attrs.define
class WithModel:
    model: SecretModel | None


class Arbitrary(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)
    things: dict[str, Ordinary]


class Calling(pydantic.BaseModel):
    back: Callable[[], int]


@attrs.define
class LikeInvoice:
    amount: int
    note: str = ""


class Later(pydantic.BaseModel):
    price: Decimal


@dataclasses.dataclass
class WithInitVar:
    x: int
    key: dataclasses.InitVar[int]


@attrs.define
class Unresolved:
    price: Decimal


@pytest.mark.parametrize(
    ("annotation", "path", "kind"),
    [
        (Ordinary, "Ordinary", "Ordinary"),
        (complex, "complex", "complex"),
        (bytearray, "bytearray", "bytearray"),
        (list[Ordinary], "response[]", "Ordinary"),
        (dict[str, Ordinary], "response[]", "Ordinary"),
        (Connected, "Connected.connection", "socket"),
        (Connected | None, "response.connection", "socket"),
        (Holding, "Holding.items[].owner", "Ordinary"),
        (list[Holding], "response[].items[].owner", "Ordinary"),
        (Locked, "Locked.by_name[][1]", "Event"),
        (Row, "Row.any", "Iterator[int]"),
        (Dict, "Dict.call", "Callable[[], int]"),
        (Page[Ordinary], "response.item", "Ordinary"),
        (Arbitrary, "Arbitrary.things[]", "Ordinary"),
        (Calling, "Calling.back", "Callable[[], int]"),
        ("Invoice", "response", "Invoice"),
    ],
)
def test_a_type_that_nothing_can_store(annotation: Any, path: str, kind: str) -> None:
    with pytest.raises(ConfigError) as caught:
        codec_of(annotation, "request_invoice returns")
    said = str(caught.value)
    assert said.startswith("request_invoice returns ")
    assert f": {path} is of the type {kind}; neither msgpack, cattrs nor pydantic" in said
    assert "give encode= or" in said.replace("and decode=", "or")
    assert said.endswith("; nothing ran")


@pytest.mark.parametrize(
    ("annotation", "path"),
    [
        (pydantic.SecretStr, "SecretStr"),
        (pydantic.SecretBytes, "SecretBytes"),
        (pydantic.Secret[date], "response"),
        (SecretModel, "SecretModel.words[]"),
        (WithModel, "WithModel.model.words[]"),
        (list[pydantic.SecretStr | None], "response[]"),
        (Hiding, "Hiding.by_name[].word"),
        (HidingRow, "HidingRow.row.word"),
    ],
)
def test_secrets_are_not_stored_in_silence(annotation: Any, path: str) -> None:
    with pytest.raises(
        ConfigError, match=r"secrets are not stored unless you say how.*; nothing ran"
    ) as e:
        codec_of(annotation, "it returns")
    assert f": {path} is of the type Secret" in str(e.value)


class OpenModel(pydantic.BaseModel):
    user: str
    more: dict[str, object] = {}
    words: list[str]


def test_the_same_types_without_what_is_wrong_are_fine() -> None:
    for annotation in (Invoice, OpenModel, Page[Invoice], Page[int], list[Invoice], Larger):
        assert codec_of(annotation, "it returns") is not None


@pytest.mark.parametrize(
    "annotation",
    [
        *(date | str, Invoice | date, list[Invoice] | list[date], Invoice | dict[str, int]),
        *(Invoice | OpenModel, Literal["a"] | timedelta, OpenModel | str),
    ],
)
def test_a_union_that_cannot_be_told_apart(annotation: Any) -> None:
    with pytest.raises(ConfigError, match=r"would not tell which.*; nothing ran$"):
        codec_of(annotation, "it returns")


def test_classes_that_cattrs_cannot_tell_apart() -> None:
    with pytest.raises(ConfigError, match=r"cattrs cannot tell apart .*; nothing ran$"):
        codec_of(Invoice | LikeInvoice, "it returns")


def test_a_key_of_a_map_must_be_a_scalar() -> None:
    with pytest.raises(
        ConfigError, match=r"response\[key\] .*a key of a stored map.*; nothing ran$"
    ):
        codec_of(dict[tuple[int, int], int], "it returns")
    assert codec_of(dict[date, int], "it returns") is not None


def test_an_annotation_that_is_not_there_at_run_time() -> None:
    with pytest.raises(
        ConfigError, match=r"annotations of Unresolved cannot be resolved.*nothing ran$"
    ):
        codec_of(Unresolved, "it returns")


def test_a_model_whose_names_are_not_there_at_run_time() -> None:
    with pytest.raises(ConfigError, match=r"pydantic cannot store it \(\w+\): .*nothing ran$"):
        codec_of(Later, "it returns")


def test_what_keeps_nothing_of_its_subclasses() -> None:
    with pytest.raises(ConfigError, match=r"BaseModel; it has no fields.*; nothing ran$"):
        codec_of(pydantic.BaseModel, "it returns")


def test_what_a_class_is_made_with_and_does_not_keep() -> None:
    with pytest.raises(
        ConfigError, match=r": WithInitVar.key is of .*; a class does not keep it: "
    ):
        codec_of(WithInitVar, "it returns")


# Values.


class Partly(TypedDict):
    when: date
    note: str


def test_a_typed_dict_without_a_key() -> None:
    codec = codec_of(Partly, "it returns")
    assert codec is not None
    with pytest.raises(TypeError, match="^Partly: a dict without a required key cannot be stored"):
        codec.encode({"when": date(2026, 1, 2)})
    assert codec.encode({"when": date(2026, 1, 2), "note": ""})


@attrs.define
class Deep:
    items: list[Invoice]
    by_name: dict[str, Invoice] = attrs.field(factory=dict)
    some: Sequence[int] = attrs.field(factory=list)
    anything: Any = None
    either: Invoice | str | None = None
    took: timedelta = timedelta(0)
    path: Path | None = None
    when: date | None = None


def deep(**changes: Any) -> Deep:
    return attrs.evolve(Deep([Invoice(1)]), **changes)


class Small(enum.IntEnum):
    ONE = 1


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (Invoice(1), "Deep: an Invoice cannot be stored, where Deep is expected"),
        (None, "Deep: a NoneType cannot be stored, where Deep is expected"),
        (deep(items=[Invoice(1), LikeInvoice(1)]), "Deep.items[1]: a LikeInvoice cannot be stored, where Invoice"),
        (deep(items=(Invoice(1),)), "Deep.items: a tuple cannot be stored, where list"),
        (deep(items=[Larger(1)]), "Deep.items[0]: a Larger cannot be stored, where Invoice"),
        (deep(items=[Invoice("5")]), "Deep.items[0].amount: a str cannot be stored, where int"),
        (deep(items=[Invoice(Small.ONE)]), "Deep.items[0].amount: a Small cannot be stored, where int"),
        (deep(items=[Invoice(2**64)]), "Deep.items[0].amount: an integer beyond 64 bits cannot be"),
        (deep(items=[Invoice(1, "\ud800")]), "Deep.items[0].note: a str with a lone surrogate cannot"),
        (deep(by_name={"one": 1}), 'Deep.by_name["one"]: an int cannot be stored, where Invoice'),
        (deep(by_name={"card 4242": 1}), "Deep.by_name[key 0]: an int cannot be stored, where"),
        (deep(by_name={1: Invoice(1)}), "Deep.by_name[key 0]: an int cannot be stored, where str"),
        (deep(some=(1, 2)), "Deep.some: a tuple cannot be stored, where list is expected"),
        (deep(anything={"a": (1,)}), 'Deep.anything["a"]: a tuple cannot be stored, where Any'),
        (deep(anything=[Invoice(1)]), "Deep.anything[0]: an Invoice cannot be stored, where Any"),
        (deep(either=5), "Deep.either: an int cannot be stored, where Invoice | str | None is"),
        (deep(either=Invoice("5")), "Deep.either.amount: a str cannot be stored, where int is"),
        (deep(took=timedelta.max), 'Deep["took"]: an integer beyond 64 bits cannot be stored'),
        (deep(path=Path("/\udcff")), 'Deep["path"]: a str with a lone surrogate cannot be stored'),
        (deep(when=datetime(2026, 1, 2)), "Deep.when: a datetime cannot be stored: it would come"),
    ],
)  # fmt: skip
def test_a_value_that_is_not_of_the_type(value: Any, said: str) -> None:
    codec = codec_of(Deep, "it returns")
    assert codec is not None
    with pytest.raises(TypeError, match=f"^{re.escape(said)}") as caught:
        codec.encode(value)
    assert caught.value.__context__ is caught.value.__cause__ is None
    assert codec.decode(codec.encode(deep())) == deep()


@attrs.define
class Converting:
    tag: Any = attrs.field(converter=lambda tag: tag + 1)


@attrs.define
class Forgetting:
    kept: int
    lost: int = attrs.field(init=False, default=0)


@attrs.define
class Choosy:
    x: int = attrs.field()

    @x.validator
    def _check(self, _: Any, x: int) -> None:
        if x < 0:
            raise ValueError(f"{x} is below 0")


class Excluding(pydantic.BaseModel):
    a: int
    b: int = pydantic.Field(default=0, exclude=True)


class Holder(pydantic.BaseModel):
    a: int
    _b: int = pydantic.PrivateAttr(default=0)


class Loose(pydantic.BaseModel):
    anything: Any


def test_a_value_that_would_lose_something() -> None:
    for annotation, good, change in (
        (Forgetting, Forgetting(1), lambda each: setattr(each, "lost", 5)),
        (Excluding, Excluding(a=1), lambda each: setattr(each, "b", 5)),
        (Holder, Holder(a=1), lambda each: setattr(each, "_b", 5)),
        (Loose, Loose(anything=1), lambda each: setattr(each, "anything", (1,))),
    ):
        codec = codec_of(annotation, "it returns")
        assert codec is not None
        assert codec.decode(codec.encode(good)) == good
        change(good)
        with pytest.raises(
            TypeError, match=r"\w+\.\w+: an? \w+ cannot be stored: it would come back as"
        ):
            codec.encode(good)


def test_a_class_that_changes_what_it_is_given() -> None:
    codec = codec_of(Converting, "it returns")
    assert codec is not None
    with pytest.raises(TypeError, match=r"^Converting.tag: an int cannot be stored: it would come"):
        codec.encode(Converting(1))


def test_what_a_class_refuses_is_told_without_the_value() -> None:
    codec = codec_of(Choosy, "it returns")
    assert codec is not None
    with attrs.validators.disabled():
        wrong = Choosy(-4242)
    with pytest.raises(
        TypeError, match=r"made again of what would be stored \(ValueError\)$"
    ) as caught:
        codec.encode(wrong)
    assert "4242" not in str(caught.value)
    assert caught.value.__context__ is None
    assert codec.decode(codec.encode(Choosy(1))) == Choosy(1)


def test_models() -> None:
    codec = codec_of(Loose, "it returns")
    assert codec is not None
    with pytest.raises(
        TypeError, match=r"^Loose: an Invoice cannot be stored, where Loose is expected"
    ):
        codec.encode(Invoice(1))  # type: ignore[arg-type]
    with pytest.raises(
        TypeError, match=r'^Loose\["anything"\]\["a"\]: an Ordinary cannot be stored$'
    ):
        codec.encode(Loose(anything={"a": Ordinary()}))
    with pytest.raises(TypeError, match=r'^Loose\["anything"\]: a SecretStr cannot be stored$'):
        codec.encode(Loose(anything=pydantic.SecretStr("hunter2")))
    assert codec.decode(codec.encode(Loose(anything=[1]))) == Loose(anything=[1])


class Sub(OpenModel):
    extra: int = 0


def test_a_subclass_of_a_model_would_lose_fields() -> None:
    codec = codec_of(OpenModel, "it returns")
    assert codec is not None
    with pytest.raises(TypeError, match="^OpenModel: a Sub cannot be stored"):
        codec.encode(Sub(user="a", words=[]))
    assert codec.decode(codec.encode(OpenModel(user="a", words=[]))) == OpenModel(
        user="a", words=[]
    )


def test_a_value_that_refers_to_itself() -> None:
    codec = codec_of(Deep, "it returns")
    assert codec is not None
    value = deep()
    value.anything = [value.anything]
    value.anything.append(value.anything)
    with pytest.raises(TypeError, match="nested too deep or refers to itself$"):
        codec.encode(value)
