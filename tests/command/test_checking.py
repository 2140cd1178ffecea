"""``check``: what is wrong is found, where it is, and nothing else is moved."""

from __future__ import annotations

import json
from typing import Any

import msgpack
import pytest

from command.conftest import Place, newer_record
from kvreplay.cli import main
from support.extras import needs_cli

pytestmark = needs_cli


def faults(place: Place, *arguments: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    code, out, _ = place.run("check", *arguments, "--json")
    *found, summary = map(json.loads, out.splitlines())
    assert code == bool(found)
    assert summary["bad"] == len(found)
    return found, summary


def test_a_sound_store_has_no_fault(place: Place) -> None:
    before = place.everything()
    others = ["", "ledger", "monitors"]
    summary = {"records": 10, "bad": 0, "moved": 0, "not_looked_at": others}
    assert faults(place) == ([], summary)
    code, out, _ = place.run("check")
    assert (code, out.splitlines()[0]) == (0, "10 records, 0 faults (pay)")
    assert out.endswith("no entry there is a record: (empty), ledger, monitors\n")
    assert place.everything() == before


def test_each_fault_is_found(place: Place) -> None:
    store = place.store
    good = store.read_entry("pay", "02peer", "answered-0")
    store.write("pay", "02peer", "damaged", good.value[:-1] + b"\x00")
    store.write("pay", "02peer", "elsewhere", good.value)
    store.write("pay", "02peer", "answered-1", store.read("pay", "02peer", "answered-1"))
    claim = store.read("pay", "02peer", "dead")
    store.check_and_put("pay", "02peer", "dead", expected=claim, value=claim, expires_at=1)
    other = store.read("pay", "02peer", "answered-2")
    store.check_and_put("pay", "02peer", "answered-2", expected=other, value=other, expires_at=5)
    store.write("pay", "02peer", "newer", newer_record())
    found, summary = faults(place)
    assert summary["records"] == 13
    assert {each["address"][2]: each["problem"] for each in found} == {
        "damaged": "a stored record fails its checksum",
        "elsewhere": "it is the record of another key",
        "answered-1": "it is not in the index of expiry, so no sweep removes it",
        "dead": "a claim has an expiry, so a sweep would remove it",
        "answered-2": "the index of expiry has an earlier time than the record",
        "newer": "a stored record has version 2, this kvreplay reads up to 1",
    }
    code, out, _ = place.run("check")
    assert (code, "pay  02peer  damaged: a stored record fails" in out) == (1, True)


def test_quarantine_moves_what_is_corrupt_and_nothing_else(place: Place) -> None:
    store, strangers = place.store, place.strangers()
    store.write("pay", "02peer", "damaged", b"\x00nonsense")
    store.write("pay", "02peer", "newer", newer_record())
    before = place.everything()
    found, summary = faults(place, "-n", "pay", "--quarantine", "--yes")
    assert [each["moved"] for each in found if each["address"][2] == "damaged"] == [True]
    assert summary["moved"] == 1
    after = place.everything()
    (aside,) = [each for each in after if each[0] == "kvreplay-quarantine"]
    assert aside[1] == "pay"
    assert msgpack.unpackb(after.pop(aside).value) == {
        "version": 1,
        "secondary": "02peer",
        "key": "damaged",
        "value": b"\x00nonsense",
        "expires_at": None,
    }
    del before["pay", "02peer", "damaged"]
    assert after == before
    assert {each: entry.value for each, entry in after.items() if each[0] != "pay"} == strangers
    assert faults(place, "-n", "pay")[1]["bad"] == 1  # the newer one


def test_what_was_moved_aside_before_is_kept(place: Place) -> None:
    for evidence in (b"first", b"second", b"second"):
        place.store.write("pay", "02peer", "damaged", evidence)
        _, out, error = place.run("check", "-n", "pay", "--quarantine", "--yes", "--json")
        assert json.loads(out.splitlines()[-1])["moved"] == 1
        assert "moved an entry of pay into kvreplay-quarantine, as sha256-" in error
        assert "02peer" not in error, "the system's log shows no key"
    aside = [
        msgpack.unpackb(entry.value)["value"]
        for address, entry in place.everything().items()
        if address[0] == "kvreplay-quarantine"
    ]
    assert sorted(aside) == [b"first", b"second"]


def test_a_ledger_is_not_judged_unless_it_is_named(place: Place) -> None:
    place.store.write("ledger", "", "nonsense", b"\x00")
    before = place.everything()
    assert faults(place)[0] == []
    found, _ = faults(place, "-n", "ledger")
    assert len(found) == 3
    assert place.everything() == before


@pytest.mark.parametrize("command", ["stat", "ls", "doubt", "check", "find", "show", "sweep"])
def test_no_command_makes_a_store(place: Place, command: str) -> None:
    more = {"find": ["0" * 16], "show": ["0" * 16], "sweep": ["-n", "pay"]}.get(command, [])
    assert main([command, place.engine.mistyped, *more]) == 2
    said = place.capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert not place.engine.path.with_name(f"{place.engine.path.name}-mistyped").exists()
