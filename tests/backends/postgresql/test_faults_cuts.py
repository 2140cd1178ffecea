"""The connection breaks at each byte of each trip, in both directions: no answer is ever wrong.

Each round has a key of its own, so that a change which comes to its end late disturbs no other round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pytest

from kvreplay.errors import KeyNotFoundError, OutcomeUnknownError, StoreUnavailableError
from support.cutting_proxy import CuttingProxy, Direction
from support.postgres_faults import Opener, rows_of
from support.waiting import until

OLD, NEW = b"old", b"new"
DIRECTIONS = pytest.mark.parametrize("direction", ["to server", "to client"])


@pytest.fixture
def proxy(postgres: Any) -> Iterator[CuttingProxy]:
    with CuttingProxy(postgres.tcp_url) as proxy:
        yield proxy


@attrs.frozen
class Round:
    """One call, and what came of it."""

    key: str
    answer: Any = None
    error: Exception | None = None


def rounds(
    proxy: CuttingProxy, direction: Direction, store: Any, call: Callable[[str], Any]
) -> list[Round]:
    """Make a call again and again, and cut it one byte later each time, until no cut comes in its way."""
    made = list[Round]()
    while proxy.cuts == len(made):
        after = len(made)
        with pytest.raises(KeyNotFoundError):  # the store works, and has a connection
            store.read("p", "s", "absent")
        proxy.cut(direction, after=after, how="close" if after % 2 else "reset")
        key = f"k{after}"
        try:
            made.append(Round(key, call(key)))
        except (OutcomeUnknownError, StoreUnavailableError) as error:
            made.append(Round(key, error=error))
        proxy.mend()
    assert len(made) > 40
    assert made[-1].error is None
    return made


def in_the_end(postgres: Any) -> dict[str, bytes]:
    """What is there when all that was asked has come to its end on the server."""
    others = "SELECT 1 FROM pg_stat_activity WHERE application_name = %s AND state <> 'idle'"
    until(lambda: not postgres.server.execute(others, postgres.name))
    return rows_of(postgres)


def prepared(postgres: Any, value: bytes | None = OLD, keys: int = 2000) -> None:
    """Put a value under each round's key."""
    if value is not None:
        postgres.server.execute(
            f"INSERT INTO {postgres.name}.kvreplay_entries"
            " (primary_namespace, secondary_namespace, key, value)"
            f" SELECT 'p', 's', 'k' || n, %s FROM generate_series(0, {keys}) AS n",
            value,
        )


@DIRECTIONS
def test_a_read(postgres: Any, proxy: CuttingProxy, opened: Opener, direction: Direction) -> None:
    store = opened(proxy.url)
    prepared(postgres)
    made = rounds(proxy, direction, store, lambda key: store.read("p", "s", key))
    assert {each.answer for each in made} == {OLD}


PUTS = {"new": (None, NEW), "swap": (OLD, NEW), "drop": (OLD, None)}


@DIRECTIONS
@pytest.mark.parametrize("put", PUTS)
def test_a_check_and_put(
    postgres: Any, proxy: CuttingProxy, opened: Opener, direction: Direction, put: str
) -> None:
    store = opened(f"{proxy.url}&application_name={postgres.name}")
    expected, value = PUTS[put]
    prepared(postgres, expected)
    made = rounds(
        *(proxy, direction, store),
        lambda key: store.check_and_put("p", "s", key, expected=expected, value=value),
    )
    there = in_the_end(postgres)
    for each in made:
        has_happened = there.get(each.key) == value
        assert has_happened or there.get(each.key) == expected
        if each.error is None:
            assert each.answer == expected and has_happened
        elif isinstance(each.error, StoreUnavailableError):
            assert not has_happened
