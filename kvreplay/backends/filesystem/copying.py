"""A copy of a file-system store: another store, with each entry's expiry and creation time."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable

from kvreplay.backends.durable_files import fsync_directory
from kvreplay.backends.filesystem.creation import Creations
from kvreplay.backends.filesystem.entries import Entries
from kvreplay.backends.filesystem.expiry import ExpiryIndex
from kvreplay.backends.filesystem.layout import EntryFile
from kvreplay.backends.filesystem.opening import open_folders
from kvreplay.backends.new_place import sibling_of
from kvreplay.store import Entry

__all__ = ["make_copy"]


def make_copy(
    place: str, entries: Iterable[tuple[EntryFile, Entry, int]], *, lock_timeout: float
) -> None:
    """Make a store of these entries, durably, under another name; put it in place as a whole.

    Its folder beside the root comes first: a root alone would look like a store of LDK's.

    Args:
        entries: each with the time of its creation.
    """
    temporary = sibling_of(place)
    sidecar, beside = f"{temporary}.kvreplay", f"{place}.kvreplay"
    try:
        presence = open_folders(
            temporary, sidecar, temporary, create=True, lock_timeout=lock_timeout
        )
        creations = Creations(sidecar, lock_timeout)
        expiry = ExpiryIndex(sidecar, durable=True)
        copy = Entries(temporary, sidecar, presence, expiry, creations, durable=True)
        last = 0
        for entry, found, created in entries:
            copy.put(entry, found.value, found.expires_at, created)
            last = max(last, created)
        creations.go_on_after(last)
        os.rename(sidecar, beside)
        try:
            os.rename(temporary, place)
        except BaseException:
            os.rename(beside, sidecar)
            raise
    finally:
        for left in (temporary, sidecar):
            shutil.rmtree(left, ignore_errors=True)
    fsync_directory(os.path.dirname(place))
