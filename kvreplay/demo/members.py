"""Three etcd members of the story's own, on this machine's loopback; each can be killed.

They end with the process that starts them, however that ends: the kernel kills them.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from kvreplay import ConfigError

__all__ = ["MemberFailedError", "Members", "etcd_program"]

_CLIENTS: Final = 12_379  # no port that the kernel hands out, and not etcd's own
_PEERS: Final = 12_380
_DEADLINE: Final = 60.0  # seconds until members have a leader
_ASK: Final = 5.0  # seconds for an answer

# The parent's end is a signal to the process that runs this, and to what it becomes.
_TETHERED: Final = """\
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


class MemberFailedError(Exception):
    """A member did not start, or they found no leader; the message shows the end of its log."""


def etcd_program() -> str:
    """Return the path of etcd's program.

    Raises:
        ConfigError: this machine has none.
    """
    program = shutil.which("etcd")
    if program is None:
        raise ConfigError(
            "--store: etcd: starts a cluster of its own, and there is no etcd on the PATH; nothing"
            " was started: install it (Debian: etcd-server), or name a cluster that runs:"
            " etcd://HOST:2379/PREFIX"
        )
    return os.path.abspath(program)


class _Member:
    """One member, whose data and addresses stay while it is killed and started again."""

    def __init__(self, address: str, place: Path) -> None:
        self.address = address
        self.name = place.name
        self.peers = f"http://{address}:{_PEERS}"
        self.process: subprocess.Popen[bytes] | None = None
        self._place = place
        self._log = place.with_suffix(".log")

    @property
    def runs(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self, program: str, founders: str, cluster: str) -> None:
        """Start it on its data; it answers later."""
        clients = f"http://{self.address}:{_CLIENTS}"
        options = {
            "name": self.name,
            "data-dir": str(self._place),
            "listen-client-urls": clients,
            "advertise-client-urls": clients,
            "listen-peer-urls": self.peers,
            "initial-advertise-peer-urls": self.peers,
            "initial-cluster": founders,
            "initial-cluster-token": cluster,
            "logger": "zap",
            "log-level": "warn",
        }
        command = [program, *(f"--{name}={value}" for name, value in options.items())]
        tethered = [sys.executable, "-I", "-S", "-c", _TETHERED, str(os.getpid())]
        environ = {name: each for name, each in os.environ.items() if not _is_setting(name)}
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [*tethered, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environ,
                start_new_session=True,  # a Ctrl-C is the story's
            )

    def ask(self, path: str, **body: Any) -> dict[str, Any]:
        """Ask it; return what it tells. Any failure is an OSError."""
        connection = http.client.HTTPConnection(self.address, _CLIENTS, timeout=_ASK)
        try:
            connection.request("POST", path, json.dumps(body))
            answer = connection.getresponse()
            told = answer.read()
        except http.client.HTTPException as error:
            raise ConnectionError(f"no answer: {error!r}") from error
        finally:
            connection.close()
        if answer.status != 200:
            raise ConnectionError(f"status {answer.status}")
        found: dict[str, Any] = json.loads(told)
        return found

    def kill(self) -> None:
        """Send SIGKILL, and wait until it is gone."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(_DEADLINE)

    def last_words(self) -> str:
        """Return the end of its log, on new lines and indented."""
        lines = self._log.read_text(errors="replace").splitlines()[-4:]
        return "".join(f"\n      {line[:160]}" for line in lines)


class Members:
    """The members of one cluster. Nothing runs before :meth:`start`; ``close()`` ends all.

    Args:
        place: an empty directory for their data and logs.

    Attributes:
        addresses: of this machine's loopback, one a member.

    Raises:
        ConfigError: this machine has no etcd.
    """

    def __init__(self, place: Path) -> None:
        self._program = etcd_program()
        self.addresses = _free_addresses(3)
        self._members = [
            _Member(address, place / f"member{number}")
            for number, address in enumerate(self.addresses, 1)
        ]
        self._founders = ",".join(f"{member.name}={member.peers}" for member in self._members)
        self._token = secrets.token_hex(8)

    @property
    def url(self) -> str:
        """Where a node finds them; it waits five seconds for an answer."""
        hosts = ",".join(f"{address}:{_CLIENTS}" for address in self.addresses)
        return f"etcd://{hosts}/demo?timeout=5s"

    def start(self) -> None:
        """Start those that do not run, and wait until every member answers for all of them.

        Raises:
            MemberFailedError: that takes too long, or a member ends.
        """
        for member in self._members:
            if not member.runs:
                member.start(self._program, self._founders, self._token)
        for member in self._members:
            _until(partial(_has_leader, member), member)

    def let_first_lead(self) -> None:
        """Make the first member the leader: the URL names it first, so it is what nodes ask.

        Raises:
            MemberFailedError: it does not become the leader.
        """
        first = self._members[0]
        own = first.ask("/v3/maintenance/status")["header"]["member_id"]

        def leads() -> bool:
            if _leader_of(first) == own:
                return True
            for member in self._members:  # only the leader can hand over
                with contextlib.suppress(OSError):
                    member.ask("/v3/maintenance/transfer-leadership", targetID=own)
            return False

        _until(leads, first)

    def kill(self, number: int) -> None:
        """Send SIGKILL to a member: 0 is the first."""
        self._members[number].kill()

    def close(self) -> None:
        """Kill all of them."""
        for member in self._members:
            member.kill()


def _is_setting(variable: str) -> bool:
    """Whether etcd would take an environment variable for one of its settings."""
    return variable.startswith("ETCD_") and variable != "ETCD_UNSUPPORTED_ARCH"


def _leader_of(member: _Member) -> str | None:
    """Return the id of the leader; ``None``: the member answers no read, which needs a majority."""
    with contextlib.suppress(OSError):
        member.ask("/v3/kv/range", key="AA==")
        return str(member.ask("/v3/maintenance/status")["leader"])
    return None


def _has_leader(member: _Member) -> bool:
    return _leader_of(member) is not None


def _until(is_so: Callable[[], bool], member: _Member) -> None:
    deadline = time.monotonic() + _DEADLINE
    while not is_so():
        if not member.runs:
            raise MemberFailedError(f"a member of etcd has ended{member.last_words()}")
        if time.monotonic() > deadline:
            raise MemberFailedError(f"no leader after {_DEADLINE:.0f} s{member.last_words()}")
        time.sleep(0.05)


def _free_addresses(number: int) -> Sequence[str]:
    """Return addresses of the loopback on which nobody listens at those ports."""
    while True:
        net = f"127.{1 + secrets.randbelow(254)}.{secrets.randbelow(256)}"
        addresses = [f"{net}.{last}" for last in range(1, 1 + number)]
        with contextlib.suppress(OSError), contextlib.ExitStack() as bound:
            for place in _listening(addresses):
                bound.enter_context(socket.socket()).bind(place)
            return addresses


def _listening(addresses: Sequence[str]) -> Iterator[tuple[str, int]]:
    for address in addresses:
        for port in (_CLIENTS, _PEERS):
            yield address, port
