"""What is wrong with the expiry of a file-system store's entries.

A marker without its entry is nothing wrong: a sweep removes it when it is due. See ``expiry.py``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager

from kvreplay.backends.durable_files import read_regular_file
from kvreplay.backends.filesystem.entries import Entries
from kvreplay.backends.filesystem.expiry import ExpiryIndex
from kvreplay.backends.filesystem.layout import EntryFile

__all__ = ["has_lost_its_expiry"]


def has_lost_its_expiry(
    entry: EntryFile,
    entries: Entries,
    expiry: ExpiryIndex,
    lock_of: Callable[[EntryFile], AbstractContextManager[None]],
) -> bool:
    """Whether an entry never expires, and a marker of it is another file with the same bytes.

    So it is once a store was copied without its hard links. What looks so is looked at again while
    nobody can change the entry.
    """
    if not _is_marked_elsewhere(entry, entries, expiry):
        return False
    with lock_of(entry):
        found = entries.load_with_expiry(entry, locked=True)
        if found is None or found.expires_at is not None:
            return False
        try:
            marker = expiry.current(entry)
            return marker is not None and read_regular_file(marker) == found.value
        except FileNotFoundError:
            return False


def _is_marked_elsewhere(entry: EntryFile, entries: Entries, expiry: ExpiryIndex) -> bool:
    marker = expiry.current(entry)
    try:
        return marker is not None and not os.path.samefile(marker, entries.file(entry))
    except FileNotFoundError:
        return False
