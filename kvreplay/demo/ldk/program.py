"""The nodes' program: its files, which lie here, and LDK's build for Node.js, which npm brings."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Final

__all__ = ["install", "why_not"]

_HERE: Final = Path(__file__).parent
_FILES: Final = ("*.mjs", "package*.json")


def why_not() -> str | None:
    """Say what this machine lacks to run LDK's nodes; ``None``: nothing."""
    for command in ("node", "npm"):
        if shutil.which(command) is None:
            return f"it needs Node.js 20 or later, and there is no {command} on the PATH"
    version = subprocess.run(["node", "--version"], capture_output=True, text=True, check=False)
    major = version.stdout.removeprefix("v").partition(".")[0]
    if not major.isdecimal() or int(major) < 20:
        return f"it needs Node.js 20 or later, and this is {version.stdout.strip() or 'none'}"
    return None


def install(folder: Path) -> Path:
    """Put the program and the packages that it needs, by ``npm ci``, into a folder; return that.

    Raises:
        subprocess.CalledProcessError: npm has failed; ``stderr`` has its words.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for pattern in _FILES:
        for file in _HERE.glob(pattern):
            shutil.copy(file, folder)
    subprocess.run(
        ["npm", "ci", "--no-audit", "--no-fund"],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    return folder
