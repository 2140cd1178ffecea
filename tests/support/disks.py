"""Small disks that live in memory."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.needs import complaint_of, missing

__all__ = ["fill_up", "mounted"]


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
