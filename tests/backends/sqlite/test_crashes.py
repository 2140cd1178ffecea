"""Commits whose flush fails, disks that are full, and processes that are killed."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from kvreplay.backends.sqlite import SQLiteStore
from kvreplay.testing.entries import content
from support.disks import fill_up, mounted
from support.needs import needs_root, needs_strace
from support.sqlite_stores import Process, in_process

pytestmark = pytest.mark.any_python

# The log is flushed once for each of the first two commits, and for those of "new" and after it.
WRITES = """
store = SQLiteStore(path)
store.write("p", "s", "k", b"old")
store.write("p", "s", "k", b"older")
try:
    store.write("p", "s", "k", b"new")
    say("written")
except StoreError as error:
    say(type(error).__name__)
say(store.read("p", "s", "k").decode())
"""
DIE = "os.kill(os.getpid(), signal.SIGKILL)"


def traced(path: Path, log: Path, fault: str = "") -> tuple[str, ...]:
    command = ("strace", "-f", "-qq", "-o", str(log), "-P", f"{path}-wal", "-e", "trace=fdatasync")
    return (*command, "-e", f"inject=fdatasync:{fault}") if fault else command


@pytest.fixture
def third(root: Path, tmp_path: Path) -> int:
    """Which flush of the log is that of the third commit."""
    needs_strace()
    SQLiteStore(root).close()  # where nothing fails
    log = tmp_path / "log"
    in_process(WRITES + "os._exit(0)", root, before=traced(root, log))
    flushes = log.read_text().count("fdatasync(")
    assert flushes >= 3
    SQLiteStore(root).close()  # the next process begins a log too
    return flushes


def died(code: str, root: Path, tmp_path: Path, fault: str) -> list[str]:
    with Process(code + DIE, root, before=traced(root, tmp_path / "log", fault)) as process:
        return process.rest().split()


def test_a_flush_that_fails_once_is_written_over(root: Path, tmp_path: Path, third: int) -> None:
    """Else the commit that failed would be there after a restart: its pages are in the log."""
    said = died(WRITES, root, tmp_path, f"error=EIO:when={third}")
    assert said == ["StoreUnavailableError", "older"]
    with SQLiteStore(root) as store:
        assert store.read("p", "s", "k") == b"older"


def test_a_disk_that_fails_for_good_leaves_the_outcome_unknown(
    root: Path, tmp_path: Path, third: int
) -> None:
    said = died(WRITES, root, tmp_path, f"error=EIO:when={third}+")
    assert said == ["OutcomeUnknownError", "older"]
    with SQLiteStore(root) as store:
        assert store.read("p", "s", "k") in (b"older", b"new")


@pytest.mark.parametrize("more", [0, 10, 24 + 4096 + 100, 3 * (24 + 4096) - 1])
def test_a_log_that_cannot_be_written_leaves_no_doubt(root: Path, more: int) -> None:
    """As under a quota: however many pages of the commit fit, the last one makes it count."""
    code = """
import resource
store = SQLiteStore(path)
store.write("p", "s", "k", b"older")
size = os.stat(path + "-wal").st_size + int(wait())
resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
for value in (bytes(20_000), bytes(30_000)):
    try:
        store.write("p", "s", "k", value)
        say("written")
    except StoreError as error:
        say(type(error).__name__)
say(store.read("p", "s", "k").decode())
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
if not wait():
    store.write("p", "s", "other", b"fits")
"""
    for after in ("", "at once"):
        with Process(code + DIE, root) as process:
            process.tell(str(more))
            assert [process.hear() for _ in range(3)] == ["StoreUnavailableError"] * 2 + ["older"]
            process.tell(after)
            process.rest()
        with SQLiteStore(root) as store:
            found = content(store)
            assert found.pop(("p", "s", "other"), None) == b"fits" or after
            assert found == {("p", "s", "k"): b"older"}


def test_a_transaction_whose_flush_fails(root: Path, tmp_path: Path, third: int) -> None:
    code = WRITES.replace(
        'store.write("p", "s", "k", b"new")',
        'with store.transaction() as txn: txn.write("p", "s", "k", b"new")',
    )
    said = died(code, root, tmp_path, f"error=EIO:when={third}")
    assert said == ["StoreUnavailableError", "older"]
    with SQLiteStore(root) as store:
        assert content(store) == {("p", "s", "k"): b"older"}


def test_a_full_disk_changes_nothing(tmp_path: Path) -> None:
    needs_root()
    with mounted(tmp_path / "small", "size=2m") as disk:
        path = disk / "store.db"
        code = """
store = SQLiteStore(path)
store.write("p", "s", "k", b"old")
say("ready")
wait()
for call in (
    lambda: store.write("p", "s", "k", bytes(300_000)),
    lambda: store.check_and_put("p", "s", "new", expected=None, value=bytes(300_000)),
):
    try:
        call()
        say("written")
    except StoreError as error:
        say(type(error).__name__)
try:
    with store.transaction() as txn:
        txn.write("p", "s", "new", bytes(300_000))
except StoreError as error:
    say(type(error).__name__)
say(store.read("p", "s", "k").decode())
wait()
store.write("p", "s", "k", bytes(300_000))
say("after")
store.close()
"""
        with Process(code, path) as process:
            assert process.hear() == "ready"
            fill_up(disk / "ballast")
            process.tell()
            assert [process.hear() for _ in range(4)] == ["StoreFullError"] * 3 + ["old"]
            (disk / "ballast").unlink()
            process.tell()
            assert process.join().split() == ["after"]
        with SQLiteStore(path) as store:
            assert content(store) == {("p", "s", "k"): bytes(300_000)}


COUNT = """
store = SQLiteStore(path)
say("ready")
while True:
    expected = store.read("p", "s", "n")
    while True:
        value = str(int(expected) + 1).encode()
        found = store.check_and_put("p", "s", "n", expected=expected, value=value, expires_at=9)
        if found == expected:
            break
        expected = found
    say(value.decode())
"""


def test_killed_at_random_while_counting(root: Path) -> None:
    """Every acknowledged increment is there, and at most one more for each process."""
    rng = random.Random(7)
    with SQLiteStore(root) as store:
        store.write("p", "s", "n", b"0")
    last = 0
    for _ in range(4):
        with Process(COUNT, root) as one, Process(COUNT, root) as other:
            assert one.hear() == other.hear() == "ready"
            for _ in range(rng.randrange(1, 100)):
                last = max(last, int(one.hear()))
            one.popen.kill()
            other.popen.kill()
            said = [int(n) for each in (one, other) for n in each.rest().splitlines() if n.strip()]
            last = max([last, *said])
        with SQLiteStore(root) as store:
            now = int(store.read("p", "s", "n"))
        assert last <= now <= last + 2
        last = now
    with SQLiteStore(root) as store:
        assert store.sweep("p", 9, 10).removed == 1
