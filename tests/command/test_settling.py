"""``resolve``, ``release``, ``forget`` and ``sweep``: one namespace changes, and what was seen."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

import pytest

from command.conftest import Place
from kvreplay import Outcome, Replay
from kvreplay.http import answer_of
from support.extras import needs_cli

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
    wanted = ["resolve", "02peer", "http", "-n", "web", "--ttl", "1h", "--yes", "--response", "{}"]
    code, _, error = place.run(*wanted)
    assert code == 2
    assert "--status" in error
    header = ("--header", "content-type: application/json")
    assert place.run(*wanted, "--status", "201", *header)[0] == 0
    record = replay.record(("02peer", "http"))
    assert record is not None
    found = answer_of(record)
    assert found is not None
    assert (found.status, found.body) == (201, b"{}")
    assert list(found.headers) == [(b"content-type", b"application/json")]


def _interrupted() -> None:
    raise KeyboardInterrupt


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
