"""The story on real LDK nodes, as ``kvreplay demo --ldk`` tells it, true and untrue."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from kvreplay import Outcome
from kvreplay.demo import ldk_chapter, story
from kvreplay.demo.ldk.pair import Pair
from support.programs import run_python

OTHERS = 11  # steps of the story on memory
STEPS = 7


@pytest.mark.usefixtures("program")  # then Node.js and npm are there
def test_the_story_is_true(tmp_path: Path) -> None:
    done = run_python(
        *("-m", "kvreplay", "demo", "--ldk", "--store", "memory:", "--dir", str(tmp_path / "kept")),
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == f"{OTHERS + STEPS} steps, all true"
    told = lines[lines.index("ldk         two real LDK nodes; each turn is one transaction") + 1 :]
    assert sum(bool(re.fullmatch(r"  ✓ .* +[0-9]+ ms", line)) for line in told) == STEPS
    assert max(map(len, lines[:-2])) <= 80
    assert done.stderr == ""


class HotCache(Pair):
    """A node whose answers are forgotten with its process."""

    def request_invoice(self, name: str, session: tuple[str, str], msat: int) -> Outcome[Any]:
        self._cache = getattr(self, "_cache", {})
        replayed = session in self._cache
        if not replayed:
            invoice = {"msat": msat, "description": "", "expiry_seconds": 3600}
            self._cache[session] = self.ask("invoice", node=name, **invoice)
        return Outcome(self._cache[session], replayed, created_at=0, expires_at=None)

    def restart(self) -> None:
        self._cache = {}
        super().restart()


@pytest.mark.usefixtures("program")
def test_a_hot_cache_makes_it_untrue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ldk_chapter, "Pair", HotCache)
    assert story.tell([], str(tmp_path / "kept"), ldk=True) == 1
    output = capsys.readouterr().out
    untrue = [line for line in output.splitlines() if line.startswith("untrue on ldk: ")]
    assert untrue == [
        "untrue on ldk: SIGKILL, restart, retry: the same bolt11, made once",
        "untrue on ldk: another amount: stale flow, params_mismatch",
    ]


@pytest.mark.usefixtures("program")
def test_npm_that_fails_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("npm_config_offline", "true")
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "cache"))
    assert story.tell([], str(tmp_path / "kept"), ldk=True) == 1
    output = capsys.readouterr().out
    assert "untrue: npm ci failed; its last words: npm" in output
    assert output.splitlines()[-1] == f"{STEPS} steps, 1 untrue, {STEPS - 1} not run"
