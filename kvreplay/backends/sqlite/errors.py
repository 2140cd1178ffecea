"""What a failure of SQLite means to the caller. The messages name the store and show no key."""

from __future__ import annotations

import errno
import os
import sqlite3

from kvreplay.errors import (
    CorruptStoreError,
    OutcomeUnknownError,
    StoreError,
    StoreFullError,
    StoreUnavailableError,
)
from kvreplay.store import closed_error

__all__ = [
    "code_of",
    "commit_error",
    "is_no_text",
    "leaves_doubt",
    "lost_row",
    "no_access",
    "set_back",
    "store_error",
]


def code_of(error: BaseException) -> int:
    """Return SQLite's primary result code; 0 if the error is not SQLite's own."""
    code = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF if isinstance(code, int) else 0


def is_no_text(error: BaseException | None) -> bool:
    """Whether a query failed because a text in its rows is no UTF-8, which Python finds."""
    if isinstance(error, StoreError):
        error = error.__cause__
    return (
        isinstance(error, sqlite3.OperationalError)
        and not code_of(error)
        and "decode" in str(error)
    )


def lost_row(path: str) -> CorruptStoreError:
    """Return the error for a store without a row that each store has."""
    return CorruptStoreError(
        f"the SQLite store {path} has lost a row of its table kvreplay_meta: it is damaged, or"
        " another program has changed it; nothing was changed: restore it from a backup"
    )


def leaves_doubt(error: sqlite3.Error) -> bool:
    """Whether a COMMIT that failed with this error may count one day.

    SQLite writes all pages of a commit to the log, the one that makes them count last, and flushes
    them. If the flush fails, every process goes on as if the commit had not been. But the pages are
    in the log: if all processes are killed before another commit has overwritten them, the next
    opening takes the commit as made. If a page cannot even be written, the last one is missing.
    """
    if _is_unwritten(error):
        return False
    return code_of(error) in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_INTERNAL)


def _is_unwritten(error: Exception) -> bool:
    return getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_IOERR_WRITE


def commit_error(error: sqlite3.Error, path: str, *, settled: bool) -> StoreError:
    """Distinguish *nothing was written* from *nobody knows*, after a COMMIT that failed.

    Args:
        settled: a later commit went well, so that this one will never count.
    """
    if not leaves_doubt(error):
        return store_error(error, path)
    if settled:
        return StoreUnavailableError(
            f"the disk failed in a commit to the SQLite store {path}: nothing was changed, and what"
            " was stored before is intact; check the disk, and try again"
        )
    return OutcomeUnknownError(
        f"a commit to the SQLite store {path} failed, and may or may not have happened: no process"
        " sees it now, but it may be there after a restart; check the disk. What was stored before"
        " is intact"
    )


def store_error(error: Exception, path: str) -> StoreError:
    """Say in kvreplay's terms why a call failed that changed nothing."""
    if isinstance(error, StoreError):
        return error
    if _is_unwritten(error):
        return StoreUnavailableError(
            f"the SQLite store {path} could not be written: nothing was changed, and what was"
            " stored before is intact; check the disk, its quota and the limit of file sizes, and"
            " try again"
        )
    match code_of(error):
        case sqlite3.SQLITE_FULL:
            return StoreFullError(
                f"there is no room for the SQLite store {path}: nothing was written, and what was"
                " stored is intact; free some space and try again"
            )
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return CorruptStoreError(
                f"the SQLite store {path} is damaged, or no SQLite database: nothing was changed;"
                " restore it from a backup"
            )
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return StoreUnavailableError(
                f"another program holds the SQLite store {path}: nothing was changed, and nothing"
                " will be; try again, and see who has the file open"
            )
        case sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_NOMEM | sqlite3.SQLITE_PROTOCOL:
            return StoreUnavailableError(
                f"the SQLite store {path} cannot be used at this moment: nothing was changed; check"
                f" the path, its permissions and the free descriptors, and try again ({error})"
            )
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM | sqlite3.SQLITE_AUTH:
            return StoreError(
                f"the SQLite store {path} cannot be written: nothing was changed; check the"
                " permissions of the file and of its directory"
            )
    if is_no_text(error):  # SQLite's driver would show the text
        return CorruptStoreError(
            f"an entry of the SQLite store {path} holds a text that is no UTF-8, and not bytes:"
            " another program has written it; nothing was changed: write or remove that entry"
        )
    if isinstance(error, sqlite3.ProgrammingError) and "closed" in str(error):
        return closed_error()
    return StoreError(f"the SQLite store {path} failed: nothing was changed ({error})")


def set_back(path: str) -> StoreError:
    """Return the error for files that were overwritten by an older copy of themselves."""
    return CorruptStoreError(
        f"the files of the SQLite store {path} were overwritten by an older copy while it was open"
        " here: nothing was changed. To go on with the older copy, close it in every process and"
        " open it again: answers that were given since the copy was made are forgotten"
    )


def no_access(error: OSError, path: str) -> StoreError:
    """Say what a failure to reach a store's files means."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreFullError(
            f"there is no room to open the SQLite store {path}: what was stored is intact; free"
            " some space and try again"
        )
    return StoreError(
        f"cannot open the SQLite store {path}: {os.strerror(error.errno or 0)}; check the path, its"
        " permissions and that the file system is writable; nothing was changed"
    )
