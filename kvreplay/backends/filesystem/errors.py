"""What a failure of the file system means to the caller. No message shows a key."""

from __future__ import annotations

import errno
import os
from typing import Final

from kvreplay.errors import CorruptStoreError, StoreError, StoreFullError, StoreUnavailableError

__all__ = ["mount_point", "nameless", "opening_error", "store_error"]

_FULL: Final = {errno.ENOSPC, errno.EDQUOT}
_PASSING: Final = {errno.EMFILE, errno.ENFILE, errno.ENOLCK, errno.ENOMEM, errno.EAGAIN}
_FOREIGN: Final = {errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO}
_DENIED: Final = {errno.EACCES, errno.EPERM, errno.EROFS}


def nameless(error: OSError) -> OSError:
    """Take the paths out of an exception: they end in keys, and it may be logged."""
    del error.filename, error.filename2
    return error


def mount_point(root: str) -> StoreError:
    """Return the error for a root that has no neighbour on its file system."""
    return StoreError(
        f"{root} is a mount point, and the store needs a folder beside it on the same file"
        f" system: use a folder inside it, such as {os.path.join(root, 'store')}"
    )


def opening_error(error: OSError, root: str) -> StoreError:
    """Say what a failure to open a store means."""
    if error.errno in _FOREIGN and not os.path.isdir(os.path.dirname(root)):
        return StoreError(
            f"cannot open the store: {os.path.dirname(root)} is not a folder; nothing was changed:"
            " give the store another path"
        )
    return store_error(error, "open the store", root)


def store_error(error: OSError, doing: str, root: str) -> StoreError:
    """Say what a failure means to the caller, who then raises it from the failure."""
    what = f"cannot {doing}: {os.strerror(error.errno or 0)}; no entry of {root} was changed"
    if error.errno in _FULL:
        return StoreFullError(f"{what}: free some space or raise the quota")
    if error.errno in _PASSING:
        return StoreUnavailableError(f"{what}: this may pass, try again")
    if error.errno in _DENIED:
        return StoreError(
            f"{what}: check that {root}, {root}.kvreplay and all in them belong to this user,"
            " and that the file system is not mounted read-only"
        )
    if error.errno in _FOREIGN:
        return CorruptStoreError(
            f"{what}: something in it, or in {root}.kvreplay, is not the regular file or the folder"
            " that it should be, but for example a FIFO, a device or a link to nothing: look there,"
            " and move it away"
        )
    if error.errno == errno.EXDEV:
        return StoreError(f"{what}: no mount point may lie between {root}.kvreplay and its files")
    return StoreError(what)
