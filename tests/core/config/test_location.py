"""A store by URL or by mapping: each spelling, and each that is wrong."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from kvreplay import load_config
from kvreplay.backends.filesystem import FilesystemStore
from kvreplay.backends.lmdb import LMDBStore
from kvreplay.backends.sqlite import SQLiteStore
from kvreplay.config.registry import OpenStore, open_store
from support.configuring import ENGINES_WITH_A_PATH, Stranger, complaint, put_and_close


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
        assert expected.is_dir() or (engine == "sqlite" and expected.is_file())
    put_and_close(open_store(f"{engine}:text-base", base=str(other)))
    assert (other / "text-base").exists()


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
        ("zzz:x", 'Valid: "memory", "filesystem", "lmdb", "sqlite"'),
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
        ("lmdb:a%0D", "a control character"),
        ("lmdb:a\rb", "a control character"),
        ("lmdb:///a%7Fb", "a control character"),
        ("lmdb:/a\r", "a line end"),
        ("lmdb:/a ", "a line end"),
        ("lmdb: /a", "a line end"),
        ("lmdb:/a ?map_size=1", "a line end"),
        ("lmdb:/a?map_size=1\n", "a line end"),
        ("lmdb:/a\udcff", "not UTF-8"),
        ("lmdb:~/replay", 'a "~" is not expanded'),
        ("lmdb:$HOME/replay", 'a "$" is not expanded'),
        ("lmdb:'/a'", "the path is in quotes"),
        ("lmdb:a?", "is not name=value"),
        ("lmdb:a?map_size", "is not name=value"),
        ("lmdb:a?map_size=1GiB&", "is not name=value"),
        ("lmdb:a?=1", "is not name=value"),
        ("lmdb:a?map_size=1GiB&map_size=1GiB", '"map_size" is repeated'),
        ("lmdb:a?map_size=1GiB&map%5Fsize=1GiB", '"map_size" is repeated'),
        ("lmdb:a?map-size=1GiB", 'has no option "map-size"; nothing was opened. Did you mean "map'),
        ("lmdb:a?path=b", 'the backend "lmdb" has no option "path"'),
        ("memory:?map_sise=1GiB", 'no option "map_sise"; nothing was opened. Valid: "create".'),
        (
            "memory:?map_size=1GiB",
            'the store URL, option "map_size": the backend "memory" has no option "map_size", which'
            ' is one of "lmdb"; nothing was opened. The options of "memory": "create".',
        ),
        (
            {"backend": "filesystem", "path": "x", "max_readers": 5},
            'the store max_readers: the backend "filesystem" has no option "max_readers", which is'
            ' one of "lmdb"; nothing was opened. The options of "filesystem": "create",',
        ),
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
        ({"backend": "lmdb", "path": "a\nb"}, "a control character"),
        ({"backend": "lmdb", "path": "a\r"}, "a line end"),
        ({"backend": "lmdb", "path": " a"}, "with a blank"),
        ({"backend": "filesystem", "path": "/a\udcff"}, "not UTF-8"),
        ({"backend": "lmdb", "path": 5}, "5 is not a path"),
        ({"backend": "lmdb", "path": "~/x"}, "is not expanded"),
        ({"backend": "lmdb", "path": "${HOME}/x"}, 'a "$" is not expanded'),
        ({"backend": "lmdb", "path": '"/x"'}, 'Remove them, or write ./"/x" if'),
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


@pytest.mark.parametrize("engine", ENGINES_WITH_A_PATH)
def test_a_parent_is_that_of_what_a_link_points_to(engine: str, here: Path, tmp_path: Path) -> None:
    """As the kernel has it, in a URL, in a mapping, in a file, and for the engine itself."""
    (tmp_path / "far" / "deep").mkdir(parents=True)
    (here / "link").symlink_to(tmp_path / "far" / "deep")
    place = tmp_path / "far" / "store"
    (here / "node.toml").write_text(f'[store]\nurl = "{engine}:link/../store"\n')
    (here / "path.toml").write_text(f'[store]\nbackend = "{engine}"\npath = "link/../store"\n')
    classes = {"filesystem": FilesystemStore, "lmdb": LMDBStore, "sqlite": SQLiteStore}
    opened: list[Callable[[], Any]] = [
        lambda: open_store(f"{engine}:link/../store"),
        lambda: open_store(f"{engine}://{here}/link/./..//store"),
        lambda: open_store(f"{engine}:../store", base=here / "link"),
        lambda: open_store({"backend": engine, "path": "link/../store"}),
        lambda: open_store({"backend": engine, "path": here / "link" / ".." / "store"}),
        load_config(here / "node.toml", environ={}).open_store,
        load_config(here / "path.toml", environ={}).open_store,
        lambda: classes[engine]("link/../store"),
        lambda: classes[engine](here / "link" / ".." / "store"),
    ]
    for number, call in enumerate(opened):
        with call() as store:
            store.write("p", "s", f"k{number}", b"v")
    with open_store(f"{engine}://{place}") as store:
        assert len(store.list("p", "s")) == len(opened)
    assert not (here / "store").exists()
    # What is not there yet has no other parent, and a link at the end stays as it is written.
    with open_store(f"{engine}:absent/../second") as store:
        assert (here / "second").exists()
    assert not (here / "absent").exists()


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


def test_a_blank_that_belongs_to_a_path_is_written_in_hex(here: Path) -> None:
    for where in ("filesystem:data%20", f"filesystem://{here}/data%20", {"url": "lmdb:other%20"}):
        open_store(where).close()
    assert {"data ", "other "} <= {path.name for path in here.iterdir()}


def test_a_current_directory_that_no_path_can_begin_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (b"gone", b"\xff"):
        folder = os.path.join(os.fsencode(tmp_path), name)
        os.mkdir(folder)
        monkeypatch.chdir(os.fsdecode(folder))
        if name == b"gone":
            os.rmdir(folder)
        says = "does not exist any more" if name == b"gone" else "is not UTF-8"
        assert says in complaint(open_store, "filesystem:data")
        open_store(f"filesystem:{tmp_path}/data").close()
