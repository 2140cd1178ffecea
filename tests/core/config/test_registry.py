"""Backends by name: our own, a stranger's, and those that cannot be imported."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kvreplay.config.file import load_config
from kvreplay.config.registry import BACKENDS, open_store
from kvreplay.config.units import KINDS
from kvreplay.errors import ConfigError
from support.configuring import (
    HAS_POSTGRESQL,
    RECORDER,
    Stranger,
    complaint,
    has_driver,
    put_and_close,
)
from support.extras import needs_postgresql
from support.programs import run_code


def test_every_built_in_backend_declares_what_config_needs() -> None:
    import importlib

    for scheme, (module, name, _) in BACKENDS.items():
        if not has_driver(scheme):
            continue
        engine = getattr(importlib.import_module(module), name)
        assert scheme in module
        assert engine.LOCATION in ("path", "none", "url")
        for kind in engine.OPTIONS.values():
            assert isinstance(kind, tuple) or kind in KINDS
        # Kubernetes sets KVREPLAY_STORE_PORT for a Service that is called "kvreplay-store".
        assert engine.OPTIONS.keys().isdisjoint(("port", "host"))
        assert not any(name.startswith(("port_", "service_")) for name in engine.OPTIONS)


def test_importing_config_imports_no_backend_and_opening_one_imports_only_that() -> None:
    done = run_code(
        "import sys\n"
        "before = set(sys.modules)\n"
        "import kvreplay.config\n"
        "new = set(sys.modules) - before\n"
        "lazy = {'lmdb', 'tomllib', 'difflib', 'importlib.metadata'} & new\n"
        "assert not lazy, lazy\n"
        "engines = lambda: {m for m in sys.modules if m.startswith('kvreplay.backends.') and '._' not in m}\n"
        "assert not engines(), engines()\n"
        "kvreplay.config.open_store('memory:').close()\n"
        "assert engines() == {'kvreplay.backends.memory'}, engines()\n"
        "assert 'lmdb' not in sys.modules\n"
    )
    assert done.returncode == 0, done.stderr


def test_a_missing_driver_names_the_extra(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    put_and_close(open_store("lmdb:works"))
    with monkeypatch.context() as without:
        for name in [name for name in sys.modules if name.startswith("kvreplay.backends.lmdb")]:
            without.delitem(sys.modules, name)
        without.setitem(sys.modules, "lmdb", None)
        message = complaint(open_store, "lmdb:missing")
    assert 'the backend "lmdb" needs the module "lmdb"' in message
    assert "pip install 'kvreplay[lmdb]'" in message
    assert not (here / "missing").exists()


@pytest.mark.parametrize("module", ["psycopg", "psycopg_pool"])
def test_a_server_without_its_driver_names_the_extra(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("kvreplay.backends.postgresql")]:
        monkeypatch.delitem(sys.modules, name)
    if not HAS_POSTGRESQL:  # what is missing first is told
        module = "psycopg"
    monkeypatch.setitem(sys.modules, module, None)
    for url in ("postgresql://u:hunter2@h/db", "postgres://u:hunter2@h/db"):
        message = complaint(open_store, url)
        assert f'the backend "postgresql" needs the module "{module}"' in message
        assert "pip install 'kvreplay[postgresql]'" in message
        assert "hunter2" not in message


@needs_postgresql
def test_a_driver_that_cannot_be_loaded_is_told_in_one_line() -> None:
    """As psycopg without libpq, which pip installs unless it is asked for more."""
    done = run_code(
        "import os\nfrom kvreplay.config import open_store\nopen_store(os.environ['WHERE'])\n",
        env={**os.environ, "PSYCOPG_IMPL": "none", "WHERE": "postgresql://u:hunter2@h/db"},
    )
    assert done.returncode == 1
    said = done.stderr.splitlines()[-1]
    assert 'ConfigError: the store URL: the driver of the backend "postgresql" cannot be' in said
    assert "pip install 'kvreplay[postgresql]'" in said
    assert "hunter2" not in done.stderr


def test_a_process_without_the_driver_still_has_the_other_engines() -> None:
    done = run_code(
        "import sys; sys.modules['lmdb'] = None\n"
        "from kvreplay.config import open_store\n"
        "open_store('memory:').close()\n"
        "open_store('lmdb:x')\n"
    )
    assert done.returncode == 1
    assert 'ConfigError: the store URL: the backend "lmdb" needs the module' in done.stderr
    assert "pip install 'kvreplay[lmdb]'" in done.stderr


def test_a_missing_standard_module_is_not_said_to_be_an_extra() -> None:
    done = run_code(
        "import sys; sys.modules['fcntl'] = None\n"
        "from kvreplay.config import open_store\n"
        "open_store('filesystem:x')\n"
    )
    assert done.returncode == 1
    assert 'ConfigError: the store URL: the backend "filesystem" needs the module' in done.stderr
    assert "pip install" not in done.stderr


def test_an_import_that_fails_inside_kvreplay_is_a_bug_and_is_not_relabelled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "kvreplay.backends.memory", None)
    with pytest.raises(ModuleNotFoundError):
        open_store("memory:")


def test_a_strangers_backend_is_found_by_its_scheme(stranger: Stranger) -> None:
    stranger.install("rec")
    store = open_store(
        "Rec://user:hunter%322@host/db%20x?pool=4&timeout=500ms&cache=1KiB&tls=on&password=a%26b"
        "&mode=safe"
    )
    assert store.args == ("rec://user:hunter%322@host/db%20x",)  # type: ignore[attr-defined]
    assert store.options == {  # type: ignore[attr-defined]
        "pool": 4,
        "timeout": 0.5,
        "cache": 1024,
        "tls": True,
        "password": "a&b",
        "mode": "safe",
    }
    assert 'Did you mean "rec"?' in complaint(open_store, "recc:x")


@pytest.mark.parametrize("where", ["rec:", "rec://", {"backend": "rec"}])
def test_a_backend_by_url_needs_one(stranger: Stranger, where: str) -> None:
    stranger.install("rec")
    assert "it names no place" in complaint(open_store, where)


def test_a_backend_by_url_has_no_path(stranger: Stranger) -> None:
    stranger.install("rec")
    message = complaint(open_store, {"backend": "rec", "path": "x"})
    assert 'has no path; nothing was opened. Write url = "rec:…".' in message


def test_a_stranger_with_a_path_gets_an_absolute_one(stranger: Stranger, here: Path) -> None:
    stranger.install("rec", RECORDER.replace('"url"', '"path"'))
    assert open_store("rec:x").args == (str(here / "x"),)  # type: ignore[attr-defined]


def test_a_stranger_cannot_replace_a_built_in(stranger: Stranger) -> None:
    stranger.install("memory")
    with open_store("memory:") as store:
        assert type(store).__name__ == "MemoryStore"


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("import no_such_driver", "ModuleNotFoundError: No module named 'no_such_driver'"),
        ("1 / 0", "ZeroDivisionError"),
        ("pass", "AttributeError"),
    ],
)
def test_a_strangers_failing_import_names_the_distribution(
    stranger: Stranger, code: str, says: str
) -> None:
    name = stranger.install("rec", code)
    with pytest.raises(ConfigError) as caught:
        open_store("rec:x")
    assert f'the backend "rec" of the distribution "{name}" cannot be imported' in str(caught.value)
    assert says in str(caught.value)
    assert caught.value.__cause__ is not None


def test_two_distributions_with_one_scheme_are_both_named(stranger: Stranger) -> None:
    names = [stranger.install("rec"), stranger.install("rec")]
    message = complaint(open_store, "rec:x")
    assert all(name in message for name in names)


@pytest.mark.parametrize("url", ["memory:", "lmdb:data", "sqlite:data"])
def test_a_store_that_must_have_transactions(
    url: str, here: Path, write: Callable[[str], Path]
) -> None:
    with open_store(url, transactional=True) as store, store.transaction() as txn:
        txn.write("p", "s", "k", b"v")
    config = load_config(write(f'[store]\nurl = "{url}"\n'), environ={})
    with config.open_store(transactional=True) as store, store.transaction() as txn:
        txn.write("p", "s", "k", b"v")


def test_an_engine_without_transactions_is_refused_before_it_is_opened(
    here: Path, write: Callable[[str], Path]
) -> None:
    others = '"lmdb", "sqlite" or "postgresql"' if HAS_POSTGRESQL else '"lmdb" or "sqlite"'
    text = (
        'the store: the backend "filesystem" has no transactions; nothing was opened. Choose another'
        f' one, such as "memory", {others}, or open it without transactional=True.'
    )
    assert complaint(open_store, "filesystem:data", transactional=True) == text
    config = load_config(write('[store]\nurl = "filesystem:data"\n'), environ={})
    assert complaint(config.open_store, transactional=True) == text
    assert list(here.iterdir()) == []
    assert [path.name for path in write("").parent.iterdir()] == ["node.toml"]
    open_store("filesystem:data", transactional=False).close()
    assert (here / "data").is_dir()


PROXY = (
    RECORDER
    + """
    closed = 0

    def close(self):
        Recorder.closed += 1

    def __getattr__(self, name):
        if name == "transaction" and not self.options["pool"]:
            raise AttributeError(name)
        return print
"""
)


def test_a_proxy_is_asked_once_it_is_open_and_closed_if_it_lacks_them(stranger: Stranger) -> None:
    stranger.install("rec", PROXY)
    store = open_store("rec:x?pool=1", transactional=True)
    assert type(store).closed == 0  # type: ignore[attr-defined]
    assert "has no transactions" in complaint(open_store, "rec:x?pool=0", transactional=True)
    assert type(store).closed == 1  # type: ignore[attr-defined]
    open_store("rec:x?pool=0")


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ('class Recorder: LOCATION = "path"', "declares no valid OPTIONS"),
        ("class Recorder: OPTIONS = {}", 'Declare "path", "none" or "url".'),
        ('class Recorder: OPTIONS, LOCATION = {}, "here"', "no valid LOCATION"),
        ('class Recorder: OPTIONS, LOCATION = ["a"], "path"', "no valid OPTIONS"),
        ('class Recorder: OPTIONS, LOCATION = {"a": "lease"}, "path"', '"size", "integer", "dur'),
        ('class Recorder: OPTIONS, LOCATION = {"a": 5}, "path"', "a tuple of words"),
        ('class Recorder: OPTIONS, LOCATION = {"a": (1, 2)}, "path"', "a tuple of words"),
        ('class Recorder: OPTIONS, LOCATION = {"A": "size"}, "path"', "lower-case"),
        ('class Recorder: OPTIONS, LOCATION = {"a-b": "size"}, "path"', "lower-case"),
        ('class Recorder: OPTIONS, LOCATION = {"path": "size"}, "path"', "not url, backend or"),
        ("import sys as Recorder", "no valid LOCATION"),
    ],
)
def test_a_stranger_that_does_not_declare_itself_is_told_how(
    stranger: Stranger, code: str, says: str
) -> None:
    name = stranger.install("rec", code)
    message = complaint(open_store, "rec:x")
    assert name in message
    assert says in message
