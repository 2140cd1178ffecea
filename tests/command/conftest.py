"""A store in which everything is that a command can meet, beside things that are none of its business."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pytest

from kvreplay import IndeterminateError, InDoubtError, Replay, ReplayKey
from kvreplay._protocol.packing import packer
from kvreplay._protocol.record import _CRC_SIZE, _crc32
from kvreplay.cli import main
from kvreplay.store import Entry
from support.engines import SHARED, Engine

PAYLOAD = "a secret of the payload"
PAST = 1_000
STRANGERS = {
    ("ledger", "", "balance_msat"): b"42000",
    ("ledger", "2026", "0001"): b"\x93\x01\x02\x03",  # msgpack, and no record
    ("", "", "manager"): b"LDK's own",
    ("monitors", "", "ab" * 32 + "_1"): b"\x00" * 500,
}


class Declined(Exception):
    """A final failure."""


@attrs.define
class Place:
    """The store, and what a command says of it."""

    engine: Engine
    capsys: pytest.CaptureFixture[str]
    store: Any

    @property
    def url(self) -> str:
        return self.engine.url

    def run(self, command: str, *arguments: str) -> tuple[int, str, str]:
        """Run a command on the store: its exit status, what it printed, and its complaints."""
        code = main([command, self.url, *arguments])
        said = self.capsys.readouterr()
        assert "Traceback" not in said.err
        return code, said.out, said.err

    def everything(self) -> dict[tuple[str, str, str], Entry]:
        return {each: self.store.read_entry(*each) for each in self.store.list_all_keys()}

    def strangers(self) -> dict[tuple[str, str, str], bytes]:
        return {each: entry.value for each, entry in self.everything().items() if each[0] != "pay"}

    def digest(self, id_: str, operation: str | None = None) -> str:
        return ReplayKey("02peer", id_, operation).digest()


def newer_record() -> bytes:
    """What a later kvreplay may write: it is sound, and its version is 2."""
    packed = packer()((2, "other fields", 0xFFFFFFFF))
    body: bytes = packed[:-_CRC_SIZE]
    return body + b"\xce" + _crc32(body).to_bytes(4, "big")


def fill(engine: Engine, store: Any, fork: Any) -> Any:
    """Put one key of each kind there; return the child that still runs one."""
    replay = Replay(store, "pay", ttl=3600, store_errors=(Declined,))
    for n in range(3):
        replay.execute(("02peer", f"answered-{n}"), {"msat": n}, lambda: PAYLOAD)
    replay.execute(("03other\x1b[31m", "answered"), {}, lambda: {"raw": b"\x00\x01"})
    replay.idempotent(key=lambda: ("02peer", "answered-0"), operation="refund")(lambda: PAYLOAD)()
    with pytest.raises(Declined):
        replay.execute(("02peer", "failed"), {}, _decline)
    replay.execute(("02peer", "expired"), {"secret": PAYLOAD}, lambda: PAYLOAD, ttl=0)
    with pytest.raises(InDoubtError):
        replay.execute(("02peer", "ended"), {}, _leave_in_doubt)
    for address, value in STRANGERS.items():
        store.write(*address, value)
    fork(lambda: _die(engine)).wait()
    runs = fork(lambda: _stay(engine))
    assert runs.wait_for_stop() is None
    os.kill(runs.pid, signal.SIGCONT)
    return runs


def _decline() -> None:
    raise Declined("a limit")


def _leave_in_doubt() -> None:
    raise IndeterminateError("the bank did not answer")


def _die(engine: Engine) -> None:
    replay = Replay(engine.open(), "pay", ttl=3600, lease=0.001, renew=False)
    replay.execute(("02peer", "dead"), {}, lambda: os.kill(os.getpid(), signal.SIGKILL))


def _stay(engine: Engine) -> None:
    def handler() -> None:
        os.kill(os.getpid(), signal.SIGSTOP)
        signal.pause()

    Replay(engine.open(), "pay", ttl=3600, lease=3600).execute(("02peer", "running"), {}, handler)


@pytest.fixture(params=SHARED)
def place(
    request: pytest.FixtureRequest,
    new_engine: Callable[[str], Engine],
    capsys: pytest.CaptureFixture[str],
    fork: Any,
) -> Iterator[Place]:
    engine = new_engine(request.param)
    child = fill(engine, engine.open(), fork)
    capsys.readouterr()
    yield Place(engine, capsys, engine.open())
    child.kill()
