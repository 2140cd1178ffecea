"""What a test needs of the machine: where it is missing the test is skipped, and on CI it fails."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

UNSHARE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")


def needs_root() -> None:
    if os.geteuid() != 0:
        missing("needs root")


def needs_disks() -> None:
    """Of the test's own: small ones, and such whose power can be cut."""
    needs_root()
    for tool in ("mkfs.ext4", "mount", "umount", "losetup"):
        if shutil.which(tool) is None:
            missing(f"needs {tool}")
    if not os.path.exists("/dev/loop-control"):
        missing("needs loop devices")


def needs_strace() -> None:
    if not works("strace", "-o", "/dev/null", "true"):
        missing("needs strace, and the right to trace")


def needs_pid_namespaces() -> None:
    if not works(*UNSHARE, "true"):
        missing("needs the right to make a PID namespace")


def works(*command: str) -> bool:
    try:
        return not subprocess.run(command, capture_output=True, check=False).returncode
    except FileNotFoundError:
        return False


def missing(reason: str) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)
