"""One PostgreSQL server of a version for all processes of a test session, so that only its first user waits for it.

::

    server = shared_server(18)                    # server.url, server.tcp_url, server.execute(…)
    with new_schema(server) as schema: ...        # of support.postgres: one a test

It runs in a process that belongs to no test. Whoever uses it holds a lock on a file until its own process ends, however
that ends; the server's process waits until it has that lock alone, and then ends. Nobody may kill, stop or
change this server: a test that does so starts a ``Server`` of its own.
"""

from __future__ import annotations

import fcntl
import functools
import json
import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import attrs

from support.postgres import Server, execute, programs_of
from support.programs import Program, unmeasured

__all__ = ["SharedServer", "shared_server"]

_SETTINGS = {"max_connections": 300}


@attrs.frozen
class SharedServer:
    """What a test may know of the server."""

    version: int
    url: str
    tcp_url: str

    def execute(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Run a statement on a connection of its own, outside of any transaction; return its rows."""
        return execute(self.url, statement, *parameters)


@functools.cache
def shared_server(version: int = 18) -> SharedServer:
    """Start it, unless it runs. The test is skipped if this machine has no such version."""
    programs_of(version)
    # Workers of pytest-xdist have this in common.
    session = os.environ.get("PYTEST_XDIST_TESTRUNUID") or f"{os.getpid()}"
    place = Path(tempfile.gettempdir()) / f"kvreplay-postgresql-{version}-{session}"
    starting = _locked(place.with_suffix(".starting"), fcntl.LOCK_EX)
    try:
        _locked(place.with_suffix(".users"), fcntl.LOCK_SH)  # until this process ends
        told = place.with_suffix(".json")
        if not told.exists():
            _start(version, place)
        return SharedServer(**json.loads(told.read_text(encoding="utf-8")))
    finally:
        os.close(starting)


def _locked(path: Path, kind: int) -> int:
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(file, kind)
        try:
            if os.path.samestat(os.fstat(file), os.stat(path)):
                return file
        except FileNotFoundError:
            pass
        os.close(file)  # it was removed while this waited


def _start(version: int, place: Path) -> None:
    code = "from support.shared_postgres import serve; serve()"
    tests = str(Path(__file__).parents[1])
    env = {**unmeasured(), "PYTHONPATH": os.pathsep.join([tests, *filter(None, sys.path)])}
    with Program([sys.executable, "-c", code, str(version), str(place)], env) as program:
        said = program.hear()
        assert said == "ready", said
        program.join()


# The server's own side.


def serve() -> None:
    version, place = int(sys.argv[1]), Path(sys.argv[2])
    if os.fork():
        os._exit(0)  # whoever started it needs not wait for its end
    os.setsid()
    try:
        with Server(version, settings=_SETTINGS) as server:
            told = {"version": version, "url": server.url, "tcp_url": server.tcp_url}
            place.with_suffix(".json").write_text(json.dumps(told), encoding="utf-8")
            print("ready", flush=True)
            os.close(1)
            _locked(place.with_suffix(".users"), fcntl.LOCK_EX)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}".replace("\n", " "), flush=True)
        traceback.print_exc()
    finally:
        for suffix in (".json", ".users", ".starting"):
            place.with_suffix(suffix).unlink(missing_ok=True)
        os._exit(0)
