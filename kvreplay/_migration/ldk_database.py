"""ldk-node's ``ldk_node_data.sqlite`` as a source.

It is only read: no table of ours is made in it, as the engine does that adopts such a file.
"""

from __future__ import annotations

import os
import sqlite3
import stat
from typing import Final
from urllib.parse import quote

from kvreplay._migration.ldk_rows import LdkRows, Rows
from kvreplay.errors import CorruptStoreError, StoreError, StoreNotFoundError

__all__ = ["LdkDatabase"]

_VERSION: Final = 3


class LdkDatabase(LdkRows):
    """The entries of that file, in the order of their creation. Its node must not run.

    Raises:
        StoreNotFoundError: there is no such file.
        CorruptStoreError: it is no such database, or one of another version.
    """

    def __init__(self, path: str) -> None:
        super().__init__("ldk_node_data", path)
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

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _run(self, sql: str, arguments: tuple[object, ...] = ()) -> Rows:
        try:
            return self._db.execute(sql, arguments).fetchall()
        except sqlite3.Error as error:
            raise StoreError(
                f"cannot read {self._place} ({error}); nothing was changed: see that its node does"
                " not run and that this user may read it"
            ) from error


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
