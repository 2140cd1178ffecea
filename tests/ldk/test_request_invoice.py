"""``async_order.request_invoice`` on a real node: the bolt11 of its LDK, made once."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvreplay import ParamsMismatchError
from kvreplay.demo.ldk.pair import Pair
from ldk.killed import LSP, killed
from support.lmdb_stores import commits

SESSION = (LSP, "session-1")


@pytest.fixture(params=["lmdb", "sqlite"])
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def pair(program: Path, tmp_path: Path, engine: str) -> Iterator[Pair]:
    with Pair(program, tmp_path, engine, turns=True) as pair:
        assert pair.open_channel()
        yield pair


def test_a_retry_after_a_kill_has_the_same_invoice(pair: Pair) -> None:
    first = pair.request_invoice("bob", SESSION, 42_000)
    assert first.response.startswith("lnbcrt420n1")
    assert not first.replayed
    pair.restart()
    again = pair.request_invoice("bob", SESSION, 42_000)
    assert (again.response, again.replayed) == (first.response, True)
    assert pair.invoices("bob") == ["session-1"]
    other = pair.request_invoice("bob", (SESSION[0], "session-2"), 42_000)
    assert other.response != first.response
    assert sorted(pair.invoices("bob")) == ["session-1", "session-2"]


def test_other_params_are_stale(pair: Pair) -> None:
    first = pair.request_invoice("bob", SESSION, 42_000)
    with pytest.raises(ParamsMismatchError):
        pair.request_invoice("bob", SESSION, 43_000)
    assert pair.request_invoice("bob", SESSION, 42_000).response == first.response
    assert pair.invoices("bob") == ["session-1"]


def test_the_invoice_that_was_replayed_is_paid(pair: Pair) -> None:
    bolt11 = pair.request_invoice("bob", SESSION, 42_000).response
    pair.restart()
    assert pair.request_invoice("bob", SESSION, 42_000).response == bolt11
    assert pair.pay_invoice("alice", bolt11) == "sent"
    assert pair.received("bob") == 42_000


@pytest.mark.parametrize("engine", ["lmdb"], indirect=True)  # it counts its commits
def test_the_manager_and_the_record_are_one_commit(pair: Pair) -> None:
    store = pair.stores["bob"]
    served: list[str] = []
    serve = pair.nodes.serve
    pair.nodes.serve = lambda header, body: served.append(header["key"]) or serve(header, body)

    before = commits(store)
    pair.request_invoice("bob", SESSION, 42_000)
    assert served == ["manager"]
    assert len(store.list("ledger", "invoices")) == 1
    assert commits(store) == before + 1
    pair.request_invoice("bob", SESSION, 42_000)
    assert served == ["manager"]
    assert commits(store) == before + 1


def test_however_it_is_killed_an_answer_stays_and_none_is_made_twice(
    program: Path, tmp_path: Path, engine: str, kills: int
) -> None:
    begun = tmp_path / "begun"
    with Pair(program, begun, engine, turns=True) as pair:
        assert pair.open_channel()
    answered = 0
    for seed in range(max(kills // 4, 1)):
        folder = tmp_path / str(seed)
        shutil.copytree(begun, folder)
        answers = killed(program, folder, engine, "requests", seed)
        answered += len(answers)
        with Pair(program, folder, engine, turns=True) as pair:
            made = pair.invoices("bob")
            assert len(made) - len(answers) in (0, 1)  # it may have been killed with it in its hand
            for n in range(1, len(made) + 2):
                again = pair.request_invoice("bob", (LSP, f"session-{n}"), 1000 * n)
                assert again.replayed == (n <= len(made))
                assert [again.response] == answers[n - 1 : n] or n > len(answers)
            assert len(pair.invoices("bob")) == len(made) + 1
    assert answered > 0
