"""What lies where in a file-system store: its folders, and how they are adopted.

See :mod:`kvreplay.backends.filesystem.store` for the layout as a whole.
"""

from __future__ import annotations

import contextlib
import os
import re
import zlib
from typing import Final

import attrs

from kvreplay.backends._support import check_path
from kvreplay.backends.durable_files import fsync_directory, make_directories, replace_file
from kvreplay.backends.filesystem.locks import STRIPES, flocked, lock_file, make_lock_files
from kvreplay.errors import CorruptStoreError, StoreError

__all__ = [
    "EMPTY",
    "EntryFile",
    "folder_name",
    "namespace_of",
    "open_folders",
    "resolve",
]

EMPTY: Final = "[empty]"
"""LDK's name for the folder of an empty namespace."""

_FORMAT_NAME: Final = b"kvreplay filesystem "
_FORMAT: Final = _FORMAT_NAME + b"1\n"
_FOLDERS: Final = ("locks", "tmp", "expiry", "stamps")

_is_temporary = re.compile(r"([0-9a-f]{2})-[0-9a-f]{32}\.tmp").fullmatch
_is_format_temporary = re.compile(r"format\.[0-9a-f]{32}\.tmp").fullmatch


@attrs.frozen(repr=False)
class EntryFile:
    """The address of an entry, and where its file is below the root."""

    primary: str
    secondary: str
    key: str

    @property
    def parts(self) -> tuple[str, str]:
        """The two folders that LDK's layout puts it in."""
        return folder_name(self.primary), folder_name(self.secondary)

    @property
    def path(self) -> str:
        """Its file, relative to the root."""
        return os.path.join(*self.parts, self.key)

    @property
    def stripe(self) -> int:
        """The number of the lock that orders its changes; it must never change."""
        return zlib.crc32(self.path.encode("ascii")) % STRIPES


def folder_name(namespace: str) -> str:
    """Return LDK's name of a namespace's folder."""
    return namespace or EMPTY


def namespace_of(folder: str) -> str:
    """Return the namespace that a folder's name stands for."""
    return "" if folder == EMPTY else folder


def resolve(path: str | os.PathLike[str]) -> str:
    """Return the real path, so that every spelling of it leads to one sidecar."""
    root = os.path.realpath(check_path(path, "filesystem"))
    if root == os.path.dirname(root):
        raise _mount_point(root)
    return root


def open_folders(root: str, sidecar: str) -> None:
    """Make a root usable, or refuse it; an ``OSError`` is raised as it is.

    A crash inside leaves a root that the next opening adopts from the beginning.
    """
    if _is_adopted(root, sidecar):
        if not os.path.isdir(root):
            raise CorruptStoreError(
                f"{root} is missing, but {sidecar} says that it was in use: bring it back"
                f" (is its disk mounted?), or remove {sidecar} to begin a new store"
            )
        _make_sidecar(sidecar)  # some copying programs leave empty folders out
    else:
        _adopt(root, sidecar)
    _check_one_file_system(root, sidecar)
    _remove_leftovers(sidecar)


def _is_adopted(root: str, sidecar: str) -> bool:
    try:
        with open(os.path.join(sidecar, "format"), "rb") as file:
            content = file.read(100)
    except FileNotFoundError:
        return False
    except (NotADirectoryError, IsADirectoryError) as error:
        raise CorruptStoreError(
            f"{sidecar} is not a folder made by kvreplay; nothing was changed: move it away, or"
            " give the store another path"
        ) from error
    if content == _FORMAT:
        return True
    if content.startswith(_FORMAT_NAME):
        raise CorruptStoreError(
            f"{root} was adopted by another version of the format; nothing was changed: use the"
            " kvreplay that wrote it"
        )
    raise CorruptStoreError(
        f"{sidecar} is damaged: its file 'format' is not kvreplay's; nothing was changed: restore"
        " it from a backup"
    )


def _adopt(root: str, sidecar: str) -> None:
    """Make the folders, and the file ``format`` last, when all is in place."""
    if os.path.lexists(root) and not os.path.isdir(root):
        raise StoreError(f"{root} is not a folder: move it away, or give the store another path")
    make_directories(root)
    _refuse_v1(root)
    _check_one_file_system(root, os.path.dirname(root))
    _make_sidecar(sidecar)
    # Even if they were there: the process that made them may have died before its fsync.
    fsync_directory(sidecar)
    fsync_directory(os.path.dirname(root))
    with flocked(lock_file(sidecar, 0)):
        if _is_adopted(root, sidecar):
            return
        for name in filter(_is_format_temporary, os.listdir(sidecar)):
            os.unlink(os.path.join(sidecar, name))
        make_lock_files(sidecar)
        replace_file(os.path.join(sidecar, "format"), _FORMAT)


def _make_sidecar(sidecar: str) -> None:
    for folder in _FOLDERS:
        make_directories(os.path.join(sidecar, folder))


def _refuse_v1(root: str) -> None:
    with os.scandir(root) as primaries:
        for primary in primaries:
            if not primary.is_dir():
                break
            with os.scandir(primary) as secondaries:
                if not all(secondary.is_dir() for secondary in secondaries):
                    break
        else:
            return
    raise CorruptStoreError(
        f"{root} has files where only the folders of namespaces should be: this is the v1"
        " layout of LDK's FilesystemStore; migrate it to v2 with LDK first, or use a new folder"
    )


def _check_one_file_system(root: str, neighbour: str) -> None:
    if os.stat(root).st_dev != os.stat(neighbour).st_dev:
        raise _mount_point(root)


def _mount_point(root: str) -> StoreError:
    return StoreError(
        f"{root} is a mount point, and the store needs a folder beside it on the same file"
        f" system: use a folder inside it, such as {os.path.join(root, 'store')}"
    )


def _remove_leftovers(sidecar: str) -> None:
    """Unlink the temporaries of killed writers: those whose lock nobody holds."""
    folder = os.path.join(sidecar, "tmp")
    for name in os.listdir(folder):
        found = _is_temporary(name)
        if found:
            lock = lock_file(sidecar, int(found[1], 16))
            # Locked: its writer may be alive. Gone: another process is opening the store too.
            with contextlib.suppress(BlockingIOError, FileNotFoundError), flocked(lock, wait=False):
                os.unlink(os.path.join(folder, name))
