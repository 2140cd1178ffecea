"""A server for all processes of a test session, so that only its first user waits for it.

It runs in a process that belongs to no test. Whoever uses it holds a lock on a file until its own process ends, however
that ends; the server's process waits until it has that lock alone, and then ends.

A module that has such a server calls :func:`shared`, and has a function ``serve()`` that starts the server and calls
:func:`keep`. That runs in the server's process, with the arguments of :func:`shared` in ``sys.argv``.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from support.programs import Program, unmeasured

__all__ = ["keep", "shared"]


def shared(name: str, module: str, *arguments: str) -> Any:
    """Start the server, unless it runs; return what is told of it.

    Args:
        name: which one it is, for all processes of the session.
        module: where its ``serve()`` is.
    """
    # Workers of pytest-xdist have this in common.
    session = os.environ.get("PYTEST_XDIST_TESTRUNUID") or f"{os.getpid()}"
    place = Path(tempfile.gettempdir()) / f"kvreplay-{name}-{session}"
    starting = _locked(place.with_suffix(".starting"), fcntl.LOCK_EX)
    try:
        _locked(place.with_suffix(".users"), fcntl.LOCK_SH)  # until this process ends
        told = place.with_suffix(".json")
        if not told.exists():
            _start(module, *arguments, str(place))
        return json.loads(told.read_text(encoding="utf-8"))
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


def _start(module: str, *arguments: str) -> None:
    code = f"from {module} import serve; serve()"
    tests = str(Path(__file__).parents[1])
    env = {**unmeasured(), "PYTHONPATH": os.pathsep.join([tests, *filter(None, sys.path)])}
    with Program([sys.executable, "-c", code, *arguments], env) as program:
        said = program.hear()
        assert said == "ready", said
        program.join()


# The server's own side.


def keep(server: Any) -> None:
    """Start a server, and keep it until the last who uses it has ended; never return.

    Args:
        server: called without arguments, it returns a context manager, which gives what is told of it.
    """
    place = Path(sys.argv[-1])
    if os.fork():
        os._exit(0)  # whoever started it needs not wait for its end
    os.setsid()
    try:
        starting: AbstractContextManager[Mapping[str, Any]] = server()
        with starting as told:
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
