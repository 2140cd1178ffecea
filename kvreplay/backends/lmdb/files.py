"""The files of one LMDB environment: opening, making and checking them.

Besides LMDB's own ``data.mdb`` and ``lock.mdb`` there is ``kvreplay.format``, written last when
a store is made: with it, a missing ``data.mdb`` is a loss and not a new store.
"""

from __future__ import annotations

import contextlib
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
from kvreplay.backends.lmdb.errors import DATA, no_access, opening_error
from kvreplay.errors import CorruptStoreError, StoreError
from kvreplay.store import Durability

__all__ = ["Files", "identity_of", "open_files"]

_LOCK: Final = "lock.mdb"
_MARKER: Final = "kvreplay.format"
_MARKER_TEXT: Final = b"kvreplay lmdb 1\n"
_DATABASES: Final = {b"meta", b"entries", b"expiry"}
_FORMAT: Final = b"1"
_ATTEMPTS: Final = 10
_MAX_DBS: Final = 8

Files: TypeAlias = "tuple[lmdb.Environment, lmdb._Database, lmdb._Database]"
"""An open environment, and its databases of entries and of their expiry."""


def identity_of(path: Path) -> tuple[int, int] | None:
    """Return what identifies the files, whatever path leads to them; ``None``: there are none.

    Raises:
        StoreError: the path cannot be looked at.
    """
    try:
        status = os.stat(path / DATA)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise no_access(error, path) from error
    return status.st_dev, status.st_ino


def open_files(
    path: Path, *, map_size: int, durability: Durability, max_readers: int, creating: bool
) -> Files:
    """Open the store, or make it if ``creating``; refuse what is not a sound store.

    A crash while it is made leaves nothing, or a store that the next opening completes.
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
        raise opening_error(error, path) from error
    except OSError as error:
        raise no_access(error, path) from error
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
        raise StoreError(f"{path} is not a directory: nothing was changed; give another path")
    marked = _is_marked(path)
    try:
        size = (path / DATA).stat().st_size
    except FileNotFoundError:
        if marked or not creating:
            raise CorruptStoreError(
                f"{path} had a store, but its {DATA} is missing: restore it from a backup; to"
                f" accept that its content is lost, remove {_MARKER} there"
            ) from None
        make_directories(str(path))
        _make_data_file(path)
    else:
        if size == 0:  # which LMDB would take for a new store
            raise CorruptStoreError(
                f"{path / DATA} is empty: restore it from a backup; to accept that its content is"
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
    """Make an empty store under another name, and put it in place as a whole."""
    temporary = _temporary(path / DATA)
    try:
        with lmdb.open(
            temporary,
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
        _place(temporary, path / DATA)
    finally:
        try:
            os.unlink(temporary)
        except FileNotFoundError:
            pass


def _make_lock_file(path: Path, max_readers: int) -> None:
    """Make it with all its blocks; LMDB would make it sparse.

    LMDB writes to its map. If a full disk has no block for that, the process is killed. A lock file
    that exists is left alone: another process may use it, with the size it has.
    """
    if not (path / _LOCK).exists():
        temporary = _temporary(path / _LOCK)
        try:
            write_temporary(temporary, bytes(64 * (max_readers + 2)))
            _place(temporary, path / _LOCK)
        finally:
            try:
                os.unlink(temporary)
            except FileNotFoundError:
                pass


def _temporary(path: Path) -> str:
    # No path object: that would call Python code when an interrupted call unlinks the file.
    return f"{path}.{uuid.uuid4().hex}.tmp"


def _place(temporary: str, path: Path) -> None:
    """Unlike a rename, this never replaces what another process has just put there."""
    with contextlib.suppress(FileExistsError):
        os.link(temporary, path)


def _refuse_cut_file(env: lmdb.Environment, path: Path) -> None:
    """Refuse a file that lost its end: touching a page beyond it would kill the process.

    A sound file may be shorter than its page count too, by pages that were freed before they
    were ever written. Only a walk through all pages shows which of both it is.
    """
    pages = env.info()["last_pgno"] + 1
    if (path / DATA).stat().st_size < pages * env.stat()["psize"]:
        with env.begin(write=True):  # no other process writes meanwhile
            problems = verify(str(path))  # type: ignore[no-untyped-call]
        if problems:
            raise CorruptStoreError(
                f"{path / DATA} is cut short: nothing was changed; restore it from a backup"
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
