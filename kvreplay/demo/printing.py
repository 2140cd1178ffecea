"""Print the story line by line, and count its steps. A line has at most 80 columns."""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.text import Text

from kvreplay.demo.chapter import Step

__all__ = ["Printer"]

_SENTENCE: Final = 67  # columns
_INDENT: Final = 12


class _Output(Console):
    def on_broken_pipe(self) -> None:  # rich would end the process
        raise BrokenPipeError(errno.EPIPE, "nobody reads the story any more")


class Printer:
    """Prints to the standard output. Colours are for terminals."""

    def __init__(self) -> None:
        self.untrue: list[str] = []
        self._engine = ""
        self._true = 0
        self._not_run = 0
        self._untold = ""
        self._kept = ""
        self._output = _Output(soft_wrap=True)
        try:
            "✓✗·".encode(self._output.encoding)
        except UnicodeEncodeError:
            self._marks = ("+", "X", "-")
        else:
            self._marks = ("✓", "✗", "·")

    def title(self) -> None:
        """Say what the story is about."""
        self._print("A node makes each invoice once: async_order.request_invoice over JSON-RPC.")

    def heading(self, engine: str, store: Mapping[str, str]) -> None:
        """Begin with another store. No credentials of its URL are shown, and not its query."""
        self._engine = engine
        url, mark, _ = store["url"].partition("?")
        head, at, tail = url.rpartition("@")
        shown = (f"{head.partition(':')[0]}:…@{tail}" if at else url) + ("?…" if mark else "")
        self._print("")
        line = f'node.toml: [store] url = "{shown}"'
        if len(line) > 80 - _INDENT:
            line = line.replace(" = ", f" =\n{'':<{_INDENT}}")
        self._print((f"{engine:<{_INDENT}}", "bold"), line)
        if "schema" in store:
            self._print(" " * 31, f'schema = "{store["schema"]}"')

    def heading_of_ldk(self) -> None:
        """Begin with LDK's nodes."""
        self._engine = "ldk"
        self._print("")
        self._print(
            (f"{'ldk':<{_INDENT}}", "bold"), "two real LDK nodes; each turn is one transaction"
        )

    def heading_of_cluster(self, addresses: Sequence[str]) -> None:
        """Begin with an etcd cluster of the story's own."""
        self._engine = "etcd"
        self._print("")
        first, *others = addresses
        where = ", ".join([first, *(f".{other.rpartition('.')[2]}" for other in others)])
        self._print((f"{'etcd':<{_INDENT}}", "bold"), f"a cluster of its own: members on {where}")

    def kept(self, where: str) -> None:
        """Say at the end that a store on a server is kept: which, and where."""
        self._kept = where

    def untold(self, reason: str) -> None:
        """Say that what comes after the heading is not told at all."""
        self._untold = f"the part on {self._engine} was not told: {reason}"
        self._print(f"  {self._marks[2]} not told: {reason}")

    def true(self, step: Step, seconds: float) -> None:
        """Print a step that is true."""
        self._true += 1
        self._line((self._marks[0], "green"), step.sentence, seconds)

    def false(self, step: Step, seconds: float, problem: str) -> None:
        """Print a step that is untrue, and what is true instead."""
        self.untrue.append(f"{self._engine}: {step.sentence}")
        self._line((self._marks[1], "bold red"), step.sentence, seconds)
        self._print(f"    untrue: {problem}")

    def not_run(self, step: Step) -> None:
        """Print a step that means nothing, since an earlier one was untrue."""
        self._not_run += 1
        self._print(f"  {self._marks[2]} {step.sentence:<{_SENTENCE}}  not run")

    def end(self, kept: Path | None) -> None:
        """Print the verdict, and where things are kept."""
        steps = self._true + len(self.untrue) + self._not_run
        self._print("")
        if kept is not None:
            self._print(f"Stores, configs and logs are kept in {kept}")
        if self._kept:
            self._print(f"The store in {self._kept}")
        if self._untold:
            self._print((self._untold, "yellow"))
        if not self.untrue:
            self._print((f"{steps} steps, all true", "bold green"))
            return
        for sentence in self.untrue:
            self._print(f"untrue on {sentence}")
        verdict = f"{steps} steps, {len(self.untrue)} untrue, {self._not_run} not run"
        self._print((verdict, "bold red"))

    def _line(self, mark: tuple[str, str], sentence: str, seconds: float) -> None:
        took = f"{seconds * 1000:5.0f} ms"
        self._print("  ", mark, f" {sentence:<{_SENTENCE}}", (took, "dim"))

    def _print(self, *parts: str | tuple[str, str]) -> None:
        # A node's log may hold characters that this terminal cannot show.
        encoding = self._output.encoding
        shown = Text()
        for part in parts:
            text, style = (part, "") if isinstance(part, str) else part
            shown.append(text.encode(encoding, "replace").decode(encoding), style)
        self._output.print(shown)
