"""Single entries of a file-system store: how one is read, put and deleted.

Who changes an entry holds the lock of its stripe. Who reads it does not have to.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

from kvreplay.backends.durable_files import (
    Folders,
    read_regular_file,
    unique,
    write_temporary,
)
from kvreplay.backends.filesystem.creation import Creations
from kvreplay.backends.filesystem.errors import nameless
from kvreplay.backends.filesystem.expiry import ExpiryIndex, Mark, discard
from kvreplay.backends.filesystem.layout import EntryFile
from kvreplay.backends.filesystem.listing import place_of_file, refuse_lost_folder
from kvreplay.backends.filesystem.presence import Presence
from kvreplay.errors import OutcomeUnknownError, StoreError, StoreUnavailableError
from kvreplay.store import Entry
from kvreplay.store.paging import Place

__all__ = ["Entries"]

_MAX_ATTEMPTS: Final = 64


class Entries:
    """The entries below a root.

    Args:
        durable: a change survives a power cut once its call has returned.
    """

    def __init__(
        self,
        root: str,
        sidecar: str,
        presence: Presence,
        expiry: ExpiryIndex,
        creations: Creations,
        *,
        durable: bool,
    ) -> None:
        self._root = root
        self._sidecar = sidecar
        self._presence = presence
        self._expiry = expiry
        self._creations = creations
        self.folders = Folders(root, durable=durable)

    def load(
        self, entry: EntryFile, look: Callable[[os.stat_result], None] | None = None
    ) -> bytes | None:
        """Return the value; ``None`` if there is no entry, and the root is there."""
        value = self.find(entry, look)
        if value is None:
            self._presence.check()
        return value

    def find(
        self, entry: EntryFile, look: Callable[[os.stat_result], None] | None = None
    ) -> bytes | None:
        """Do the same for a caller who has just looked whether the root is there."""
        try:
            return read_regular_file(self.file(entry), look)
        except FileNotFoundError:
            refuse_lost_folder(self._root, entry.parts)
            return None

    def load_of(self, place: Place, entry: EntryFile) -> bytes | None:
        """Return the value if the entry is still the one that was created then."""
        places = list[Place]()
        value = self.load(entry, lambda found: places.append(place_of_file(found, entry.key)))
        return value if places == [place] else None

    def load_with_expiry(
        self,
        entry: EntryFile,
        *,
        locked: bool,
        look: Callable[[os.stat_result], None] | None = None,
    ) -> Entry | None:
        """Return value and expiry as one change has put them, even while others change it.

        Args:
            locked: the caller has the lock of its stripe, so that nobody does. Then it is quicker.
            look: called with the status of each file that is tried, the right one's last.
        """
        path, seen = self.file(entry), list[int | None]()

        def note(found: os.stat_result) -> None:
            expires_at = self._expiry.expiry_of(entry, found, locked=locked)
            # A put makes a new file. If this one is still in place, its marker was not dropped yet.
            if os.path.samestat(found, os.stat(path)):
                seen.append(expires_at)
            if look is not None:
                look(found)

        for _ in range(_MAX_ATTEMPTS):
            value = self.load(entry, note)
            if value is None:
                return None
            if seen:
                return Entry(value, seen[0])
        raise StoreUnavailableError(
            "the entry was changed again and again while it was read; nothing was done: try again"
        )

    def put(
        self, entry: EntryFile, value: bytes, expires_at: int | None, created: int | None
    ) -> None:
        """Create or replace the entry as a whole.

        Args:
            created: when the entry was created that it replaces; ``None``: there is none.
        """
        target = self.file(entry)
        old_marker = self._expiry.current(entry)
        if created is None:
            created = self._creations.next()
        temporary = self._temporary(entry)
        write_temporary(temporary, value, mtime_ns=created)
        mark: Mark | None = None
        try:
            if expires_at is not None:
                stamp = self._temporary(entry)
                mark = self._expiry.mark(entry, temporary, expires_at, stamp)
            self.folders.place(entry.parts, lambda _: os.rename(temporary, target))
            self._confirm(entry.parts)
            self._expiry.finish(entry, old_marker, mark)
        except BaseException:
            if discard(temporary):
                if mark is not None:
                    mark.undo()
            elif mark is not None:
                # The value is in place. Both markers stay: which of them counts is not known.
                discard(mark.stamp)
            raise

    def delete(self, entry: EntryFile, *, lazy: bool) -> None:
        """Delete the entry if it is there, and its folders if they are empty then.

        Args:
            lazy: a power cut may bring it back.
        """
        old_marker = self._expiry.current(entry)
        try:
            os.unlink(self.file(entry))
        except FileNotFoundError:
            refuse_lost_folder(self._root, entry.parts)
        left = self.folders.remove_empty(entry.parts)
        if not lazy:
            # Even if it was absent: an earlier removal may have been lazy, or cut short.
            self._confirm(left)
        self._expiry.finish(entry, old_marker, None)

    def file(self, entry: EntryFile) -> str:
        """Return the path of the entry's file."""
        return f"{self._root}/{entry.path}"

    def _temporary(self, entry: EntryFile) -> str:
        return f"{self._sidecar}/tmp/{entry.stripe:02x}-{unique()}.tmp"

    def _confirm(self, parts: tuple[str, ...]) -> None:
        """Make durable a change that has happened, and see that it is where the store is."""
        try:
            self.folders.confirm(parts)
        except OSError as error:
            raise OutcomeUnknownError(
                "the change was made, but the file system did not confirm that it will last: read"
                " again before deciding"
            ) from nameless(error)
        try:
            self._presence.check()
        except StoreError as error:
            raise OutcomeUnknownError(
                "the store's folders were moved, removed or replaced while a change was made in"
                " them: read again before deciding"
            ) from error
