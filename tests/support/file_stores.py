"""File-system stores from outside: what lies in a store's folder, and beside it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from kvreplay.backends.filesystem import FilesystemStore
from kvreplay.errors import KeyNotFoundError

__all__ = [
    "MINUTE",
    "NEW",
    "OLD",
    "beside",
    "files",
    "fresh",
    "index_files",
    "snapshot",
    "value_of",
]

MINUTE = 60_000  # milliseconds: the width of a bucket of the index
OLD = b"old" * 1000
NEW = b"new" * 2000


def beside(root: Path) -> Path:
    """The folder with all that is not an entry."""
    return root.with_name(root.name + ".kvreplay")


def files(folder: Path) -> dict[str, bytes | str]:
    """Every file and link below a folder: its bytes, or what it points to."""
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_symlink() or not path.is_dir()
    }


def index_files(root: Path) -> set[str]:
    """What the sidecar holds besides its fixed files."""
    sidecar = beside(root)
    return {
        str(path.relative_to(sidecar))
        for top in sidecar.iterdir()
        if top.name not in ("format", "locks")  # 256 locks
        for path in (top, *top.rglob("*"))
        if path.is_symlink() or not path.is_dir()
    }


def snapshot(*folders: Path) -> list[tuple[str, int, int, int]]:
    """What a call that touches nothing leaves equal."""
    return [
        (str(path), found.st_ino, found.st_mtime_ns, found.st_ctime_ns)
        for folder in folders
        for path in [folder, *sorted(folder.rglob("*"))]
        for found in [path.lstat()]
    ]


def fresh(root: Path, durability: Any = "full") -> FilesystemStore:
    """An adopted store without any entry or index, as if it had never had one."""
    for folder in (root, beside(root) / "expiry", beside(root) / "stamps"):
        shutil.rmtree(folder / "p", ignore_errors=True)
    return FilesystemStore(root, durability=durability)


def value_of(store: FilesystemStore) -> bytes | None:
    """The value of the entry ``p/s/k``."""
    try:
        return store.read("p", "s", "k")
    except KeyNotFoundError:
        return None
