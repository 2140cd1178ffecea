"""Root beside a service's own user: no file is left that the service cannot open."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from command.conftest import fill
from kvreplay import open_store
from kvreplay._inspection import ownership
from kvreplay.cli import main
from support.engines import Engine, these
from support.extras import needs_cli

pytestmark = [
    needs_cli,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user"),
]

SERVICE = 65534  # nobody
COMMANDS = {
    "stat": [],
    "ls": [],
    "doubt": [],
    "check": [],
    "find": ["0" * 16],
    "show": ["02peer", "answered-0"],
    "sweep": ["-n", "pay"],
    "release": ["02peer", "dead", "-n", "pay", "--yes"],
    "resolve": ["02peer", "ended", "-n", "pay", "--yes", "--response", "1", "--ttl", "1h"],
    "forget": ["02peer", "answered-0", "-n", "pay", "--yes"],
}


@pytest.fixture(params=these("filesystem", "lmdb", "sqlite"))
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """A store of the service's, in a folder that everybody may enter."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        home = Path(folder, "service")
        home.mkdir()
        engine = Engine(request.param, home / "store")
        yield engine
        for store in engine.opened:
            store.close()


def give_away(folder: Path) -> None:
    for each in (folder, *folder.rglob("*")):
        os.chown(each, SERVICE, SERVICE, follow_symlinks=False)


def owners(folder: Path) -> set[int]:
    return {os.lstat(each).st_uid for each in (folder, *folder.rglob("*"))}


def filled_twice(engine: Engine, fork: Any) -> Engine:
    """Fill the store, and return another one like it, to try commands on: then all is imported."""
    other = Engine(engine.name, engine.path.with_name("other"))
    for each in (other, engine):
        with each.open() as store:
            fill(each, store, fork).kill()
    return other


def as_root(fork: Any, monkeypatch: pytest.MonkeyPatch, *command: str) -> int:
    """Run a command in a child, which has all modules already: this Python may be root's alone."""
    monkeypatch.setattr(ownership, "_can_read_code", lambda name, uid, gid: True)
    return int(fork(lambda: os._exit(main(list(command)))).wait())


def test_no_command_leaves_a_file_of_roots(
    engine: Engine, fork: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = filled_twice(engine, fork)
    for command, more in COMMANDS.items():
        assert main([command, other.url, *more]) == (command == "find")  # now it is all imported
    give_away(engine.path.parent)
    for command, more in COMMANDS.items():
        code = as_root(fork, monkeypatch, command, engine.url, *more)
        assert code == (command == "find"), command
        assert owners(engine.path.parent) == {SERVICE}, command
    as_root(fork, monkeypatch, "init", engine.url)
    assert owners(engine.path.parent) == {SERVICE}


def test_a_copy_belongs_to_the_service_too(
    engine: Engine, fork: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = filled_twice(engine, fork)

    def commands(one: Engine) -> list[list[str]]:
        compact = [] if one.name == "filesystem" else [["compact", one.url]]
        return [
            ["backup", one.url, f"{one.path}-copy"],
            ["restore", f"{one.url}-copy", f"{one.url}-restored"],
            ["check", one.url, "-n", "pay", "--quarantine", "--yes"],
            *compact,
        ]

    for command in commands(other):
        assert main(command) == 0
    give_away(engine.path.parent)
    for command in commands(engine):
        assert as_root(fork, monkeypatch, *command) == 0, command
        assert owners(engine.path.parent) == {SERVICE}, command


def test_root_is_told_as_whom_it_was_tried(
    engine: Engine,
    fork: Any,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    engine.open().close()
    assert main(["backup", engine.url, f"{engine.path}-warm"]) == 0  # it is all imported
    give_away(engine.path.parent)
    locked = engine.path.parent.with_name("roots")
    locked.mkdir(mode=0o700)
    capfd.readouterr()
    assert as_root(fork, monkeypatch, "backup", engine.url, f"{locked}/copy") == 2
    assert "(this was tried as nobody, who owns the store)" in capfd.readouterr().err
    assert list(locked.iterdir()) == []


def test_a_folder_of_roots_with_files_of_the_service(
    engine: Engine, fork: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a package makes it: root's folder, which the service's group may write to."""
    other = filled_twice(engine, fork)
    wanted = ["resolve", "02peer", "ended", "-n", "pay", "--yes", "--response", "1", "--ttl", "1h"]
    assert main([wanted[0], other.url, *wanted[1:]]) == 0
    give_away(engine.path.parent)
    if engine.path.is_dir():
        os.chown(engine.path, 0, SERVICE)
        os.chmod(engine.path, 0o2770)
    assert as_root(fork, monkeypatch, wanted[0], engine.url, *wanted[1:]) == 0
    assert owners(engine.path.parent) - {0} == {SERVICE}
    assert all(os.lstat(each).st_uid == SERVICE for each in engine.path.rglob("*"))


def test_a_new_store_belongs_to_whom_its_folder_does(
    engine: Engine, fork: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = f"{engine.name}:{engine.path}-other"
    assert main(["init", other]) == 0
    give_away(engine.path.parent)
    assert as_root(fork, monkeypatch, "init", engine.url) == 0
    assert as_root(fork, monkeypatch, "migrate", other, f"{engine.url}-copy") == 0
    assert owners(engine.path.parent) == {SERVICE}


def test_two_owners_are_refused(
    engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.open().close()
    give_away(engine.path.parent)
    another = tmp_path / "another"
    another.mkdir()
    os.chown(another, 12345, 12345)
    assert main(["migrate", engine.url, f"sqlite:{another}/store"]) == 2
    said = capsys.readouterr().err
    assert "12345 and nobody" in said
    assert os.geteuid() == 0
    assert list(another.iterdir()) == []


def test_a_python_that_the_owner_may_not_read_is_told(
    engine: Engine,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine.open().close()
    give_away(engine.path.parent)
    before = sorted(engine.path.parent.rglob("*"))
    code = tmp_path / "os.py"
    code.touch(mode=0o600)
    monkeypatch.setattr(os, "__file__", str(code))
    assert main(["stat", engine.url]) == 2
    said = capsys.readouterr().err
    assert "nobody, who may not read this Python; nothing was done" in said
    assert said.count("\n") == 1
    assert (os.geteuid(), os.getegid()) == (0, 0)
    assert sorted(engine.path.parent.rglob("*")) == before
    with open_store(engine.url) as store:
        assert list(store.list_all_keys()) == []


def test_roots_own_store_is_opened_as_root(
    engine: Engine, capsys: pytest.CaptureFixture[str], fork: Callable[..., Any]
) -> None:
    engine.open().close()
    assert main(["stat", engine.url]) == 0
    assert os.geteuid() == 0
    assert "no namespace has a replay record" in capsys.readouterr().out
