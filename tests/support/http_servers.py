"""Real web servers: a master and two workers, each a process, on 127.0.0.1. And what a client asks of them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import attrs

from support.process_table import children_of, state_of
from support.programs import unmeasured
from support.waiting import PATIENCE, until

__all__ = [
    "COMMANDS",
    "Asking",
    "BrokenOffError",
    "Response",
    "Server",
    "ask",
    "request_to",
    "response_of",
]

WORKERS = 2
_TCP_ESTABLISHED = "01"


def _python(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", *arguments)


_NAMED = ("service:app", f"--workers={WORKERS}")
_UVICORN = _python("uvicorn", *_NAMED, "--host=127.0.0.1", "--port=0", "--no-access-log")
_GUNICORN = _python("gunicorn", *_NAMED, "--bind=127.0.0.1:0", "--graceful-timeout=30")
_THREADS = ("--worker-class=gthread", "--threads=4")
_MODULE = "uvicorn_worker" if find_spec("uvicorn_worker") else "uvicorn.workers"
_OF_UVICORN = f"--worker-class={_MODULE}.UvicornWorker"

COMMANDS: Mapping[str, Sequence[str]] = {
    "uvicorn": _UVICORN,
    "gunicorn": (*_GUNICORN, *_THREADS),
    "gunicorn --preload": (*_GUNICORN, *_THREADS, "--preload"),
    "gunicorn, one request at a time": _GUNICORN,
    "gunicorn with uvicorn's workers": (*_GUNICORN, _OF_UVICORN),
    "gunicorn --preload with uvicorn's workers": (*_GUNICORN, _OF_UVICORN, "--preload"),
}


class Server:
    """A server of two workers that runs the application ``app`` of a module."""

    def __init__(
        self, command: str, module: str, folder: Path, env: Mapping[str, str], *more: str
    ) -> None:
        """Start it, and return when it answers; the other worker may still be on its way.

        Args:
            command: one of ``COMMANDS``.
            module: the source of the module.
            folder: for this module and the server's log; it is the server's working directory.
            env: what the module is told by its environment.
            more: of the command line.
        """
        (folder / "service.py").write_text(module, encoding="utf-8")
        self._log = folder / "log"
        with open(self._log, "wb") as log:
            self._popen = subprocess.Popen(
                [*COMMANDS[command], *more],
                cwd=folder,
                env={
                    **unmeasured(),
                    "PYTHONPATH": os.pathsep.join([str(folder), *filter(None, sys.path)]),
                    "XDG_RUNTIME_DIR": str(folder),  # where gunicorn's own socket comes
                    **env,
                },
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        until(lambda: self._popen.poll() is not None or self._address() is not None)
        address = self._address()
        assert address is not None, self.log()
        self.port = int(address[1])
        until(lambda: self._popen.poll() is not None or self._answers())
        assert self._popen.poll() is None, self.log()

    def _address(self) -> re.Match[str] | None:
        return re.search(r"http://127\.0\.0\.1:(\d+)", self.log())

    def _answers(self) -> bool:
        try:
            return ask(self.port, "GET", "/").status > 0
        except BrokenOffError:
            return False  # no worker listens yet

    def log(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    def workers(self) -> Collection[int]:
        """The processes that live and are, or will be, its workers."""
        found = {pid for pid in children_of(self._popen.pid) if state_of(pid) not in ("Z", "")}
        return {pid for pid in found if "resource_tracker" not in _read(pid, "cmdline")}

    def busy(self) -> Sequence[int]:
        """The workers that have accepted a connection which is still open."""
        assert self._popen.poll() is None, self.log()
        return [pid for pid in self.workers() if _sockets_of(pid) & self._connections().keys()]

    def worker_of(self, connection: HTTPConnection) -> int:
        """Wait until a worker has accepted a connection, and return which one."""
        own_port = connection.sock.getsockname()[1]
        found: list[int] = []

        def is_accepted() -> bool:
            sockets = {each for each, port in self._connections().items() if port == own_port}
            found.extend(pid for pid in self.workers() if _sockets_of(pid) & sockets)
            return bool(found)

        until(is_accepted)
        return found[0]

    def _connections(self) -> Mapping[str, int]:
        """Every accepted connection to it: its socket's inode, and the client's port."""
        lines = Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]
        rows = [line.split() for line in lines]
        return {
            row[9]: int(row[2].rpartition(":")[2], 16)
            for row in rows
            if row[3] == _TCP_ESTABLISHED and row[1].endswith(f":{self.port:04X}")
        }

    def kill(self, worker: int) -> None:
        """Kill a worker. Its master will take note of that, and start another one."""
        os.kill(worker, signal.SIGKILL)

    def until_replaced(self, worker: int) -> None:
        """Wait until the master has taken note of a worker's end."""
        until(lambda: not os.path.exists(f"/proc/{worker}"))

    @contextmanager
    def stopped(self, worker: int) -> Iterator[None]:
        """Let a worker stand still, so that the other one answers."""
        os.kill(worker, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(worker, signal.SIGCONT)

    def ask_to_end(self) -> None:
        """Ask the master, and so the workers, to end in good order: they answer what they run."""
        self._popen.terminate()

    def exit_code(self) -> int:
        """Wait until the master has ended."""
        return self._popen.wait(PATIENCE)

    def end(self) -> None:
        """Kill the master and its workers."""
        try:
            os.killpg(self._popen.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # it has ended in good order
        self._popen.wait()


def _sockets_of(pid: int) -> set[str]:
    """The inodes of its sockets."""
    folder = f"/proc/{pid}/fd"
    found = set()
    try:
        for fd in os.listdir(folder):
            link = os.readlink(f"{folder}/{fd}")
            if link.startswith("socket:["):
                found.add(link[len("socket:[") : -1])
    except OSError:
        pass  # it has ended, or closed one
    return found


def _read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""  # it has ended


class BrokenOffError(Exception):
    """The connection ended, and there was no whole response."""


@attrs.frozen
class Response:
    """What a client got."""

    status: int
    headers: Sequence[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        """The value of a header that is there once; ``None``: it is not there."""
        values = [value for each, value in self.headers if each.lower() == name.lower()]
        assert len(values) < 2, f"{name} is there {len(values)} times"
        return values[0] if values else None

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def replayed(self) -> bool:
        return self.header("Idempotent-Replayed") == "true"

    @property
    def problem(self) -> str | None:
        """The end of the problem's type, such as ``"in-doubt"``; ``None``: it is no problem."""
        if self.header("Content-Type") != "application/problem+json":
            return None
        return str(self.json["type"]).rpartition("#")[2]


def request_to(port: int, method: str, path: str, **request: Any) -> HTTPConnection:
    """Send a request, and return its connection without waiting for the response.

    Args:
        request: ``token``, ``key`` (as it is in the header, quotes included), ``body`` (bytes, or
            what becomes JSON, or an iterable of bytes: then it is chunked) and ``headers``.
    """
    body = request.get("body")
    headers = {"Connection": "close", **request.get("headers", {})}
    if isinstance(body, dict):
        body = json.dumps(body).encode()
        headers["Content-Type"] = "application/json"
    if request.get("token") is not None:
        headers["Authorization"] = f"Bearer {request['token']}"
    if request.get("key") is not None:
        headers["Idempotency-Key"] = request["key"]
    connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    chunked = body is not None and not isinstance(body, bytes)
    try:
        connection.request(method, path, body, headers, encode_chunked=chunked)
    except ConnectionError:
        if connection.sock is None:
            raise
        # It was answered before all of it was read; or its worker is gone, as will be seen.
    return connection


def response_of(connection: HTTPConnection) -> Response:
    """Wait for the response of a connection, and close it.

    Raises:
        BrokenOffError: there is none.
    """
    try:
        got = connection.getresponse()
        return Response(got.status, got.getheaders(), got.read())
    except (ConnectionError, HTTPException) as error:
        raise BrokenOffError(type(error).__name__) from error
    finally:
        connection.close()


def ask(port: int, method: str, path: str, **request: Any) -> Response:
    """Send a request as :func:`request_to` does, and return its response.

    Raises:
        BrokenOffError: there is none.
    """
    try:
        connection = request_to(port, method, path, **request)
    except ConnectionError as error:
        raise BrokenOffError(type(error).__name__) from error
    return response_of(connection)


class Asking(threading.Thread):
    """A request on a thread of its own."""

    def __init__(self, port: int, method: str, path: str, **request: Any) -> None:
        super().__init__()
        self._request = port, method, path, request
        self._end: Response | BrokenOffError | None = None
        self.start()

    def run(self) -> None:
        port, method, path, request = self._request
        try:
            self._end = ask(port, method, path, **request)
        except BrokenOffError as error:
            self._end = error

    def response(self) -> Response:
        """Wait for the response.

        Raises:
            BrokenOffError: there is none.
        """
        self.join(PATIENCE)
        if isinstance(self._end, BrokenOffError):
            raise self._end
        assert self._end is not None, "it is still not answered"
        return self._end
