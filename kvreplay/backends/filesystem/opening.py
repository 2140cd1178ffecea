"""How a file-system store is opened: made, adopted or refused.

A crash inside leaves a root that the next opening adopts from the beginning.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import uuid
from collections.abc import Iterator
from typing import Final

from kvreplay.backends._support import sqlite_store
from kvreplay.backends.durable_files import (
    fsync_directory,
    is_noted,
    make_directories,
    note,
    write_temporary,
)
from kvreplay.backends.filesystem.errors import mount_point
from kvreplay.backends.filesystem.layout import EMPTY
from kvreplay.backends.filesystem.locks import (
    STRIPES,
    flocked,
    lock_file,
    make_lock_files,
    missing_lock_files,
)
from kvreplay.backends.filesystem.presence import (
    Presence,
    has_id,
    is_format_temporary,
    renew_id,
    stored_id,
)
from kvreplay.errors import CorruptStoreError, StoreError, StoreNotFoundError

__all__ = ["open_folders"]

_FOLDERS: Final = ("locks", "tmp", "expiry", "stamps")
_LMDB: Final = ("data.mdb", "kvreplay.format")
# What a file system answers that cannot do something; not what one says that is full or read-only.
_UNABLE: Final = {
    *(errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.EMLINK, errno.EXDEV),
    *(errno.ENOLCK, errno.ENOTTY),
}
_NO_TRIAL: Final = {errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EDQUOT}

_TRIED: Final = "user.kvreplay.tried"

_is_temporary = re.compile(r"([0-9a-f]{2})-[0-9a-f]{32}\.tmp").fullmatch


def open_folders(
    root: str, sidecar: str, given: str, *, create: bool, lock_timeout: float
) -> Presence:
    """Make a root usable, or refuse it; an ``OSError`` is raised as it is.

    Args:
        given: the root as the user has spelt it, which may lead there over links.
        create: make the store if there is none.
        lock_timeout: how long to wait for others that open it, in seconds.
    """
    _refuse_lmdb(root)
    adopted = stored_id(root, sidecar) is not None
    if not adopted:
        _refuse_sqlite(root)
        if not create:
            raise StoreNotFoundError(
                f"there is no store at {root}, and with create=False none was made; if the path is"
                " right and its disk is mounted, create the store: kvreplay init"
                f" filesystem://{root}"
            )
        _make_root(root)
    elif not os.path.isdir(root):
        raise CorruptStoreError(
            f"{root} is missing, but {sidecar} says that it was in use: bring it back"
            f" (is its disk mounted?), or remove {sidecar} to begin a new store"
        )
    for folder in _FOLDERS:  # some copying programs leave empty folders out
        make_directories(os.path.join(sidecar, folder))
    _check_one_file_system(root, sidecar)
    if not adopted:
        # Even if they were there: the process that made them may have died before its fsync.
        fsync_directory(sidecar)
        fsync_directory(os.path.dirname(root))
    _let_no_reader_lock(sidecar)
    store_id = stored_id(root, sidecar)
    if store_id is None or missing_lock_files(sidecar) or not has_id(root, store_id):
        with flocked(os.path.join(sidecar, "locks"), limit=lock_timeout, folder=True):
            store_id = _adopt(root, sidecar)
    else:
        _try(root, sidecar)
    _remove_leftovers(sidecar)
    return Presence(root, sidecar, given, store_id)


def _refuse_lmdb(root: str) -> None:
    for name in _LMDB:
        if os.path.lexists(os.path.join(root, name)):
            raise CorruptStoreError(
                f"{root} holds a store of LMDB: its file {name} is there; nothing was changed:"
                " open it as lmdb:, or give this store another path"
            )


def _refuse_sqlite(root: str) -> None:
    if (shown := sqlite_store(root)) is not None:
        raise CorruptStoreError(
            f"{root} holds a store of SQLite: {shown} is there; nothing was changed: open it as"
            " sqlite:, or give this store another path"
        )


def _make_root(root: str) -> None:
    if os.path.lexists(root) and not os.path.isdir(root):
        raise StoreError(f"{root} is not a folder: move it away, or give the store another path")
    make_directories(root)
    _refuse_v1(root)
    _check_one_file_system(root, os.path.dirname(root))


def _refuse_v1(root: str) -> None:
    with os.scandir(root) as primaries:
        for primary in primaries:
            if not primary.is_dir():
                break
            with os.scandir(primary) as secondaries:
                if not all(secondary.is_dir() for secondary in secondaries):
                    break
        else:
            return
    raise CorruptStoreError(
        f"{root} has files where only the folders of namespaces should be: this is the v1"
        " layout of LDK's FilesystemStore; migrate it to v2 with LDK first, or use a new folder"
    )


def _adopt(root: str, sidecar: str) -> bytes:
    """Complete the sidecar, with the file ``format`` last; return the store's id.

    The caller has locked all others out who open the store. If lock files are missing, or root and
    sidecar have not been together before, the store gets a new id: another process may use what was
    here before.
    """
    store_id = stored_id(root, sidecar)
    missing = missing_lock_files(sidecar)
    if store_id is not None and missing:
        renew_id(root, sidecar, always=True)  # first: whoever holds a lock that is gone refuses now
    if missing:
        make_lock_files(sidecar)
    _try(root, sidecar)
    for name in filter(is_format_temporary, os.listdir(sidecar)):
        os.unlink(os.path.join(sidecar, name))
    if store_id is None:
        renew_id(root, sidecar, always=True)
    elif not missing and not has_id(root, store_id):
        renew_id(root, sidecar, always=False)
    store_id = stored_id(root, sidecar)
    assert store_id is not None
    return store_id


def _check_one_file_system(root: str, neighbour: str) -> None:
    if os.stat(root).st_dev != os.stat(neighbour).st_dev:
        raise mount_point(root)


def _let_no_reader_lock(sidecar: str) -> None:
    """Who may open a file may lock it too. So only who may write there may open the lock files."""
    for name in ("locks", "owners"):
        path = os.path.join(sidecar, name)
        with contextlib.suppress(OSError):  # it is not there yet, or belongs to another user
            mode = stat.S_IMODE(os.lstat(path).st_mode)
            kept = mode & ~sum(bits for bits in (0o070, 0o007) if not mode & bits & 0o222)
            if kept != mode:
                os.chmod(path, kept)


def _try(root: str, sidecar: str) -> None:
    """Try what each change will need, before anybody relies on it.

    What the file system can do is tried once, and remembered. A mount between root and sidecar is
    looked for each time. A disk that is full or read-only says nothing, and can still be read.
    """
    folder = os.path.join(sidecar, "tmp")
    try:
        # There is no such file, so nothing is moved; a mount is noticed before that.
        with (
            _needed("a rename from one to the other", sidecar),
            contextlib.suppress(FileNotFoundError),
        ):
            os.rename(os.path.join(folder, uuid.uuid4().hex), os.path.join(root, EMPTY))
        if not is_noted(folder, _TRIED):
            _try_on_a_free_stripe(sidecar, folder)
            note(folder, _TRIED)
    except OSError as error:
        if error.errno not in _NO_TRIAL:
            raise


def _try_on_a_free_stripe(sidecar: str, folder: str) -> None:
    for stripe in range(STRIPES):
        try:
            with (
                _needed("flock", sidecar),
                flocked(lock_file(sidecar, stripe), wait=False),
            ):
                _try_each_step(sidecar, folder, stripe)
            break
        except BlockingIOError:
            pass  # another one writes: the next one may be free


def _try_each_step(sidecar: str, folder: str, stripe: int) -> None:
    one, two, three = (
        os.path.join(folder, f"{stripe:02x}-{uuid.uuid4().hex}.tmp") for _ in range(3)
    )
    try:
        write_temporary(one, b"")
        with _needed("a hard link", sidecar):
            os.link(one, two)
        with _needed("a symbolic link", sidecar):
            os.symlink(os.path.basename(one), three)
        with _needed("a rename over another file", sidecar):
            os.rename(three, two)
        with _needed("the fsync of a folder", sidecar):
            fsync_directory(folder)
    finally:
        for path in (one, two, three):
            with contextlib.suppress(OSError):
                os.unlink(path)


@contextlib.contextmanager
def _needed(what: str, sidecar: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _UNABLE:
            raise
        raise StoreError(
            f"the file system of {sidecar}, and of the store beside it, cannot do what a store"
            f" needs, which is {what}: {os.strerror(error.errno or 0)}; no entry was changed: use a"
            " local disk with a file system such as ext4, xfs or btrfs, and no mount in between"
        ) from error


def _remove_leftovers(sidecar: str) -> None:
    """Unlink the temporaries of killed writers: those whose lock nobody holds."""
    folder = os.path.join(sidecar, "tmp")
    for name in os.listdir(folder):
        found = _is_temporary(name)
        if found:
            lock = lock_file(sidecar, int(found[1], 16))
            # Locked: its writer may be alive. Gone: another process is opening the store too.
            with contextlib.suppress(BlockingIOError, FileNotFoundError), flocked(lock, wait=False):
                os.unlink(os.path.join(folder, name))
