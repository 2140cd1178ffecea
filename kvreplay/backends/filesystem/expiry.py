"""The file-system store's expiry index: hard links, each of which proves its write.

Beside the store's root, in ``<root>.kvreplay/``::

    expiry/P/<minute>/S/<expires_at>~<key>~<unique>   marker: a hard link to the value's file
    stamps/P/S/<key>                                  symbolic link: names the entry's marker

As long as a marker exists, no other file can get the number of its inode. So if marker and
value are one inode, the entry is still exactly the write that the marker was made for.
Nothing else has to be right. A crash, another program or a copy of the files may leave a
marker without its value: it is *stale*, and is only unlinked when it is due. The stamp is a
short cut to unlink an old marker, and with it the old value's bytes, at once.

``minute`` is ``expires_at // 60000`` in 15 digits, ``expires_at`` is in milliseconds in 19,
so that names sort by time; the longest marker name has 173 characters of the 255 allowed.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Generator
from typing import Final

import attrs

from kvreplay.backends.durable_files import Folders, unique
from kvreplay.backends.filesystem.layout import EntryFile, folder_name, namespace_of
from kvreplay.store import NAME

__all__ = ["DueMarker", "ExpiryIndex", "Mark", "discard"]

_BUCKET_MS: Final = 60_000
# Another marker is in it, perhaps a new one; a concurrent sweep removed it; it is a foreign file.
_KEPT_FOLDER: Final = {errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT, errno.ENOTDIR}
_is_bucket = re.compile(r"[0-9]{15}").fullmatch
_is_marker = re.compile(rf"([0-9]{{19}})~({NAME})~[0-9a-f]{{32}}").fullmatch


@attrs.frozen(repr=False)
class Mark:
    """A marker that is in place, and its stamp, which waits to replace the old stamp."""

    marker: str
    stamp: str

    def undo(self) -> None:
        """Remove both: the value that they were made for will not be put in place."""
        discard(self.stamp)
        discard(self.marker)


@attrs.frozen(repr=False)
class DueMarker:
    """A marker whose time has come, and the entry that it was made for."""

    path: str
    entry: EntryFile


class ExpiryIndex:
    """The markers and stamps of one store; every change needs the entry's lock.

    Args:
        sidecar: the folder beside the root.
        durable: a marker survives a power cut once ``mark`` has returned.
    """

    def __init__(self, sidecar: str, *, durable: bool) -> None:
        self._sidecar = sidecar
        self._expiry = os.path.join(sidecar, "expiry")
        self._stamps = os.path.join(sidecar, "stamps")
        self._expiry_folders = Folders(self._expiry, durable=durable)
        self._stamp_folders = Folders(self._stamps, durable=False)

    def mark(self, entry: EntryFile, value_file: str, expires_at: int, stamp: str) -> Mark:
        """Mark a value file that is not in place yet; if it fails, nothing is left.

        Args:
            stamp: where the stamp waits. It is made now, so that a full disk fails now.
        """
        primary, secondary = entry.parts
        parts = (primary, f"{expires_at // _BUCKET_MS:015d}", secondary)
        name = f"{expires_at:019d}~{entry.key}~{unique()}"
        target = "/".join(("expiry", *parts, name))
        mark = Mark(f"{self._sidecar}/{target}", stamp)
        try:
            self._expiry_folders.place(parts, lambda _: os.link(value_file, mark.marker))
            self._expiry_folders.confirm(parts)
            self._stamp_folders.place(entry.parts, lambda _: os.symlink(target, stamp))
        except BaseException:
            mark.undo()
            raise
        return mark

    def current(self, entry: EntryFile) -> str | None:
        """Return the marker that the entry's stamp names, or ``None``."""
        try:
            target = os.readlink(self._stamp(entry))
        except OSError as error:
            # EINVAL: not a symbolic link but a foreign file; the next stamp replaces it.
            if error.errno in (errno.ENOENT, errno.EINVAL):
                return None
            raise
        top, *parts = target.split("/")
        # What it names will be unlinked, so it must be a marker of exactly this entry.
        if top != "expiry" or len(parts) != 4 or not _is_bucket(parts[1]):
            return None
        found = _is_marker(parts[3])
        if not found or (parts[0], parts[2], found[2]) != (*entry.parts, entry.key):
            return None
        return "/".join((self._expiry, *parts))

    def expiry_of(self, entry: EntryFile, found: os.stat_result, *, locked: bool) -> int | None:
        """Return the expiry of the value with this status, whose file is open; ``None``: never.

        Usually the count of links or the stamp tells. A crash, or a change that is under way, may
        leave the marker without its stamp: then it costs a listing of the minutes.

        Args:
            locked: nobody can change the entry meanwhile. Else the count proves nothing: Linux
                lowers it a moment before the name of a replaced file leads elsewhere.
        """
        if locked and found.st_nlink == 1:
            return None  # so there is no marker
        marker = self.current(entry)
        if marker is None or not _is_file(marker, found):
            marker = self._search(entry, found)
        return None if marker is None else int(os.path.basename(marker)[:19])

    def _search(self, entry: EntryFile, found: os.stat_result) -> str | None:
        primary, secondary = entry.parts
        top = os.path.join(self._expiry, primary)
        for bucket in filter(_is_bucket, _names(top)):
            folder = os.path.join(top, bucket, secondary)
            for name in _names(folder):
                marked = _is_marker(name)
                marker = os.path.join(folder, name)
                if marked and marked[2] == entry.key and _is_file(marker, found):
                    return marker
        return None

    def finish(self, entry: EntryFile, old_marker: str | None, mark: Mark | None) -> None:
        """After the change is durable: put the new stamp in place, unlink the old marker.

        It reports no failure: the change has happened, and a sweep needs no stamp. A marker
        without a stamp only keeps an overwritten value's bytes until it is due.
        """
        if mark is None:
            if discard(self._stamp(entry)):
                self._stamp_folders.remove_empty(entry.parts)
        else:
            try:
                self._stamp_folders.place(
                    entry.parts, lambda _: os.rename(mark.stamp, self._stamp(entry))
                )
            except OSError:
                discard(mark.stamp)
        if old_marker is not None:
            discard(old_marker)

    def forget_stamp(self, due: DueMarker) -> None:
        """Drop the entry's stamp if it names this marker; it reports no failure either."""
        if self.current(due.entry) == due.path:
            discard(self._stamp(due.entry))

    def due(self, primary: str, now: int, walked: list[str]) -> Generator[DueMarker, None, None]:
        """Yield the markers of one primary namespace that are due, minute after minute.

        It reads the names of all minutes, and what lies in those up to ``now``. The caller
        must not unlink a marker while it iterates.

        Args:
            walked: the folders passed are added to it, the inner before the outer, for ``tidy``.
        """
        top = os.path.join(self._expiry, folder_name(primary))
        last = f"{now // _BUCKET_MS:015d}"
        for bucket in sorted(b for b in _names(top) if _is_bucket(b) and b <= last):
            for secondary in _names(os.path.join(top, bucket)):
                folder = os.path.join(top, bucket, secondary)
                for name in _names(folder):
                    found = _is_marker(name)
                    if found and int(found[1]) <= now:
                        entry = EntryFile(primary, namespace_of(secondary), found[2])
                        yield DueMarker(os.path.join(folder, name), entry)
                walked.append(folder)
            walked.append(os.path.join(top, bucket))

    def remove_empty(self, parts: tuple[str, ...]) -> None:
        """Remove the stamps' folder of a namespace if it is empty."""
        self._stamp_folders.remove_empty(parts)

    def tidy(self, markers: list[str], walked: list[str]) -> None:
        """Unlink markers that have done their work, and the folders that are empty then."""
        for marker in markers:
            _unlink(marker)
        for folder in walked:
            try:
                os.rmdir(folder)
            except OSError as error:
                if error.errno not in _KEPT_FOLDER:
                    raise

    def _stamp(self, entry: EntryFile) -> str:
        return f"{self._stamps}/{entry.path}"


def discard(path: str) -> bool:
    """Unlink a file that nothing depends on; say whether it was there and is gone.

    A failure is not reported: it would hide the outcome of the call that this cleans up
    after. What remains is found again, by the next opening or when it is due.
    """
    try:
        os.unlink(path)
    except OSError:
        return False
    return True


def _is_file(path: str, found: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.lstat(path), found)
    except FileNotFoundError:
        return False


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass  # a concurrent sweep or overwrite was faster


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []  # removed by a concurrent sweep
    except NotADirectoryError:
        return []  # a foreign file; the store makes only folders here
