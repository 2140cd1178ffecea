"""Copies of a whole environment: as it was at one commit, while others write; and a compacted one.

LMDB never writes to a page that a reader may still need. So a backup begins a read transaction,
which keeps the pages of the last commit, and copies the file. Pages that others write meanwhile are
garbage in the copy. The *meta pages*, which say where a commit's pages are, are read at the
beginning, in this process's turn, and written at the end: what is cut short is no LMDB file. LMDB's
own call that copies would take as long, and no other thread could undo a transaction meanwhile: its
driver waits for all calls that are under way.

If the map grows meanwhile, or a forked child closes what it has inherited, the read transaction is
lost. That is noticed at the end, and the copy is made anew.
"""

from __future__ import annotations

import errno
import os
import struct
import time
from collections.abc import Callable
from functools import partial
from typing import IO, Final

import attrs
import lmdb

from kvreplay.backends.durable_files import FILE_MODE, FOLDER_MODE, fsync_directory
from kvreplay.backends.file_lock import identity_of_descriptor
from kvreplay.backends.lmdb.errors import DATA, gone, in_use, restless, store_error
from kvreplay.backends.lmdb.files import make_another
from kvreplay.backends.lmdb.handle import Handle, Transaction
from kvreplay.store import Compacted

__all__ = ["Pin", "compact", "copy", "pin"]

_COMPACTING: Final = "kvreplay.compacting"
_METAS: Final = 2  # pages; a commit's is that with the number of its id, modulo 2
_NUMBER: Final = struct.Struct("=Q")
_ID_AT: Final = 144  # where a meta page has the id of its commit, on machines of 64 bits
_PART: Final = 4 * 2**20  # bytes that are copied between two flushes
_REST: Final = 1.5  # times as long as that has taken, others have the disk
_ATTEMPTS: Final = 16


@attrs.frozen(repr=False, eq=False)
class Pin:
    """A read transaction that keeps the pages of one commit, and the meta pages at that time."""

    env: lmdb.Environment
    txn: Transaction
    metas: bytes
    pages: int

    def is_kept(self, handle: Handle) -> bool:
        """Whether all pages were kept until now."""
        with handle.gate.own():
            if handle.gate.handle is not self.env:
                return False
            try:
                line = [str(os.getpid()), str(self.txn.id())]
                readers = map(str.split, self.env.readers().splitlines()[1:])
                return line in [[each[0], each[-1]] for each in readers if each]
            except lmdb.Error:
                return False


def pin(handle: Handle) -> Pin:
    """Pin the last commit, for a thread that has the turn: there is no other commit meanwhile.

    Raises:
        StoreUnavailableError: another program commits all the time.
    """
    for _ in range(_ATTEMPTS):
        env = handle.opened()
        try:
            with handle.gate.own():
                if handle.gate.handle is env and (pin := _pinned(handle, env)) is not None:
                    return pin
        except lmdb.Error as error:
            failure = error
        else:
            continue
        handle.repair_or_raise(env, failure)
    raise restless(handle.path)


def _pinned(handle: Handle, env: lmdb.Environment) -> Pin | None:
    """Return a pin, unless another program has just made two commits."""
    txn = env.begin()
    size, last = handle.files.page_size, txn.id()
    with _source(handle) as source:
        _check(source, handle)
        metas = os.pread(source.fileno(), _METAS * size, 0)
    if _NUMBER.unpack_from(metas, last % _METAS * size + _ID_AT) != (last,):
        txn.abort()
        return None
    return Pin(env, txn, metas, env.info()["last_pgno"] + 1)


def copy(handle: Handle, pinned: Callable[[], Pin], folder: str) -> None:
    """Make a folder with a copy of the environment, which is another store.

    Args:
        pinned: returns a new pin.

    Raises:
        StoreUnavailableError: no pin was kept for long enough.
        OSError: it cannot be written.
    """
    os.mkdir(folder, FOLDER_MODE)
    for _ in range(_ATTEMPTS):
        if _copied(handle, pinned(), f"{folder}/{DATA}"):
            break
    else:
        raise restless(handle.path)
    make_another(folder)
    fsync_directory(folder)


def _copied(handle: Handle, pin: Pin, path: str) -> bool:
    try:
        size = handle.files.page_size
        with _source(handle) as source, _new(path) as target:
            _check(source, handle)
            end = min(pin.pages * size, os.fstat(source.fileno()).st_size)
            _send(source.fileno(), target.fileno(), _METAS * size, end)
            if not pin.is_kept(handle):
                return False
            _write_metas(target, pin.metas)
            return True
    finally:
        with handle.gate.own():
            pin.txn.abort()


def _send(source: int, target: int, at: int, end: int) -> None:
    """Copy a part of a file to its place in another one, and flush it."""
    os.lseek(target, at, os.SEEK_SET)
    while at < end:
        # Bit by bit, and then the disk is left to others for a while: they write meanwhile.
        began = time.monotonic()
        sent = os.sendfile(target, source, at, min(_PART, end - at))
        if not sent:
            raise OSError(errno.EIO, os.strerror(errno.EIO))  # somebody has cut it short
        at += sent
        os.fdatasync(target)
        time.sleep(_REST * (time.monotonic() - began))


def _source(handle: Handle) -> IO[bytes]:
    """Open the data file once more: LMDB has no lock on it that closing this could end."""
    return open(handle.path / DATA, "rb", buffering=0)


def _check(source: IO[bytes], handle: Handle) -> None:
    """Look whether it is the file that LMDB has open."""
    if identity_of_descriptor(source.fileno()) != handle.files.identity:
        raise gone(handle.path)


def _new(path: str) -> IO[bytes]:
    return open(path, "w+b", buffering=0, opener=partial(os.open, mode=FILE_MODE))


def _write_metas(target: IO[bytes], metas: bytes | bytearray) -> None:
    os.pwrite(target.fileno(), metas, 0)
    os.fsync(target.fileno())


# Compacting.


def compact(handle: Handle) -> Compacted:
    """Put a file without free pages in the place of the one that is open, for who has the turn.

    Nobody can open the store meanwhile. A crash leaves the old file or the new one.

    Raises:
        StoreUnavailableError: another process has the store open; nothing was changed.
    """
    handle.refuse_to_wait()
    done = list[Compacted]()
    while not done:
        handle.opened()
        try:
            handle.replace(partial(_compacted, handle, done))
        except lmdb.Error as error:
            raise store_error(error, handle.path) from error
    return done[0]


def _compacted(handle: Handle, done: list[Compacted], env: lmdb.Environment) -> None:
    if (other := handle.files.presence.other_process()) is not None:
        raise in_use(handle.path, other)
    data, temporary = str(handle.path / DATA), str(handle.path / _COMPACTING)
    before, last = os.stat(data).st_size, env.info()["last_txnid"]
    try:
        with _new(temporary) as target:
            env.copyfd(target.fileno(), compact=True)
            size = handle.files.page_size
            # LMDB calls it the commit 1. The ids go on here: they tell states of an entry apart.
            metas = bytearray(os.pread(target.fileno(), _METAS * size, 0))
            _NUMBER.pack_into(metas, size + _ID_AT, last | 1)
            _write_metas(target, metas)
            after = os.fstat(target.fileno()).st_size
        handle.files.shut()
        os.rename(temporary, data)
        fsync_directory(str(handle.path))
    except BaseException:
        try:
            os.unlink(temporary)
        except FileNotFoundError:
            pass  # it is in place
        raise
    done.append(Compacted(before, after))
