"""Owners of claims as other processes see them, and what this process has open of an owners file."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

from kvreplay._protocol.record import Claim

__all__ = ["OWNER", "as_seen_by_another", "descriptors"]

OWNER = "import os, sys\nfrom kvreplay._runtime.liveness import *\npath, = sys.argv[1:]\ntoken = new_token()\nprint(token.hex(), begin(token, path), flush=True)\n"
"""A program that owns a claim; what follows says how it goes on."""


def as_seen_by_another(
    claim: Claim, path: str, before: str = "pass", within: Sequence[str] = ()
) -> str:
    """Ask a process that is nobody's owner. It runs ``before``, or is run by a command."""
    code = (
        "import os, sys; from kvreplay._runtime.liveness import *;"
        "from kvreplay._protocol.record import Claim; token, owner, path = sys.argv[1:];"
        f"{before}; print(look_up(Claim(bytes.fromhex(token), 0, owner), path).name)"
    )
    command = [*within, sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(
        [*command, claim.token.hex(), claim.owner, path],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def descriptors(path: str) -> list[int]:
    """This process's open descriptors of a file that is there."""
    there = os.stat(path)
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.path.samestat(os.fstat(int(name)), there):
                found.append(int(name))
        except OSError:
            pass  # of the listing itself
    return found
