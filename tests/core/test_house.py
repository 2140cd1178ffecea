"""The house as ARCHITECTURE.md draws it: who imports whom, and what is public."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

import kvreplay

PACKAGE = Path(kvreplay.__file__).parent

# What each wing may import besides itself: wings that stand before it, or packages.
# A wing is a folder of the package, or one file. "kvreplay" is the face: the public names.
WINGS: dict[str, set[str]] = {
    "errors": set(),
    "store": {"errors"},
    "clock": {"errors", "store"},
    "events": {"store"},
    "_protocol": {"errors", "events", "store"},
    "_typed": {"_protocol", "errors"},
    "_runtime": {"_protocol", "_typed", "clock", "errors", "events", "store"},
    "replay": {"_protocol", "_runtime", "clock", "errors", "events", "store"},
    "aio": {"_protocol", "_runtime", "clock", "errors", "events", "store"},
    "config": {"_protocol", "_runtime", "errors", "store"},
    "_migration": {"_protocol", "_runtime", "config", "errors", "store"},
    "__init__": {
        *(
            "_migration",
            "_protocol",
            "_runtime",
            "aio",
            "clock",
            "config",
            "errors",
            "events",
            "replay",
        ),
        "store",
    },
    "_http": {"__init__", "_protocol", "clock", "errors"},
    "asgi": {"__init__", "_http", "errors"},
    "http": {"__init__", "_http"},
    "_inspection": {
        *("_protocol", "_runtime", "clock", "config", "errors", "events", "http", "replay"),
        "store",
    },
    "ldk": {"errors", "store"},
    "backends": {"errors", "store"},
    "metrics": {"errors", "events", "store"},
    "testing": {"errors", "store"},
    "demo": {"__init__", "errors", "ldk", "store"},
    "cli": {
        *("__init__", "_inspection", "_migration", "clock", "config", "demo", "errors", "http"),
        "store",
    },
    "wsgi": {"__init__", "_http", "errors"},
    "__main__": {"cli"},
}
# The modules of a wing in an order in which each may import those before it, and no other.
# A wing's face, its __init__, stands last; an engine that is a package is a wing of its own.
ORDER: dict[str, tuple[str, ...]] = {
    "store": (
        "durations",
        "names",
        "paging",
        "locks",
        "closing",
        "contract",
        "whole",
        "awaited",
        "in_process",
        "__init__",
    ),
    "_protocol": (
        *("packing", "params", "keys", "digests", "codec", "culprit", "record", "failures"),
        *("steps", "endings", "flow", "__init__"),
    ),
    "_typed": (
        *("annotations", "leaves", "sameness", "pydantic", "scalars", "shapes", "walk"),
        *("cattrs", "codecs", "__init__"),
    ),
    "_runtime": (
        *(
            "observer",
            "patience",
            "running",
            "singleflight",
            "liveness",
            "threads",
            "settings",
            "requests",
            "run",
            "blocking",
        ),
        *("renewal", "walking", "sweeping", "aio_sweeping", "batching", "awaiting", "decorating"),
        *("any_replay", "upkeep", "aio_upkeep", "__init__"),
    ),
    "_http": (
        *("header", "answers", "requests", "problems", "profile", "stripe"),
        *("canonical", "acp", "policy", "layer", "settings", "__init__"),
    ),
    "config": ("units", "location", "registry", "file", "__init__"),
    "_inspection": (
        *("entries", "condition", "counting", "finding", "checking", "copying", "ownership"),
        *("opening", "told", "__init__"),
    ),
    "_migration": (
        *(
            "ldk_rows",
            "ldk_files",
            "ldk_database",
            "ldk_table",
            "sides",
            "walking",
            "claims",
            "mark",
            "copying",
        ),
        *("verifying", "__init__"),
    ),
    "backends": (
        *("_support", "durable_files", "file_lock", "lazy_removals", "pending", "group_commit"),
        *("new_place", "driving", "memory", "__init__"),
    ),
    "backends.filesystem": (
        *("errors", "locks", "layout", "presence", "opening", "expiry", "creation", "listing"),
        *("entries", "checking", "copying", "store", "__init__"),
    ),
    "backends.lmdb": (
        *("errors", "presence", "files", "gate", "process_lock", "readers", "handle", "entries"),
        *("checking", "copying", "committer", "environment", "shared", "transaction", "store"),
        "__init__",
    ),
    "backends.postgresql": (
        *("clock", "location", "links", "timeline", "statements", "errors", "operations"),
        *("opening", "kept", "pooling"),
        *("calls", "callers", "session", "transaction", "joining", "aio_session"),
        *("aio_transaction", "aio_joining", "aio", "store", "__init__"),
    ),
    "backends.etcd": (
        *("layout", "requests", "errors", "cluster", "exchange", "location", "addresses", "links"),
        *("aio_links", "operations", "opening"),
        *("session", "aio_session", "aio", "store", "__init__"),
    ),
    "backends.sqlite": (
        *("errors", "schema", "entries", "removals", "presence", "connections", "files"),
        *("checking", "committer", "joining", "database", "store", "__init__"),
    ),
    "metrics": ("_tally", "opentelemetry", "prometheus", "__init__"),
    "testing": (
        *("blocking", "clock", "planned_faults", "faulty_store", "killing"),
        *("threads", "entries", "backups", "batches", "check_and_put", "checking", "claims"),
        *("closing", "expiry"),
        *("faults", "foreign", "forking", "inspecting", "limits", "names", "paging", "plain"),
        *("processes", "prompt", "lazy", "scanning", "transactions", "walking"),
        *("model", "whole", "contract", "__init__"),
    ),
    "demo": (
        *(
            "params",
            "invoice",
            "rpc",
            "orders",
            "node",
            "client",
            "stage",
            "chapter",
            "ldk_chapter",
            "members",
            "cluster_chapter",
        ),
        *("printing", "schema", "prefix", "story", "__init__"),
    ),
    "demo.ldk": ("program", "process", "pair", "__init__"),
    "cli": (
        *("streams", "arguments", "output", "audit", "progress", "runs"),
        *("demo", "init", "migrate", "stat", "ls", "show", "doubt", "settle", "sweep", "check"),
        *("backup", "completion", "commands", "main", "__init__"),
    ),
}
# What a wing may import from outside of the package, besides the standard library and attrs.
PACKAGES: dict[str, set[str]] = {
    "_protocol": {"msgpack"},
    "_typed.cattrs": {"cattrs"},
    "_typed.pydantic": {"pydantic", "pydantic_core"},
    "_inspection": {"msgpack"},
    "_migration.ldk_table": {"psycopg"},
    "backends.etcd": {"h11"},
    "backends.lmdb": {"lmdb"},
    "backends.postgresql": {"psycopg", "psycopg_pool"},
    "metrics.opentelemetry": {"opentelemetry"},
    "metrics.prometheus": {"prometheus_client"},
    "testing": {"pytest"},
    "testing.model": {"hypothesis", "pytest"},
    "demo": {"bolt11", "msgpack", "rich"},
    "demo.schema": {"psycopg"},
    "cli": {"click", "rich"},
}


def imports_of(path: Path, modules: Iterable[str]) -> set[str]:
    """Every module that a file names in an import, also inside functions and for type checkers."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} has a relative import"
            assert node.module is not None
            for alias in node.names:  # ``from kvreplay._protocol import flow`` names a module
                submodule = f"{node.module}.{alias.name}"
                names.add(submodule if submodule in modules else node.module)
    return names


def wing_of(module: str) -> tuple[str, str]:
    """Split a module's name, such as ``backends.lmdb.gate``, into its wing and its place there."""
    parts = module.split(".")
    depth = 2 if ".".join(parts[:2]) in ORDER else 1
    if len(parts) == 1 and parts[0] not in ORDER:
        return parts[0], parts[0]
    return ".".join(parts[:depth]), ".".join(parts[depth:]) or "__init__"


ENGINES_SHARE = (
    *("_support", "durable_files", "file_lock", "lazy_removals", "pending", "group_commit"),
    *("new_place", "driving"),
)


def complaints(package: Path) -> list[str]:
    """Return what is wrong with the imports of a package that is laid out as kvreplay."""
    modules = {
        ".".join(path.relative_to(package).with_suffix("").parts): path
        for path in package.rglob("*.py")
    }
    names = {f"kvreplay.{each}".removesuffix(".__init__") for each in modules}
    found = []
    for module, path in sorted(modules.items()):
        wing, place = wing_of(module.removesuffix(".__init__") if "." in module else module)
        order = ORDER.get(wing, (wing,))
        top = wing.partition(".")[0]
        if top not in WINGS or place not in order:
            found.append(f"{module} has no place in the table")
            continue
        for name in imports_of(path, names):
            if name == "kvreplay":
                their_wing, their_place = "__init__", "__init__"
            elif name.startswith("kvreplay."):
                their_wing, their_place = wing_of(name.removeprefix("kvreplay."))
            else:
                outside = PACKAGES.get(module, PACKAGES.get(wing, set()))
                if name.split(".")[0] not in {*sys.stdlib_module_names, "attrs", *outside}:
                    found.append(f"{module} imports the package {name}")
                continue
            if their_wing == wing:
                allowed = order.index(their_place) < order.index(place)
            elif their_wing == "backends" and top == "backends":
                allowed = their_place in ENGINES_SHARE
            elif their_wing == "demo.ldk":
                allowed = wing == "demo"
            else:
                allowed = their_wing in WINGS[top]
            if not allowed:
                found.append(f"{module} imports {name}")
    return found


def test_imports_point_down_and_nowhere_in_a_circle() -> None:
    assert complaints(PACKAGE) == []


def test_the_table_has_no_wing_that_is_not_there() -> None:
    for wing, order in ORDER.items():
        folder = PACKAGE.joinpath(*wing.split("."))
        assert {path.stem for path in folder.glob("*.py")} == set(order), wing
    before: set[str] = set()
    for wing, allowed in WINGS.items():
        assert allowed <= before, wing
        before.add(wing)


@pytest.mark.any_python
@pytest.mark.parametrize(
    ("file", "line", "complaint"),
    [
        ("_protocol/flow.py", "import kvreplay._runtime.run", "_protocol.flow imports kvreplay"),
        ("_protocol/keys.py", "from kvreplay._protocol import record", "_protocol.keys imports"),
        ("errors.py", "import attrs, kvreplay.store", "errors imports kvreplay.store"),
        ("backends/memory.py", "import lmdb", "backends.memory imports the package lmdb"),
        ("backends/memory.py", "import kvreplay.backends.lmdb.files", "backends.memory imports"),
        ("backends/lmdb/store.py", "import kvreplay.clock", "backends.lmdb.store imports"),
        ("testing/plain.py", "import hypothesis", "testing.plain imports the package hypothesis"),
        (  # a circle inside an engine, which only a type checker would see
            "backends/lmdb/gate.py",
            "from typing import TYPE_CHECKING\n"
            "if TYPE_CHECKING:\n    from kvreplay.backends.lmdb.environment import Environment",
            "backends.lmdb.gate imports kvreplay.backends.lmdb.environment",
        ),
        ("_runtime/helpers.py", "", "_runtime.helpers has no place in the table"),
    ],
)
def test_a_planted_import_is_found(tmp_path: Path, file: str, line: str, complaint: str) -> None:
    for path in PACKAGE.rglob("*.py"):
        copy = tmp_path / path.relative_to(PACKAGE)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    with open(tmp_path / file, "a", encoding="utf-8") as planted:
        planted.write(f"\n{line}\n")
    (only,) = complaints(tmp_path)
    assert only.startswith(complaint)


def test_every_module_of_the_kit_shows_what_its_assertions_compared() -> None:
    for path in (PACKAGE / "testing").glob("*.py"):
        if any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(path.read_text()))):
            module = importlib.import_module(f"kvreplay.testing.{path.stem}")
            assert type(module.__loader__).__name__ == "AssertionRewritingHook", path.stem


def test_importing_kvreplay_imports_no_driver_and_no_backend() -> None:
    script = (
        "import kvreplay, sys;"
        "print([name for name in sys.modules"
        " if name.split('.')[0] in"
        " ('lmdb', 'bolt11', 'click', 'rich', 'asyncio', 'pytest', 'hypothesis', 'cattrs', 'pydantic')"
        " or name.startswith("
        "('kvreplay.backends', 'kvreplay.demo', 'kvreplay.cli', 'kvreplay.testing'))])"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_all_public_names_are_there_and_documented() -> None:
    assert len(set(kvreplay.__all__)) == len(kvreplay.__all__)
    for name in kvreplay.__all__:
        thing = getattr(kvreplay, name)
        if isinstance(thing, type):
            assert thing.__doc__, name
            assert not thing.__doc__.startswith("Method generated"), name
