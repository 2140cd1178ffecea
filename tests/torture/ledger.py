"""What nodes did and were told, noted apart from any store.

A note is one append. One of several pages, or over the end of one, may be cut off if its process is killed: it counts
as not made, and stands on a line of its own.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from pathlib import Path

import attrs

SCOPE = "lsp"
PARAMS = {"amount_msat": 250_000}
FILLERS = (0, 300, 5_000, 20_000)


def answer(token: str) -> str:
    """The response that a run with this token gives: of one page, or of several."""
    return token + "." * FILLERS[int(token[0], 16) % len(FILLERS)]


@attrs.define
class Account:
    """What is known of one key."""

    effects: list[str] = attrs.field(factory=list)  # the tokens of the runs that had their effect
    answers: list[str] = attrs.field(factory=list)  # what callers were answered
    doubts: int = 0
    failures: list[str] = attrs.field(factory=list)
    bugs: list[str] = attrs.field(factory=list)  # what no caller should ever see


class Ledger:
    """An append-only file for all nodes of a test."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._accounts: dict[str, Account] = defaultdict(Account)
        self._read = 0  # bytes, that the accounts tell

    def note(self, kind: str, key: str, value: str = "") -> None:
        line = "\n" + json.dumps([kind, key, value]) + "\n"
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            assert os.write(fd, line.encode()) == len(line)
        finally:
            os.close(fd)

    def accounts(self) -> dict[str, Account]:
        """What was noted so far, for each key."""
        with self.path.open("ab+") as file:
            file.seek(self._read)
            text = file.read()
            text = text[: text.rfind(b"\n") + 1]  # the rest is being written, or cut off
            self._read += len(text)
        for line in text.splitlines():
            if not line.endswith(b"]"):
                continue  # empty, or cut off
            kind, key, value = json.loads(line)
            account = self._accounts[key]
            if kind == "effect":
                account.effects.append(value)
            elif kind == "answer":
                account.answers.append(value)
            elif kind == "doubt":
                account.doubts += 1
            elif kind == "failure":
                account.failures.append(value)
            else:
                account.bugs.append(value)
        return self._accounts
