"""``resolve``, ``release``, ``forget`` and ``sweep``: one namespace changes, and what was seen."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys

import pytest

from command.conftest import Place
from kvreplay import Outcome, Replay, ReplayKey
from kvreplay.http import answer_of, downstream_key
from support.extras import needs_cli
from support.interrupts import hearing_ctrl_c
from support.programs import Program
from support.waiting import until

pytestmark = needs_cli


def look(place: Place, id_: str) -> Outcome[object] | None:
    return Replay(place.store, "pay", ttl=60).lookup(("02peer", id_), {})


@pytest.mark.parametrize("which", ["ended", "dead"])
def test_resolve_stores_the_answer(place: Place, which: str) -> None:
    strangers = place.strangers()
    digest = place.digest(which)
    wanted = ("resolve", digest, "-n", "pay", "--response", '{"paid": true}', "--ttl", "1h")
    code, out, error = place.run(*wanted)
    assert (code, out) == (2, "")
    assert "give --yes" in error
    code, out, error = place.run(*wanted, "--yes")
    assert (code, out, error.count("\n")) == (0, "", 1)
    assert f"kvreplay: resolved key {digest} of pay by " in error
    outcome = look(place, which)
    assert outcome is not None
    assert (outcome.response, outcome.replayed) == ({"paid": True}, True)
    assert 3_500_000 < (outcome.expires_at or 0) - outcome.created_at < 3_800_000
    assert place.strangers() == strangers
    code, out, error = place.run(*wanted, "--yes")
    assert (code, out) == (1, "")
    assert "nothing was changed" in error
    assert look(place, which) == outcome


def test_release_frees_the_key(place: Place) -> None:
    code, _, error = place.run("release", "02peer", "dead", "-n", "pay", "--yes")
    assert code == 0
    assert f"released key {place.digest('dead')} of pay by " in error
    assert look(place, "dead") is None


def test_a_run_that_goes_on_is_left_alone(place: Place) -> None:
    before = place.everything()
    for wanted in (
        ["release", "02peer", "running"],
        ["resolve", "02peer", "running", "--response", "1", "--ttl", "1h"],
        ["forget", "02peer", "running"],
        ["forget", "02peer", "dead"],
        ["release", "02peer", "answered-0"],
        ["release", "02peer", "nobody"],
    ):
        code, out, error = place.run(*wanted, "-n", "pay", "--yes")
        assert (code, out, error.count("\n")) == (1, "", 1)
        assert "nothing was changed" in error
    assert place.everything() == before


def test_what_changes_needs_a_namespace(place: Place) -> None:
    for wanted in (["release", "02peer", "dead"], ["sweep"], ["check", "--quarantine", "--yes"]):
        code, _, error = place.run(*wanted)
        assert code == 2
        assert "--namespace" in error
    code, _, error = place.run("release", "02peer", "dead", "-n", "ledger", "--yes")
    assert code == 1


def test_forget_removes_an_answer(place: Place) -> None:
    assert place.run("forget", "02peer", "failed", "-n", "pay", "--yes")[0] == 0
    assert look(place, "failed") is None


def test_an_answer_of_the_http_layers(place: Place) -> None:
    params = {"method": "POST", "path": b"/pay", "query": b"", "body": bytes(32)}
    replay = Replay(place.store, "web", ttl=60)
    with pytest.raises(KeyboardInterrupt):
        replay.execute(("02peer", "http"), params, _interrupted)
    shown = place.run("show", "02peer", "http", "--payload")[1]
    assert "POST /pay" in shown
    assert downstream_key(ReplayKey("02peer", "http")) in shown
    wanted = ["resolve", "02peer", "http", "-n", "web", "--ttl", "1h", "--yes", "--response"]
    for more in (["{}"], ["{", "--status", "201"], ["{}", "--status", "204"]):
        code, _, error = place.run(*wanted, *more)
        assert (code, error.count("\n")) == (2, 1)
    assert place.run(*wanted, '{"id": 2}', "--status", "201")[0] == 0
    record = replay.record(("02peer", "http"))
    assert record is not None
    found = answer_of(record)
    assert found is not None
    assert (found.status, found.body) == (201, b'{"id": 2}')
    assert list(found.headers) == [(b"Content-Type", b"application/json")]
    told = json.loads(place.run("show", "02peer", "http", "--payload", "--json")[1])
    assert (told["request"]["path"], told["status"], told["body"]) == ("/pay", 201, '{"id": 2}')


def _interrupted() -> None:
    raise KeyboardInterrupt


def test_a_late_retry_does_not_run_what_a_person_has_settled(place: Place) -> None:
    """The expired answer keeps the key's place for as long again, unless it is told otherwise."""
    wanted = ("-n", "pay", "--response", "1", "--ttl", "1h", "--yes")
    assert place.run("resolve", "02peer", "ended", *wanted)[0] == 0
    assert place.run("resolve", "02peer", "dead", *wanted, "--tombstone-ttl", "0")[0] == 0
    kept = {}
    for address, entry in place.everything().items():
        if address[2] in ("ended", "dead"):
            record = Replay(place.store, "pay", ttl=1).record(("02peer", address[2]))
            assert record is not None
            kept[address[2]] = (entry.expires_at or 0) - (record.expires_at or 0)
    assert kept == {"ended": 3_600_000, "dead": 0}


@pytest.mark.parametrize("ttl", ["24", "nonsense", "-1h", "9" * 400 + "d", "1000000d"])
def test_a_duration_has_a_unit_and_an_end(place: Place, ttl: str) -> None:
    wanted = ("release", "02peer", "dead", "-n", "pay", "--yes")
    resolve = ("resolve", *wanted[1:], "--response", "1", "--ttl", ttl)
    code, out, error = place.run(*resolve)
    assert (code, out, error.count("\n")) == (2, "", 1)
    assert place.run(*wanted)[0] == 0


def test_an_answer_of_the_wrong_kind_is_refused(place: Place) -> None:
    wanted = ("resolve", "02peer", "dead", "-n", "pay", "--ttl", "1h", "--yes", "--response")
    before = place.everything()
    for more in (
        ("1", "--status", "201"),
        ("NaN",),
        ("1e999",),
        ("[" * 100_000,),
        ("\udcff",),
        ('{"a": ',),
        ("1", "--header", "a: b"),
    ):
        code, out, error = place.run(*wanted, *more)
        assert (code, out, error.count("\n")) == (2, "", 1), more
    assert place.everything() == before


def test_who_has_changed_it_is_told_as_it_is(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "ceo")
    monkeypatch.setenv("SUDO_USER", "x\nforged")
    _, _, error = place.run("release", "02peer", "dead", "-n", "pay", "--yes")
    assert error.count("\n") == 1
    assert "ceo" not in error


def test_what_is_done_is_told_as_done_though_nobody_hears_it(place: Place) -> None:
    command = [sys.executable, "-m", "kvreplay", "release", place.url, "02peer", "dead"]
    with open("/dev/full", "w") as full:
        done = subprocess.run([*command, "-n", "pay", "--yes"], stderr=full, check=False)
    assert done.returncode == 0
    assert look(place, "dead") is None


def test_a_response_that_is_no_json(place: Place) -> None:
    wanted = ["resolve", "02peer", "dead", "-n", "pay", "--ttl", "1h", "--yes", "--response"]
    code, _, error = place.run(*wanted, "paid")
    assert code == 2
    assert "is not JSON" in error
    code, _, error = place.run(*wanted, "@/nowhere")
    assert (code, error.count("\n")) == (2, 1)


def test_sweep_removes_what_is_due_of_its_namespace(place: Place) -> None:
    place.store.check_and_put("ledger", "", "due", expected=None, value=b"mine", expires_at=1)
    strangers = place.strangers()
    assert place.run("sweep", "-n", "pay")[:2] == (0, "removed 1 record\n")
    assert place.run("sweep", "-n", "pay")[:2] == (0, "removed 0 records\n")
    assert place.strangers() == strangers
    assert look(place, "expired") is None


def test_a_sweep_goes_on_until_it_is_interrupted(place: Place) -> None:
    replay = Replay(place.store, "pay", ttl=0)
    command = [sys.executable, "-m", "kvreplay", "sweep", place.url, "-n", "pay", "--every", "1s"]
    with hearing_ctrl_c(), Program(command) as sweeping:
        assert sweeping.hear() == "sweeping pay every 1s"
        until(lambda: replay.record(("02peer", "expired")) is None)
        replay.execute(("02peer", "later"), {}, lambda: 1)
        until(lambda: replay.record(("02peer", "later")) is None)
        sweeping.popen.send_signal(signal.SIGINT)
        assert sweeping.rest() == ""
        assert sweeping.popen.returncode == 130


def test_it_asks_first(place: Place) -> None:
    """On a real terminal: what is shown, a no, and a yes."""
    for said, code, left in ((b"n\n", 1, False), (b"y\n", 0, True)):
        command = [sys.executable, "-m", "kvreplay", "release", place.url, place.digest("dead")]
        reader, terminal = pty.openpty()
        with subprocess.Popen(
            [*command, "-n", "pay"], stdin=terminal, stdout=terminal, stderr=terminal
        ) as process:
            os.close(terminal)
            os.write(reader, said)
            shown = read_all(reader)
            assert process.wait(30) == code, shown
        assert re.search(r"^state +in-doubt", shown, re.MULTILINE)
        assert "Are you sure that its effect did not happen, and cannot any more? [y/N]" in shown
        records = {each.key.id for each in Replay(place.store, "pay", ttl=1).records()}
        assert ("dead" not in records) == left


def read_all(reader: int) -> str:
    parts = []
    while True:
        try:
            part = os.read(reader, 65536)
        except OSError:  # the terminal has gone
            part = b""
        if not part:
            os.close(reader)
            return b"".join(parts).decode()
        parts.append(part)


def test_only_the_run_that_was_shown_is_settled(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the person thinks, somebody releases the key, and a new run leaves it in doubt."""
    monkeypatch.setattr("kvreplay.cli.arguments.need_a_terminal", lambda: None)
    replay = Replay(place.store, "pay", ttl=60)

    def meanwhile(question: str, err: bool) -> bool:
        assert replay.release(("02peer", "dead"))
        with pytest.raises(KeyboardInterrupt):
            replay.execute(("02peer", "dead"), {}, _interrupted)
        return True

    monkeypatch.setattr("click.confirm", meanwhile)
    for wanted in (["release"], ["resolve", "--response", "1", "--ttl", "1h"]):
        code, _, error = place.run(*wanted[:1], "02peer", "dead", "-n", "pay", *wanted[1:])
        assert code == 1
        assert "another record than the one that was looked at; nothing was changed" in error
        (record,) = [each for each in replay.records() if each.key.id == "dead"]
        assert replay.is_in_doubt(record)
