"""Which store lies at a path, and whether it is still the one that was opened.

A store has a random id. It is in the sidecar's file ``format``, and in an extended attribute of the
root, below which nothing of ours may lie. So it is noticed if root or sidecar were deleted, made
anew or replaced by another store's, even if they got the inode numbers of those before. What the
kernel itself renumbers is still the same store: an overlay that copies a folder up, a file system
that is mounted again.

Where the file system has no such attributes, a root is known by its inode number alone. Nobody can
notice that root and sidecar were both set back to an older copy of themselves.
"""

from __future__ import annotations

import errno
import os
import re
import uuid
from typing import Final

from kvreplay.backends.durable_files import read_regular_file, replace_file
from kvreplay.backends.filesystem.errors import nameless
from kvreplay.errors import CorruptStoreError, StoreUnavailableError

__all__ = ["Presence", "has_id", "is_format_temporary", "renew_id", "stored_id"]

_NAME: Final = b"kvreplay filesystem "
_VERSION: Final = b"1 "
_MARK: Final = "user.kvreplay.store"

_is_format = re.compile(rb"kvreplay filesystem 1 ([0-9a-f]{32})\n").fullmatch
is_format_temporary: Final = re.compile(r"format\.[0-9a-f]{32}\.tmp").fullmatch

# The sidecar, or what has its name, is not what kvreplay has made.
_FOREIGN: Final = {errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO}
_UNMARKABLE: Final = {
    *(errno.ENOTSUP, errno.ENOSYS, errno.EPERM, errno.EACCES, errno.EROFS),
    *(errno.ENOSPC, errno.EDQUOT, errno.E2BIG),
}


def stored_id(root: str, sidecar: str) -> bytes | None:
    """Return the id of the store that a sidecar belongs to; ``None`` if there is none yet.

    Raises:
        CorruptStoreError: the sidecar is somebody else's, damaged or of another format.
    """
    try:
        content = read_regular_file(_format(sidecar))
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno not in _FOREIGN:
            raise
        raise CorruptStoreError(
            f"{sidecar} is not a folder made by kvreplay; nothing was changed: move it away, or"
            " give the store another path"
        ) from error
    if found := _is_format(content):
        return found[1]
    if content.startswith(_NAME):
        raise CorruptStoreError(
            f"{root} was adopted by another version of the format; nothing was changed: use the"
            " kvreplay that wrote it"
        )
    raise CorruptStoreError(
        f"{sidecar} is damaged: its file 'format' is not kvreplay's; nothing was changed: restore"
        " it from a backup"
    )


def renew_id(root: str, sidecar: str, *, always: bool) -> None:
    """Give root and sidecar a new id, durably; processes that know the old one refuse then.

    A crash inside leaves two different ids. The next opening gives a new one then.

    Args:
        always: even if the root cannot have an id, so that only the sidecar has one.
    """
    new = uuid.uuid4().hex.encode("ascii")
    if _mark(root, new) or always:
        replace_file(_format(sidecar), _NAME + _VERSION + new + b"\n")


def has_id(root: str, store_id: bytes) -> bool:
    """Whether a root has this id, or is on a file system where it can have none."""
    return _mark_of(root) in (store_id, None)


class Presence:
    """The store at a path, as it was opened.

    Args:
        given: the path of the root as the user has spelt it, in which links may point to another
            store by now.
        store_id: what its ``format`` says.
    """

    def __init__(self, root: str, sidecar: str, given: str, store_id: bytes) -> None:
        self._root = root
        self._given = given
        self._sidecar = sidecar
        self._id = store_id
        self._marked = _mark_of(root) == store_id
        self._root_seen = self._look_at_root()
        self._format_seen = self._look_at_format()
        found = os.stat(root)
        self.identity = ("filesystem", store_id.decode("ascii"), found.st_dev, found.st_ino)

    def check(self) -> None:
        """Raise StoreUnavailableError if another store, or none, is at the path by now."""
        try:
            if self._given != self._root and os.path.realpath(self._given) != self._root:
                raise self._lost_root()
            seen = self._look_at_root()
        except OSError as error:
            raise self._lost_root() from nameless(error)
        if seen != self._root_seen:
            if self._marked or seen[1] != self._root_seen[1]:
                raise self._lost_root()
            self._root_seen = seen  # mounted again: another device, the same inode
        try:
            found = self._look_at_format()
            if found == self._format_seen:
                return
            ours = stored_id(self._root, self._sidecar) == self._id
        except OSError as error:
            raise self._lost_sidecar() from nameless(error)
        if not ours:
            raise self._lost_sidecar()
        self._format_seen = found

    def _look_at_root(self) -> tuple[object, object]:
        if self._marked:
            return os.getxattr(self._root, _MARK), None
        found = os.stat(self._root)
        return found.st_dev, found.st_ino

    def _look_at_format(self) -> tuple[int, int, int]:
        found = os.stat(_format(self._sidecar))
        # A new file may get the number of the one before. It was changed later, though.
        return found.st_dev, found.st_ino, found.st_ctime_ns

    def _lost_root(self) -> StoreUnavailableError:
        return StoreUnavailableError(
            f"{self._given} is no longer the folder that was opened; nothing was done:"
            " mount it or move it back, or open the store again"
        )

    def _lost_sidecar(self) -> StoreUnavailableError:
        return StoreUnavailableError(
            f"{self._sidecar} is gone, or belongs to another store by now; nothing was done:"
            " move it back, or open the store again"
        )


def _format(sidecar: str) -> str:
    return f"{sidecar}/format"


def _mark(root: str, store_id: bytes) -> bool:
    """Write the id to the root; say whether that is possible, with these rights too."""
    try:
        os.setxattr(root, _MARK, store_id)
    except AttributeError:
        return False  # this system has none
    except OSError as error:
        if error.errno not in _UNMARKABLE:
            raise
        return False
    return True  # no fsync: a power cut ends every process that knows the id


def _mark_of(root: str) -> bytes | None:
    """Return the id of a root, nothing if it has none, and ``None`` if it cannot have one."""
    try:
        return os.getxattr(root, _MARK)
    except AttributeError:
        return None  # this system has none
    except OSError as error:
        if error.errno == errno.ENODATA:
            return b""
        if error.errno in _UNMARKABLE:
            return None
        raise
