"""The program ``etcd``: this machine's own, or Debian's, unpacked for the tests without root and kept for the next run."""

from __future__ import annotations

import fcntl
import functools
import os
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from support.needs import missing

__all__ = ["etcd_program", "refusal_of"]

_OLDEST = (3, 4)  # the first with the v3 API over HTTP as it is now
_CORRUPTING = ((3, 5, 0), (3, 5, 1), (3, 5, 2))  # they lose what they acknowledged, after a crash
_PACKAGE = "etcd-server"


@functools.cache
def etcd_program() -> Path:
    """Return the program; the test is skipped if this machine has none that is fit, and can get none."""
    own = shutil.which("etcd")
    if own is not None and refusal_of(_said(own)) is None:
        return Path(own)
    program = _unpacked()
    refusal = "it could not be unpacked" if program is None else refusal_of(_said(str(program)))
    if program is None or refusal is not None:
        missing(f"needs etcd, and {_PACKAGE} cannot be had: {refusal}")
        raise AssertionError
    return program


def refusal_of(said: str) -> str | None:
    """Return why a program that says this of its version is not fit; ``None``: it is."""
    found = re.search(r"etcd Version: (\d+)\.(\d+)\.(\d+)", said)
    if found is None:
        return "it tells no version"
    version = tuple(int(part) for part in found.groups())
    if version in _CORRUPTING:
        return f"{found[0]} can corrupt its data: use 3.5.3 or a later one"
    if version < _OLDEST:
        return f"{found[0]} is too old: use 3.4 or a later one"
    return None


def _said(program: str) -> str:
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    return done.stdout


def _unpacked() -> Path | None:
    """Debian's program, where every user may run it; ``None``: it cannot be had."""
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        return None
    place = Path(tempfile.gettempdir()) / f"kvreplay-etcd-of-{os.geteuid()}"
    program = place / "unpacked" / "usr" / "bin" / "etcd"
    place.mkdir(mode=0o755, exist_ok=True)
    found = os.lstat(place)
    assert found.st_uid == os.geteuid() and stat.S_ISDIR(found.st_mode), f"{place} is not ours"
    with open(place / "lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # others wait, and find it unpacked
        if not program.exists():
            with tempfile.TemporaryDirectory(prefix="new-", dir=place) as folder:
                if not _unpack(Path(folder)):
                    return None
                (Path(folder) / "unpacked").rename(place / "unpacked")
    return program


def _unpack(folder: Path) -> bool:
    """Unpack the package below a folder."""
    # Without root the machine's own lists cannot be brought up to date, and these can.
    (folder / "lists" / "partial").mkdir(parents=True)
    own_lists = (f"-oDir::State::Lists={folder}/lists", f"-oDir::Cache={folder}")
    for options in ((), own_lists):
        if options:
            _run(["apt-get", *options, "-qq", "update"], folder)
        _run(["apt-get", *options, "-qq", "download", _PACKAGE], folder)
        for package in folder.glob("*.deb"):
            return _run(["dpkg", "-x", str(package), "unpacked"], folder)
    return False


def _run(command: Sequence[str], folder: Path) -> bool:
    done = subprocess.run(command, cwd=folder, capture_output=True, check=False)
    return done.returncode == 0
