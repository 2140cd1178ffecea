"""What a function says that it returns, as far as it can be known; nothing here ever raises."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import attrs
import pytest

from kvreplay._typed.codecs import codec_of, return_annotation

if TYPE_CHECKING:
    from decimal import Decimal

T = TypeVar("T")


@attrs.define
class Invoice:
    amount: int


def function(amount: Decimal) -> Invoice:
    """Its parameter's type is not there at run time."""
    return Invoice(int(amount))


async def coroutine() -> Invoice | None:
    return None


def nothing() -> None: ...


def says_nothing():  # type: ignore[no-untyped-def]
    ...


def unknown() -> Decimal:
    raise AssertionError


def broken() -> 1 / 0:  # type: ignore[valid-type]
    ...


def nested() -> dict[str, list[Invoice]]:
    return {}


class Class(Generic[T]):
    def method(self) -> Invoice:
        return Invoice(1)

    @classmethod
    def of_class(cls) -> list[Invoice]:
        return []

    @staticmethod
    def static() -> Awaitable[Invoice]:
        raise AssertionError

    def __call__(self) -> set[int]:
        return set()


def wrapping(inner: Any) -> Any:
    @functools.wraps(inner)
    def wrapper(*args: Any) -> Any:
        return inner(*args)

    return wrapper


@pytest.mark.parametrize(
    ("which", "said"),
    [
        (function, Invoice),
        (coroutine, Invoice | None),
        (nothing, type(None)),
        (nested, dict[str, list[Invoice]]),
        (functools.partial(functools.partial(function, 1)), Invoice),
        (Class().method, Invoice),
        (Class.method, Invoice),
        (Class.of_class, list[Invoice]),
        (Class.static, Awaitable[Invoice]),
        (Class(), set[int]),
        (wrapping(function), Invoice),
        (Invoice, Invoice),
        (says_nothing, inspect.Signature.empty),
        (unknown, inspect.Signature.empty),
        (broken, inspect.Signature.empty),
        (lambda: 1, inspect.Signature.empty),
        (len, inspect.Signature.empty),
        (5, inspect.Signature.empty),
        (None, inspect.Signature.empty),
    ],
)
def test_what_it_says(which: Any, said: Any) -> None:
    assert return_annotation(which) == said


def test_what_says_nothing_needs_no_codec() -> None:
    assert codec_of(return_annotation(unknown), "it returns") is None


def test_a_class_of_the_function_around_it() -> None:
    @attrs.define
    class Local:
        x: int

    def handler() -> Local:
        return Local(1)

    assert return_annotation(handler) is Local
