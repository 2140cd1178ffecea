"""Disks that live in memory."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from support.needs import complaint_of, missing

__all__ = ["fill_up", "in_memory", "mounted"]

_ROOM: Final = 2 << 30  # bytes; in a container it may have 64 MiB


def in_memory() -> str | None:
    """A folder whose files live in memory, where a flush costs nothing; ``None``: this machine has none.

    It has room for all tests, and lets programs run.
    """
    folder = "/dev/shm"
    usable = os.access(folder, os.W_OK) and not os.statvfs(folder).f_flag & os.ST_NOEXEC
    return folder if usable and shutil.disk_usage(folder).free >= _ROOM else None


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """Mount a tmpfs there, which needs the right to do so."""
    folder.mkdir(exist_ok=True)
    complaint = complaint_of("mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder))
    if complaint is not None:
        missing(f"needs the right to mount a tmpfs: {complaint}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill_up(ballast: Path) -> None:
    """Let a file take every page that its disk has left."""
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass
