"""A folder of LDK's ``FilesystemStore``, version 1 or 2, as a source.

It is only read: nothing is made beside it, as the engine does that adopts such a folder. LDK stores
no expiry, so the entries have none.

* Version 1: ``root/key``, ``root/P/key``, ``root/P/S/key``. A file's modification time is its last
  write. There is no better sign of the order of creation, so this counts as the order.
* Version 2: ``root/P/S/key``, where ``[empty]`` is the empty namespace. A file's modification time
  is its creation, which an update keeps.
"""

from __future__ import annotations

import bisect
import os
import stat
from collections.abc import Iterator
from typing import Final, Literal

from kvreplay.errors import (
    CorruptStoreError,
    KeyNotFoundError,
    StoreError,
    StoreNotFoundError,
    StoreUnavailableError,
)
from kvreplay.store import (
    Page,
    PageWithValues,
    check_name,
    check_namespace,
    check_page,
    is_name,
    page_token,
    place_of,
)

__all__ = ["LAYOUTS", "Layout", "LdkFiles"]

Layout = Literal["ldk-v1", "ldk-v2"]
LAYOUTS: Final = ("ldk-v1", "ldk-v2")

_EMPTY: Final = "[empty]"
_PASSING: Final = (".tmp", ".trash")  # the ends of names that LDK itself does not list
_Created = tuple[int, str]  # milliseconds, key
_Listing = list[_Created]
_Keys = list[str]


class LdkFiles:
    """A folder of LDK's ``FilesystemStore``, for reading.

    It keeps the names of one namespace in memory at a time. A name that is not LDK's is refused:
    it may be data that would be left behind. So is what cannot be looked at, and a link to nothing:
    neither is an absent entry or an empty namespace.

    Raises:
        StoreNotFoundError: there is no such folder.
        CorruptStoreError: the folder is one of kvreplay, which holds more than LDK's files.
    """

    def __init__(self, root: str, layout: Layout) -> None:
        self._root = root
        self._v1 = layout == "ldk-v1"
        self._listed: tuple[tuple[str, str], _Listing] | None = None
        if self._is_folder(f"{root}.kvreplay"):
            raise CorruptStoreError(
                f"{root} is a store of kvreplay, whose expiry is in {root}.kvreplay; nothing was"
                " read: leave out the option layout"
            )
        if not self._is_folder(root):
            raise StoreNotFoundError(f"there is no folder {root}: nothing was read; check the path")

    def read(self, primary_namespace: str, secondary_namespace: str, key: str) -> bytes:
        """Return the value; see :meth:`kvreplay.KVStoreSync.read`."""
        check_name(primary_namespace, secondary_namespace, key)
        path = os.path.join(self._folder(primary_namespace, secondary_namespace), key)
        try:
            with open(path, "rb", opener=_without_waiting) as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise self._foreign(os.path.dirname(path), key)
                return file.read()
        except FileNotFoundError:
            self._see_that_nothing_is_there(path)
        except OSError as error:
            # In version 1 a key and a namespace may have one name, in two namespaces.
            if not (self._v1 and isinstance(error, IsADirectoryError | NotADirectoryError)):
                raise _unreadable(self._root, error) from error
        raise KeyNotFoundError("there is no such file")

    def list(self, primary_namespace: str, secondary_namespace: str) -> list[str]:
        """Return the namespace's keys; see :meth:`kvreplay.KVStoreSync.list`."""
        check_namespace(primary_namespace, secondary_namespace)
        return [key for _, key in self._by_creation(primary_namespace, secondary_namespace)]

    def list_all_keys(self) -> Iterator[tuple[str, str, str]]:
        """Yield every address, one namespace after the other."""
        for primary, secondary in self._namespaces():
            for key in self.list(primary, secondary):
                yield primary, secondary, key

    def list_paginated(
        self,
        primary_namespace: str,
        secondary_namespace: str,
        page_token: str | None = None,
        *,
        limit: int = 50,
    ) -> Page:
        """Return a page of keys; see :class:`kvreplay.PaginatedKVStore`."""
        found, token = self._page(primary_namespace, secondary_namespace, page_token, limit)
        return Page(found, token)

    def list_paginated_with_values(
        self,
        primary_namespace: str,
        secondary_namespace: str,
        page_token: str | None = None,
        *,
        limit: int = 50,
    ) -> PageWithValues:
        """Return a page of keys and values; see :class:`kvreplay.PaginatedKVStore`."""
        found, token = self._page(primary_namespace, secondary_namespace, page_token, limit)
        namespace = (primary_namespace, secondary_namespace)
        return PageWithValues([(key, self.read(*namespace, key)) for key in found], token)

    def close(self) -> None:
        """Do nothing: no file is kept open."""

    def _page(
        self, primary: str, secondary: str, token: str | None, limit: int
    ) -> tuple[_Keys, str | None]:
        check_page(primary, secondary, limit)
        place = place_of(primary, secondary, token)
        namespace = (primary, secondary)
        if place is None or self._listed is None or self._listed[0] != namespace:
            self._listed = (namespace, self._by_creation(primary, secondary))
        entries = self._listed[1]
        end = len(entries) if place is None else bisect.bisect_left(entries, place)
        start = max(end - limit, 0)
        following = page_token(primary, secondary, entries[start]) if start else None
        return [key for _, key in reversed(entries[start:end])], following

    def _by_creation(self, primary: str, secondary: str) -> _Listing:
        """Return time and key of each entry of a namespace; the oldest comes first."""
        # In version 1 a folder between the files is another namespace.
        folders = self._v1 and not secondary
        return sorted(self._scan(self._folder(primary, secondary), folders=folders, files=True))

    def _namespaces(self) -> Iterator[tuple[str, str]]:
        if self._v1:
            yield "", ""
        for _, primary in self._scan(self._root, folders=True, files=self._v1, wanted="folders"):
            if self._v1:
                yield primary, ""
            folder = os.path.join(self._root, primary)
            own = "" if primary == _EMPTY else primary
            for _, each in self._scan(folder, folders=True, files=self._v1, wanted="folders"):
                yield own, "" if each == _EMPTY else each

    def _folder(self, primary: str, secondary: str) -> str:
        if self._v1:
            return os.path.join(self._root, primary, secondary).rstrip("/")
        return os.path.join(self._root, primary or _EMPTY, secondary or _EMPTY)

    def _scan(self, folder: str, *, folders: bool, files: bool, wanted: str = "files") -> _Listing:
        """Return what a folder has of one kind; refuse what LDK's layout does not have there."""
        try:
            with os.scandir(folder) as entries:
                return self._kept(entries, folder, folders, files, wanted)
        except FileNotFoundError:
            self._see_that_nothing_is_there(folder)
        except OSError as error:
            if not (self._v1 and isinstance(error, NotADirectoryError)):  # as in read()
                raise _unreadable(self._root, error) from error
        return []

    def _see_that_nothing_is_there(self, path: str) -> None:
        """Raise a StoreError if a path that was not found may only be out of reach now."""
        if not self._is_folder(self._root):
            raise StoreUnavailableError(
                f"{self._root} is gone since it was opened; nothing was changed: mount it or move"
                " it back, and begin again"
            )
        while len(path) > len(self._root):
            if os.path.islink(path) and not os.path.exists(path):
                raise self._foreign(*os.path.split(path))
            path = os.path.dirname(path)

    def _is_folder(self, path: str) -> bool:
        try:
            return stat.S_ISDIR(os.stat(path).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise _unreadable(self._root, error) from error

    def _kept(
        self,
        entries: Iterator[os.DirEntry[str]],
        folder: str,
        folders: bool,
        files: bool,
        wanted: str,
    ) -> _Listing:
        found = _Listing()
        for each in entries:
            if each.name.endswith(_PASSING):
                continue
            try:
                status = each.stat()
            except FileNotFoundError:
                if not os.path.islink(each.path):
                    continue  # it was just removed
                raise self._foreign(folder, each.name) from None
            is_folder = stat.S_ISDIR(status.st_mode)
            legal = is_name(each.name) or (is_folder and each.name == _EMPTY and not self._v1)
            is_file = stat.S_ISREG(status.st_mode)
            if not legal or not (folders if is_folder else files and is_file):
                raise self._foreign(folder, each.name)
            if is_folder == (wanted == "folders"):
                found.append((status.st_mtime_ns // 1_000_000, each.name))
        return found

    def _foreign(self, folder: str, name: str) -> StoreError:
        layout, other = ("ldk-v1", "ldk-v2") if self._v1 else ("ldk-v2", "ldk-v1")
        shown = name if len(name) <= 40 else f"{name[:40]}…"
        return CorruptStoreError(
            f"{folder} has {shown!r}, which is none of the files of the layout {layout}; nothing of"
            f" it was changed: move it away, or read the folder with layout={other}"
        )


def _without_waiting(path: str, flags: int) -> int:
    """Open a file for reading; nobody needs to write to it, if it is a pipe."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)


def _unreadable(root: str, error: OSError) -> StoreError:
    return StoreError(
        f"cannot read the files below {root} ({os.strerror(error.errno or 0)}); nothing was changed"
    )
