"""Configuration: what a URL, a mapping, a file and the environment mean, and how each typo ends."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path

import pytest

from kvreplay import Applied, ReplayRecord
from kvreplay.config.file import Config, load_config
from kvreplay.config.registry import BACKENDS, OpenStore, StoreSettings, open_store
from kvreplay.config.units import KINDS, Kind, nearest, parse
from kvreplay.errors import ConfigError
from support.programs import run_python

HOUR = 3600.0
ENGINES_WITH_A_PATH = ("filesystem", "lmdb")

# A stranger's class that only remembers how it was constructed.
RECORDER = """
class Recorder:
    OPTIONS = {
        "pool": "integer",
        "timeout": "duration",
        "cache": "size",
        "tls": "boolean",
        "password": "text",
        "mode": ("fast", "safe"),
    }
    LOCATION = "url"

    def __init__(self, *args, **options):
        self.args, self.options = args, options
"""


def complaint(call: Callable[..., object], *args: object, **options: object) -> str:
    with pytest.raises(ConfigError) as caught:
        call(*args, **options)
    assert "nothing was opened" in str(caught.value)
    return str(caught.value)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory of the test's own."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


class Stranger:
    """Installs distributions into a folder on sys.path: real metadata, a real module."""

    def __init__(self, site: Path) -> None:
        self.site = site
        self.modules: list[str] = []

    def install(self, scheme: str, code: str = RECORDER, *, attribute: str = "Recorder") -> str:
        number = len(self.modules)
        name, module = f"stranger-{number}", f"stranger_{scheme}_{number}"
        self.modules.append(module)
        (self.site / f"{module}.py").write_text(code)
        info = self.site / f"stranger_{number}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(
            f"[kvreplay.backends]\n{scheme} = {module}:{attribute}\n"
        )
        return name


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stranger]:
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)
    installed = Stranger(site)
    yield installed
    for module in installed.modules:
        sys.modules.pop(module, None)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    """Write a config file into a folder that is not the current one."""

    def write_file(text: str) -> Path:
        path = tmp_path / "etc" / "node.toml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write_file


def run(code: str) -> subprocess.CompletedProcess[str]:
    return run_python("-W", "error", "-c", code)


# --- values ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "written", "meant"),
    [
        ("size", 1, 1),
        ("size", 2**63 - 1, 2**63 - 1),
        ("size", "4096", 4096),
        ("size", "4096B", 4096),
        ("size", "64KiB", 64 * 1024),
        ("size", "512MiB", 512 * 1024**2),
        ("size", "4GiB", 4 * 1024**3),
        ("size", "2TiB", 2 * 1024**4),
        ("size", "1KB", 1000),
        ("size", "10 MB", 10_000_000),
        ("size", "1GB", 10**9),
        ("size", "1TB", 10**12),
        ("size", " 4gib ", 4 * 1024**3),
        ("size", "007", 7),
        ("integer", 0, 0),
        ("integer", "126", 126),
        ("duration", 0, 0.0),
        ("duration", 30, 30.0),
        ("duration", 0.25, 0.25),
        ("duration", "30", 30.0),
        ("duration", "2.5", 2.5),
        ("duration", "500ms", 0.5),
        ("duration", "30s", 30.0),
        ("duration", "10m", 600.0),
        ("duration", "10min", 600.0),
        ("duration", "1h", HOUR),
        ("duration", "1.5h", 1.5 * HOUR),
        ("duration", "7 d", 7 * 24 * HOUR),
        ("duration", "36525d", 36525 * 24 * HOUR),
        ("duration", timedelta(milliseconds=1500), 1.5),
        ("lease", "none", None),
        ("lease", "None", None),
        ("lease", "30s", 30.0),
        ("lease", 0.5, 0.5),
        ("boolean", True, True),
        ("boolean", "TRUE", True),
        ("boolean", "yes", True),
        ("boolean", "on", True),
        ("boolean", "1", True),
        ("boolean", False, False),
        ("boolean", "false", False),
        ("boolean", "no", False),
        ("boolean", "off", False),
        ("boolean", "0", False),
        ("text", "", ""),
        ("text", "ä b", "ä b"),
        (("full", "process"), "process", "process"),
    ],
)
def test_a_value_is_read_as_written(kind: Kind, written: object, meant: object) -> None:
    value = parse(kind, written, "here")
    assert value == meant
    assert type(value) is type(meant)


@pytest.mark.parametrize(
    ("kind", "written", "says"),
    [
        ("size", "4GBi", 'unknown unit "GBi"; nothing was opened. Did you mean "GiB"?'),
        ("size", "4MIB5", "is not a size"),
        ("size", "4 mibs", 'Did you mean "MiB"?'),
        ("size", "4parsec", 'Valid: "B", "KiB", "MiB"'),
        ("size", "1.5GiB", '"1.5GiB" is not a size'),
        ("size", "", '"" is not a size'),
        ("size", "-1", '"-1" is not a size'),
        ("size", "٤", "is not a size"),
        ("size", 0, "0 is not from 1 to"),
        ("size", -5, "-5 is not from 1 to"),
        ("size", "0MiB", '"0MiB" is not from 1 to'),
        ("size", 2**63, "is not from 1 to 2**63 - 1"),
        ("size", "9999999999TB", "is not from 1 to"),
        ("size", "9" * 5000, "is not from 1 to"),
        ("size", True, "True is not a size"),
        ("size", 4096.0, "4096.0 is not a size"),
        ("size", None, "a value of type NoneType is not a size"),
        ("integer", -1, "-1 is not from 0"),
        ("integer", 2**63, "is not from 0 to 2**63 - 1"),
        ("integer", "12x", '"12x" is not an integer'),
        ("integer", 1.0, "1.0 is not an integer"),
        ("integer", False, "False is not an integer"),
        ("duration", "10mins", 'unknown unit "mins"; nothing was opened. Did you mean "min"?'),
        ("duration", "1H", 'unknown unit "H"; nothing was opened. Did you mean "h"?'),
        ("duration", "1fortnight", 'Valid: "ms", "s", "m", "min", "h", "d".'),
        ("duration", "1h30m", "is not a duration"),
        ("duration", "soon", '"soon" is not a duration'),
        ("duration", "-1s", '"-1s" is not a duration'),
        ("duration", "nan", '"nan" is not a duration'),
        ("duration", -0.001, "-0.001 is not from 0 seconds to 100 years"),
        ("duration", float("nan"), "nan is not from 0"),
        ("duration", float("inf"), "inf is not from 0"),
        ("duration", float("-inf"), "-inf is not from 0"),
        ("duration", "9" * 400, "is not from 0"),
        ("duration", "36526d", "100 years"),
        ("duration", timedelta(seconds=-1), "is not from 0"),
        ("duration", True, "True is not a duration"),
        ("duration", None, "type NoneType is not a duration"),
        ("lease", "nonesuch", 'Or "none"'),
        ("lease", False, "False is not a duration"),
        ("boolean", "ture", 'neither true nor false; nothing was opened. Did you mean "true"?'),
        ("boolean", 1, "1 is neither true nor false; nothing was opened. Write true or false."),
        ("text", 5, "a value of type int is not text"),
        (("full", "process"), "ful", '"ful" is not valid; nothing was opened. Did you mean "full"'),
        (("full", "process"), "zzz", 'Valid: "full", "process".'),
    ],
)
def test_a_wrong_value_names_its_place_itself_and_what_is_valid(
    kind: Kind, written: object, says: str
) -> None:
    message = complaint(parse, kind, written, "the place")
    assert message.startswith("the place: ")
    assert says in message


def test_a_long_value_is_cut_and_one_with_credentials_is_not_shown() -> None:
    assert len(complaint(parse, "size", "x" * 10_000, "here")) < 250
    for secret in ("user:hunter2@host", "pg://hunter2"):
        assert "hunter2" not in complaint(parse, "size", secret, "here")
    assert "hunter3" in complaint(parse, "size", "hunter3", "here")


@pytest.mark.parametrize("kind", ["size", "integer", "duration", ("full", "process")])
def test_a_number_too_long_to_print_is_refused_like_any_other(kind: Kind) -> None:
    assert "an enormous number is not" in complaint(parse, kind, 10**5000, "here")


def test_nothing_to_choose_from_is_said() -> None:
    assert nearest("x", ()) == "There is none to choose from."


# --- a store by URL or mapping ----------------------------------------------------------------


def put_and_close(store: OpenStore) -> None:
    with store:
        store.write("p", "s", "k", b"value")
        assert store.read("p", "s", "k") == b"value"


@pytest.mark.parametrize("where", ["memory:", "memory://", "MEMORY:", {"backend": "memory"}])
def test_memory_opens(where: str | Mapping[str, object]) -> None:
    with open_store(where) as store:
        assert isinstance(store, OpenStore)
        assert type(store).__name__ == "MemoryStore"
        put_and_close(store)


@pytest.mark.parametrize("engine", ENGINES_WITH_A_PATH)
def test_every_spelling_of_a_path_opens_that_path(engine: str, here: Path, tmp_path: Path) -> None:
    absolute = tmp_path / "absolute store"
    other = tmp_path / "other"
    other.mkdir()
    spellings: list[tuple[str | Mapping[str, object], Path | None, Path]] = [
        (f"{engine}://{tmp_path}/absolute%20store", None, absolute),
        (f"{engine}:{tmp_path}/absolute store", other, absolute),
        (f"{engine}:relative", None, here / "relative"),
        (f"{engine}:./a%23b%3Fc%25", None, here / "a#b?c%"),
        (f"{engine}:plus+sign", None, here / "plus+sign"),
        (f"{engine}:relative", other, other / "relative"),
        (f"{engine}:sub/../up", other, other / "up"),
        ({"backend": engine, "path": "mapped"}, None, here / "mapped"),
        ({"backend": engine.upper(), "path": Path("mapped")}, other, other / "mapped"),
        ({"backend": engine, "path": "100%25"}, None, here / "100%25"),
        ({"url": f"{engine}:by-url"}, other, other / "by-url"),
    ]
    for where, base, expected in spellings:
        assert not expected.exists() or expected == absolute
        put_and_close(open_store(where, base=base))
        assert expected.is_dir()
    put_and_close(open_store(f"{engine}:text-base", base=str(other)))
    assert (other / "text-base").is_dir()


@pytest.mark.parametrize("engine", ENGINES_WITH_A_PATH)
def test_what_was_written_is_there_when_opened_again(engine: str, tmp_path: Path) -> None:
    url = f"{engine}://{tmp_path}/store?durability=process"
    put_and_close(open_store(url))
    with open_store({"backend": engine, "path": f"{tmp_path}/store"}) as store:
        assert store.read("p", "s", "k") == b"value"


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("", "does not begin with a backend's name"),
        ("/var/lib/replay", "Write lmdb:relative/path or lmdb:///absolute/path."),
        (":x", "does not begin with"),
        ("lm db:x", "does not begin with"),
        ("lmbd:x", 'unknown backend "lmbd"; nothing was opened. Did you mean "lmdb"?'),
        ("zzz:x", 'Valid: "memory", "filesystem", "lmdb"'),
        ("memory:x", 'the backend "memory" has no location'),
        ("memory:///x", "Write memory:"),
        ("lmdb:", "the path is empty"),
        ("lmdb://", "lmdb:relative/path or lmdb:///absolute/path"),
        ("lmdb:?map_size=1GiB", "the path is empty"),
        ("lmdb:a#b", "Write %23"),
        ("lmdb:a?durability=full#b", "it has a fragment"),
        ("lmdb:a%zz", "Write %25"),
        ("lmdb:a%ff", "is not UTF-8"),
        ("lmdb:a%00b", "a zero character"),
        ("lmdb:~/replay", 'a "~" is not expanded'),
        ("lmdb:a?", "is not name=value"),
        ("lmdb:a?map_size", "is not name=value"),
        ("lmdb:a?map_size=1GiB&", "is not name=value"),
        ("lmdb:a?=1", "is not name=value"),
        ("lmdb:a?map_size=1GiB&map_size=1GiB", '"map_size" is repeated'),
        ("lmdb:a?map_size=1GiB&map%5Fsize=1GiB", '"map_size" is repeated'),
        ("lmdb:a?map-size=1GiB", 'has no option "map-size"; nothing was opened. Did you mean "map'),
        ("lmdb:a?path=b", 'the backend "lmdb" has no option "path"'),
        ("memory:?map_size=1GiB", "There is none to choose from."),
        ("lmdb:a?map_size=1GBi", 'the store URL, option "map_size": "1GBi" has the unknown unit'),
        ("lmdb:a?durability=fill", 'Did you mean "full"?'),
        ("lmdb:a?max_readers=many", '"many" is not an integer'),
        ({}, 'neither "url" nor "backend"'),
        ({"bakend": "lmdb", "path": "x"}, 'Did you mean "backend" by "bakend"?'),
        ({"map_size": 1}, 'Write url = "lmdb:PATH"'),
        ({"backend": "lmdb", "url": "lmdb:x"}, 'both "url" and "backend"'),
        ({"url": "lmdb:x", "path": "y"}, 'both "url" and "path"'),
        ({"url": 5}, "the store url: 5 is not text"),
        ({"backend": "lmdb"}, "needs a path"),
        ({"backend": "lmdb", "path": ""}, "the store path: the path is empty"),
        ({"backend": "lmdb", "path": "a\0b"}, "a zero character"),
        ({"backend": "lmdb", "path": 5}, "5 is not a path"),
        ({"backend": "lmdb", "path": "~/x"}, "is not expanded"),
        ({"backend": "lmdb", "pth": "x", "path": "y"}, 'Did you mean "path"?'),
        ({"backend": "memory", "path": "x"}, 'the store path: the backend "memory" has no path'),
        ({"backend": "lmbd", "path": "x"}, 'Did you mean "lmdb"?'),
        ({"backend": 5}, "not the name of a backend"),
        ({"backend": "lmdb", "path": "x", "map_size": None}, "the store map_size: a value of type"),
        ({5: "x"}, "a key is of type int"),
        (Path("/var/lib/replay"), "neither a URL nor a mapping"),
    ],
)
def test_a_wrong_store_names_what_and_touches_nothing(
    where: str | Mapping[str, object], says: str, here: Path
) -> None:
    assert says in complaint(open_store, where)
    assert list(here.iterdir()) == []


def test_a_path_in_the_place_of_a_host_shows_both_right_spellings(here: Path) -> None:
    message = complaint(open_store, "lmdb://relative/path?map_size=1GiB")
    assert "lmdb:///relative/path if it is absolute" in message
    assert "lmdb:relative/path if relative" in message
    assert list(here.iterdir()) == []


def test_a_mapping_overrides_the_options_of_its_url(stranger: Stranger) -> None:
    stranger.install("rec")
    store = open_store({"url": "rec:x?pool=1&tls=yes", "pool": 2})
    assert store.options == {"pool": 2, "tls": True}  # type: ignore[attr-defined]


def test_the_current_environment_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVREPLAY_STORE", "nonsense")
    open_store("memory:").close()


# --- backends ---------------------------------------------------------------------------------


def test_every_built_in_backend_declares_what_config_needs() -> None:
    import importlib

    for scheme, (module, name, _extra) in BACKENDS.items():
        engine = getattr(importlib.import_module(module), name)
        assert scheme in module
        assert engine.LOCATION in ("path", "none", "url")
        for kind in engine.OPTIONS.values():
            assert isinstance(kind, tuple) or kind in KINDS


def test_importing_config_imports_no_backend_and_opening_one_imports_only_that() -> None:
    done = run(
        "import sys\n"
        "before = set(sys.modules)\n"
        "import kvreplay.config\n"
        "new = set(sys.modules) - before\n"
        "lazy = {'lmdb', 'tomllib', 'difflib', 'importlib.metadata'} & new\n"
        "assert not lazy, lazy\n"
        "engines = lambda: {m for m in sys.modules if m.startswith('kvreplay.backends.')}\n"
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


def test_a_process_without_the_driver_still_has_the_other_engines() -> None:
    done = run(
        "import sys; sys.modules['lmdb'] = None\n"
        "from kvreplay.config import open_store\n"
        "open_store('memory:').close()\n"
        "open_store('lmdb:x')\n"
    )
    assert done.returncode == 1
    assert 'ConfigError: the store URL: the backend "lmdb" needs the module' in done.stderr
    assert "pip install 'kvreplay[lmdb]'" in done.stderr


def test_a_missing_standard_module_is_not_said_to_be_an_extra() -> None:
    done = run(
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


# --- credentials ------------------------------------------------------------------------------

SECRET_URLS = [
    "rec://user:hunter2@host/db",
    "rec://user:hunter2@host/db?password=hunter2",
    "rec://user:hunter2/with/slash@host/db",
    "rec:user:hunter2@host",
    "rec://hunter2@host",
]


@pytest.mark.parametrize("url", SECRET_URLS)
def test_no_repr_shows_credentials(stranger: Stranger, url: str) -> None:
    stranger.install("rec")
    config = load_config(None, environ={"KVREPLAY_STORE": f"{url}"})
    for text in (repr(config), repr(config.store), str(config)):
        assert "hunter2" not in text
        assert "host" in text
    assert "hunter2" in (config.store.location or "")


@pytest.mark.parametrize(
    "url",
    [
        *(url.replace("rec:", "recc:") for url in SECRET_URLS),
        *(url.partition("?")[0] + "?passwort=hunter2" for url in SECRET_URLS),
        *(url.partition("?")[0] + "?hunter2" for url in SECRET_URLS),
        *(url.partition("?")[0] + "#f" for url in SECRET_URLS),
        *(url.partition("?")[0] + "?pool=%zzhunter2" for url in SECRET_URLS),
        *(url.replace("rec:", "lmdb:") for url in SECRET_URLS if "rec://" in url),
        *(url.replace("rec:", "memory:") for url in SECRET_URLS),
        *(url.replace("rec:", "rec") for url in SECRET_URLS[:2]),
    ],
)
def test_no_message_shows_credentials(stranger: Stranger, url: str, here: Path) -> None:
    stranger.install("rec")
    for where in (url, {"url": url}, {"backend": url}):
        assert "hunter2" not in complaint(open_store, where)
    assert "hunter2" not in complaint(load_config, None, environ={"KVREPLAY_STORE": url})
    assert list(here.iterdir()) == []


def test_a_repr_shows_words_and_numbers_but_no_text(stranger: Stranger) -> None:
    stranger.install("rec")
    url = "rec:here?password=hunter2&mode=safe&cache=1KiB"
    shown = repr(load_config(None, environ={"KVREPLAY_STORE": url}).store)
    assert shown == (
        "<StoreSettings rec location='rec:here' options=(password=…, mode=safe, cache=1024)>"
    )


# --- a file -----------------------------------------------------------------------------------

STORE = '[store]\nurl = "memory:"\n'
WHOLE = """
[store]
url = "lmdb:replay-data?map_size=64MiB"

[replay.request_invoice]
ttl = "1h"
lease = "30s"
tombstone_ttl = "10m"
wait_timeout = "10s"
on_in_doubt = "rerun"
max_record_bytes = "1MiB"
renew = false

[replay.pay-out]
ttl = 0
lease = "none"
"""


def test_a_whole_file(write: Callable[[str], Path], here: Path) -> None:
    path = write(WHOLE)
    config = load_config(path, environ={})
    assert config.replays == ("request_invoice", "pay-out")
    assert config.replay("request_invoice") == {
        "namespace": "request_invoice",
        "ttl": HOUR,
        "lease": 30.0,
        "tombstone_ttl": 600.0,
        "wait_timeout": 10.0,
        "on_in_doubt": "rerun",
        "max_record_bytes": 1024**2,
        "renew": False,
    }
    assert config.replay("pay-out") == {"namespace": "pay-out", "ttl": 0.0, "lease": None}
    assert config.tables == {}
    location = str(path.parent / "replay-data")
    assert config.store == StoreSettings("lmdb", location, {"map_size": 64 * 1024**2})
    assert not Path(location).exists()  # nothing is open yet
    put_and_close(config.open_store())
    assert Path(location).is_dir()
    assert list(here.iterdir()) == []
    assert repr(config) == (
        f"<Config <StoreSettings lmdb location={location!r} options=(map_size=67108864)>"
        " replays=('request_invoice', 'pay-out') tables=()>"
    )


@pytest.mark.parametrize("engine", ENGINES_WITH_A_PATH)
def test_a_store_by_its_parts(engine: str, write: Callable[[str], Path]) -> None:
    path = write(f'[store]\nbackend = "{engine}"\npath = "data"\ndurability = "process"\n')
    config = load_config(str(path), environ={})
    assert config.store.backend == engine
    assert config.store.options == {"durability": "process"}
    assert config.replays == ()
    put_and_close(config.open_store())
    assert (path.parent / "data").is_dir()


def test_a_config_is_a_frozen_value(write: Callable[[str], Path]) -> None:
    config = load_config(write(WHOLE), environ={})
    assert config == load_config(write(WHOLE), environ={})
    config.replay("pay-out")["ttl"] = 5.0
    assert config.replay("pay-out")["ttl"] == 0.0
    with pytest.raises(AttributeError):
        config.store = StoreSettings("memory", None, {})  # type: ignore[misc]
    with pytest.raises(TypeError):
        config.store.options["map_size"] = 1  # type: ignore[index]
    assert isinstance(config, Config)


def test_a_relative_file_name_is_relative_to_the_current_directory(here: Path) -> None:
    (here / "etc").mkdir()
    (here / "etc" / "node.toml").write_text('[store]\nurl = "lmdb:data"\n')
    config = load_config(os.path.join("etc", "node.toml"), environ={})
    assert config.store.location == str(here / "etc" / "data")


def test_an_unknown_namespace_names_the_nearest(write: Callable[[str], Path]) -> None:
    path = write(WHOLE)
    message = complaint(load_config(path, environ={}).replay, "request_invoise")
    assert message.startswith(f"{path}: there is no [replay.request_invoise]")
    assert 'Did you mean "request_invoice"?' in message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "{file}: no store is named"),
        (
            "[stor]\n",
            '{file}: unknown table or key "stor"; nothing was opened. Did you mean "store',
        ),
        ('[store]\nurl = "memory:"\n[reply.a]\n', 'Did you mean "replay"?'),
        ('url = "memory:"', 'unknown table or key "url"; nothing was opened. Valid: "store", "rep'),
        ("store = 5", "{file} [store]: 5 is not a table"),
        ("[[store]]\n", "{file} [store]: a value of type list is not a table"),
        ("[store]\n", '{file} [store]: it has neither "url" nor "backend"'),
        ('[store]\nurl = "lmbd:x"', '{file} [store] url: unknown backend "lmbd"'),
        ('[store]\nbackend = "lmbd"', '{file} [store] backend: unknown backend "lmbd"'),
        ('[store]\nurl = "lmdb:x?map_size=1GBi"', '{file} [store] url, option "map_size": "1GBi"'),
        ('[store]\nurl = "lmdb:x"\nmap_size = "1GBi"', '{file} [store] map_size: "1GBi" has'),
        (
            '[store]\nurl = "lmdb:x"\nmap_sise = 1',
            '{file} [store] map_sise: the backend "lmdb" has',
        ),
        (STORE + "replay = 5", "has no option"),
        ("replay = 5\n" + STORE, "{file} [replay]: 5 is not a table"),
        (STORE + "[replay]\nttl = 5", "{file} [replay] ttl: it is not a table"),
        (STORE + '[replay.""]\nttl = 5', "the namespace is empty"),
        (STORE + '[replay."a b"]\nttl = 5', "outside [A-Za-z0-9_-]"),
        (STORE + f"[replay.{'x' * 121}]\nttl = 5", "121 characters, at most 120"),
        (STORE + "[replay.a]\n", '{file} [replay.a]: "ttl" is missing'),
        (STORE + '[replay.a]\nlease = "5s"', 'Write for example ttl = "1h".'),
        (STORE + "[replay.a]\ntll = 5", '{file} [replay.a]: unknown setting "tll"'),
        (STORE + "[replay.a]\ntll = 5", 'Did you mean "ttl"?'),
        (STORE + "[replay.a]\nnamespace = 'b'\nttl = 1", 'unknown setting "namespace"'),
        (STORE + "[replay.a.b]\nttl = 5", 'unknown setting "b"'),
        (
            STORE + '[replay.a]\nttl = "1hr"',
            '{file} [replay.a] ttl: "1hr" has the unknown unit "hr"',
        ),
        (STORE + "[replay.a]\nttl = nan", "{file} [replay.a] ttl: nan is not from 0 seconds"),
        (STORE + "[replay.a]\nttl = true", "[replay.a] ttl: True is not a duration"),
        (STORE + "[replay.a]\nttl = 1979-05-27", "a value of type date is not a duration"),
        (STORE + '[replay.a]\nttl = 1\nlease = "no"', "[replay.a] lease: "),
        (STORE + "[replay.a]\nttl = 1\ntombstone_ttl = -1", "[replay.a] tombstone_ttl: -1 is"),
        (STORE + '[replay.a]\nttl = 1\nwait_timeout = "x"', "[replay.a] wait_timeout: "),
        (STORE + '[replay.a]\nttl = 1\non_in_doubt = "rise"', 'Did you mean "raise"?'),
        (STORE + "[replay.a]\nttl = 1\nmax_record_bytes = 0", "[replay.a] max_record_bytes: 0 is"),
        (STORE + '[replay.a]\nttl = 1\nrenew = "maybe"', "[replay.a] renew: "),
        ("[store]\nurl = memory", "{file}: it is not TOML: Invalid value (at line 2,"),
        (f"x = {'9' * 5000}", "{file}: it is not TOML: "),
    ],
)
def test_a_wrong_file_names_file_table_and_key(
    write: Callable[[str], Path], text: str, says: str
) -> None:
    path = write(text)
    assert says.replace("{file}", str(path)) in complaint(load_config, path, environ={})


def test_a_file_that_cannot_be_read(tmp_path: Path, write: Callable[[str], Path]) -> None:
    missing = tmp_path / "no.toml"
    message = complaint(load_config, missing, environ={})
    assert message.startswith(f"{missing}: it cannot be read (No such file or directory)")
    assert "Is a directory" in complaint(load_config, tmp_path, environ={})
    path = write("")
    path.write_bytes(b'[store]\n\nurl = "memory:\xff"\n')
    assert f"{path}: line 3 is not UTF-8" in complaint(load_config, path, environ={})


def test_the_applications_own_tables_are_returned_raw(write: Callable[[str], Path]) -> None:
    path = write(STORE + '[node]\nport = 9735\nsecret = "hunter2"\n[node.peers]\nmax = 3\n')
    config = load_config(path, environ={}, also=("node", "wallet"))
    assert config.tables == {"node": {"port": 9735, "secret": "hunter2", "peers": {"max": 3}}}
    assert "hunter2" not in repr(config)
    assert "tables=('node',)" in repr(config)
    message = complaint(load_config, path, environ={})
    assert 'unknown table or key "node"' in message
    mistyped = write(STORE + "[nide]\n")
    message = complaint(load_config, mistyped, environ={}, also=["node"])
    assert 'Did you mean "node"?' in message
    assert 'Write ("node",)' in complaint(load_config, path, environ={}, also="node")


# --- the environment --------------------------------------------------------------------------


def test_the_environment_alone(here: Path) -> None:
    environ = {"KVREPLAY_STORE": "lmdb:data", "KVREPLAY_STORE_MAP_SIZE": "32MiB", "HOME": "/root"}
    config = load_config(None, environ=environ)
    assert config.store == StoreSettings("lmdb", str(here / "data"), {"map_size": 32 * 1024**2})
    assert config.replays == ()
    message = complaint(load_config, None, environ={})
    assert message.startswith("the environment: no store is named; nothing was opened.")
    assert 'Set KVREPLAY_STORE, such as "lmdb:///var/lib/node/replay".' in message


def test_the_processs_environment_is_the_default(
    write: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("KVREPLAY_")]:
        monkeypatch.delenv(name)
    path = write(WHOLE)
    assert load_config(path).store.backend == "lmdb"
    monkeypatch.setenv("KVREPLAY_STORE", "memory:")
    assert load_config(path).store.backend == "memory"
    assert load_config(path, environ={}).store.backend == "lmdb"


def test_a_store_variable_replaces_the_whole_table(
    write: Callable[[str], Path], here: Path
) -> None:
    path = write('[store]\nurl = "lmdb:file?map_size=1GiB"\ndurability = "process"\n')
    environ = {"KVREPLAY_STORE": "lmdb:variable"}
    assert load_config(path, environ=environ).store == StoreSettings(
        "lmdb", str(here / "variable"), {}
    )
    broken = write('[store]\nurl = "nonsense"\n')
    assert load_config(broken, environ=environ).store.backend == "lmdb"
    complaint(load_config, broken, environ={})


@pytest.mark.parametrize(
    "table", ['url = "lmdb:file?map_size=1GiB"', 'backend = "lmdb"\npath = "file"\nmap_size = 1']
)
def test_a_variable_sets_one_option_of_the_store(
    write: Callable[[str], Path], here: Path, table: str
) -> None:
    path = write(f'[store]\n{table}\ndurability = "process"\n')
    one = load_config(path, environ={"KVREPLAY_STORE_MAP_SIZE": "2GiB"})
    assert one.store == StoreSettings(
        "lmdb",
        str(path.parent / "file"),
        {"map_size": 2 * 1024**3, "durability": "process"},
    )
    other = load_config(path, environ={"KVREPLAY_STORE_PATH": "variable"})
    assert other.store.location == str(here / "variable")
    assert other.store.options == load_config(path, environ={}).store.options


def test_an_option_variable_wins_over_the_store_variable(here: Path) -> None:
    environ = {
        "KVREPLAY_STORE_MAP_SIZE": "2GiB",
        "KVREPLAY_STORE": "lmdb:url?map_size=1GiB",
        "KVREPLAY_STORE_PATH": "path%20",
    }
    store = load_config(None, environ=environ).store
    assert store.options == {"map_size": 2 * 1024**3}
    assert store.location == str(here / "path%20")  # a path is not a URL: nothing is decoded


def test_a_variable_sets_one_setting_of_a_namespace(write: Callable[[str], Path]) -> None:
    path = write(STORE + '[replay.request_invoice]\nttl = "1h"\nrenew = false\n[replay.pay-out]\n')
    environ = {
        "KVREPLAY_REPLAY_REQUEST_INVOICE_TTL": "2h",
        "KVREPLAY_REPLAY_REQUEST_INVOICE_LEASE": "none",
        "KVREPLAY_REPLAY_REQUEST_INVOICE_RENEW": "true",
        "KVREPLAY_REPLAY_PAY_OUT_TTL": "500ms",
        "KVREPLAY_REPLAY_PAY_OUT_ON_IN_DOUBT": "rerun",
    }
    config = load_config(path, environ=environ)
    assert config.replay("request_invoice") == {
        "namespace": "request_invoice",
        "ttl": 2 * HOUR,
        "lease": None,
        "renew": True,
    }
    assert config.replay("pay-out") == {"namespace": "pay-out", "ttl": 0.5, "on_in_doubt": "rerun"}
    assert '[replay.pay-out]: "ttl" is missing' in complaint(load_config, path, environ={})


@pytest.mark.parametrize(
    ("first", "second", "variable"),
    [
        ("pay-out", "pay_out", "KVREPLAY_REPLAY_PAY_OUT_TTL"),
        ("pay", "PAY", "KVREPLAY_REPLAY_PAY_TTL"),
        ("a", "a_tombstone", "KVREPLAY_REPLAY_A_TOMBSTONE_TTL"),
    ],
)
def test_namespaces_that_collide_are_wrong_only_if_such_a_variable_is_set(
    write: Callable[[str], Path], first: str, second: str, variable: str
) -> None:
    path = write(STORE + f"[replay.{first}]\nttl = 1\n[replay.{second}]\nttl = 2\n")
    assert load_config(path, environ={}).replays == (first, second)
    message = complaint(load_config, path, environ={variable: "5"})
    assert message.startswith(f"{variable}: it means ")
    assert f"[replay.{first}] and" in message
    assert f"[replay.{second}];" in message


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        (
            "KVREPLAY_STROE",
            "memory:",
            'no such variable; nothing was opened. Did you mean "KVREPLAY',
        ),
        ("KVREPLAY_STORE_MAPSIZE", "1", 'Did you mean "KVREPLAY_STORE_MAP_SIZE"?'),
        ("KVREPLAY_STORE_URL", "lmdb:x", "kvreplay has no such variable"),
        ("KVREPLAY_STORE_BACKEND", "lmdb", "kvreplay has no such variable"),
        ("KVREPLAY_REPLAY_A_TLL", "1", 'Did you mean "KVREPLAY_REPLAY_A_TTL"?'),
        ("KVREPLAY_REPLAY_B_TTL", "1", 'Did you mean "KVREPLAY_REPLAY_A_TTL"?'),
        ("KVREPLAY_", "1", "kvreplay has no such variable"),
        ("KVREPLAY_STORE", "", "does not begin with a backend's name"),
        ("KVREPLAY_STORE", "lmbd:x", 'unknown backend "lmbd"'),
        ("KVREPLAY_STORE", "memory:x", "has no location"),
        ("KVREPLAY_STORE_MAP_SIZE", "4GBi", 'unknown unit "GBi"'),
        ("KVREPLAY_STORE_MAP_SIZE", "", '"" is not a size'),
        ("KVREPLAY_STORE_DURABILITY", "ful", 'Did you mean "full"?'),
        ("KVREPLAY_STORE_PATH", "", "the path is empty"),
        ("KVREPLAY_STORE_PATH", "~/x", "is not expanded"),
        ("KVREPLAY_REPLAY_A_TTL", "1hr", 'unknown unit "hr"'),
        ("KVREPLAY_REPLAY_A_RENEW", "ture", 'Did you mean "true"?'),
        ("KVREPLAY_REPLAY_A_ON_IN_DOUBT", "rrun", 'Did you mean "rerun"?'),
    ],
)
def test_a_wrong_variable_is_named(
    write: Callable[[str], Path], variable: str, value: str, says: str
) -> None:
    path = write('[store]\nurl = "lmdb:data"\n[replay.a]\nttl = 1\n')
    message = complaint(load_config, path, environ={variable: value})
    assert message.startswith(f"{variable}: ")
    assert says in message


def test_a_backend_without_a_path_has_no_variable_for_one() -> None:
    environ = {"KVREPLAY_STORE": "memory:", "KVREPLAY_STORE_PATH": "x"}
    assert complaint(load_config, None, environ=environ).startswith("KVREPLAY_STORE_PATH: ")


def test_a_variable_for_a_store_that_nobody_names_is_wrong(write: Callable[[str], Path]) -> None:
    path = write("")
    for file in (None, path):
        environ = {"KVREPLAY_STORE_PATH": "x"}
        message = complaint(load_config, file, environ=environ)
        assert 'Did you mean "KVREPLAY_STORE"?' in message
    with_url = 'or write [store] with url = "lmdb:PATH".'
    assert with_url in complaint(load_config, path, environ={})


def test_a_reconciler_goes_over_what_the_file_says(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text('[store]\nurl = "memory:"\n[replay.a]\nttl = 1\non_in_doubt = "rerun"\n')
    config = load_config(file, environ={})
    assert config.replay("a")["on_in_doubt"] == "rerun"

    def reconcile(record: ReplayRecord) -> Applied:
        return Applied(record)

    assert config.replay("a", on_in_doubt=reconcile)["on_in_doubt"] is reconcile
    assert config.replay("a")["on_in_doubt"] == "rerun"
