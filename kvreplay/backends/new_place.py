"""A place for a backup: nothing is there, and what is put there appears as a whole."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from kvreplay.backends._support import check_path, is_there
from kvreplay.backends.durable_files import fsync_directory, make_directories, unique
from kvreplay.errors import ConfigError, StoreError, StoreFullError

__all__ = ["free_place", "make_folder", "not_backed_up", "sibling_of", "taken"]


def free_place(path: str | os.PathLike[str], engine: str) -> str:
    """Return the real path of a place where nothing is yet; make the folders above it.

    Raises:
        ConfigError: it is no path, or something is there; nothing was made.
        OSError: the folders above it cannot be made.
    """
    place = Path(check_path(path, engine)).absolute()
    real = os.path.join(os.path.realpath(place.parent), place.name)
    if not place.name or is_there(real):
        raise taken(real)
    make_directories(os.path.dirname(real))
    return real


def sibling_of(place: str) -> str:
    """Return a name beside a place that nobody else has. A backup that is killed leaves it."""
    return f"{place}.{unique()}.tmp"


def taken(place: str) -> ConfigError:
    """Return the error for a place where something is."""
    return ConfigError(
        f"there is something at {place} already, and a backup replaces nothing: nothing was made;"
        " give a path where nothing is"
    )


def not_backed_up(error: OSError) -> StoreError:
    """Say what a failure to write a backup means."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return StoreFullError(
            "there is no room for the backup: none was made, and the store is as it was; free some"
            " space, or give a path on another disk"
        )
    return StoreError(
        f"the backup could not be written ({os.strerror(error.errno or 0)}): none was made, and the"
        " store is as it was; check the path, its permissions and its disk"
    )


def make_folder(path: str | os.PathLike[str], engine: str, fill: Callable[[str], object]) -> None:
    """Let ``fill`` make a folder under another name; put it in place as a whole, durably.

    The folder and all in it are durable when ``fill`` returns. If it fails, the folder is removed.

    Raises:
        ConfigError: the path is none, or something is there.
        StoreError: the folder cannot be put in place.
    """
    try:
        place = free_place(path, engine)
        temporary = sibling_of(place)
        try:
            fill(temporary)
            try:
                os.rename(temporary, place)
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise taken(place) from error
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        fsync_directory(os.path.dirname(place))
    except OSError as error:
        raise not_backed_up(error) from error
