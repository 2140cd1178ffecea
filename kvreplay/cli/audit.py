"""One line for each thing that a person changes: in the system's log, and on the standard error."""

from __future__ import annotations

import getpass
import os
import socket
import sys
import syslog
from datetime import UTC, datetime

__all__ = ["audit"]


def audit(what: str) -> None:
    """Tell what was done, when, by whom, and where. It names a key by its digest."""
    line = f"{what} by {_who()} on {socket.gethostname()}"
    syslog.openlog("kvreplay", syslog.LOG_PID, syslog.LOG_AUTH)
    syslog.syslog(syslog.LOG_NOTICE, line)
    print(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} kvreplay: {line}", file=sys.stderr)


def _who() -> str:
    """Return the user, and who has logged in, if sudo or su made one of the other."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    if sudo := os.environ.get("SUDO_USER"):
        return f"{sudo} as {user}"
    return user
