"""The rows of a table of ldk-node's, as its entries. Its database is another module's business.

ldk-node stores no expiry, so the entries have none.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from kvreplay.errors import CorruptStoreError, KeyNotFoundError
from kvreplay.store import (
    Page,
    PageWithValues,
    check_name,
    check_namespace,
    check_page,
    is_name,
    page_token,
    place_of,
)

__all__ = ["LdkRows", "Rows"]

_MAX_ORDER: Final = 2**63 - 1
Rows = list[tuple[Any, ...]]


class LdkRows:
    """Reads the entries, in the order of their creation.

    A row whose names are not LDK's is refused: it may be data that would be left behind.

    Args:
        table: its name, as SQL has it.
        place: what messages call the database.
    """

    def __init__(self, table: str, place: str) -> None:
        self._table = table
        self._place = place

    def _run(self, sql: str, arguments: tuple[object, ...] = ()) -> Rows:
        """Run a statement whose arguments are question marks; return its rows."""
        raise NotImplementedError  # each database is spoken to in its own way

    def read(self, primary_namespace: str, secondary_namespace: str, key: str) -> bytes:
        """Return the value; see :meth:`kvreplay.KVStoreSync.read`."""
        check_name(primary_namespace, secondary_namespace, key)
        rows = self._run(
            f"SELECT value FROM {self._table}"
            " WHERE primary_namespace = ? AND secondary_namespace = ? AND key = ?",
            (primary_namespace, secondary_namespace, key),
        )
        if not rows:
            raise KeyNotFoundError("no entry under that name")
        return self._bytes(rows[0][0])

    def list(self, primary_namespace: str, secondary_namespace: str) -> list[str]:
        """Return the namespace's keys; see :meth:`kvreplay.KVStoreSync.list`."""
        check_namespace(primary_namespace, secondary_namespace)
        return [
            self._key(key)
            for (key,) in self._run(
                f"SELECT key FROM {self._table} WHERE primary_namespace = ?"
                " AND secondary_namespace = ?",
                (primary_namespace, secondary_namespace),
            )
        ]

    def list_all_keys(self) -> Iterator[tuple[str, str, str]]:
        """Yield every address; no transaction is kept between two pages of them."""
        last, limit = ("", "", ""), 1000
        while True:
            rows = self._run(
                f"SELECT primary_namespace, secondary_namespace, key FROM {self._table}"
                " WHERE (primary_namespace, secondary_namespace, key) > (?, ?, ?)"
                " ORDER BY primary_namespace, secondary_namespace, key LIMIT ?",
                (*last, limit),
            )
            for row in rows:
                self._key(row[2])
                yield self._namespace(row[0]), self._namespace(row[1]), row[2]
            if len(rows) < limit:
                return
            last = rows[-1]

    def list_paginated(
        self,
        primary_namespace: str,
        secondary_namespace: str,
        page_token: str | None = None,
        *,
        limit: int = 50,
    ) -> Page:
        """Return a page of keys; see :class:`kvreplay.PaginatedKVStore`."""
        rows, token = self._page(primary_namespace, secondary_namespace, page_token, limit, "NULL")
        return Page([self._key(row[0]) for row in rows], token)

    def list_paginated_with_values(
        self,
        primary_namespace: str,
        secondary_namespace: str,
        page_token: str | None = None,
        *,
        limit: int = 50,
    ) -> PageWithValues:
        """Return a page of keys and values; see :class:`kvreplay.PaginatedKVStore`."""
        rows, token = self._page(primary_namespace, secondary_namespace, page_token, limit, "value")
        return PageWithValues([(self._key(row[0]), self._bytes(row[2])) for row in rows], token)

    def _page(
        self, primary: str, secondary: str, token: str | None, limit: int, value: str
    ) -> tuple[Rows, str | None]:
        check_page(primary, secondary, limit)
        order, key = place_of(primary, secondary, token) or (_MAX_ORDER, "")
        rows = self._run(
            f"SELECT key, sort_order, {value} FROM {self._table}"
            " WHERE primary_namespace = ? AND secondary_namespace = ?"
            " AND sort_order <= ? AND NOT (sort_order = ? AND key <= ?)"
            " ORDER BY sort_order DESC, key ASC LIMIT ?",
            (primary, secondary, order, order, key, limit + 1),
        )
        if len(rows) <= limit:
            return rows, None
        last = rows[limit - 1]
        return rows[:limit], page_token(primary, secondary, (last[1], last[0]))

    def _key(self, name: object) -> str:
        if isinstance(name, str) and is_name(name):
            return name
        raise CorruptStoreError(
            f"an entry of {self._place} has a name that is none of LDK's; nothing was changed: look"
            " which program has written that row, and remove it if it is not needed"
        )

    def _namespace(self, name: object) -> str:
        return "" if name == "" else self._key(name)

    def _bytes(self, value: object) -> bytes:
        if type(value) is not bytes:
            raise CorruptStoreError(
                f"an entry of {self._place} holds a {type(value).__name__}, and not bytes; nothing"
                " was changed"
            )
        return value
