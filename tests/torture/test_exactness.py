"""The n-th system call of a read fails, for every kind of call and every n: absence is never the answer.

What is read and what must be true are the kit's own, in :mod:`kvreplay.testing.faults`.
"""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvreplay import open_store
from kvreplay.errors import OutcomeUnknownError, StoreError
from kvreplay.testing.faults import changes_of, fill, is_refusal, looks_at, outcome_of
from support.needs import needs_strace
from torture.faults import Slate, Struck, struck
from torture.test_syscall_faults import AS_THE_FOLDER_RESTS, AS_THE_PAGES_LIE, NEVER_FAILS

# What is injected, and into which calls. None of these errors says that something is absent.
FAULTS = {
    "EIO": "",
    "ESTALE": "openat|newfstatat|lstat|stat|readlink|getdents64|getxattr|fstat|pread64|read",
    "EACCES": "openat|newfstatat|lstat|stat|readlink|getxattr",
    "EMFILE": "openat",
    "ENOMEM": "openat|getdents64|newfstatat",
}


@pytest.fixture
def in_memory(durable: Any) -> Iterator[Any]:
    """An engine whose files are in memory, and for which each strike begins anew."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        durable.path = Path(folder) / "store" / "store"
        yield durable


def looking(engine: Any) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Look at everything, in an order in which no look opens what a later one needs."""
    with engine.open() as store:
        fill(store)
    store = engine.open()  # it has nothing in its own memory yet
    looks = looks_at(store)
    truths = dict[str, Any]()
    with engine.open() as another:
        truths |= {name: outcome_of(look) for name, look in looks_at(another).items()}

    def act() -> dict[str, str]:
        found = {name: outcome_of(look) for name, look in looks.items()}
        return {
            name: "refused" if is_refusal(each) else repr(each)[:100]
            for name, each in found.items()
            if each != truths[name]
        }

    def afterwards() -> str:
        assert {name: outcome_of(look) for name, look in looks.items()} == truths
        return "fine"

    return act, afterwards


def changing(engine: Any) -> tuple[Callable[[], Any], Callable[[], Any]]:
    store = engine.open()
    fill(store)
    changes = changes_of(store)
    said: dict[str, Any] = {}

    def act() -> dict[str, str]:
        said.update((name, outcome_of(change)) for name, (change, _) in changes.items())
        return {name: "refused" for name, each in said.items() if is_refusal(each)}

    def afterwards() -> str:
        for name, (_, happened) in changes.items():
            if not isinstance(said[name], OutcomeUnknownError):
                claimed = False if isinstance(said[name], StoreError) else said[name]
                assert happened() is claimed, name
        store.write("p", "s", "later", b"v")
        return "fine"

    return act, afterwards


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("acting", [looking, changing])
def test_each_system_call_of_a_read_fails(
    in_memory: Any, acting: Any, fault: str, fork: Any, tmp_path: Path, tally: Any, times: int
) -> None:
    needs_strace()

    def strike(call: str = "", n: int = 0) -> Struck:
        shutil.rmtree(in_memory.path.parent, ignore_errors=True)
        in_memory.path.parent.mkdir()

        def prepare(slate: Slate) -> tuple[Callable[[], Any], Callable[[], Any]]:
            return acting(in_memory)

        result = struck(fork, tmp_path / "log", prepare, call, f"error={fault}", n)
        assert result.code is None, f"{call} {n}: it ended with {result.code}"
        assert set(result.said.values()) <= {"refused"}, f"{call} {n}: {result.said}"
        assert result.afterwards == "fine", f"{call} {n}"
        return result

    calls = strike().calls
    if fault == "EIO":
        calls.pop(NEVER_FAILS.get(in_memory.name, ""), None)
    step = max(1, (5 if fault == "EIO" else 13) // times)
    for call in filter(re.compile(FAULTS[fault]).match, calls):
        for n in itertools.count(1, step):
            if not strike(call, n).injected:
                break
            tally(f"system calls of reads and changes that failed with {fault}", in_memory.name)
        often = call in AS_THE_PAGES_LIE | AS_THE_FOLDER_RESTS or n > calls[call] // 2
        assert often, f"{call} was called less often than before"


def opened_while_looks_fail(where: str, looked_at: str, log: Path, when: str) -> tuple[str, int]:
    """Open a store in a process that cannot look at one path; return what it said, and its code."""
    calls = "newfstatat,lstat,stat,fstat,statx"
    command = ["strace", "-f", "-o", str(log), "-P", looked_at, "-e", f"trace={calls}"]
    code = f"""
import kvreplay, resource
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
kvreplay.open_store({where!r}).write('p', 's', 'k', b'v')
"""
    done = subprocess.run(
        [*command, "-e", f"inject={calls}:error=EIO:when={when}", sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "(INJECTED)" in log.read_text()
    return done.stderr, done.returncode


@pytest.mark.parametrize("engine", ["sqlite", "lmdb", "filesystem"])
def test_a_look_that_fails_never_shows_that_no_store_was_there(engine: str, tmp_path: Path) -> None:
    """Else a new, empty store would be made where one was lost."""
    needs_strace()
    path = tmp_path / "store"
    with open_store(f"sqlite:{path}"):
        pass
    path.unlink()
    lock = f"{path}-kvreplay-lock"
    said, code = opened_while_looks_fail(f"{engine}:{path}", lock, tmp_path / "log", "1+")
    assert code == 1
    assert "kvreplay.errors.StoreError" in said
    assert "Input/output error" in said
    assert not path.exists()


def test_a_lock_file_that_cannot_be_looked_at_is_told(tmp_path: Path) -> None:
    needs_strace()
    path = tmp_path / "store"
    with open_store(f"sqlite:{path}"):
        pass
    lock = f"{path}-kvreplay-lock"
    where = f"sqlite:{path}?lock_timeout=0.3"
    said, code = opened_while_looks_fail(where, lock, tmp_path / "log", "2+")
    assert code == 1
    assert "KeyError" not in said
    assert "\nkvreplay.errors.Store" in said
    said, code = opened_while_looks_fail(f"sqlite:{path}", lock, tmp_path / "log", "2")
    assert code == 0, said
    with open_store(f"sqlite:{path}") as store:
        assert store.read("p", "s", "k") == b"v"
