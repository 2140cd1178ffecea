"""Tell the story on each store, print it line by line, and say whether it is true."""

from __future__ import annotations

import http.client
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import BrokenBarrierError
from typing import Final, TextIO

from kvreplay import ConfigError
from kvreplay.demo.chapter import Chapter, Step
from kvreplay.demo.client import NODE, NodeFailedError
from kvreplay.demo.rpc import RpcError
from kvreplay.demo.stage import Stage, UntrueError

__all__ = ["ENGINES", "tell"]

ENGINES: Final[Mapping[str, str]] = {
    # engine: the store's line in the config; nothing else changes
    "lmdb": "lmdb:store",
    "sqlite": "sqlite:store",
    "filesystem": "filesystem:store",
    "memory": "memory:",
}

_WIDTH: Final = 96
# These make a step untrue; any other exception is a bug of the story, and ends it.
_UNTRUE: Final = (
    UntrueError,
    NodeFailedError,
    RpcError,
    OSError,
    http.client.HTTPException,
    BrokenBarrierError,
)


def tell(
    engines: Iterable[str], directory: str | None = None, *, command: Sequence[str] = NODE
) -> int:
    """Tell the story on these engines, and return the exit code: 1 if a step is untrue.

    Args:
        directory: where stores, configs and logs are kept; a temporary one by default.
        command: the command that runs a node.

    Raises:
        ConfigError: the directory cannot be used.
    """
    printer = _Printer(sys.stdout)
    printer.title()
    with _place(directory) as place:
        for engine in engines:
            _tell_on(engine, place / engine, printer, command)
    printer.end(None if directory is None else place)
    return 1 if printer.untrue else 0


def _tell_on(engine: str, place: Path, printer: _Printer, command: Sequence[str]) -> None:
    place.mkdir()
    url = ENGINES[engine]
    printer.heading(engine, url)
    stage = Stage(url, place, command)
    untold: set[str] = set()
    try:
        for step in Chapter(stage, forgets=engine == "memory").steps():
            if step.needs in untold:
                untold.add(step.sentence)
                printer.not_run(step)
                continue
            began = time.perf_counter()
            try:
                step.check()
            except _UNTRUE as error:
                untold.add(step.sentence)
                problem = str(error) or type(error).__name__
                printer.false(step, time.perf_counter() - began, problem + stage.last_words())
            else:
                printer.true(step, time.perf_counter() - began)
    finally:
        stage.close()


@contextmanager
def _place(directory: str | None) -> Iterator[Path]:
    """Yield the directory where things are kept, or a temporary one."""
    if directory is None:
        with tempfile.TemporaryDirectory(prefix="kvreplay-demo-") as temporary:
            yield Path(temporary)
        return
    place = Path(directory).absolute()
    try:
        place.mkdir(parents=True, exist_ok=True)
        used = any(place.iterdir())
    except OSError as error:
        raise ConfigError(
            f"--dir: it cannot be used ({error.strerror}); nothing was started"
        ) from error
    if used:
        raise ConfigError("--dir: it is not empty; nothing was started. Name a new directory.")
    yield place


class _Printer:
    """Prints the story, and counts its steps."""

    def __init__(self, stream: TextIO) -> None:
        self.untrue: list[str] = []
        self._engine = ""
        self._true = 0
        self._not_run = 0
        self._stream = stream
        self._coloured = (
            stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        )
        try:
            "✓✗·".encode(stream.encoding or "ascii")
        except UnicodeEncodeError:
            self._marks = ("+", "X", "-")
        else:
            self._marks = ("✓", "✗", "·")

    def title(self) -> None:
        self._print("A node makes each invoice once: async_order.request_invoice over JSON-RPC.")

    def heading(self, engine: str, url: str) -> None:
        self._engine = engine
        self._print("")
        self._print(self._styled(f"{engine:<12}", "1") + f'node.toml: [store] url = "{url}"')

    def true(self, step: Step, seconds: float) -> None:
        self._true += 1
        self._line(self._styled(self._marks[0], "32"), step.sentence, seconds)

    def false(self, step: Step, seconds: float, problem: str) -> None:
        self.untrue.append(f"{self._engine}: {step.sentence}")
        self._line(self._styled(self._marks[1], "31;1"), step.sentence, seconds)
        self._print(f"    untrue: {problem}")

    def not_run(self, step: Step) -> None:
        self._not_run += 1
        self._print(f"  {self._marks[2]} {step.sentence:<{_WIDTH - 13}}  not run")

    def end(self, kept: Path | None) -> None:
        steps = self._true + len(self.untrue) + self._not_run
        self._print("")
        if kept is not None:
            self._print(f"Stores, configs and logs are kept in {kept}")
        if not self.untrue:
            self._print(self._styled(f"{steps} steps, all true", "32;1"))
            return
        for sentence in self.untrue:
            self._print(f"untrue on {sentence}")
        verdict = f"{steps} steps, {len(self.untrue)} untrue, {self._not_run} not run"
        self._print(self._styled(verdict, "31;1"))

    def _line(self, mark: str, sentence: str, seconds: float) -> None:
        took = f"{seconds * 1000:6.0f} ms"
        self._print(f"  {mark} {sentence:<{_WIDTH - 13}}{self._styled(took, '2')}")

    def _styled(self, text: str, code: str) -> str:
        return f"\033[{code}m{text}\033[0m" if self._coloured else text

    def _print(self, line: str) -> None:
        encoding = self._stream.encoding or "utf-8"
        # A node's log may hold characters that this terminal cannot show.
        print(line.encode(encoding, "replace").decode(encoding), file=self._stream, flush=True)
