"""ldk-node's ``ldk_node_data.sqlite`` as a source.

It is only read: no table of ours is made in it, as the engine does that adopts such a file.
ldk-node stores no expiry, so the entries have none.
"""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import quote

from kvreplay.errors import CorruptStoreError, KeyNotFoundError, StoreError, StoreNotFoundError
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

__all__ = ["LdkDatabase"]

_VERSION: Final = 3
_MAX_ORDER: Final = 2**63 - 1
_Rows = list[tuple[Any, ...]]


class LdkDatabase:
    """The entries of that file, in the order of their creation. Its node must not run.

    A row whose names are not LDK's is refused: it may be data that would be left behind.

    Raises:
        StoreNotFoundError: there is no such file.
        CorruptStoreError: it is no such database, or one of another version.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        if not _is_file(path):
            raise StoreNotFoundError(f"there is no file {path}: nothing was read; check the path")
        self._db = sqlite3.connect(
            f"file:{quote(path)}?mode=ro", uri=True, isolation_level=None, check_same_thread=False
        )
        # What is no UTF-8 is no legal name, and no bytes.
        self._db.text_factory = lambda text: text.decode(errors="surrogateescape")
        try:
            version = self._run("PRAGMA user_version")[0][0]
            tables = self._run("SELECT name FROM sqlite_master WHERE name = 'ldk_node_data'")
            if not tables or version != _VERSION:
                raise CorruptStoreError(
                    f"{path} is no database of ldk-node with version {_VERSION} of its table"
                    f" (it says version {version}); nothing was changed: let a present ldk-node"
                    " open it once, which migrates it, or check the path"
                )
        except BaseException:  # an interrupt too: nothing stays open
            self._db.close()
            raise

    def read(self, primary_namespace: str, secondary_namespace: str, key: str) -> bytes:
        """Return the value; see :meth:`kvreplay.KVStoreSync.read`."""
        check_name(primary_namespace, secondary_namespace, key)
        rows = self._run(
            "SELECT value FROM ldk_node_data"
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
                "SELECT key FROM ldk_node_data WHERE primary_namespace = ?"
                " AND secondary_namespace = ?",
                (primary_namespace, secondary_namespace),
            )
        ]

    def list_all_keys(self) -> Iterator[tuple[str, str, str]]:
        """Yield every address; no transaction is kept between two pages of them."""
        last, limit = ("", "", ""), 1000
        while True:
            rows = self._run(
                "SELECT primary_namespace, secondary_namespace, key FROM ldk_node_data"
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

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _page(
        self, primary: str, secondary: str, token: str | None, limit: int, value: str
    ) -> tuple[_Rows, str | None]:
        check_page(primary, secondary, limit)
        order, key = place_of(primary, secondary, token) or (_MAX_ORDER, "")
        rows = self._run(
            f"SELECT key, sort_order, {value} FROM ldk_node_data"
            " WHERE primary_namespace = ? AND secondary_namespace = ?"
            " AND sort_order <= ? AND NOT (sort_order = ? AND key <= ?)"
            " ORDER BY sort_order DESC, key ASC LIMIT ?",
            (primary, secondary, order, order, key, limit + 1),
        )
        if len(rows) <= limit:
            return rows, None
        last = rows[limit - 1]
        return rows[:limit], page_token(primary, secondary, (last[1], last[0]))

    def _run(self, sql: str, arguments: tuple[object, ...] = ()) -> _Rows:
        try:
            return self._db.execute(sql, arguments).fetchall()
        except sqlite3.Error as error:
            raise StoreError(
                f"cannot read {self._path} ({error}); nothing was changed: see that its node does"
                " not run and that this user may read it"
            ) from error

    def _key(self, name: object) -> str:
        if isinstance(name, str) and is_name(name):
            return name
        raise CorruptStoreError(
            f"an entry of {self._path} has a name that is none of LDK's; nothing was changed: look"
            " which program has written that row, and remove it if it is not needed"
        )

    def _namespace(self, name: object) -> str:
        return "" if name == "" else self._key(name)

    def _bytes(self, value: object) -> bytes:
        if type(value) is not bytes:
            raise CorruptStoreError(
                f"an entry of {self._path} holds a {type(value).__name__}, and not bytes; nothing"
                " was changed"
            )
        return value


def _is_file(path: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise StoreError(
            f"cannot read {path} ({os.strerror(error.errno or 0)}); nothing was changed: check its"
            " permissions"
        ) from error
