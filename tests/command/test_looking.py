"""``stat``, ``ls``, ``show``, ``find`` and ``doubt``: what they tell, and that they change nothing."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from command.conftest import PAYLOAD, Place, newer_record
from kvreplay import Replay
from kvreplay._inspection import counting
from support.extras import needs_cli

pytestmark = needs_cli

STATES = {
    "answered": 5,
    "failed": 1,
    "expired": 1,
    "tombstone": 0,
    "running": 1,
    "in-doubt": 2,
    "newer": 0,
    "corrupt": 0,
}


def listed(place: Place, *arguments: str) -> list[dict[str, Any]]:
    code, out, _ = place.run("ls", *arguments, "--json")
    assert code == 0
    return [json.loads(line) for line in out.splitlines()]


def test_stat_counts_everything(place: Place) -> None:
    before = place.everything()
    code, out, error = place.run("stat", "--json")
    assert (code, error) == (0, "")
    told = json.loads(out)
    (pay,) = told["namespaces"].values()
    assert (pay["records"], pay["states"], pay["due"]) == (10, STATES, 1)
    assert pay["scopes"] == {"02peer": 9, "03other\x1b[31m": 1}
    assert pay["oldest_in_doubt"]["digest"] == place.digest("ended")
    assert {name: each["entries"] for name, each in told["other_namespaces"].items()} == {
        "": 1,
        "ledger": 2,
        "monitors": 1,
    }
    code, out, error = place.run("stat")
    assert "pay: 10 records" in out
    assert f"the oldest in doubt: {place.digest('ended')}, since " in out
    assert "\x1b" not in out
    assert PAYLOAD not in out
    assert place.everything() == before


def test_a_named_namespace_is_a_replay_one(place: Place) -> None:
    told = json.loads(place.run("stat", "-n", "ledger", "--json")[1])
    assert told["other_namespaces"] == {}
    assert told["namespaces"]["ledger"]["states"]["corrupt"] == 2
    told = json.loads(place.run("stat", "-n", "nowhere", "--json")[1])
    assert told["namespaces"]["nowhere"]["records"] == 0
    code, out, error = place.run("stat", "-n", "no name")
    assert (code, out, error.count("\n")) == (2, "", 1)


def test_ls_lists_what_is_asked_for(place: Place) -> None:
    everything = listed(place)
    assert Counter(each["state"] for each in everything) == +Counter(STATES)
    assert [each["created_at"] for each in everything] == sorted(
        (each["created_at"] for each in everything), reverse=True
    )
    assert {each["id"] for each in listed(place, "--state", "in-doubt")} == {"ended", "dead"}
    some = listed(place, "--state", "failed", "--state", "expired")
    assert {each["id"] for each in some} == {"failed", "expired"}
    assert len(listed(place, "--scope", "03other\x1b[31m")) == 1
    assert listed(place, "--older", "1h") == []
    assert {each["id"] for each in listed(place, "--id", "dead")} == {"dead"}
    assert place.run("ls", "--id", "nobody") == (0, "", "kvreplay: no record matches\n")
    assert len(listed(place, "--newer", "1h")) == 10
    assert sorted(map(str, listed(place, "--all"))) == sorted(map(str, everything))


def test_ls_is_paged(place: Place) -> None:
    seen: list[str] = []
    token: list[str] = []
    while True:
        code, out, error = place.run("ls", "--limit", "3", *token)
        assert code == 0
        head, *lines = out.splitlines()
        assert head.startswith("digest ")
        seen += [line.split()[0] for line in lines]
        if not error:
            break
        token = error.removeprefix("there are more: ").split()
        assert len(lines) == 3
    assert len(seen) == len(set(seen)) == 10
    assert seen == [each["digest"] for each in listed(place)]
    code, out, error = place.run("ls", "--after", "nonsense")
    assert (code, out) == (2, "")
    assert "none of ours" in error


def test_ls_shows_what_cannot_be_read(place: Place) -> None:
    place.store.write("pay", "02peer", "damaged", b"\x00nonsense")
    place.store.write("pay", "02peer", "newer", newer_record())
    assert [each["address"] for each in listed(place, "--state", "corrupt")] == [
        ["pay", "02peer", "damaged"]
    ]
    assert [each["address"][2] for each in listed(place, "--state", "newer")] == ["newer"]
    lines = place.run("ls")[1].splitlines()
    assert any("corrupt" in line and line.endswith("pay  02peer  damaged") for line in lines)
    assert all("\x1b" not in line for line in lines)


@pytest.mark.parametrize("by", ["digest", "key"])
def test_show_tells_of_one_record(place: Place, by: str) -> None:
    key = [place.digest("answered-1")] if by == "digest" else ["02peer", "answered-1"]
    code, out, error = place.run("show", *key)
    assert (code, error) == (0, "")
    assert PAYLOAD not in out
    assert {"namespace  ", "state ", "began "} <= {
        each for each in ("namespace  ", "state ", "began ") if each in out
    }
    (told,) = [json.loads(place.run("show", *key, "--json")[1])]
    assert (told["state"], told["id"], told["operation"]) == ("answered", "answered-1", None)
    assert "params" not in told
    told = json.loads(place.run("show", *key, "--json", "--payload")[1])
    assert (told["params"], told["response"]) == ({"msat": 1}, PAYLOAD)
    assert PAYLOAD in place.run("show", *key, "--payload")[1]


def test_show_of_an_operation_a_failure_and_bytes(place: Place) -> None:
    code, out, _ = place.run("show", "02peer", "answered-0", "--operation", "refund", "--json")
    assert (code, json.loads(out)["operation"]) == (0, "refund")
    told = json.loads(place.run("show", "02peer", "failed", "--json", "--payload")[1])
    assert told["failure"]["arguments"] == ["a limit"]
    other = place.run("show", "03other\x1b[31m", "answered", "--payload", "-n", "pay")[1]
    assert '"hex": "0001"' in other
    assert "03other\\x1b[31m" in other


def test_nothing_found_is_1(place: Place) -> None:
    for arguments in (["show", "02peer", "none"], ["show", "0" * 16], ["find", "0" * 16]):
        code, out, error = place.run(*arguments)
        assert (code, out) == (1, "")
        assert error.startswith("kvreplay: no record has that key")
    assert "has no quotes" in place.run("show", "02peer", '"dead"')[2]
    assert "--operation" in place.run("show", "02peer", "none")[2]
    for wrong in (["show", "short"], ["find", "short"], ["show", "a", "b", "c"]):
        code, out, error = place.run(*wrong)
        assert (code, out, error.count("\n")) == (2, "", 1)


def test_find_tells_the_key_of_a_digest(place: Place) -> None:
    code, out, error = place.run("find", place.digest("answered-0", "refund").upper(), "--json")
    assert (code, error) == (0, "")
    assert json.loads(out) == {
        "namespace": "pay",
        "scope": "02peer",
        "id": "answered-0",
        "operation": "refund",
    }
    assert place.run("find", place.digest("dead"))[1].split() == [
        *("namespace", "pay", "scope", "02peer", "id", "dead"),
    ]


def test_doubt_tells_whose_run_it_was(place: Place) -> None:
    local = place.engine.has_files
    code, out, error = place.run("doubt", "--running", "--json")
    assert (code, error) == (0, "")
    told = {each["id"]: each for each in map(json.loads, out.splitlines())}
    assert {each: told[each]["state"] for each in told} == {
        "ended": "in-doubt",
        "dead": "in-doubt",
        "running": "running",
    }
    owners = {each: told[each]["claim"]["owner"] for each in told}
    assert owners["ended"] == "ended"
    assert owners["dead"] == ("dead" if local else "unknown")
    assert owners["running"] == ("alive" if local else "unknown")
    code, out, _ = place.run("doubt")
    assert code == 0
    assert place.digest("running") not in out
    assert "1 run goes on" in out
    assert ("is dead" if local else "its lease ended") in out
    assert "02peer  dead" in out


@pytest.mark.parametrize("command", ["ls", "doubt", "check", "sweep"])
def test_a_mistyped_namespace_is_told(place: Place, command: str) -> None:
    code, _, error = place.run(command, "-n", "pya")
    assert (code, error.splitlines()[0]) == (0, 'kvreplay: the namespace "pya" is empty')
    assert "is empty" not in place.run(command, "-n", "pay")[2]


def test_a_key_of_two_namespaces_is_told_twice(place: Place) -> None:
    Replay(place.store, "other", ttl=60).execute(("02peer", "answered-1"), {}, lambda: 1)
    for key in (["02peer", "answered-1"], [place.digest("answered-1")]):
        code, out, _ = place.run("show", *key, "--json")
        assert code == 0
        told = [json.loads(line)["namespace"] for line in out.splitlines()]
        assert sorted(told) == ["other", "pay"]


def test_what_stat_does_not_tell_apart_is_told(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counting, "_NAMESPACES", 1)
    monkeypatch.setattr(counting, "_SCOPES", 1)
    told = json.loads(place.run("stat", "--json")[1])
    counted = [*told["namespaces"].values(), *told["other_namespaces"].values()]
    entries = sum(each.get("records", each.get("entries", 0)) for each in counted)
    assert entries + told["entries_of_further_namespaces"] == 14
    assert "of further namespaces" in place.run("stat")[1]
    (pay,) = json.loads(place.run("stat", "-n", "pay", "--json")[1])["namespaces"].values()
    assert (len(pay["scopes"]), pay["more_scopes"]) == (1, True)
