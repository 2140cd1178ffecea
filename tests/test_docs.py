"""The README's words are run: its example, its config, its commands' names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kvreplay import Replay, load_config

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_the_example_does_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):  # the second time it is answered from the store
        names: dict[str, object] = {}
        example = blocks("python")[0]
        if _:
            example = example.replace("len(invoices) == 1", "len(invoices) == 0")
        exec(compile(example, "README.md", "exec"), names)
        assert "stale flow: this key is bound to other params" in capsys.readouterr().out


def test_the_configuration_is_valid(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text(blocks("toml")[0], encoding="utf-8")
    config = load_config(file, environ={"KVREPLAY_REPLAY_REQUEST_INVOICE_TTL": "5s"})
    with config.open_store() as store:
        assert (tmp_path / "replay-data" / "data.mdb").exists()
        Replay(store, **config.replay("request_invoice"))
    assert config.replay("request_invoice")["ttl"] == 5


def test_the_example_has_twenty_lines() -> None:
    assert len([line for line in blocks("python")[0].splitlines() if line.strip()]) <= 20
