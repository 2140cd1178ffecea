"""What a test needs of the machine. Where that is missing the test is skipped; with ``CI=true`` it fails."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

__all__ = [
    "UNSHARE",
    "mounted",
    "needs_disks",
    "needs_pid_namespaces",
    "needs_root",
    "needs_strace",
]

UNSHARE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
"""Before a command: run it in a PID namespace of its own."""


def needs_root() -> None:
    if os.geteuid() != 0:
        _missing("needs root")


def needs_disks() -> None:
    """Of the test's own: small ones, and such whose power can be cut."""
    needs_root()
    for tool in ("mkfs.ext4", "mount", "umount", "losetup"):
        if shutil.which(tool) is None:
            _missing(f"needs {tool}")
    if not os.path.exists("/dev/loop-control"):
        _missing("needs loop devices")


def needs_strace() -> None:
    if _complaint("strace", "-o", "/dev/null", "true") is not None:
        _missing("needs strace, and the right to trace")


def needs_pid_namespaces() -> None:
    if _complaint(*UNSHARE, "true") is not None:
        _missing("needs the right to make a PID namespace")


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """Mount a tmpfs there, which needs the right to do so."""
    folder.mkdir(exist_ok=True)
    complaint = _complaint("mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder))
    if complaint is not None:
        _missing(f"needs the right to mount a tmpfs: {complaint}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def _complaint(*command: str) -> str | None:
    """Run a command; ``None``: it went well."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        return str(error)
    return done.stderr.strip() if done.returncode else None


def _missing(reason: str) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)
