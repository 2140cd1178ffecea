"""What a folder of a file-system store shows: names, and a page of keys in the order of creation.

It takes no lock. What has no legal name, or is no regular file or no folder, is not shown.
"""

from __future__ import annotations

import heapq
import os
import stat
from typing import Final

from kvreplay.backends.filesystem.layout import EMPTY
from kvreplay.store import is_name
from kvreplay.store.paging import Place

__all__ = ["names", "newest_first", "place_of_file"]

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


def _place_of(each: os.DirEntry[str]) -> Place | None:
    try:
        found = each.stat()
    except OSError:
        return None  # it was just removed, or is a link that leads nowhere
    return place_of_file(found, each.name) if stat.S_ISREG(found.st_mode) else None


def _is_shown(each: os.DirEntry[str], folders: bool) -> bool:
    try:
        return each.is_dir() if folders else each.is_file()
    except OSError:
        return False  # a link that leads nowhere, or in a circle
