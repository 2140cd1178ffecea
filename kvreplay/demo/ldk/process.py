"""Two LDK nodes, in a process of Node.js that keeps all it has in the stores of this one."""

from __future__ import annotations

import json
import os
import struct
import subprocess
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO, Final

from kvreplay import KeyNotFoundError, MigratableKVStore, StoreError
from kvreplay.ldk import TurnStore

__all__ = ["LDKNodes", "LDKNodesError"]

_LENGTHS: Final = struct.Struct("<II")

OnEvent = Callable[[str, Mapping[str, Any]], None]


class LDKNodesError(Exception):
    """The nodes could not do what they were asked, or their process has ended."""


class LDKNodes:
    """The process, what it is asked, and the calls of its nodes to their stores.

    All is done on one thread: while the nodes do what :meth:`ask` asks, it serves their calls.

    Args:
        program: the folder with ``main.mjs`` and the packages that it needs.
        stores: the nodes' stores, by name. If it is a :class:`~kvreplay.ldk.TurnStore`, a node
            takes turns.
        on_event: is told the node's name and what LDK has told it, inside of the turn.
    """

    def __init__(
        self,
        program: Path,
        stores: Mapping[str, MigratableKVStore],
        *,
        on_event: OnEvent = lambda node, event: None,
    ) -> None:
        self._stores = stores
        self._on_event = on_event
        self._turn: AbstractContextManager[object] | None = None
        read_requests, requests = os.pipe()
        answers, write_answers = os.pipe()
        try:
            self.process = subprocess.Popen(
                ["node", program / "main.mjs", str(read_requests), str(write_answers)],
                pass_fds=(read_requests, write_answers),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # LDK's greeting
            )
        except OSError:
            os.close(requests)
            os.close(answers)
            raise
        finally:
            os.close(read_requests)
            os.close(write_answers)
        self._requests: BinaryIO = os.fdopen(requests, "wb")
        self._answers: BinaryIO = os.fdopen(answers, "rb")

    def __enter__(self) -> LDKNodes:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def ask(self, command: str, **fields: Any) -> Any:
        """Let the nodes do something; return what comes of it. See ``main.mjs``.

        Raises:
            LDKNodesError: it could not be done. If that was inside of a turn, the turn is undone,
                and the nodes end: what they have in memory is ahead of their stores.
        """
        self._send({"command": command, **fields})
        while True:
            header, body = self._receive()
            if "done" in header:
                return header["done"]
            if "failed" in header:
                self._undo()
                raise LDKNodesError(header["failed"])
            try:
                answer = self.serve(header, body)
            except BaseException:  # of on_event, or an interrupt: nobody answers the node any more
                self.kill()
                raise
            self._send(*answer)

    def kill(self) -> None:
        """Send SIGKILL to the nodes."""
        self.process.kill()
        self._end()

    def close(self) -> None:
        """Close the pipes, which ends the nodes; a turn that is open is undone. Twice is once."""
        self._end()

    def _end(self) -> None:
        for pipe in (self._requests, self._answers):
            try:
                pipe.close()
            except BrokenPipeError:
                pass  # the process was faster
        self.process.wait()
        self._undo()

    # Serving the nodes' calls

    def serve(self, header: Mapping[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
        """Do what a node asks of its store, and return the answer's header and body."""
        try:
            return self._answer(header, body)
        except KeyNotFoundError as error:
            return {"error": "NotFound", "message": str(error)}, b""
        except StoreError as error:
            return {"error": "Other", "message": str(error)}, b""

    def _answer(self, header: Mapping[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
        store = self._stores[header["store"]]
        match header["call"]:
            case "read":
                return {}, store.read(header["primary"], header["secondary"], header["key"])
            case "write":
                store.write(header["primary"], header["secondary"], header["key"], body)
            case "remove":
                names = (header["primary"], header["secondary"], header["key"])
                store.remove(*names, lazy=header["lazy"])
            case "list":
                return {"keys": store.list(header["primary"], header["secondary"])}, b""
            case "list_all_keys":
                return {"keys": list(store.list_all_keys())}, b""
            case "begin":
                self._begin(store)
            case "commit":
                self._commit()
            case "event":
                self._on_event(header["store"], header["event"])
            case call:
                raise LDKNodesError(f"the nodes made an unknown call, {call}")
        return {}, b""

    def _begin(self, store: MigratableKVStore) -> None:
        assert isinstance(store, TurnStore)  # else the node was not told to take turns
        turn = store.turn()
        turn.__enter__()
        self._turn = turn

    def _commit(self) -> None:
        turn, self._turn = self._turn, None
        assert turn is not None
        turn.__exit__(None, None, None)

    def _undo(self) -> None:
        turn, self._turn = self._turn, None
        if turn is not None:
            error = LDKNodesError("the nodes' process ended in a turn, which was undone")
            turn.__exit__(type(error), error, None)

    # Frames, as in bridge.mjs

    def _send(self, header: Mapping[str, Any], body: bytes = b"") -> None:
        text = json.dumps(header).encode()
        if self._requests.closed:
            raise self._ended()
        try:
            self._requests.write(_LENGTHS.pack(len(text), len(body)) + text + body)
            self._requests.flush()
        except BrokenPipeError:
            raise self._ended() from None

    def _receive(self) -> tuple[dict[str, Any], bytes]:
        lengths = self._answers.read(_LENGTHS.size)
        if len(lengths) < _LENGTHS.size:
            raise self._ended()
        text_length, body_length = _LENGTHS.unpack(lengths)
        text, body = self._answers.read(text_length), self._answers.read(body_length)
        if len(text) < text_length or len(body) < body_length:
            raise self._ended()
        header: dict[str, Any] = json.loads(text)
        return header, body

    def _ended(self) -> LDKNodesError:
        self._undo()
        return LDKNodesError("the nodes' process has ended")
