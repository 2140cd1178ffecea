"""Tell the story on each store, and say whether it is true."""

from __future__ import annotations

import http.client
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import BrokenBarrierError
from typing import Final

from kvreplay import Config, ConfigError, load_config
from kvreplay.demo.chapter import Chapter, Step
from kvreplay.demo.client import NODE, NodeFailedError
from kvreplay.demo.cluster_chapter import ClusterChapter
from kvreplay.demo.ldk.process import LDKNodesError
from kvreplay.demo.ldk.program import why_not
from kvreplay.demo.ldk_chapter import LDKChapter
from kvreplay.demo.members import MemberFailedError, Members, etcd_program
from kvreplay.demo.prefix import new_prefix
from kvreplay.demo.printing import Printer
from kvreplay.demo.rpc import RpcError
from kvreplay.demo.stage import Stage, UntrueError

__all__ = ["OWN_CLUSTER", "STORES", "tell"]

OWN_CLUSTER: Final = "etcd:"
"""In the place of a URL: a cluster of the story's own, whose members are killed."""

STORES: Final = ("lmdb:store", "sqlite:store", "filesystem:store", "memory:")
"""The store's line in the config, for each engine of ours; nothing else changes."""

# These make a step untrue; any other exception is a bug of the story, and ends it.
_UNTRUE: Final = (
    UntrueError,
    NodeFailedError,
    LDKNodesError,
    MemberFailedError,
    RpcError,
    OSError,
    http.client.HTTPException,
    BrokenBarrierError,
)


def tell(
    stores: Iterable[str],
    directory: str | None = None,
    *,
    command: Sequence[str] = NODE,
    ldk: bool = False,
) -> int:
    """Tell the story on these stores, and return the exit code: 1 if a step is untrue.

    Args:
        stores: URLs, one an engine, or ``OWN_CLUSTER``; a relative path begins in a directory of
            that engine's.
        directory: where stores, configs and logs are kept; a temporary one by default.
        command: the command that runs a node.
        ldk: tell it on real LDK nodes too.

    Raises:
        ConfigError: the directory cannot be used, or there is no etcd for a cluster.
    """
    stores = tuple(stores)
    if OWN_CLUSTER in stores:
        etcd_program()
    printer = Printer()
    printer.title()
    with _place(directory) as place:
        for url in stores:
            if url == OWN_CLUSTER:
                _tell_on_cluster(place / "etcd", printer, command)
                continue
            config = load_config(None, environ={"KVREPLAY_STORE": url})
            engine = config.store.backend
            with _table(url, config, printer, kept=directory is not None) as table:
                _tell_on(engine, table, place / engine, printer, command)
        if ldk:
            _tell_on_ldk(place / "ldk", printer)
    printer.end(None if directory is None else place)
    return 1 if printer.untrue else 0


def _tell_on(
    engine: str, store: Mapping[str, str], place: Path, printer: Printer, command: Sequence[str]
) -> None:
    place.mkdir()
    printer.heading(engine, store)
    stage = Stage(store, place, command)
    try:
        steps = Chapter(stage, forgets=engine == "memory").steps()
        _tell_steps(steps, printer, stage.last_words)
    finally:
        stage.close()


def _tell_on_cluster(place: Path, printer: Printer, command: Sequence[str]) -> None:
    members = Members(place)
    place.mkdir()
    printer.heading_of_cluster(members.addresses)
    stage = Stage({"url": members.url}, place, command)
    try:
        usual = Chapter(stage, forgets=False).steps()
        _tell_steps(ClusterChapter(stage, members).steps(usual), printer, stage.last_words)
    finally:
        stage.close()
        members.close()


def _tell_on_ldk(place: Path, printer: Printer) -> None:
    place.mkdir()
    printer.heading_of_ldk()
    if (reason := why_not()) is not None:
        printer.untold(reason)
        return
    chapter = LDKChapter(place)
    try:
        _tell_steps(chapter.steps(), printer, str)
    finally:
        chapter.close()


def _tell_steps(steps: Iterable[Step], printer: Printer, last_words: Callable[[], str]) -> None:
    untold: set[str] = set()
    for step in steps:
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
            printer.false(step, time.perf_counter() - began, problem + last_words())
        else:
            printer.true(step, time.perf_counter() - began)


@contextmanager
def _table(
    url: str, config: Config, printer: Printer, *, kept: bool
) -> Iterator[Mapping[str, str]]:
    """Yield the store's table; on a server that others use too, it has a place of its own."""
    store = config.store
    if store.backend == "postgresql" and "schema" not in store.options:
        from kvreplay.demo.schema import new_schema  # imported late: it needs an extra

        with new_schema(store.location or "", kept=kept) as schema:
            yield {"url": url, "schema": schema}
            if kept:
                printer.kept(f'PostgreSQL is kept too, in the schema "{schema}"')
    elif store.backend == "etcd":
        with new_prefix(url, kept=kept) as (own_url, prefix):
            yield {"url": own_url}
            if kept:
                printer.kept(f"etcd is kept too: {prefix}")
    else:
        yield {"url": url}


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
