"""The client's side: start a node process, ask it, kill it. Every wait has a deadline."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, Self

from kvreplay.demo.rpc import RpcError

__all__ = ["NODE", "Client", "Node", "NodeFailedError", "ask_at_once", "ask_until_answered"]

NODE: Final = (sys.executable, "-m", "kvreplay.demo.node")
"""The command that runs a node."""

_DEADLINE: Final = 30.0  # seconds, for every wait for a node

_ids = itertools.count(1)


class NodeFailedError(Exception):
    """A node did not start, or said something unexpected; the message shows the end of its log."""


class Client:
    """One connection to a node."""

    def __init__(self, port: int) -> None:
        self._http = http.client.HTTPConnection("127.0.0.1", port, timeout=_DEADLINE)

    def __enter__(self) -> Self:
        self._http.connect()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def call(self, method: str, params: object) -> Any:
        """Call a method under a new JSON-RPC id, and return its result.

        Raises:
            RpcError: the node answered with an error.
            OSError, http.client.HTTPException: it did not answer.
        """
        id_ = next(_ids)
        status, content = self.post(
            json.dumps({"jsonrpc": "2.0", "id": id_, "method": method, "params": params}).encode()
        )
        answer = json.loads(content) if status == 200 else None
        if answer is None or answer["jsonrpc"] != "2.0" or answer["id"] != id_:
            raise http.client.HTTPException(f"status {status}: this is not the answer to the call")
        if "error" in answer:
            error = answer["error"]
            raise RpcError(error["code"], error["message"], error.get("data"))
        return answer["result"]

    def post(self, body: bytes) -> tuple[int, bytes]:
        """Post any bytes, and return the HTTP status and the body of the answer."""
        self._http.request("POST", "/", body, {"Content-Type": "application/json"})
        response = self._http.getresponse()
        return response.status, response.read()


class Node:
    """A node process, in a process group of its own; ``close()`` ends it in any case.

    Args:
        config: its config file.
        log: a file; the node's stderr is appended to it.
        environ: variables to add; no other ``KVREPLAY_*`` variable reaches it.

    Attributes:
        port: where it listens.
        lines: what it prints, line by line, then an empty text at the end.

    Raises:
        NodeFailedError: it did not get ready.
    """

    def __init__(
        self,
        config: Path,
        log: Path,
        *,
        options: Sequence[str] = (),
        environ: dict[str, str] | None = None,
        command: Sequence[str] = NODE,
    ) -> None:
        self._log = log
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith("KVREPLAY_")
        }
        with log.open("ab") as stderr:
            self._process = subprocess.Popen(
                [*command, "--config", str(config), "--until-eof", *options],
                stdin=subprocess.PIPE,  # it closes when this process ends, even by a kill
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=inherited | (environ or {}),
                start_new_session=True,
            )
        self.lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self.port = int(self.wait_for("listening ").rpartition(":")[2])
        except BaseException:
            self.close()
            raise

    @property
    def running(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def wait_for(self, start: str) -> str:
        """Return the node's next line, which must start with this text."""
        try:
            line = self.lines.get(timeout=_DEADLINE)
        except queue.Empty:
            line = ""
        if not line.startswith(start):
            instead = f'"{line}"' if line else "nothing"
            raise NodeFailedError(
                f'a node said {instead} instead of "{start.strip()}"{self.last_words()}'
            )
        return line

    def last_words(self) -> str:
        """Return the end of the node's log, on new lines and indented."""
        lines = self._log.read_text(errors="replace").splitlines()[-8:]
        return "".join(f"\n      {line}" for line in lines)

    def call(self, method: str, params: object) -> Any:
        """Call a method on a connection of its own; see :meth:`Client.call`."""
        with Client(self.port) as client:
            return client.call(method, params)

    def kill(self) -> None:
        """Send SIGKILL to the process group, and wait until it is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(_DEADLINE)

    def stop(self) -> int:
        """Send SIGTERM, return the exit code; the node ends its requests and closes its store."""
        self._process.terminate()
        code = self._process.wait(_DEADLINE)
        self.close()
        return code

    def close(self) -> None:
        """End the process if it still runs, and leave nothing open."""
        self.kill()
        self._reader.join(_DEADLINE)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.put(line.decode(errors="replace").rstrip("\n"))
        self.lines.put("")  # the end


def ask_until_answered(port: int, method: str, params: object, again: Collection[int]) -> Any:
    """Ask, and ask again after an error with one of these codes; return the answer.

    Raises:
        RpcError: another error, or one of these when a minute is over.
    """
    deadline = time.monotonic() + 2 * _DEADLINE
    with Client(port) as client:
        while True:
            try:
                return client.call(method, params)
            except RpcError as error:
                if error.code not in again or time.monotonic() > deadline:
                    raise
            time.sleep(0.1)


def ask_at_once(ports: Sequence[int], method: str, params: object, times: int) -> list[Any]:
    """Ask so many times at one moment, over the ports in turn; return the answers, or raise."""
    barrier = threading.Barrier(times)

    def ask(port: int) -> Any:
        try:
            with Client(port) as client:
                barrier.wait(_DEADLINE)
                return client.call(method, params)
        except OSError:
            barrier.abort()  # so the others do not wait for this one
            raise

    with ThreadPoolExecutor(times) as threads:
        asked = [threads.submit(ask, ports[turn % len(ports)]) for turn in range(times)]
    errors = [error for each in asked if (error := each.exception()) is not None]
    for error in sorted(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
        raise error
    return [each.result() for each in asked]
