"""The words of the README and of the docs are run: examples, config, commands' names."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import kvreplay
import kvreplay.store
from kvreplay import ParamsMismatchError, Replay, StoreNotFoundError, load_config
from kvreplay.cli import main
from support.extras import needs_cli, needs_opentelemetry, needs_prometheus

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parent.parent
CONFIGURATION = "docs/howto/configuration.md"


def blocks(language: str, file: str = "README.md") -> list[str]:
    text = (ROOT / file).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_the_example_does_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):  # the second time it is answered from the store
        names: dict[str, object] = {}
        example = blocks("python")[0]
        if _:
            example = example.replace("len(charges) == 1", "not charges")
        exec(compile(example, "README.md", "exec"), names)
        assert "stale flow: this key is bound to other params" in capsys.readouterr().out


def test_the_typed_example_does_what_it_says() -> None:
    pytest.importorskip("cattrs")
    names: dict[str, Any] = {"__name__": "readme"}
    exec(
        compile(blocks("python", "docs/typed.md")[0], "docs/typed.md", "exec", dont_inherit=True),
        names,
    )
    assert type(names["request_invoice"]("02lsp", "2", 5)) is names["Invoice"]
    first, second = (names["request_invoice"]("02lsp", "3", 0) for _ in range(2))
    assert first != second, "it was not kept"
    for _ in range(2):
        with pytest.raises(names["CardDeclined"], match="limit"):
            names["request_invoice"]("02lsp", "4", 2_000_000)
    names["store"].close()


@needs_cli
def test_the_configuration_is_valid(tmp_path: Path) -> None:
    file = tmp_path / "app.toml"
    place = tmp_path / "replay-data"
    text = blocks("toml", CONFIGURATION)[0]
    assert text.count("/var/lib/payments/replay") == 1
    file.write_text(text.replace("/var/lib/payments/replay", str(place)), encoding="utf-8")
    with pytest.raises(StoreNotFoundError):
        load_config(file, environ={}).open_store()
    assert not place.exists()
    (command,) = re.findall(
        r"^    kvreplay (init .*)", (ROOT / CONFIGURATION).read_text("utf-8"), re.MULTILINE
    )
    assert main(command.replace("/var/lib/payments/replay", str(place)).split()) == 0
    config = load_config(file, environ={"KVREPLAY_REPLAY_PAYMENTS_TTL": "5s"})
    with config.open_store() as store:
        assert (place / "data.mdb").exists()
        Replay(store, **config.replay("payments"))
    assert config.replay("payments")["ttl"] == 5


def test_the_example_has_twenty_lines() -> None:
    assert len([line for line in blocks("python")[0].splitlines() if line.strip()]) <= 20


def test_the_examples_for_an_application(pytester: pytest.Pytester) -> None:
    code, tests, *_ = blocks("python", "docs/testing.md")
    pytester.makepyfile(payments=code, test_payments=tests)
    result = pytester.runpytest_inprocess("-W", "error", "test_payments.py")
    result.assert_outcomes(passed=5)


@needs_prometheus
@needs_opentelemetry
def test_the_api_has_each_public_name_and_no_other() -> None:
    names = re.findall(
        r"^\.\. auto(?:class|data|exception|function):: (kvreplay[\w.]*)\.(\w+)$",
        (ROOT / "docs" / "api.md").read_text("utf-8"),
        re.MULTILINE,
    )
    assert len(set(names)) == len(names)
    told: dict[str, set[str]] = {}
    for module, name in names:
        told.setdefault(module, set()).add(name)
    for module in ("asgi", "http", "ldk", "metrics", "testing", "wsgi"):
        assert told.pop(f"kvreplay.{module}") == set(import_module(f"kvreplay.{module}").__all__)
    assert told.pop("kvreplay") == set(kvreplay.__all__)
    assert told.pop("kvreplay.store") == set(kvreplay.store.__all__) - set(kvreplay.__all__)
    assert told == {}


def test_what_a_backend_may_use_is_named_and_can_be_imported() -> None:
    text = (ROOT / "docs" / "testing.md").read_text(encoding="utf-8")
    section = text.partition("### What your store may use\n")[2].partition("\n### ")[0]
    rows = re.findall(r"^\| (`.*)", section, re.MULTILINE)
    named = set(re.findall(r"`(\w+)`", "".join(row.partition("|")[0] for row in rows)))
    assert named <= set(kvreplay.store.__all__)
    assert {name for name in kvreplay.store.__all__ if name.startswith("check_")} <= named
    assert {"MAX_EXPIRES_AT", "ForkSafeLock"} <= named


MYSTORE = """
from kvreplay.backends.filesystem import FilesystemStore
from support.awaited_stores import Awaited

class MyStore(FilesystemStore):
    def __init__(self, path, create=False):
        if create:
            path.parent.mkdir(parents=True, exist_ok=True)
        super().__init__(path)

class MyAsyncStore(Awaited):
    def __init__(self, path):
        super().__init__(FilesystemStore(path))

    def close(self):
        self.inner.close()
"""


@pytest.mark.parametrize(("number", "processes"), [(3, True), (4, False)])
def test_the_examples_for_a_backends_author(
    pytester: pytest.Pytester, number: int, processes: bool
) -> None:
    pytester.makepyfile(mystore=MYSTORE, test_mystore=blocks("python", "docs/testing.md")[number])
    chosen = "test_round_trip or test_check_and_put or test_processes_see or transaction"
    result = pytester.runpytest_inprocess("-k", chosen, "test_mystore.py")
    result.assert_outcomes(
        passed=6 if processes else 5, deselected=result.parseoutcomes()["deselected"]
    )


def test_the_example_of_an_asynchronous_store(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(mystore=MYSTORE, test_mystore=blocks("python", "docs/testing.md")[5])
    # No processes: a run inside of this one forgets its imports, multiprocessing's among them.
    chosen = "test_round_trip or test_check_and_put"
    result = pytester.runpytest_inprocess("-k", chosen, "test_mystore.py")
    result.assert_outcomes(passed=5, deselected=result.parseoutcomes()["deselected"])


def test_the_example_of_faults_and_foreign_things(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(mystore=MYSTORE, test_mystore=blocks("python", "docs/testing.md")[6])
    chosen = "never_an_absence or says_what_it_has_done or foreign"
    result = pytester.runpytest_inprocess("-k", chosen, "test_mystore.py")
    result.assert_outcomes(passed=4, deselected=result.parseoutcomes()["deselected"])


def test_the_sample_is_registered_as_the_docs_say() -> None:
    sample = (ROOT / "tests" / "kit" / "third_party" / "pyproject.toml").read_text(encoding="utf-8")
    (documented,) = blocks("toml", "docs/howto/backend.md")
    declared = tomllib.loads(sample)["project"]["entry-points"]
    assert tomllib.loads(documented)["project"]["entry-points"] == declared


class Node:
    """What the examples call of LDK and of a connection, and what became of it, in order."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.names: dict[str, Any] = {
            "peer_manager": self,
            "channel_manager": self,
            "connection": self,
            "descriptor": self,
            "handle_events": lambda: None,
            "create_bolt11_invoice": lambda params: self.done.append("made") or "lnbcrt1...",
        }

    def read_event(self, descriptor: object, data: bytes) -> None:
        self.names["send_data"](data.upper())
        self.done.append("read")

    def process_events(self) -> None:
        assert self.names["inner"].list("", "") == []  # no part of the turn is there yet

    def get_and_clear_needs_persistence(self) -> bool:
        return True

    def write(self) -> bytes:
        return b"a manager"

    def sendall(self, data: bytes) -> None:
        assert self.names["inner"].read("", "", "manager") == b"a manager"
        self.done.append(f"sent {data.decode()}")


def test_the_examples_for_an_ldk_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    node = Node()
    for example in blocks("python", "docs/ldk.md"):
        exec(compile(example, "docs/ldk.md", "exec"), node.names)
    names = node.names
    names["turn"]([b"ping", b"pong"])
    assert node.done == ["read", "read", "sent PING", "sent PONG"]
    names["inner"].write("ledger", "", "balance_msat", b"0")
    for _ in range(2):
        with names["store"].turn():
            names["on_payment_claimed"]("ab" * 32, 42_000)
    assert names["inner"].read("ledger", "", "balance_msat") == b"42000"
    node.done.clear()
    for _ in range(2):
        assert names["request_invoice"]("02lsp", "session-1", {"msat": 1}) == "lnbcrt1..."
    assert node.done == ["made"]
    names["inner"].close()


def test_the_example_of_a_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    example = blocks("python", "docs/ledger.md")[0]
    names: dict[str, Any] = {}
    exec(compile(example, "docs/ledger.md", "exec"), names)
    pay, connection = names["pay"], names["connection"]
    for _ in range(2):
        assert pay("02payer", "payment-1", 5) == {"booked": 5, "total": 5}
    with pytest.raises(ParamsMismatchError):
        pay("02payer", "payment-1", 6)
    assert pay("02payer", "payment-2", 6) == {"booked": 6, "total": 11}
    assert connection.execute("SELECT msat FROM ledger").fetchall() == [(5,), (6,)]
    assert not connection.in_transaction
    connection.close()
    names["store"].close()


@needs_prometheus
@needs_opentelemetry
def test_the_examples_of_metrics_show_what_they_say(tmp_path: Path) -> None:
    """Each in a process of its own, since the registry is that of a process."""

    def printed(example: str, folder: Path) -> str:
        folder.mkdir()
        command = [sys.executable, "-W", "error", "-c", example]
        return subprocess.run(
            command, cwd=folder, capture_output=True, text=True, check=True
        ).stdout

    prometheus, opentelemetry = blocks("python", "docs/metrics.md")
    shown = printed(prometheus, tmp_path / "prometheus")
    for decision in ("completed", "replayed"):
        line = f'kvreplay_requests_total{{decision="{decision}",namespace="payments"}} 1.0'
        assert line in shown
    spans = printed(opentelemetry, tmp_path / "opentelemetry")
    assert '"name": "kvreplay.completed"' in spans
    assert '"name": "pay"' in spans
