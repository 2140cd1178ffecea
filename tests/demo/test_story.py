"""The story, true and untrue."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from kvreplay.demo import story
from kvreplay.demo.printing import Printer
from kvreplay.demo.stage import UntrueError
from support.programs import run_python

STEPS = 11


def tell(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    # A node of the story is not to follow the settings of whoever runs it.
    usual = {"KVREPLAY_STORE": "nowhere:", "PYTHONIOENCODING": "utf-8"}
    environment = {**os.environ, **usual, **environ}
    return run_python("-m", "kvreplay", "demo", *arguments, timeout=300, env=environment)


@pytest.mark.parametrize(
    "store",
    ["lmdb:store", "sqlite://{}/mine?durability=process", "filesystem:store", "memory:"],
)
def test_the_story_is_true(store: str, tmp_path: Path) -> None:
    kept, store = tmp_path / "kept", store.format(tmp_path)
    engine = store.partition(":")[0]
    done = tell("--store", store, "--dir", str(kept))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[-1] == f"{STEPS} steps, all true"
    assert sum(bool(re.fullmatch(r"  ✓ .* +[0-9]+ ms", line)) for line in lines) == STEPS
    assert max(map(len, (line for line in lines if str(tmp_path) not in line))) <= 80
    assert f'url = "{store}"' in (kept / engine / "node.toml").read_text()
    logged = (kept / engine / "node.log").read_text().splitlines()
    assert [line for line in logged if "has the WAL-reset bug" not in line] == []
    assert engine == "sqlite" or logged == []
    assert (kept / engine / "store").exists() == store.endswith(":store")
    assert (tmp_path / "mine").exists() == ("mine" in store)
    assert ("forgotten" in done.stdout) == (engine == "memory")
    assert "\033" not in done.stdout


@pytest.mark.any_python
def test_by_default_it_is_told_on_all_engines_and_leaves_nothing(tmp_path: Path) -> None:
    done = tell(TMPDIR=str(tmp_path), PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == f"{len(story.STORES) * STEPS} steps, all true"
    headings = [line for line in lines if "node.toml" in line]
    assert [line.split()[0] for line in headings] == ["lmdb", "sqlite", "filesystem", "memory"]
    assert list(tmp_path.iterdir()) == []


def test_the_part_on_ldk_is_not_told_without_node(tmp_path: Path) -> None:
    """Where Node.js is there, tests/ldk/test_story.py tells it."""
    done = tell("--ldk", "--store", "memory:", PATH=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    reason = "it needs Node.js 20 or later, and there is no node on the PATH"
    assert f"  · not told: {reason}" in lines
    assert lines[-2:] == [f"the part on ldk was not told: {reason}", f"{STEPS} steps, all true"]


HOT_CACHE = """
    # The node of before: its answers live in its memory, and only its ledger is durable.
    from kvreplay.backends.memory import MemoryStore

    class Broken(orders.Orders):
        def __init__(self, store, config, key, written):
            super().__init__(MemoryStore(), config, key, written)
            self.ledger = orders.Ledger(store)
"""
NAIVE = """
    # A node that makes an invoice for each request.
    from kvreplay.demo import invoice, params

    class Broken(orders.Orders):
        def request_invoice(self, asked):
            request = params.InvoiceRequest.read(asked)
            key = invoice.NodeKey.from_seed("kvreplay demo")
            self.ledger.add(request, made := invoice.make_invoice(request, key))
            return {"payment_hash": request.payment_hash, "bolt11": made}
"""


def broken_node(directory: Path, code: str) -> list[str]:
    script = directory / "broken.py"
    script.write_text(
        "import sys\nfrom kvreplay.demo import node, orders\n"
        + textwrap.dedent(code)
        + "sys.exit(node.main(orders=Broken))\n"
    )
    return [sys.executable, str(script)]


def untrue_steps(output: str) -> list[str]:
    return [
        line.partition(": ")[2] for line in output.splitlines() if line.startswith("untrue on ")
    ]


@pytest.mark.any_python
def test_a_hot_cache_is_untrue_exactly_where_processes_end_or_meet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = broken_node(tmp_path, HOT_CACHE)
    assert story.tell(["lmdb:store"], str(tmp_path / "kept"), command=command) == 1
    output = capsys.readouterr().out
    untrue = untrue_steps(output)
    assert [step.partition(",")[0] for step in untrue] == [
        "SIGKILL",
        "SIGKILL between ledger and record",
        "two node processes",
    ]
    assert output.splitlines()[-1] == f"{STEPS} steps, 3 untrue, 0 not run"


@pytest.mark.any_python
def test_an_invoice_for_each_request_is_untrue(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = broken_node(tmp_path, NAIVE)
    assert story.tell(["memory:"], str(tmp_path / "kept"), command=command) == 1
    output = capsys.readouterr().out
    untrue = untrue_steps(output)
    assert untrue[0].startswith("first request")
    assert any("64 requests at once" in step for step in untrue)
    assert "64, and should be 1" in output
    for line in output.splitlines():
        if "the same under another JSON-RPC id" in line:
            assert line.endswith("not run")
    assert not any("bad hex" in step for step in untrue)  # that much is true


def test_a_node_that_does_not_start_is_untrue_and_nothing_else_is_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "dies.py"
    script.write_text("import sys; sys.exit('out of luck')")
    assert (
        story.tell(["lmdb:store"], str(tmp_path / "kept"), command=[sys.executable, str(script)])
        == 1
    )
    output = capsys.readouterr().out
    assert "out of luck" in output
    assert output.splitlines()[-1] == f"{STEPS} steps, 1 untrue, {STEPS - 1} not run"


def test_a_comparison_that_fails_cuts_long_values_short() -> None:
    from kvreplay.demo.stage import same

    same({"bolt11": "a"}, {"bolt11": "a"}, "x")
    with pytest.raises(UntrueError) as caught:
        same({"bolt11": "a" * 500}, {"bolt11": "b" * 500}, "the answer")
    assert len(str(caught.value)) < 140


def test_no_credentials_of_a_store_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    printer = Printer()
    printer.heading("theirs", {"url": "theirs://user:se@cret@host/db"})
    printer.heading("theirs", {"url": "theirs://user@host/db?password=s@ecret&sslpassword=ecret"})
    printer.heading("lmdb", {"url": "lmdb:///var/lib/node"})
    shown = capsys.readouterr().out
    assert "cret" not in shown
    assert shown.count("theirs:…@host/db") == 2
    assert "lmdb:///var/lib/node" in shown
