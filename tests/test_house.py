"""The house as ARCHITECTURE.md draws it: who imports whom, what the wheel holds, what is public."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import kvreplay

PACKAGE = Path(kvreplay.__file__).parent
CORE = sorted(path for path in PACKAGE.glob("*.py"))

# module -> the modules of the core that it may import. A name that is missing here fails.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "locks": {"errors"},
    "store": {"errors", "locks"},
    "in_process": {"errors", "store"},
    "clock": {"errors"},
    "canonical": {"errors"},
    "keys": {"errors"},
    "record": {"errors", "keys"},
    "events": {"store"},
    "singleflight": set(),
    "owner": {"record"},
    "steps": {"events", "keys", "record"},
    "flow": {"errors", "events", "keys", "record", "steps"},
    "namespace": {
        *("canonical", "clock", "errors", "events", "keys", "record"),
        *("singleflight", "steps", "store"),
    },
    "run": {"errors", "keys", "namespace", "owner", "singleflight", "steps", "store"},
    "blocking": {"errors", "run", "singleflight", "steps", "store"},
    "renewal": {"blocking", "events", "flow", "namespace", "run", "steps"},
    "walk": {"blocking", "errors", "flow", "keys", "namespace", "record", "run", "store"},
    "sweep": {"errors", "events", "store"},
    "aio_sweep": {"events", "store", "sweep"},
    "shuttle": {"singleflight", "store"},
    "awaiting": {
        *("blocking", "events", "flow", "namespace", "renewal", "run", "shuttle", "singleflight"),
        *("steps", "store"),
    },
    "replay": {
        *("blocking", "clock", "errors", "events", "flow", "namespace", "record", "renewal"),
        *("run", "singleflight", "steps", "store", "sweep", "walk"),
    },
    "aio": {
        *("aio_sweep", "awaiting", "clock", "errors", "events", "flow", "namespace", "record"),
        *("run", "singleflight", "steps", "store", "walk"),
    },
    "units": {"errors"},
    "location": {"units"},
    "config": {"location", "store", "units"},
    "config_file": {"config", "errors", "location", "record", "steps", "store", "units"},
}
# What stands above the core, and may use all of it.
ABOVE = {"__init__", "__main__", "cli"}
# The kit knows the contract and no engine; only its model knows Hypothesis.
KIT = {"kvreplay.errors", "kvreplay.store", *sys.stdlib_module_names, "pytest"}
DRIVERS = {"lmdb": "lmdb"}


def imports_of(path: Path) -> set[str]:
    """Every module that a file names in an import, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} has a relative import"
            assert node.module is not None
            # ``from kvreplay import flow`` names a module, not a value of the package.
            modules = {f"{node.module}.{alias.name}" for alias in node.names}
            packages = {"kvreplay", "kvreplay.backends"}
            names.update(modules if node.module in packages else {node.module})
    return names


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.stem)
def test_the_core_imports_downwards_only(path: Path) -> None:
    if path.stem in ABOVE:
        return
    own = {name for name in imports_of(path) if name.startswith("kvreplay")}
    assert own <= {f"kvreplay.{name}" for name in MAY_IMPORT[path.stem]}


def test_every_arrow_of_the_table_is_drawn() -> None:
    drawn = {
        path.stem: {
            name.removeprefix("kvreplay.")
            for name in imports_of(path)
            if name.startswith("kvreplay.")
        }
        for path in CORE
        if path.stem not in ABOVE
    }
    assert drawn == MAY_IMPORT


@pytest.mark.parametrize(
    "path", sorted((PACKAGE / "backends").glob("*.py")), ids=lambda path: path.stem
)
def test_a_backend_imports_the_contract_and_its_driver(path: Path) -> None:
    parts = {f"kvreplay.backends.{part.stem}" for part in path.parent.glob("*.py")}
    driver = {name for start, name in DRIVERS.items() if path.stem.startswith(start)}
    for name in imports_of(path) - parts - {"kvreplay.errors", "kvreplay.store"}:
        assert name.split(".")[0] in {*sys.stdlib_module_names, "attrs", *driver}, name


@pytest.mark.parametrize(
    "path", sorted((PACKAGE / "testing").glob("*.py")), ids=lambda path: path.stem
)
def test_the_kit_imports_the_contract_and_pytest(path: Path) -> None:
    parts = {f"kvreplay.testing.{part.stem}" for part in path.parent.glob("*.py")}
    hypothesis = {"hypothesis"} if path.stem == "model" else set()
    for name in imports_of(path) - parts:
        assert name in KIT or name.split(".")[0] in KIT | hypothesis, name


def test_every_module_of_the_kit_shows_what_its_assertions_compared() -> None:
    for path in (PACKAGE / "testing").glob("*.py"):
        if any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(path.read_text()))):
            module = importlib.import_module(f"kvreplay.testing.{path.stem}")
            assert type(module.__loader__).__name__ == "AssertionRewritingHook", path.stem


def test_importing_kvreplay_imports_no_driver_and_no_backend() -> None:
    script = (
        "import kvreplay, sys;"
        "print([name for name in sys.modules"
        " if name.split('.')[0] in ('lmdb', 'bolt11', 'asyncio', 'pytest', 'hypothesis')"
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


def test_the_wheel_holds_the_backends(tmp_path: Path) -> None:
    """Built from the checkout: the symbolic link must not be lost on the way."""
    root = Path(__file__).parent.parent
    subprocess.run(
        [sys.executable, "-m", "pip", "-q", "wheel", "--no-deps", "-w", str(tmp_path), str(root)],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for name in (
        *("store.py", "py.typed", "backends/lmdb.py", "backends/memory.py", "demo/node.py"),
        *("testing/__init__.py", "testing/contract.py", "testing/model.py"),
    ):
        assert f"kvreplay/{name}" in names
    assert not [name for name in names if name.startswith(("tests", "backends", "benchmarks"))]
