"""The command line: what it prints, and which exit code each end has."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kvreplay import StoreNotFoundError, __version__, open_store
from kvreplay.cli import main
from support.configuring import Stranger
from support.extras import needs_cli, needs_demo, needs_postgresql
from support.interrupts import hearing_ctrl_c
from support.programs import run_python

BLOCKED = "sys.modules['bolt11'] = None"
# bolt11 2.2.0 with bitstring 5, which has no ConstBitStream any more
INCOMPATIBLE = """
for name in [name for name in sys.modules if name.startswith(('bolt11', 'bitstring'))]:
    del sys.modules[name]
sys.modules['bitstring'] = types.ModuleType('bitstring')
"""


@needs_cli
def test_version() -> None:
    done = run_python("-m", "kvreplay", "--version")
    assert (done.returncode, done.stdout) == (0, f"kvreplay {__version__}\n")


@needs_cli
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Missing command"),
        (["dmeo"], "No such command 'dmeo'"),
        (["demo", "--fast"], "--fast"),
        (["demo", "--store"], "'--store' requires an argument"),
        (["init"], "Missing argument 'STORE'"),
        (["migrate", "memory:"], "Missing argument 'DESTINATION'"),
    ],
)
def test_wrong_usage_is_2_and_one_line_that_names_what_is_wrong(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    out, error = capsys.readouterr()
    assert (out, error.count("\n")) == ("", 1)
    assert error.startswith("kvreplay: ")
    assert said in error
    assert "Nothing was done: see kvreplay" in error
    assert error.endswith(" --help\n")


@needs_cli
@pytest.mark.parametrize("command", [[], ["init"], ["migrate"], ["demo"]])
def test_help_fits_80_columns(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--help"]) == 0
    out, error = capsys.readouterr()
    assert error == ""
    assert max(map(len, out.splitlines())) <= 80
    text = " ".join(out.split())
    if command == []:
        for name in ("init", "migrate", "demo"):
            assert f" {name} " in text
    if command == ["demo"]:
        assert "pip install 'kvreplay[demo]'" in text
        assert "exit code is 1" in text


@pytest.mark.parametrize("absent", [BLOCKED, pytest.param(INCOMPATIBLE, marks=needs_demo)])
@needs_cli
def test_a_missing_extra_is_2_and_says_what_to_install(absent: str) -> None:
    call = "from kvreplay.cli import main; sys.exit(main(['demo']))"
    done = run_python("-c", f"import sys, types\n{absent}\n{call}")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "pip install 'kvreplay[demo]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("absent", ["click", "rich"])
def test_the_command_without_its_extra_is_2_and_says_what_to_install(absent: str) -> None:
    call = "from kvreplay.cli import main; sys.exit(main(['init', 'memory:']))"
    done = run_python("-c", f"import sys\nsys.modules['{absent}'] = None\n{call}")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "nothing was done" in done.stderr
    assert f'"{absent}"' in done.stderr
    assert "pip install 'kvreplay[cli]'" in done.stderr


def test_importing_kvreplay_or_its_command_line_imports_no_demo() -> None:
    done = run_python(
        "-c",
        "import sys, kvreplay, kvreplay.cli\n"
        "print([name for name in sys.modules if name.startswith(('kvreplay.demo', 'bolt11', 'click', 'rich'))])",
    )
    assert (done.returncode, done.stdout) == (0, "[]\n")


@needs_demo
@pytest.mark.parametrize("place", ["a file", "a used directory"])
def test_a_directory_that_cannot_be_used_is_2(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = tmp_path / "place"
    if place == "a file":
        where.write_text("precious")
    else:
        where.mkdir()
        (where / "precious").write_text("precious")
    assert main(["demo", "--store", "memory:", "--dir", str(where)]) == 2
    error = capsys.readouterr().err
    assert "--dir" in error
    assert "nothing was started" in error
    assert [each.read_text() for each in tmp_path.rglob("*") if each.is_file()] == ["precious"]


# kvreplay init.


def engines_that_create() -> list[str]:
    from kvreplay.config.registry import BACKENDS, engine_of

    return [
        name
        for name in BACKENDS
        if engine_of(name, "").location == "path" and "create" in engine_of(name, "").options
    ]


def run_init(store: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = main(["init", store])
    said = capsys.readouterr()
    return code, said.out, said.err


@needs_cli
@pytest.mark.parametrize("engine", engines_that_create())
def test_init_makes_a_store_once(
    engine: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "deep" / "store@1"
    url = f"{engine}://{path}?create=false"  # as in the configuration
    with pytest.raises(StoreNotFoundError):
        open_store(url)
    assert list(tmp_path.iterdir()) == []
    assert run_init(url, capsys) == (0, f"made the store {engine}:{path}\n", "")
    with open_store(url) as store:
        store.write("p", "s", "k", b"v")
    kept = [each for each in path.rglob("*") if each.is_file() and each.name != "lock.mdb"]
    before = {each: each.lstat().st_mtime_ns for each in kept}
    code, out, error = run_init(f"{engine}://{path}", capsys)
    assert (code, error) == (0, "")
    assert "is there already; nothing was changed" in out
    assert {each: each.lstat().st_mtime_ns for each in before} == before
    with open_store(url) as store:
        assert store.read("p", "s", "k") == b"v"


@needs_cli
@needs_postgresql
def test_init_makes_a_store_on_a_server_once(
    postgres: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    url = postgres.url.replace("postgres@", "postgres:hunter2@") + "&password=hunter2&create=false"
    with pytest.raises(StoreNotFoundError):
        open_store(url)
    place = f'postgresql:…@/postgres?… in the schema "{postgres.name}"'
    assert run_init(url, capsys) == (0, f"made the store {place}\n", "")
    with open_store(url) as store:
        store.write("p", "s", "k", b"v")
    said = f"the store {place} is there already; nothing was changed\n"
    assert run_init(url.replace("postgresql:", "postgres:"), capsys) == (0, said, "")
    with open_store(url) as store:
        assert store.read("p", "s", "k") == b"v"


@needs_cli
@needs_postgresql
def test_init_names_the_schema_that_the_url_does_not(
    postgres: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is the first one of the search path that exists."""
    postgres.server.execute(f"CREATE SCHEMA {postgres.name}")
    url = f"{postgres.server.url}&options=-c%20search_path%3Dnone,{postgres.name}"
    code, out, error = run_init(url, capsys)
    assert (code, error) == (0, "")
    assert out.endswith(f' in the schema "{postgres.name}"\n')


@needs_cli
@pytest.mark.parametrize(
    ("store", "says"),
    [
        ("memory:", "a memory store begins empty whenever it is opened: there is nothing to make"),
        ("memory:?create=false", "there is nothing to make"),
        ("filesystm:x", 'Did you mean "filesystem"?'),
        ("/var/lib/replay", "does not begin with a backend's name"),
        ("filesystem:", "the path is empty"),
        ("filesystem:x?creat=true", 'Did you mean "create"?'),
        ("filesystem:x?create=maybe", "neither true nor false"),
        ("filesystem:x?lock_timeout=0", "lock_timeout must be"),
        ("filesystem:file/below", "not a folder"),
        ("filesystem:theirs", "LMDB"),
        ("filesystem:\udcff", "not UTF-8"),
    ],
)
def test_init_tells_a_mistake_in_one_line(
    store: str,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "data.mdb").write_bytes(b"")
    code, out, error = run_init(store, capsys)
    assert (code, out, error.count("\n")) == (2, "", 1)
    assert error.startswith("kvreplay: ")
    assert says in error
    assert {path.name for path in tmp_path.rglob("*")} == {"file", "theirs", "data.mdb"}


STRANGERS = """
from kvreplay import StoreNotFoundError

class Always:
    OPTIONS = {"pool": "integer"}
    LOCATION = "url"

class Asked:
    OPTIONS = {"create": "boolean"}
    LOCATION = "url"
    there = False

    def __init__(self, url, create=True):
        if not create and not Asked.there:
            raise StoreNotFoundError("there is none")
        Asked.there = True

    def close(self):
        pass
"""


@needs_cli
def test_init_of_a_strangers_engine(stranger: Stranger, capsys: pytest.CaptureFixture[str]) -> None:
    stranger.install("always", STRANGERS, attribute="Always")
    stranger.install("asked", STRANGERS, attribute="Asked")
    code, out, error = run_init("always://user:secret@host/db", capsys)
    assert (code, out) == (2, "")
    assert 'the backend "always" has no option "create"' in error
    assert "secret" not in error
    code, out, error = run_init("asked://user:secret@host/db", capsys)
    assert (code, out, error) == (0, "made the store asked:…@host/db\n", "")
    code, out, error = run_init("asked://user:secret@host/db", capsys)
    assert (code, error) == (0, "")
    assert out == "the store asked:…@host/db is there already; nothing was changed\n"


# kvreplay demo.


@needs_demo
@pytest.mark.parametrize(
    ("store", "says"),
    [
        ("lmbd:store", 'Did you mean "lmdb"?'),
        ("lmdb:store?durable=full", 'has no option "durable"'),
        ("lmdb://{used}", "there is something at"),
        ("sqlite://{used}/precious", "there is something at"),
        ("filesystem:../../precious", "there is something at"),
    ],
)
def test_a_store_that_the_story_cannot_use_is_2(
    store: str,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    used = tmp_path / "used"
    used.mkdir()
    for folder in (used, tmp_path):
        (folder / "precious").write_text("precious")
    arguments = ["--store", store.format(used=used), "--dir", str(tmp_path / "kept")]
    assert main(["demo", *arguments]) == 2
    out, error = capsys.readouterr()
    assert (out, error.count("\n")) == ("", 1)
    assert says in error
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(files) == [tmp_path / "precious", used / "precious"]
    assert {path.read_text() for path in files} == {"precious"}


def story_on(directory: Path) -> subprocess.Popen[str]:
    """Start to tell the story, with everything that it needs below the directory."""
    return subprocess.Popen(
        [sys.executable, "-m", "kvreplay", "demo", "--dir", str(directory / "kept")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def read_until_a_node_runs(story: subprocess.Popen[str]) -> None:
    assert story.stdout is not None
    while "a node process starts" not in story.stdout.readline():
        assert story.poll() is None


@needs_demo
def test_an_interrupt_is_130_and_leaves_no_node(tmp_path: Path) -> None:
    with hearing_ctrl_c():
        story = story_on(tmp_path)
    try:
        read_until_a_node_runs(story)
        assert nodes_on(tmp_path)
        story.send_signal(signal.SIGINT)
        _, error = story.communicate(timeout=60)
    finally:
        story.kill()
        story.communicate()
    assert story.returncode == 130
    said, _, rest = error.partition("\n")
    assert said == "kvreplay: interrupted"
    # The finalizer of Python's own class prints this, if its __init__ was interrupted.
    assert not rest or rest.startswith("Exception ignored in: <http.client.HTTPResponse"), rest
    assert not nodes_on(tmp_path)


@needs_demo
def test_a_killed_story_leaves_no_node(tmp_path: Path) -> None:
    with story_on(tmp_path) as story:
        read_until_a_node_runs(story)
        story.kill()
    for pid in nodes_on(tmp_path):
        try:
            node = os.pidfd_open(pid)
        except ProcessLookupError:
            continue  # it has ended since
        select.select([node], [], [], 30)  # readable when it has ended
        os.close(node)
    assert not nodes_on(tmp_path)


@needs_demo
def test_a_reader_that_goes_away_ends_it_without_a_traceback(tmp_path: Path) -> None:
    with story_on(tmp_path) as story:
        assert story.stdout is not None
        assert story.stderr is not None
        story.stdout.readline()
        story.stdout.close()
        error = story.stderr.read()
        code = story.wait(60)
    assert (code, error) == (141, "")
    assert not nodes_on(tmp_path)


def nodes_on(directory: Path) -> dict[int, str]:
    """Return the node processes with a config below the directory: pid -> command line."""
    found = {}
    for each in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = each.read_bytes().decode(errors="replace")
        except OSError:  # ended just now
            continue
        if "kvreplay.demo.node" in command and str(directory) in command:
            found[int(each.parent.name)] = command.replace("\0", " ")
    return found
