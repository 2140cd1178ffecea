"""The files of one LMDB environment: opening, making and checking them.

Besides LMDB's own ``data.mdb`` and ``lock.mdb`` there is ``kvreplay.format``, written last when
a store is made: with it, a missing ``data.mdb`` is a loss and not a new store. A random id is in
``data.mdb`` and in ``kvreplay.format``: it tells a store from every other one.

Whoever opens or makes the files has the turn to write. So nobody sleeps in LMDB's own lock, and no
commit is under way while ``lock.mdb`` is made and filled.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import uuid
from pathlib import Path
from typing import Final

import lmdb
from lmdb.verify import verify

from kvreplay.backends._support import sqlite_store
from kvreplay.backends.durable_files import (
    FILE_MODE,
    fsync_directory,
    make_directories,
    read_regular_file,
    replace_file,
    write_temporary,
)
from kvreplay.backends.lmdb.errors import (
    DATA,
    another_engine,
    another_store,
    gone,
    no_access,
    no_store,
    opening_error,
)
from kvreplay.backends.lmdb.presence import (
    Identity,
    Presence,
    identity_of_file,
    open_descriptors,
)
from kvreplay.errors import CorruptStoreError, StoreError
from kvreplay.store import Durability, ForkSafeLock
from kvreplay.store.locks import require_room

__all__ = ["ID", "Files", "identity_of", "make_another", "open_files", "opening", "prepare"]

_LOCK: Final = "lock.mdb"
_MARKER: Final = "kvreplay.format"
_DATABASES: Final = (b"entries", b"expiry", b"meta", b"created")
_FIRST_DATABASES: Final = set(_DATABASES[:3])  # of kvreplay while 0.1.0 was made
_FORMAT: Final = b"2"
_ATTEMPTS: Final = 10
_MAX_DBS: Final = 8
_ROOM: Final = 2**20  # bytes, for a small commit

ID: Final = b"id"
"""The key of the store's random id, in the database ``meta``."""

opening: Final = ForkSafeLock()
"""Held while LMDB opens files. A fork waits for it: such a call never returns in the child."""

_marker = re.compile(rb"kvreplay lmdb 2\n([0-9a-f]{32})\n").fullmatch
_legal_name = re.compile(r"[A-Za-z0-9_-]{1,120}|\[empty\]").fullmatch


class Files:
    """An open environment, its databases, and where its files were when it was opened."""

    __slots__ = ("created", "entries", "env", "expiry", "id", "meta", "page_size", "presence")

    def __init__(self, env: lmdb.Environment, path: Path, presence: Presence) -> None:
        self.env = env
        self.presence = presence
        self.entries, self.expiry, self.meta, self.created = _open_databases(env, path)
        self.page_size = env.stat()["psize"]
        with env.begin() as txn:
            self.id: bytes = txn.get(ID, b"", self.meta)

    @property
    def identity(self) -> Identity:
        """Of ``data.mdb``, whatever path leads to it."""
        return self.presence.identity

    def shut(self) -> bool:
        """Close them; see :meth:`Presence.shut`."""
        return self.presence.shut(self.env)


def identity_of(path: Path) -> Identity | None:
    """Return what identifies the files, whatever path leads to them; ``None``: there are none.

    Raises:
        StoreError: the path cannot be looked at.
    """
    try:
        return identity_of_file(str(path / DATA))
    except OSError as error:
        raise no_access(error, path) from error


def prepare(path: Path, *, creating: bool) -> None:
    """Make the directory of a new store, if ``creating``; refuse what has none, or another's.

    Raises:
        StoreNotFoundError: there is no store, and none may be made. Nothing was made.
        CorruptStoreError: it had one, whose file is missing, or another engine has.
    """
    try:
        if not (path / DATA).exists() and (shown := sqlite_store(path)) is not None:
            raise another_engine(path, "sqlite", shown)
        if path.exists() and not path.is_dir():
            raise StoreError(f"{path} is not a directory: nothing was changed; give another path")
        marked = _marked_id(path)  # first: another process that makes the store writes it last
        if not (path / DATA).exists():
            if marked is not None:
                raise _missing(path)
            if (seen := _filesystem_store(path)) is not None:
                raise another_engine(path, "filesystem", seen)
            if not creating:
                raise no_store(path)
            # A link that is followed by ".." leads where the kernel says.
            make_directories(os.path.join(os.path.realpath(path.parent), path.name))
    except OSError as error:
        raise no_access(error, path) from error


def make_another(folder: str) -> None:
    """Give the copy of a store in a folder an id of its own, durably: it is another store."""
    path = os.path.join(folder, DATA)
    store_id = secrets.token_hex(16).encode()
    with (
        opening,
        lmdb.open(
            path,
            map_size=os.stat(path).st_size + _ROOM,
            subdir=False,
            lock=False,
            mode=FILE_MODE,
            max_dbs=_MAX_DBS,
            lib_version=0,
        ) as env,
    ):
        meta = env.open_db(_DATABASES[2], create=False)
        with env.begin(write=True) as txn:
            txn.put(ID, store_id, db=meta)
    write_temporary(os.path.join(folder, _MARKER), _marking(store_id))


def open_files(
    path: Path,
    *,
    map_size: int,
    durability: Durability,
    max_readers: int,
    creating: bool,
    expected: bytes | None = None,
) -> Files:
    """Open the store, or make it if ``creating``; refuse what is not a sound store.

    The caller has the turn to write. A crash while it is made leaves nothing, or a store that the
    next opening completes.

    Args:
        expected: the id of the store that was open before.
    """
    require_room()  # to shut them
    files: Files | None = None
    try:
        marked = _complete(path, max_readers, creating, expected)
        with opening:
            files = _open(path, map_size, durability, max_readers)
            if expected not in (None, files.id):
                raise another_store(path)
            if marked is None:
                # Only from here on is a missing file a loss.
                fsync_directory(str(path))
                replace_file(str(path / _MARKER), _marking(files.id))
            elif marked != files.id:
                raise CorruptStoreError(
                    f"{path / DATA} is another store's than {_MARKER} beside it tells: nothing was"
                    f" changed; restore both from one backup, or remove {_MARKER} to go on with"
                    f" this {DATA}"
                )
        return files
    except BaseException as error:  # an interrupt too, even as the lock is given back
        if files is not None:
            files.shut()
        if isinstance(error, lmdb.Error):
            raise opening_error(error, path) from error
        if isinstance(error, OSError):
            raise no_access(error, path) from error
        raise


def _open(path: Path, map_size: int, durability: Durability, max_readers: int) -> Files:
    for attempt in range(_ATTEMPTS):
        # Another process may outgrow the map between the steps; next time there is more room.
        with contextlib.suppress(lmdb.MapResizedError):
            return _open_once(path, map_size << attempt, durability, max_readers)
    return _open_once(path, map_size << _ATTEMPTS, durability, max_readers)


def _open_once(path: Path, map_size: int, durability: Durability, max_readers: int) -> Files:
    places = _places(path)
    others = open_descriptors(places.values())
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
        own = open_descriptors(places.values())
        for number in others:
            own.pop(number, None)
        if _places(path) != places:
            raise gone(path)
        env.reader_check()
        _refuse_cut_file(env, path)
        return Files(env, path, Presence(places, own))
    except BaseException:
        env.close()
        raise


def _places(path: Path) -> dict[str, Identity]:
    places = {}
    for name in (DATA, _LOCK):
        place = str(path / name)
        identity = identity_of_file(place)
        if identity is None:
            raise gone(path)
        places[place] = identity
    return places


def _complete(path: Path, max_readers: int, creating: bool, expected: bytes | None) -> bytes | None:
    """Make what is missing of the files; return the id that the marker tells, if there is one."""
    marked = _marked_id(path)
    try:
        size = (path / DATA).stat().st_size
    except FileNotFoundError:
        if expected is not None:
            raise gone(path) from None
        if marked is not None or not creating:
            raise _missing(path) from None
        _make_data_file(path)
    else:
        if size == 0:  # which LMDB would take for a new store
            raise CorruptStoreError(
                f"{path / DATA} is empty: restore it from a backup; to accept that its content is"
                f" lost, remove it and {_MARKER} there"
            )
    _make_lock_file(path, max_readers)
    return marked


def _missing(path: Path) -> StoreError:
    return CorruptStoreError(
        f"{path} had a store, but its {DATA} is missing: restore it from a backup; to"
        f" accept that its content is lost, remove {_MARKER} there"
    )


def _marked_id(path: Path) -> bytes | None:
    try:
        text = read_regular_file(str(path / _MARKER))  # a FIFO must make nobody wait
    except (FileNotFoundError, NotADirectoryError):
        return None
    if (marked := _marker(text)) is None:
        raise CorruptStoreError(
            f"{path / _MARKER} names another format than this kvreplay knows: use the version that"
            " wrote the store; nothing was changed"
        )
    return marked[1]


def _marking(store_id: bytes) -> bytes:
    return b"kvreplay lmdb 2\n%b\n" % store_id


def _filesystem_store(path: Path) -> Path | None:
    """Return what shows that the engine ``filesystem`` has a store here, if it has one.

    That is its own folder beside this one, or an entry: a file in a namespace in a namespace.
    """
    real = os.path.realpath(path)  # as that engine spells it
    shown = [Path(f"{real}.kvreplay", "format")]
    if real.endswith(".kvreplay"):  # its own folder was given instead of its root
        shown.append(Path(real, "format"))
    for beside in shown:
        if beside.exists():
            return beside
    for primary in _folders(path):
        for secondary in _folders(primary):
            with os.scandir(secondary) as found:
                entry = next((e.path for e in found if _legal_name(e.name) and e.is_file()), None)
            if entry is not None:
                return Path(entry)
    return None


def _folders(path: Path) -> list[Path]:
    try:
        with os.scandir(path) as found:
            return [Path(each.path) for each in found if _legal_name(each.name) and each.is_dir()]
    except FileNotFoundError:
        return []


def _make_data_file(path: Path) -> None:
    """Make an empty store under another name, and put it in place as a whole."""
    temporary = _temporary(path / DATA)
    try:
        with (
            opening,
            lmdb.open(
                temporary,
                map_size=64 * 1024,
                subdir=False,
                lock=False,
                mode=FILE_MODE,
                max_dbs=_MAX_DBS,
                lib_version=0,
            ) as env,
        ):
            databases = {name: env.open_db(name) for name in _DATABASES}
            with env.begin(write=True) as txn:
                txn.put(b"format", _FORMAT, db=databases[b"meta"])
                txn.put(ID, secrets.token_hex(16).encode(), db=databases[b"meta"])
        os.rename(temporary, path / DATA)
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
            os.rename(temporary, path / _LOCK)
        finally:
            try:
                os.unlink(temporary)
            except FileNotFoundError:
                pass


def _temporary(path: Path) -> str:
    # No path object: that would call Python code when an interrupted call unlinks the file.
    return f"{path}.{uuid.uuid4().hex}.tmp"


def _refuse_cut_file(env: lmdb.Environment, path: Path) -> None:
    """Refuse a file that lost its end: touching a page beyond it would kill the process.

    A sound file may be shorter than its page count too, by pages that were freed before they
    were ever written. Only a walk through all pages shows which of both it is.
    """
    pages = env.info()["last_pgno"] + 1
    if (path / DATA).stat().st_size < pages * env.stat()["psize"]:
        with env.begin(write=True):  # no other process writes meanwhile
            problems = verify(str(path))  # type: ignore[no-untyped-call]  # the driver's
        if problems:
            raise CorruptStoreError(
                f"{path / DATA} is cut short: nothing was changed; restore it from a backup"
            )


def _open_databases(env: lmdb.Environment, path: Path) -> list[lmdb._Database]:
    """Open entries, expiry, meta and created, in this order."""
    with env.begin() as txn, txn.cursor() as cursor:
        names = set(cursor.iternext(keys=True, values=False))
    if names == _FIRST_DATABASES:
        raise _another_format(path)
    if names != set(_DATABASES):
        raise CorruptStoreError(
            f"{path} is an LMDB environment of another program: nothing was changed; give kvreplay"
            " a directory of its own"
        )
    # Without a transaction of ours, LMDB's driver begins one and keeps the interpreter's lock.
    with env.begin(write=True) as txn:
        databases = [env.open_db(name, txn, create=False) for name in _DATABASES]
        if txn.get(b"format", None, databases[2]) != _FORMAT or not txn.get(ID, None, databases[2]):
            raise _another_format(path)
    return databases


def _another_format(path: Path) -> StoreError:
    return CorruptStoreError(
        f"the LMDB store {path} has another format than this kvreplay knows: nothing was"
        " changed; use the version that wrote it"
    )
