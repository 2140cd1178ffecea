"""What a folder of a file-system store shows: names, and a page of keys in the order of creation.

It takes no lock. What cannot be an entry is not shown: what has no legal name, or is no regular
file or no folder. Of what may be one and cannot be looked at now, an ``OSError`` tells. So it does
of a link that leads nowhere: links are followed, and a disk may not be mounted.
"""

from __future__ import annotations

import errno
import heapq
import os
import stat
from typing import Final

from kvreplay.backends.filesystem.layout import EMPTY
from kvreplay.store import is_name
from kvreplay.store.paging import Place

__all__ = ["names", "newest_first", "place_of_file", "refuse_lost_folder"]

_LATEST: Final = 2**63 - 1


def names(folder: str, *, folders: bool) -> set[str]:
    """Return the names of the namespaces, or of the entries, in a folder."""
    # A set: some file systems show a name twice if it is replaced during the listing.
    with os.scandir(folder) as found:
        return {
            each.name
            for each in found
            if (is_name(each.name) or (folders and each.name == EMPTY)) and _is_shown(each, folders)
        }


def newest_first(folder: str, place: Place | None, limit: int) -> list[Place]:
    """Return where the next entries stand, at most ``limit`` of them, in the order of pages.

    It looks at each file of the folder.

    Args:
        place: the one before them; ``None``: begin with the newest.
    """
    with os.scandir(folder) as found:
        places = {_place_of(each) for each in found if is_name(each.name)}
    return heapq.nlargest(
        limit, (each for each in places if each and (place is None or each < place))
    )


def place_of_file(file: os.stat_result, key: str) -> Place:
    """Return where an entry stands in the order of creation.

    Only other programs make two with one time. They are in the order of their keys, as in LDK.
    """
    return min(max(file.st_mtime_ns, 0), _LATEST), key


def refuse_lost_folder(root: str, parts: tuple[str, ...]) -> None:
    """Raise an ``OSError`` if one of these folders is a link that leads nowhere.

    Nobody knows then which entries are absent.
    """
    path = root
    try:
        os.stat("/".join((root, *parts)))  # nearly always it is there, or the entry's folder is not
    except FileNotFoundError:
        for part in parts:
            path = f"{path}/{part}"
            _refuse_lost(path)


def _place_of(each: os.DirEntry[str]) -> Place | None:
    found = _status_of(each)
    if found is None or not stat.S_ISREG(found.st_mode):
        return None
    return place_of_file(found, each.name)


def _is_shown(each: os.DirEntry[str], folders: bool) -> bool:
    if not each.is_symlink():
        return each.is_dir() if folders else each.is_file()
    found = _status_of(each)
    return found is not None and (stat.S_ISDIR if folders else stat.S_ISREG)(found.st_mode)


def _status_of(each: os.DirEntry[str]) -> os.stat_result | None:
    """Return what a name leads to; ``None`` if it was just removed, or leads in a circle."""
    try:
        return each.stat()
    except FileNotFoundError:
        _refuse_lost(each.path)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
    return None


def _refuse_lost(path: str) -> None:
    """Raise an ``OSError`` if a link is there, which leads nowhere as the caller has seen."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if stat.S_ISLNK(found.st_mode):
        raise OSError(errno.ENXIO, os.strerror(errno.ENXIO), path)
