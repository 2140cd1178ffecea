"""A file: its tables, and each mistake by file, table and key."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from kvreplay import Applied, ReplayRecord
from kvreplay.config.file import Config, load_config
from kvreplay.config.registry import StoreSettings
from support.configuring import ENGINES_WITH_A_PATH, HOUR, STORE, WHOLE, complaint, put_and_close


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
    assert (path.parent / "data").exists()


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
        (f"x = {'[' * 5000}", "{file}: its values are nested too deeply"),
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
    assert message == (
        f'{path}: unknown table or key "node"; nothing was opened. Valid: "store", "replay". If it'
        ' belongs to your application: load_config(path, also=("node",)).'
    )
    message = complaint(load_config, path, environ={}, also=["wallet"])
    assert 'load_config(path, also=("wallet", "node")).' in message
    message = complaint(load_config, write("[[node]]\n" + STORE), environ={})
    assert 'load_config(path, also=("node",)).' in message
    message = complaint(load_config, write("port = 1\n" + STORE), environ={})
    assert message.endswith('Valid: "store", "replay".')
    mistyped = write(STORE + "[nide]\n")
    message = complaint(load_config, mistyped, environ={}, also=["node"])
    assert 'Did you mean "node"?' in message
    assert 'Write ("node",)' in complaint(load_config, path, environ={}, also="node")


def test_a_reconciler_goes_over_what_the_file_says(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text('[store]\nurl = "memory:"\n[replay.a]\nttl = 1\non_in_doubt = "rerun"\n')
    config = load_config(file, environ={})
    assert config.replay("a")["on_in_doubt"] == "rerun"

    def reconcile(record: ReplayRecord) -> Applied:
        return Applied(record)

    assert config.replay("a", on_in_doubt=reconcile)["on_in_doubt"] is reconcile
    assert config.replay("a")["on_in_doubt"] == "rerun"


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text(STORE, encoding="utf-8-sig")
    assert path.read_bytes().startswith(b"\xef\xbb\xbf")
    assert load_config(path, environ={}).store.backend == "memory"
    path.write_text(STORE, encoding="utf-16")
    assert "Save the file as UTF-8." in complaint(load_config, path, environ={})


def test_any_name_of_a_file_ends_in_a_config_or_an_error_that_can_be_printed(
    tmp_path: Path,
) -> None:
    name = os.fsencode(tmp_path) + b"/\xff.toml"
    for each in (name, os.fsdecode(name)):
        complaint(load_config, each, environ={}).encode("utf-8")
    with open(name, "w", encoding="utf-8") as file:
        file.write(STORE)
    for each in (name, os.fsdecode(name)):
        assert load_config(each, environ={}).store.backend == "memory"
    assert "it is no path" in complaint(load_config, "a\0b.toml", environ={})
