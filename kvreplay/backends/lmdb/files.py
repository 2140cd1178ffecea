"""The files of one LMDB environment: opening and checking them, and what LMDB's errors mean.

Besides LMDB's own ``data.mdb`` and ``lock.mdb`` there is ``kvreplay.format``, written last when
a store is made: with it, a missing ``data.mdb`` is a loss and not a new store.
"""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from pathlib import Path
from typing import Final, TypeAlias

import lmdb
from lmdb.verify import verify

from kvreplay.backends.durable_files import (
    FILE_MODE,
    fsync_directory,
    make_directories,
    replace_file,
    write_temporary,
)
from kvreplay.errors import (
    CorruptStoreError,
    OutcomeUnknownError,
    StoreError,
    StoreFullError,
    StoreUnavailableError,
)
from kvreplay.store import Durability

__all__ = ["Files", "commit_error", "identity_of", "open_files", "store_error"]

_DATA: Final = "data.mdb"
_LOCK: Final = "lock.mdb"
_MARKER: Final = "kvreplay.format"
_MARKER_TEXT: Final = b"kvreplay lmdb 1\n"
_DATABASES: Final = {b"meta", b"entries", b"expiry"}
_FORMAT: Final = b"1"
_ATTEMPTS: Final = 10
_MAX_DBS: Final = 8
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DENIED: Final = (errno.EACCES, errno.EPERM, errno.EROFS)
_DAMAGED: Final = (
    lmdb.InvalidError,
    lmdb.CorruptedError,
    lmdb.PageNotFoundError,
    lmdb.VersionMismatchError,
    lmdb.BadTxnError,  # a new transaction that cannot even read where its database begins
)
_NEARLY_FULL: Final = 16 * 1024 * 1024  # bytes free, below which a failed write means a full disk

Files: TypeAlias = "tuple[lmdb.Environment, lmdb._Database, lmdb._Database]"
"""An open environment, and its databases of entries and of their expiry."""


def identity_of(path: Path) -> tuple[int, int] | None:
    """Return what names the open files whatever path leads there; ``None``: there are none.

    Raises:
        StoreError: the path cannot be looked at.
    """
    try:
        status = os.stat(path / _DATA)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _no_access(error, path) from error
    return status.st_dev, status.st_ino


def open_files(
    path: Path, *, map_size: int, durability: Durability, max_readers: int, creating: bool
) -> Files:
    """Open the store, or make it if ``creating``; what is not a sound store is refused.

    A crash while it is made leaves nothing, or a store that the next opening goes on with.
    """
    try:
        marked = _prepare(path, max_readers, creating)
        files = _open(path, map_size, durability, max_readers)
        try:
            if not marked:
                # Only from here on is a missing file a loss.
                fsync_directory(str(path))
                replace_file(str(path / _MARKER), _MARKER_TEXT)
        except BaseException:
            files[0].close()
            raise
    except lmdb.Error as error:
        raise _opening_error(error, path) from error
    except OSError as error:
        raise _no_access(error, path) from error
    return files


def _open(path: Path, map_size: int, durability: Durability, max_readers: int) -> Files:
    for attempt in range(_ATTEMPTS):
        # Another process may outgrow the map between the steps; next time there is more room.
        with contextlib.suppress(lmdb.MapResizedError):
            return _open_once(path, map_size << attempt, durability, max_readers)
    return _open_once(path, map_size << _ATTEMPTS, durability, max_readers)


def _open_once(path: Path, map_size: int, durability: Durability, max_readers: int) -> Files:
    env = lmdb.open(
        str(path),
        map_size=map_size,
        metasync=durability == "full",
        mode=FILE_MODE,
        max_readers=max_readers,
        max_dbs=_MAX_DBS,
        lib_version=0,  # the 0.9 file format: an environment variable could switch it
    )
    try:
        env.reader_check()
        _refuse_cut_file(env, path)
        return env, *_open_databases(env, path)
    except BaseException:
        env.close()
        raise


def _prepare(path: Path, max_readers: int, creating: bool) -> bool:
    """Say whether there is a complete store; make its files if there is nothing yet."""
    if path.exists() and not path.is_dir():
        raise StoreError(f"{path} is not a directory, which an LMDB store is: give another path")
    marked = _is_marked(path)
    try:
        size = (path / _DATA).stat().st_size
    except FileNotFoundError:
        if marked or not creating:
            raise CorruptStoreError(
                f"{path} had a store, but its {_DATA} is missing: restore it from a backup; to"
                f" accept that its content is lost, remove {_MARKER} there"
            ) from None
        make_directories(str(path))
        _make_data_file(path)
    else:
        if size == 0:  # which LMDB would take for a new store
            raise CorruptStoreError(
                f"{path / _DATA} is empty: restore it from a backup; to accept that its content is"
                f" lost, remove it and {_MARKER} there"
            )
    _make_lock_file(path, max_readers)
    return marked


def _is_marked(path: Path) -> bool:
    try:
        text = (path / _MARKER).read_bytes()
    except FileNotFoundError:
        return False
    if text != _MARKER_TEXT:
        raise CorruptStoreError(
            f"{path / _MARKER} names another format than this kvreplay knows: use the version that"
            " wrote the store; nothing was changed"
        )
    return True


def _make_data_file(path: Path) -> None:
    """Make an empty store aside and put it in place as a whole."""
    temporary = _temporary(path / _DATA)
    try:
        with lmdb.open(
            str(temporary),
            map_size=64 * 1024,
            subdir=False,
            lock=False,
            mode=FILE_MODE,
            max_dbs=_MAX_DBS,
            lib_version=0,
        ) as env:
            databases = {name: env.open_db(name) for name in _DATABASES}
            with env.begin(write=True) as txn:
                txn.put(b"format", _FORMAT, db=databases[b"meta"])
        _place(temporary, path / _DATA)
    finally:
        temporary.unlink(missing_ok=True)


def _make_lock_file(path: Path, max_readers: int) -> None:
    """Make it whole; LMDB makes it sparse.

    LMDB writes to its map, and where a full disk has no block for that the process is killed.
    One that exists is left alone: another process may use it, with the size it has.
    """
    if not (path / _LOCK).exists():
        temporary = _temporary(path / _LOCK)
        try:
            write_temporary(str(temporary), bytes(64 * (max_readers + 2)))
            _place(temporary, path / _LOCK)
        finally:
            temporary.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")


def _place(temporary: Path, path: Path) -> None:
    """Unlike a rename, this never replaces what another process has just put there."""
    with contextlib.suppress(FileExistsError):
        os.link(temporary, path)


def _refuse_cut_file(env: lmdb.Environment, path: Path) -> None:
    """Refuse a file that lost its end: touching a page beyond it would kill the process.

    A sound file may be shorter than its page count too, by pages that were freed before they
    were ever written. Which it is, only a walk through all pages can tell.
    """
    pages = env.info()["last_pgno"] + 1
    if (path / _DATA).stat().st_size < pages * env.stat()["psize"]:
        with env.begin(write=True):  # no other process writes meanwhile
            problems = verify(str(path))  # type: ignore[no-untyped-call]
        if problems:
            raise CorruptStoreError(
                f"{path / _DATA} is cut short: nothing was changed; restore it from a backup"
            )


def _open_databases(env: lmdb.Environment, path: Path) -> tuple[lmdb._Database, lmdb._Database]:
    if _names(env) != _DATABASES:
        raise CorruptStoreError(
            f"{path} is an LMDB environment of another program: nothing was changed; give kvreplay"
            " a directory of its own"
        )
    meta, entries, expiry = (
        env.open_db(name, create=False) for name in (b"meta", b"entries", b"expiry")
    )
    with env.begin() as txn:
        if txn.get(b"format", None, meta) != _FORMAT:
            raise CorruptStoreError(
                f"the LMDB store {path} has another format than this kvreplay knows: nothing was"
                " changed; use the version that wrote it"
            )
    return entries, expiry


def _names(env: lmdb.Environment) -> set[bytes]:
    with env.begin() as txn, txn.cursor() as cursor:
        return set(cursor.iternext(keys=True, values=False))


# What a failure means to the caller. The messages name the store and never an entry.


def commit_error(env: lmdb.Environment, error: lmdb.Error, path: Path) -> StoreError:
    """Tell *nothing was written* from *nobody knows*, after a commit that failed.

    LMDB writes the data pages, flushes them, and then writes the page that makes them count.
    Only a failure of that last step panics the environment.
    """
    try:
        env.begin().abort()
    except lmdb.Error:  # most likely PanicError; else it cannot be told
        return OutcomeUnknownError(
            f"a commit to the LMDB store {path} failed, and may or may not have happened: read"
            " again before deciding; what was stored before is intact"
        )
    return store_error(error, path)


def store_error(error: Exception, path: Path) -> StoreError:
    """Say in kvreplay's terms what a call that changed nothing met."""
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


def _opening_error(error: lmdb.Error, path: Path) -> StoreError:
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
        return _no_access(OSError(error.code, ""), path)
    if "already open in this process" in str(error):
        return StoreError(
            f"this process has the LMDB environment {path} open already, with files that were"
            " replaced since, or without kvreplay: close that first; nothing was changed"
        )
    if isinstance(error, _DAMAGED) or not error.code:
        return CorruptStoreError(
            f"{path / _DATA} is damaged, cut short, or not in the format of LMDB 0.9: nothing was"
            f" changed; restore it from a backup ({_reason(error)})"
        )
    return store_error(error, path)


def _no_access(error: OSError, path: Path) -> StoreError:
    if _disk_is_full(path, error.errno):
        return StoreFullError(f"there is no room to open the LMDB store {path}: free some space")
    return StoreError(
        f"cannot open the LMDB store {path}: {os.strerror(error.errno or 0)}; check the path, its"
        " permissions and that the file system is writable; nothing was changed"
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
