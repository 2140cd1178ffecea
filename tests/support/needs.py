"""What a test needs of the machine. Where that is missing the test is skipped; with ``CI=true`` it fails."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec

import pytest

__all__ = [
    "UNSHARE",
    "complaint_of",
    "missing",
    "needs_disks",
    "needs_h11",
    "needs_namespaces",
    "needs_pid_namespaces",
    "needs_psycopg",
    "needs_root",
    "needs_strace",
    "needs_uwsgi",
]

UNSHARE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
"""Before a command: run it in a PID namespace of its own."""


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
    if complaint_of("strace", "-o", "/dev/null", "true") is not None:
        missing("needs strace, and the right to trace")


def needs_pid_namespaces() -> None:
    needs_namespaces(*UNSHARE)


def needs_namespaces(*unshare: str) -> None:
    """That this command, an ``unshare``, can be run."""
    if complaint_of(*unshare, "true") is not None:
        missing(f"needs the right to run {' '.join(unshare)}")


def needs_h11() -> None:
    if find_spec("h11") is None:
        missing("needs h11: pip install h11")


def needs_psycopg() -> None:
    if find_spec("psycopg") is None or find_spec("psycopg_pool") is None:
        missing("needs psycopg and its pool: pip install psycopg[binary] psycopg-pool")


def needs_uwsgi() -> str:
    """Return the program of this Python's own uWSGI."""
    program = shutil.which("uwsgi", path=os.path.dirname(sys.executable))
    if program is None:
        missing("needs uWSGI in this environment: pip install uwsgi")
    assert program is not None
    return program


def complaint_of(*command: str) -> str | None:
    """Run a command, and return what is wrong with it; ``None``: nothing."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        return str(error)
    return done.stderr.strip() if done.returncode else None


def missing(reason: str) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason, allow_module_level=True)
