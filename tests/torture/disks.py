"""Disks of a test's own: small ones that get full, and such whose power can be cut."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_SHUTDOWN: Final = 0x8004587D  # EXT4_IOC_SHUTDOWN
_WITHOUT_FLUSHING_THE_LOG: Final = struct.pack("I", 2)


class Ext4:
    """An ext4 file system in a file, mounted by a loop device."""

    def __init__(self, folder: Path, size: str, *options: str) -> None:
        self._image = folder / "image"
        self.path = folder / "disk"
        self.path.mkdir()
        run("truncate", "-s", size, self._image)
        run("mkfs.ext4", "-q", "-m", "0", *options, self._image)

    @contextmanager
    def mounted(self) -> Iterator[None]:
        run("mount", "-o", "loop", self._image, self.path)
        try:
            yield
        finally:
            run("umount", self.path)
            self._wait_for_release()

    def _wait_for_release(self) -> None:
        """Wait for mount namespaces that others made meanwhile, and that hold what was mounted.

        As long as one does, mounting the image again would only show the old file system.
        """
        give_up = time.monotonic() + 60
        while run("losetup", "-j", self._image):
            assert time.monotonic() < give_up, "another mount namespace holds the disk"

    def cut_power(self) -> None:
        """Let nothing more reach the disk, not even what its journal has in memory."""
        fd = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, _SHUTDOWN, _WITHOUT_FLUSHING_THE_LOG)
        finally:
            os.close(fd)


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not done.returncode, f"{command}: {done.stderr}"
    return done.stdout
