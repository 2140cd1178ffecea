"""One packer for all threads, in C and in pure Python."""

from __future__ import annotations

import os
import sys

import msgpack
import pytest

from kvreplay._protocol.packing import packer
from support.programs import run_code, unmeasured

RACE = """
import sys, threading
from kvreplay import ReplayKey
from kvreplay._protocol.params import canonical, comparable
from kvreplay._protocol.record import State, decode, encode_fields

sys.setswitchinterval(1e-6)
start = threading.Barrier(4)
wrong = []

def packed(number):
    params = {"amount": number, "hash": bytes([number]) * 32, "text": "x" * number}
    return canonical(params), comparable(params), encode_fields(
        State.COMPLETED, ReplayKey("s", str(number)), bytes([number]) * 40, b"", 1, 2, None
    )

expected = [packed(number) for number in range(4)]

def work(number):
    start.wait()
    for _ in range(300):
        try:
            if packed(number) != expected[number]:
                wrong.append("other bytes")
        except Exception as error:
            wrong.append(type(error).__name__)

threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
for each in threads: each.start()
for each in threads: each.join()
print("wrong:", len(wrong))
"""

BYTES = """
from core.test_record import GOLDEN, RECORDS, encode
from kvreplay._protocol.params import canonical, comparable
assert all(encode(RECORDS[name]).hex() == GOLDEN[name] for name in GOLDEN)
print(canonical({"b": [1, (2.0, None)], "a": b"x", "é": {True: -1, 2**64 - 1: "y"}}).hex())
print(comparable({"b": 1, "a": -(2**63), "c": "x" * 300}).hex()[:40])
print(comparable({"a": (1,)}), comparable({"a": 2**70}))
"""


@pytest.fixture(params=["c", "python"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which msgpack the children of this test have."""
    monkeypatch.setenv("MSGPACK_PUREPYTHON", "1")
    if request.param == "c":
        monkeypatch.delenv("MSGPACK_PUREPYTHON")
    return str(request.param)


def output_of(code: str, kind: str) -> list[str]:
    environ = {**unmeasured(), "PYTHONPATH": os.pathsep.join(sys.path)}
    which = "import msgpack; print(msgpack.Packer.__module__)\n"
    done = run_code(which + code, env=environ)
    assert done.stderr == ""
    module, *lines = done.stdout.splitlines()
    assert (module == "msgpack.fallback") == (kind == "python")
    return lines


def test_threads_do_not_mix_their_bytes(kind: str) -> None:
    assert output_of(RACE, kind) == ["wrong: 0"]


def test_both_kinds_write_the_same_bytes(kind: str) -> None:
    """A node with the C extension and one without may share a store."""
    assert output_of(BYTES, kind) == [
        "83a161c40178a162920192cb4000000000000000c0a2c3a982c3ffcfffffffffffffffffa179",
        "83a161d38000000000000000a16201a163da012c",
        "None None",
    ]


def test_the_packer_in_c_is_shared() -> None:
    if msgpack.Packer.__module__ == "msgpack.fallback":
        pytest.skip("msgpack is pure Python here")
    assert isinstance(packer().__self__, msgpack.Packer)  # type: ignore[attr-defined]
    with pytest.raises(TypeError):
        packer(strict_types=True)((1,))
    assert packer()((1,)) == b"\x91\x01"
