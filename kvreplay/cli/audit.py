"""One line for each thing that a person changes: in the system's log, and on the standard error."""

from __future__ import annotations

import os
import pwd
import socket
import syslog
from datetime import UTC, datetime

from kvreplay.cli.output import text
from kvreplay.cli.streams import complain

__all__ = ["audit"]

_USER = os.getuid()  # before root becomes somebody else


def audit(what: str) -> None:
    """Tell what was done, when, by whom, and where. It names a key by its digest.

    What was done is done, so it never fails.
    """
    line = f"{what} by {_who()} on {socket.gethostname()}"
    syslog.openlog("kvreplay", syslog.LOG_PID, syslog.LOG_AUTH)
    syslog.syslog(syslog.LOG_NOTICE, line)
    complain(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} kvreplay: {line}")


def _who() -> str:
    """Return the user who runs this; if that is root by sudo, whom sudo names too."""
    try:
        user = pwd.getpwuid(_USER).pw_name
    except KeyError:
        user = str(_USER)
    sudo = os.environ.get("SUDO_USER")
    return f"{text(sudo)} as {user}" if sudo and _USER == 0 else user
