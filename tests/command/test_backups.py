"""``backup``, ``restore`` and ``compact``: what opens afterwards, and what is left if they fail."""

from __future__ import annotations

import shlex
import threading
from pathlib import Path
from typing import Any

import pytest

from command.conftest import Place
from kvreplay import InDoubtError, Replay, open_store
from kvreplay.cli import main
from support.extras import needs_cli

pytestmark = needs_cli


def everything(url: str) -> dict[Any, Any]:
    with open_store(url) as store:
        return {each: store.read_entry(*each) for each in store.list_all_keys()}  # type: ignore[attr-defined]


def copy_of(place: Place) -> str:
    engine = place.engine.name if place.engine.has_files else "sqlite"
    return f"{engine}:{place.engine.path}-copy"


def test_a_backup_is_the_store(place: Place) -> None:
    before, copy = place.everything(), copy_of(place)
    code, out, error = place.run("backup", copy.partition(":")[2])
    assert (code, error) == (0, "")
    assert out.splitlines()[1] == f"look at the copy: kvreplay check {copy}"
    assert place.everything() == before == everything(copy)
    assert main(["check", copy]) == 0
    assert place.capsys.readouterr().out.startswith("10 records, 0 faults (pay)\n")
    left = sorted(each.name for each in place.engine.path.parent.glob("*.tmp"))
    assert left == []


def test_a_backup_replaces_nothing(place: Place) -> None:
    where = Path(f"{place.engine.path}-copy")
    where.write_text("precious")
    code, out, error = place.run("backup", str(where))
    assert (code, out, error.count("\n")) == (2, "", 1)
    assert where.read_text() == "precious"
    assert list(where.parent.glob("*.tmp")) == []


def test_a_place_where_a_backup_would_be_lost_is_refused(place: Place) -> None:
    before = place.everything()
    path = place.engine.path
    own = [f"{path}/inside", f"{path}-journal"] if place.engine.has_files else []
    for where in (f"{path}-none/copy", f"lmdb:{path}-copy", *own):
        code, out, error = place.run("backup", where)
        assert (code, out, error.count("\n")) == (2, "", 1)
        assert "nothing was copied" in error
        assert not Path(where).exists()
    assert place.everything() == before


def test_a_backup_to_a_path_with_odd_characters(place: Place) -> None:
    odd = f"{place.engine.path} a?b#c%20d"
    code, out, error = place.run("backup", odd)
    assert (code, error) == (0, "")
    command = shlex.split(out.splitlines()[1].partition(": ")[2])
    assert main(command[1:]) == 0
    assert place.capsys.readouterr().out.startswith("10 records, 0 faults (pay)")


def test_nothing_is_restored_into_memory(place: Place) -> None:
    for command in ("restore", "migrate"):
        code, out, error = place.run(command, "memory:")
        assert (code, out) == (2, "")
        assert "nothing was copied" in error


def test_a_backup_while_others_write(place: Place) -> None:
    """Each answer that was there when it began is in the copy, and the copy has no fault."""
    replay = Replay(place.store, "pay", ttl=3600)
    done, stop = threading.Event(), threading.Event()
    numbers = iter(range(10**6))

    def work(worker: int) -> None:
        for number in numbers:
            replay.execute((f"writer-{worker}", str(number)), {}, lambda: "answer")
            if number > 50:
                done.set()
            if stop.is_set():
                return

    workers = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for each in workers:
        each.start()
    try:
        assert done.wait(60)
        before = {each for each in place.store.list_all_keys() if each[0] == "pay"}
        copy = copy_of(place)
        assert place.run("backup", copy.partition(":")[2])[0] == 0
    finally:
        stop.set()
        for each in workers:
            each.join()
    copied = everything(copy)
    assert before <= set(copied)
    assert main(["check", copy]) == 0


def test_a_restored_store_answers_and_knows_its_doubts(place: Place) -> None:
    copy = copy_of(place)
    place.run("backup", copy.partition(":")[2])
    restored = f"lmdb:{place.engine.path}-restored"
    assert main(["restore", copy, restored]) == 0
    said = place.capsys.readouterr().out
    assert "14 entries are equal in both" in said
    assert "3 requests were in progress; once their lease is over they are in doubt" in said
    with open_store(restored) as store:
        replay = Replay(store, "pay", ttl=60, wait_timeout=0)
        outcome = replay.lookup(("02peer", "answered-1"), {"msat": 1})
        assert outcome is not None
        with pytest.raises(InDoubtError):
            replay.lookup(("02peer", "ended"), {})
    assert main(["restore", copy, restored]) == 2
    assert "not empty" in place.capsys.readouterr().err


def test_compact_gives_room_back(place: Place) -> None:
    if place.engine.name not in ("lmdb", "sqlite"):
        code, out, error = place.run("compact")
        assert (code, out, error.count("\n")) == (2, "", 1)
        assert "cannot be compacted; nothing was done" in error
        return
    for number in range(200):
        place.store.write("ledger", "bulk", str(number), b"x" * 20_000)
    for number in range(200):
        place.store.remove("ledger", "bulk", str(number))
    before = place.everything()
    if place.engine.name == "lmdb":
        code, _, error = place.run("compact")
        assert code == 2  # the child that runs has it open
        assert "nothing was changed" in error
        return
    place.store.close()
    code, out, _ = place.run("compact")
    assert code == 0
    assert out.endswith(" now\n")
    assert everything(place.url) == before


def test_compact_of_an_lmdb_store_that_nobody_uses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"lmdb:{tmp_path}/store"
    with open_store(url) as store:
        for number in range(200):
            store.write("ledger", "bulk", str(number), b"x" * 20_000)
        for number in range(1, 200):
            store.remove("ledger", "bulk", str(number))
    file = tmp_path / "store" / "data.mdb"
    before, entries = file.stat().st_size, everything(url)
    assert main(["compact", url]) == 0
    assert "MiB before, " in capsys.readouterr().out
    assert file.stat().st_size < before / 10
    assert everything(url) == entries
