"""What a failure of the file system means to the caller. No message shows a key."""

from __future__ import annotations

import errno
import os
from typing import Final

from kvreplay.errors import CorruptStoreError, StoreError, StoreFullError, StoreUnavailableError

__all__ = ["nameless", "opening_error", "store_error"]

_FULL: Final = {errno.ENOSPC, errno.EDQUOT}
_PASSING: Final = {errno.EMFILE, errno.ENFILE, errno.ENOLCK, errno.ENOMEM, errno.EAGAIN}
_FOREIGN: Final = {errno.ENOTDIR, errno.EISDIR, errno.ELOOP}
_DENIED: Final = {errno.EACCES, errno.EPERM, errno.EROFS}


def nameless(error: OSError) -> OSError:
    """Take the paths out of an exception: they end in keys, and it may be logged."""
    del error.filename, error.filename2
    return error


def opening_error(error: OSError, root: str) -> StoreError:
    """Say what a failure to open a store means."""
    if error.errno in _FOREIGN:  # not a file of the store: those were checked before
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
        return CorruptStoreError(f"{what}: a file or folder in it is not what it should be")
    if error.errno == errno.EXDEV:
        return StoreError(f"{what}: no mount point may lie between {root}.kvreplay and its files")
    return StoreError(what)
