"""What is wrong with an SQLite store: with the file, with our own tables, with single entries."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from kvreplay.backends.sqlite import entries
from kvreplay.backends.sqlite.connections import Connections
from kvreplay.backends.sqlite.schema import NODE_TABLE
from kvreplay.store import Fault

__all__ = ["in_entries", "in_tables"]

_INTEGRITY: Final = "PRAGMA integrity_check(100)"
_META: Final = f"""
    SELECT (SELECT group_concat(name) FROM (SELECT name FROM kvreplay_meta ORDER BY name)),
        (SELECT value FROM kvreplay_meta WHERE name = 'last_order')
            < (SELECT max(sort_order) FROM {NODE_TABLE})"""
_ROWS: Final = {"format", "id", "last_order", "settled"}
_PAGE: Final = f"""
    SELECT primary_namespace, secondary_namespace, key, typeof(value), typeof(sort_order),
        sort_order FROM {NODE_TABLE}
    WHERE (primary_namespace, secondary_namespace, key) > (?, ?, ?) AND {{such}}
        AND (typeof(value) <> 'blob' OR typeof(sort_order) <> 'integer' OR sort_order < 0)
    ORDER BY primary_namespace, secondary_namespace, key LIMIT {entries.WALK}"""


def in_tables(opened: Callable[[], Connections]) -> Iterator[Fault]:
    """Yield what SQLite itself finds wrong, and what is wrong with our table of single values.

    SQLite reads the whole file in one snapshot. Nobody waits for it, but the log grows meanwhile.
    """
    for (found,) in opened().rows(_INTEGRITY, ()):
        if found != "ok":
            yield Fault(None, f"SQLite says: {found}")
    ((names, is_behind),) = opened().rows(_META, ())
    for lost in sorted(_ROWS.difference((names or "").split(","))):
        yield Fault(None, f"the table kvreplay_meta has lost its row {lost}")
    if is_behind:
        yield Fault(None, "the last number of a creation is less than that of an entry")


def in_entries(opened: Callable[[], Connections]) -> Iterator[Fault]:
    """Yield what is wrong with single entries. SQLite itself goes past the sound ones."""
    last = ("", "", "")
    rows: list[Any] = [...]
    while rows:
        rows = entries.legal_rows(opened().rows, _PAGE, last, entries.OF_ADDRESSES)
        for *address, value, number, order in rows:
            last = (address[0], address[1], address[2])
            if value != "blob":
                yield Fault(last, f"its value is no blob but SQLite's type {value}")
            if number != "integer" or order < 0:
                yield Fault(last, "its sort_order is no number of a creation")
