"""What lies where in a file-system store: the folders and files of its entries.

See :mod:`kvreplay.backends.filesystem.store` for the layout as a whole.
"""

from __future__ import annotations

import os
import zlib
from typing import Final

import attrs

from kvreplay.backends._support import check_path
from kvreplay.backends.filesystem.errors import mount_point
from kvreplay.backends.filesystem.locks import STRIPES

__all__ = ["EMPTY", "EntryFile", "folder_name", "namespace_of", "resolve"]

EMPTY: Final = "[empty]"
"""LDK's name for the folder of an empty namespace."""


@attrs.frozen(repr=False)
class EntryFile:
    """The address of an entry, and where its file is below the root.

    Attributes:
        parts: the two folders that LDK's layout puts it in.
        path: its file, relative to the root.
        stripe: the number of the lock that orders its changes; it must never change.
    """

    primary: str
    secondary: str
    key: str
    parts: tuple[str, str] = attrs.field(init=False)
    path: str = attrs.field(init=False)
    stripe: int = attrs.field(init=False)

    @parts.default
    def _parts(self) -> tuple[str, str]:
        return folder_name(self.primary), folder_name(self.secondary)

    @path.default
    def _path(self) -> str:
        return f"{self.parts[0]}/{self.parts[1]}/{self.key}"

    @stripe.default
    def _stripe(self) -> int:
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
        raise mount_point(root)
    return root
