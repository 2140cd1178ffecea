"""What lies where in a file-system store: its folders, their adoption, and the locks.

See :mod:`kvreplay.backends.filesystem` for the layout as a whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import zlib
from collections.abc import Iterator
from typing import Final

import attrs

from kvreplay.backends.durable_files import (
    FILE_MODE,
    fsync_directory,
    make_directories,
    replace_file,
)
from kvreplay.errors import ConfigError, CorruptStoreError, StoreError

__all__ = [
    "EMPTY",
    "Entry",
    "flocked",
    "folder_name",
    "lock_file",
    "namespace_of",
    "open_folders",
    "resolve",
]

EMPTY: Final = "[empty]"
"""LDK's name for the folder of an empty namespace."""

_STRIPES: Final = 256
_FORMAT_NAME: Final = b"kvreplay filesystem "
_FORMAT: Final = _FORMAT_NAME + b"1\n"
_FOLDERS: Final = ("locks", "tmp", "expiry", "stamps")

_is_temporary = re.compile(r"([0-9a-f]{2})-[0-9a-f]{32}\.tmp").fullmatch
_is_format_temporary = re.compile(r"format\.[0-9a-f]{32}\.tmp").fullmatch


@attrs.frozen(repr=False)
class Entry:
    """The address of an entry, and where its file is below the root."""

    primary: str
    secondary: str
    key: str

    @property
    def parts(self) -> tuple[str, str]:
        """The two folders that LDK's layout puts it in."""
        return folder_name(self.primary), folder_name(self.secondary)

    @property
    def path(self) -> str:
        """Its file, relative to the root."""
        return os.path.join(*self.parts, self.key)

    @property
    def stripe(self) -> int:
        """The lock that orders its changes; the same in every process, for ever."""
        return zlib.crc32(self.path.encode("ascii")) % _STRIPES


def folder_name(namespace: str) -> str:
    """Return LDK's name of a namespace's folder."""
    return namespace or EMPTY


def namespace_of(folder: str) -> str:
    """Return the namespace that a folder is the folder of."""
    return "" if folder == EMPTY else folder


def resolve(path: str | os.PathLike[str]) -> str:
    """Return the one spelling of the path, so that all who use it meet at one sidecar."""
    try:
        spelt = os.fspath(path)
        if not isinstance(spelt, str) or not spelt or "\0" in spelt:
            raise TypeError
    except TypeError:
        raise ConfigError("the path of a filesystem store must be a non-empty str") from None
    root = os.path.realpath(spelt)
    if root == os.path.dirname(root):
        raise _mount_point(root)
    return root


def open_folders(root: str, sidecar: str) -> None:
    """Make a root usable, or refuse it; an ``OSError`` comes out as it is.

    A crash inside leaves a root that the next opening adopts from the beginning.
    """
    if _is_adopted(root, sidecar):
        if not os.path.isdir(root):
            raise CorruptStoreError(
                f"{root} is missing, but {sidecar} says that it was in use: bring it back"
                f" (is its disk mounted?), or remove {sidecar} to begin anew"
            )
        _make_sidecar(sidecar)  # some copying programs leave empty folders out
    else:
        _adopt(root, sidecar)
    _check_one_file_system(root, sidecar)
    _remove_leftovers(sidecar)


def _is_adopted(root: str, sidecar: str) -> bool:
    try:
        with open(os.path.join(sidecar, "format"), "rb") as file:
            content = file.read(100)
    except FileNotFoundError:
        return False
    except (NotADirectoryError, IsADirectoryError) as error:
        raise CorruptStoreError(f"{sidecar} is not a folder made by kvreplay") from error
    if content == _FORMAT:
        return True
    if content.startswith(_FORMAT_NAME):
        raise CorruptStoreError(
            f"{root} was adopted by another version of the format: use the kvreplay that wrote it"
        )
    raise CorruptStoreError(f"{sidecar} is damaged: its file 'format' is not kvreplay's")


def _adopt(root: str, sidecar: str) -> None:
    """Make the folders, and last, when all is in place, the marker ``format``."""
    if os.path.lexists(root) and not os.path.isdir(root):
        raise StoreError(f"{root} is not a folder: move it away, or give the store another path")
    make_directories(root)
    _refuse_v1(root)
    _check_one_file_system(root, os.path.dirname(root))
    _make_sidecar(sidecar)
    # Also if they were there: who made them may have died before its fsync.
    fsync_directory(sidecar)
    fsync_directory(os.path.dirname(root))
    with flocked(lock_file(sidecar, 0)):
        if _is_adopted(root, sidecar):
            return
        for name in filter(_is_format_temporary, os.listdir(sidecar)):
            os.unlink(os.path.join(sidecar, name))
        # Made here, so that a refused or a removing call never needs room on the disk.
        for stripe in range(_STRIPES):
            os.close(_open_lock(lock_file(sidecar, stripe)))
        replace_file(os.path.join(sidecar, "format"), _FORMAT)


def _make_sidecar(sidecar: str) -> None:
    for folder in _FOLDERS:
        make_directories(os.path.join(sidecar, folder))


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


def _check_one_file_system(root: str, neighbour: str) -> None:
    if os.stat(root).st_dev != os.stat(neighbour).st_dev:
        raise _mount_point(root)


def _mount_point(root: str) -> StoreError:
    return StoreError(
        f"{root} is a mount point, and the store needs a folder beside it on the same file"
        f" system: use a folder inside it, such as {os.path.join(root, 'store')}"
    )


def _remove_leftovers(sidecar: str) -> None:
    """Unlink the temporaries of killed writers: those of which nobody holds the lock."""
    folder = os.path.join(sidecar, "tmp")
    for name in os.listdir(folder):
        found = _is_temporary(name)
        if found:
            lock = lock_file(sidecar, int(found[1], 16))
            # Locked: its writer may be alive. Gone: somebody else is opening the store, too.
            with contextlib.suppress(BlockingIOError, FileNotFoundError), flocked(lock, wait=False):
                os.unlink(os.path.join(folder, name))


_held_locks: set[int] = set()


def _close_inherited_locks() -> None:
    # A forked child shares its parent's locks. It must not keep one alive that belonged to
    # a thread of the parent, should the parent die with it.
    for fd in _held_locks:
        os.close(fd)
    _held_locks.clear()


os.register_at_fork(after_in_child=_close_inherited_locks)


@contextlib.contextmanager
def flocked(path: str, *, wait: bool = True, shared: bool = False) -> Iterator[None]:
    """Hold a lock file against all threads and processes; it ends with its holder.

    With ``wait=False`` a lock that is taken raises ``BlockingIOError``; ``shared`` holders
    exclude only those that are not.
    """
    # A file description of its own: so a lock excludes the other threads as well.
    fd = _open_lock(path, os.O_RDONLY if shared else os.O_RDWR)
    _held_locks.add(fd)
    try:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        fcntl.flock(fd, kind | (0 if wait else fcntl.LOCK_NB))
        try:
            yield
        finally:
            # A failure must not deny what was done under the lock; closing releases it, too.
            with contextlib.suppress(OSError):
                fcntl.flock(fd, fcntl.LOCK_UN)  # closing alone would not, if a child has a copy
    finally:
        _held_locks.discard(fd)
        # Likewise; and Linux gives the descriptor back whatever it reports.
        with contextlib.suppress(OSError):
            os.close(fd)


def _open_lock(path: str, access: int = os.O_RDWR) -> int:
    try:
        return os.open(path, access | os.O_CLOEXEC)
    except FileNotFoundError:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
        os.fchmod(fd, FILE_MODE)
        return fd


def lock_file(sidecar: str, stripe: int) -> str:
    """Return the path of a stripe's lock file."""
    return os.path.join(sidecar, "locks", f"{stripe:02x}")
