"""What a failure of LMDB means to the caller. The messages name the store and show no key."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final

import lmdb

from kvreplay.errors import (
    CorruptStoreError,
    OutcomeUnknownError,
    StoreError,
    StoreFullError,
    StoreNotFoundError,
    StoreUnavailableError,
)

__all__ = [
    "DATA",
    "another_engine",
    "another_store",
    "commit_error",
    "gone",
    "in_use",
    "lost_descriptors",
    "no_access",
    "no_lock",
    "no_store",
    "opening_error",
    "restless",
    "set_back",
    "store_error",
]

DATA: Final = "data.mdb"
"""LMDB's own name of the file with the entries."""

_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DENIED: Final = (errno.EACCES, errno.EPERM, errno.EROFS)
_NO_LOCKS: Final = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL)
_DAMAGED: Final = (
    lmdb.InvalidError,
    lmdb.CorruptedError,
    lmdb.PageNotFoundError,
    lmdb.VersionMismatchError,
    lmdb.BadTxnError,  # a new transaction cannot even read where its database begins
)
_NEARLY_FULL: Final = 16 * 1024 * 1024  # bytes free, below which a failed write means a full disk


def commit_error(env: lmdb.Environment, error: lmdb.Error, path: Path) -> StoreError:
    """Distinguish *nothing was written* from *nobody knows*, after a commit that failed.

    LMDB writes the data pages, flushes them, and then writes the page that makes them count.
    Only a failure of that last step panics the environment.
    """
    try:
        env.begin().abort()
    except lmdb.Error:  # most likely PanicError; any other leaves it unknown
        return OutcomeUnknownError(
            f"a commit to the LMDB store {path} failed, and may or may not have happened: read"
            " again before deciding; what was stored before is intact"
        )
    return store_error(error, path)


def store_error(error: Exception, path: Path) -> StoreError:
    """Say in kvreplay's terms why a call failed that changed nothing."""
    match error:
        case StoreError():
            return error
        case lmdb.ReadersFullError():
            return StoreUnavailableError(
                f"the LMDB store {path} has no free reader slot: nothing was changed; try again, or"
                " close it in every process and open it with a larger max_readers"
            )
        case lmdb.MapFullError():
            return StoreUnavailableError(
                f"the map of the LMDB store {path} was too small and grows: nothing was changed;"
                " run the transaction again"
            )
        case lmdb.PanicError() | lmdb.MapResizedError() | lmdb.MemoryError():
            return StoreUnavailableError(
                f"the LMDB store {path} cannot be used at this moment: nothing was changed; try"
                f" again ({_reason(error)})"
            )
    if isinstance(error, _DAMAGED):
        return CorruptStoreError(
            f"the LMDB store {path} is damaged: nothing was changed; restore it from a backup"
        )
    if isinstance(error, lmdb.Error) and _disk_is_full(path, error.code):
        return StoreFullError(
            f"there is no room for the LMDB store {path}: nothing was written, and what was stored"
            " is intact; free some space and try again"
        )
    return StoreError(f"the LMDB store {path} failed: nothing was changed ({_reason(error)})")


def opening_error(error: lmdb.Error, path: Path) -> StoreError:
    """Say what a failure of LMDB to open a store means."""
    match error:
        case lmdb.LockError():
            return StoreUnavailableError(
                f"cannot lock the LMDB store {path}: does a process of another PID namespace"
                " (container) that has the same process id use it? Nothing was changed"
            )
        case lmdb.MemoryError():
            return StoreError(
                f"cannot map the LMDB store {path}: its map_size is more than this process may"
                " address; give a smaller one or raise the limit"
            )
    if error.code in _DENIED:
        return no_access(OSError(error.code, ""), path)
    if "already open in this process" in str(error):
        return StoreError(
            f"this process has the LMDB environment {path} open already: with files that were"
            " replaced since, without kvreplay, or with descriptors that it has closed. Close that"
            " first, or start a new process; nothing was changed"
        )
    if isinstance(error, _DAMAGED) or not error.code:
        return CorruptStoreError(
            f"{path / DATA} is damaged, cut short, or not in the format of LMDB 0.9: nothing was"
            f" changed; restore it from a backup ({_reason(error)})"
        )
    return store_error(error, path)


def no_access(error: OSError, path: Path) -> StoreError:
    """Say what a failure to reach a store's files means."""
    if _disk_is_full(path, error.errno):
        return StoreFullError(
            f"there is no room to open the LMDB store {path}: what was stored is intact; free some"
            " space and try again"
        )
    return StoreError(
        f"cannot open the LMDB store {path}: {os.strerror(error.errno or 0)}; check the path, its"
        " permissions and that the file system is writable; nothing was changed"
    )


def no_lock(error: OSError, path: Path) -> StoreError:
    """Say what it means that the file of the turn cannot be opened or locked."""
    if error.errno in _NO_LOCKS:
        return StoreError(
            f"the file system of {path} has no flock ({os.strerror(error.errno or 0)}), without"
            " which processes cannot take turns: nothing was changed; choose a local file system"
        )
    if error.errno in _DENIED or _disk_is_full(path, error.errno):
        return no_access(error, path)
    return StoreUnavailableError(
        f"the turn to write to the LMDB store {path} cannot be taken: nothing was changed; try"
        f" again ({os.strerror(error.errno or 0)})"
    )


# A store that is not there, or not the one that was opened.


def no_store(path: Path) -> StoreError:
    """Return the error for ``create=False`` where there is no store."""
    return StoreNotFoundError(
        f"there is no LMDB store in {path}, and none was made, because of create=False: check the"
        " path, and whether its disk is mounted; to make a new store, open it with create=True"
    )


def another_engine(path: Path, engine: str, seen: str | Path) -> StoreError:
    """Return the error for a store of another engine in this one's place."""
    return CorruptStoreError(
        f'{path} has a store of the engine "{engine}" ({seen} shows it), and none of LMDB:'
        " nothing was changed; open it with that engine, or give LMDB a directory of its own"
    )


def gone(path: Path) -> StoreError:
    """Return the error for files that are no more where they were opened."""
    return StoreUnavailableError(
        f"the LMDB store {path} is not there any more: it was deleted, moved or unmounted while it"
        " was open here. Nothing was changed; put it back, or close it and open another"
    )


def another_store(path: Path) -> StoreError:
    """Return the error for files that are another store's than those that were opened."""
    return CorruptStoreError(
        f"the files of the LMDB store {path} were replaced by another store's while it was open"
        " here: nothing was changed; put them back, or close it in every process and open it again"
    )


def set_back(path: Path) -> StoreError:
    """Return the error for files that were replaced by an older copy of themselves."""
    return CorruptStoreError(
        f"the files of the LMDB store {path} were replaced by an older copy while it was open here:"
        " nothing was changed. To go on with the older copy, close it in every process and open it"
        " again: answers that were given since the copy was made are forgotten"
    )


def lost_descriptors(path: Path) -> StoreError:
    """Return the error for an environment whose descriptors this process has closed."""
    return StoreUnavailableError(
        f"this process has closed the file descriptors of the LMDB store {path}, and other files"
        " have their numbers now: nothing was changed, and this process cannot use the store any"
        " more; a daemon must close all descriptors before it opens a store"
    )


def in_use(path: Path, process: int) -> StoreError:
    """Return the error for a compaction while another process has the store open."""
    which = f"the process {process}" if process else "a process of another container"
    return StoreUnavailableError(
        f"{which} has the LMDB store {path} open, and its file cannot be replaced meanwhile:"
        " nothing was changed; stop every process that uses the store, and compact it then"
    )


def restless(path: Path) -> StoreError:
    """Return the error for a backup that found no time in which its pages were kept."""
    return StoreUnavailableError(
        f"no backup of the LMDB store {path} was made: again and again this process forks or opens"
        " the files anew, or another program commits; try again, or from another process"
    )


def _disk_is_full(path: Path, code: int | None) -> bool:
    """LMDB reports the short write that a full disk causes as EIO, so ask the disk as well."""
    if code != errno.EIO:
        return code in _FULL
    try:
        disk = os.statvfs(path)
    except OSError:
        return False
    free = disk.f_bfree if os.geteuid() == 0 else disk.f_bavail
    return free * disk.f_frsize < _NEARLY_FULL


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, lmdb.Error) else type(error).__name__
