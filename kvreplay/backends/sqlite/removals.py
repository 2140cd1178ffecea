"""Lazy removals in SQLite: those of this process by database, and what tells entries apart.

All stores of a process on one database share what is pending: by the database's device, inode and
random id. A forked child begins with none.

The identity of an entry is its ``sort_order`` and its ``rowid``. ldk-node's table has no room for
more. An update keeps both. So another process could put the same bytes over an entry whose removal
is pending here, and lose them by it. Therefore who removes lazily first makes the file
``PATH-kvreplay-lazy``, and looks at the entry only then. Where that file is, each update gives its
row a new ``rowid``, which takes a little longer. A transaction that began before the file was there
came at the same time as the removal, so it may count as the first of the two. The file stays.
"""

from __future__ import annotations

import os
import stat
from typing import Any, Final

from kvreplay.backends.lazy_removals import LazyRemovals
from kvreplay.backends.sqlite import entries
from kvreplay.store import ForkSafeLock

__all__ = ["announce", "are_announced", "enter", "leave", "unshared"]

_LAZY: Final = "-kvreplay-lazy"
_ANNOUNCED: Final = stat.S_IFREG | 0o600


def are_announced(path: str) -> bool:
    """Whether a process may have lazy removals pending, or has had some."""
    try:
        os.stat(path + _LAZY)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        pass  # it cannot be seen: that some have is the safe answer
    return True


def announce(path: str) -> None:
    """Tell the other processes that this one removes lazily."""
    try:
        os.mknod(path + _LAZY, _ANNOUNCED)
    except FileExistsError:
        pass  # another process was faster


class _Process:
    """The lazy removals of one process, and the members that share them, by their database."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.shared: dict[object, tuple[LazyRemovals, dict[object, None]]] = {}


_process = _Process()
_lock: Final = ForkSafeLock()


def unshared() -> LazyRemovals:
    """Return those of a database that is not open yet."""
    return LazyRemovals(entries.delete_if)


def enter(database: object, member: object) -> LazyRemovals:
    """Share the lazy removals of a database with all its members of this process."""
    global _process
    with _lock:
        if _process.pid != os.getpid():
            _process = _Process()
        empty: dict[object, None] = {}
        removals, members = _process.shared.setdefault(database, (unshared(), empty))
        members[member] = None
        return removals


def leave(database: object, member: object) -> None:
    """End the membership; the last one takes what is pending with it. Again, it does nothing."""
    with _lock:
        shared: Any = _process.shared
        if database in shared:
            shared[database][1].pop(member, None)
            if not shared[database][1]:
                del shared[database]
