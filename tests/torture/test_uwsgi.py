"""Real uWSGI as it is by default: a master opens the store, and forks its workers in C."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from support.needs import needs_uwsgi
from support.programs import PROGRAMS
from support.waiting import PATIENCE, until


class Server:
    """A uWSGI master with two workers. ``folder`` is short, since a socket's path must be."""

    def __init__(self, engine: Any, folder: Path, settings: dict[str, Any]) -> None:
        program = needs_uwsgi()
        self._socket = str(folder / "http")
        self._folder = folder
        self._log = open(folder / "log", "w+b")
        self._popen = subprocess.Popen(
            [
                *(program, "--master", "--processes", "2", "--need-app"),
                *("--http-socket", self._socket, "--wsgi-file", str(PROGRAMS / "uwsgi_app.py")),
            ],
            cwd=folder,  # which uWSGI imports from first
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(sys.path),
                "FOLDER": str(folder),
                "STORE": f"{engine.name}:{engine.path}",
                "SETTINGS": json.dumps(settings),
            },
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        until(lambda: self._popen.poll() is not None or b"spawned uWSGI worker 2" in self.log())
        assert self._popen.poll() is None, self.log().decode()

    def log(self) -> bytes:
        return (self._folder / "log").read_bytes()

    def get(self, path: str) -> Any:
        connection = HTTPConnection("localhost")
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(PATIENCE)
        connection.sock.connect(self._socket)
        try:
            connection.request("GET", path)
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()

    def effects(self) -> list[int]:
        """The process of each run of the handler."""
        try:
            return [int(line) for line in (self._folder / "effects").read_text().split()]
        except FileNotFoundError:
            return []

    def hold(self, path: str) -> threading.Thread:
        """Send a request whose handler does not return, and return when it runs."""
        (self._folder / "hold").touch()
        before = len(self.effects())
        request = threading.Thread(target=self._broken_off, args=(path,))
        request.start()
        until(lambda: len(self.effects()) > before)
        return request

    def _broken_off(self, path: str) -> None:
        with pytest.raises(ConnectionError):
            self.get(path)

    def let_go(self) -> None:
        (self._folder / "hold").unlink(missing_ok=True)

    def end(self) -> None:
        os.killpg(self._popen.pid, signal.SIGKILL)  # the master and its workers
        self._popen.wait()
        self._log.close()


@pytest.fixture
def serve(durable: Any) -> Iterator[Any]:
    servers: list[Server] = []
    with tempfile.TemporaryDirectory() as folder:

        def start(**settings: Any) -> Server:
            servers.append(Server(durable, Path(folder), settings))
            return servers[-1]

        yield start
        for server in servers:
            server.let_go()
            server.end()


@pytest.mark.parametrize(
    ("settings", "end", "effects"),
    [({}, "InDoubtError", 1), ({"on_in_doubt": "rerun", "lease": 0.001}, "answered", 2)],
    ids=["raise", "rerun"],
)
def test_a_worker_that_is_killed_in_the_handler(
    serve: Any, settings: dict[str, Any], end: str, effects: int
) -> None:
    """While it lives nobody else runs the key, even if the policy is to rerun and the lease is over."""
    server = serve(**settings)
    request = server.hold("/key")
    (owner,) = server.effects()
    for _ in range(3):
        told = server.get("/key")
        assert told["end"] == "InFlightError"
        assert told["pid"] not in (owner, told["master"])
        assert told["hooks"] == []  # or it was no fork as a C library makes it
    os.kill(owner, signal.SIGKILL)
    request.join(PATIENCE)
    until(lambda: not os.path.exists(f"/proc/{owner}"))  # its master has taken note
    server.let_go()
    assert server.get("/key")["end"] == end
    assert len(server.effects()) == effects
    assert server.get("/key")["end"] == ("replayed" if effects == 2 else end)


def test_every_worker_answers_with_what_the_first_one_stored(serve: Any) -> None:
    server = serve()
    ends = [server.get("/key")["end"] for _ in range(20)]
    assert ends == ["answered"] + ["replayed"] * 19
    assert server.get("/of-nobody")["end"] == "answered"
    assert len(server.effects()) == 2
