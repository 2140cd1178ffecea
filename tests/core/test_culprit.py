"""What a developer is told of a response that msgpack refuses: where, what, and never a value."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import IntEnum
from typing import Any

import msgpack
import pytest

from kvreplay._protocol.culprit import culprit, find_culprit


class Small(IntEnum):
    ONE = 1


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def cyclic() -> dict[str, Any]:
    value: dict[str, Any] = {"all": []}
    value["all"].append(value)
    return value


NOW = datetime(2026, 1, 2, tzinfo=UTC)


@pytest.mark.parametrize(
    ("response", "said"),
    [
        (NOW, ": a datetime"),
        ({"invoice": {"expiry": NOW}}, '["invoice"]["expiry"]: a datetime'),
        ({"items": [1, (2, {3})]}, '["items"][1][1]: a set'),
        ([object()], "[0]: an object"),
        ({"amount": 2**64}, '["amount"]: an integer beyond 64 bits'),
        ([-(2**63) - 1], "[0]: an integer beyond 64 bits"),
        ({"text": "\ud800"}, '["text"]: a str with a lone surrogate'),
        ({"\ud800": 1}, "[key 0]: a str with a lone surrogate as a key"),
        ({1: 2, (1, 2): 3}, "[key 1]: a tuple as a key"),
        ({NOW: 3}, "[key 0]: a datetime as a key"),
        ({2**64: 3}, "[key 0]: an integer beyond 64 bits as a key"),
        (cyclic(), '["all"][0]: a dict that refers to itself'),
        (nested(3000), ": nested deeper than 500"),
    ],
)
def test_what_is_to_blame(response: object, said: str) -> None:
    assert culprit(response) == said


@pytest.mark.parametrize(
    "response",
    [
        None,
        *(True, 0, -(2**63), 2**64 - 1, 1.5, float("nan"), "text", b"\xff", bytearray(b"x")),
        *([], (1, [2]), {"a": {1: None, b"k": 2.0, None: 3}}, nested(499)),
        *(Small.ONE, msgpack.ExtType(1, b""), {msgpack.ExtType(1, b""): 1}),
    ],
)
def test_what_msgpack_holds_is_not_to_blame(response: object) -> None:
    msgpack.unpackb(msgpack.packb(response), strict_map_key=False)
    assert find_culprit(response) is None
    assert culprit(response) == ": what msgpack refuses, at no place that can be named"


def test_the_same_list_twice_does_not_refer_to_itself() -> None:
    twice: list[int] = []
    assert find_culprit([twice, twice]) is None


@pytest.mark.parametrize(
    ("key", "shown"),
    [
        *(("plain_Word", '["plain_Word"]'), ("a" * 32, f'["{"a" * 32}"]')),
        *(("a" * 33, "[key 0]"), ("card4242", "[key 0]"), ("two words", "[key 0]")),
        *(("", "[key 0]"), ("ärger", "[key 0]"), ("line\n", "[key 0]"), (7, "[key 0]")),
    ],
)
def test_a_key_is_shown_only_if_it_is_a_plain_word(key: object, shown: str) -> None:
    assert culprit({key: NOW}) == f"{shown}: a datetime"


def test_no_value_is_ever_shown() -> None:
    class Secret:
        def __repr__(self) -> str:
            return "hunter2"

        __str__ = __repr__

    assert "hunter2" not in culprit({"hunter2 ": ["hunter2", Secret()]})
