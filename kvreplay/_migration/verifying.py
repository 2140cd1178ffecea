"""The second pass: everything is read again from both sides, and compared. It changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from itertools import zip_longest
from typing import Any, Final

from kvreplay._migration.mark import MARK
from kvreplay._migration.sides import exactly
from kvreplay._migration.walking import Address, namespaces, newest_first
from kvreplay.errors import KeyNotFoundError, NotEqualError
from kvreplay.store import Entry

__all__ = ["verify"]

_STEP: Final = 1000  # entries between two calls of done


def verify(
    source: Any, destination: Any, *, ordered: bool, used: bool, done: Callable[[int], object]
) -> int:
    """Compare each entry with its expiry; if the destination was empty, sets and order too.

    Returns:
        How many entries are equal.

    Raises:
        NotEqualError: they are not; the mark stays.
    """
    read_source, read_destination = exactly(source), exactly(destination)
    compared = different = 0
    for address in source.list_all_keys():
        compared += 1
        try:
            if read_source(*address) != read_destination(*address):
                different += 1
        except KeyNotFoundError:
            if _entry(read_source, address) != _entry(read_destination, address):
                different += 1
        if not compared % _STEP:
            done(_STEP)
    done(compared % _STEP)
    if not used:
        there = sum(1 for address in destination.list_all_keys() if address != MARK)
        different += abs(there - compared)
        if ordered and not different:
            different = _out_of_order(source, destination)
    if different:
        raise NotEqualError(
            f"the second pass found {different} differences between source and destination, which"
            " keeps the mark of a migration that has not ended: if the source is being changed,"
            " stop that; then migrate again, which copies only what differs; if it was at rest,"
            " do not trust the destination's disk",
            different,
        )
    return compared


def _entry(read: Callable[[str, str, str], Entry], address: Address) -> Entry | None:
    try:
        return read(*address)
    except KeyNotFoundError:
        return None


def _out_of_order(source: Any, destination: Any) -> int:
    """Count the namespaces whose pages are not in the same order."""
    return sum(
        any(
            one != other
            for one, other in zip_longest(
                newest_first(source, namespace), newest_first(destination, namespace)
            )
        )
        for namespace in namespaces(source.list_all_keys())
    )
