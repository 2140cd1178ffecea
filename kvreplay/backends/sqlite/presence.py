"""Whether the files at a path are still those that are open: by ``stat`` alone, see connections.

The ``-shm`` file has SQLite's locks. If it is removed while processes use the store, who opens the
store next makes a new one, and knows nothing of the locks in the one before. Both would write to
the log at once. So it is looked at before each commit, as the others are.
"""

from __future__ import annotations

import os
from typing import Final

from kvreplay.errors import StoreUnavailableError

__all__ = ["Presence"]

_FILES: Final = ("", "-wal", "-shm")


class Presence:
    """The files of an open database, as they were when it was opened."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._seen = [_identity_of(path + each) for each in _FILES]

    def check(self) -> None:
        """Raise a StoreUnavailableError unless the files are those that were opened."""
        try:
            if [_identity_of(self._path + each) for each in _FILES] == self._seen:
                return
        except OSError:
            pass
        raise StoreUnavailableError(
            f"{self._path}, or its -wal or -shm file, is no longer the file that was opened:"
            " nothing was changed; mount it or move it back, or close the store and open it again"
        )

    @property
    def others_have_begun_anew(self) -> bool:
        """Whether a log or a shared memory of others is there by now."""
        for each, seen in zip(_FILES[1:], self._seen[1:], strict=True):
            try:
                if _identity_of(self._path + each) != seen:
                    return True
            except OSError:
                pass  # nobody has opened the store without it
        return False


def _identity_of(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino
