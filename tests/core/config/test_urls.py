"""The URL of a server: what its driver takes stays in it as it is written, and what is ours goes."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from kvreplay.config.file import load_config
from kvreplay.config.location import ALIASES
from kvreplay.config.registry import BACKENDS, StoreSettings, engine_of, open_store, settings_of
from support.configuring import SERVER, Stranger, complaint
from support.extras import needs_postgresql


@pytest.fixture
def server(stranger: Stranger) -> None:
    assert "PARAMETERS" in SERVER
    assert '"schema"' in SERVER
    stranger.install("srv", SERVER)


@pytest.mark.parametrize(
    ("url", "location", "options"),
    [
        ("srv://", "srv://", {}),
        ("srv:", "srv://", {}),
        ("SRV:///db", "srv:///db", {}),
        ("srv://user:pw@one:5432,two:5433/db?pool=4", "srv://user:pw@one:5432,two:5433/db", "4"),
        ("srv://?sslmode=require&pool=4", "srv://?sslmode=require", "4"),
        ("srv://?pool=4&sslmode=require", "srv://?sslmode=require", "4"),
        (
            "srv://u@h/db?host=/run/x&pool=4&port=1&options=-c%20search_path%3Dx",
            "srv://u@h/db?host=/run/x&port=1&options=-c%20search_path%3Dx",
            "4",
        ),
        ("srv://u@[fd00::1]:5432/db", "srv://u@[fd00::1]:5432/db", {}),
        ("srv://[::1],[::2]:5,h:,:6/db@x", "srv://[::1],[::2]:5,h:,:6/db@x", {}),
        ("srv://%2Frun%2Fpostgresql/db", "srv://%2Frun%2Fpostgresql/db", {}),
        ("srv://u:a+b%20c%26d%23e%3Ff%25@h/", "srv://u:a+b%20c%26d%23e%3Ff%25@h/", {}),
        ("srv:///db?options=a+b%2Bc%26d%3de", "srv:///db?options=a+b%2Bc%26d%3de", {}),
        ("srv:///db?options=%ff", "srv:///db?options=%ff", {}),  # bytes of another encoding
        ("srv:///db?options=a=b", "srv:///db?options=a=b", {}),
        ("srv:///db?%6fptions=x", "srv:///db?%6fptions=x", {}),
        ("srv:///db?options=", "srv:///db?options=", {}),
        ("srv:///db?user=a@b", "srv:///db?user=a@b", {}),
    ],
)
def test_the_drivers_own_part_passes_through(
    server: None, url: str, location: str, options: str | Mapping[str, object]
) -> None:
    expected = {"pool": int(options)} if isinstance(options, str) else options
    opened = open_store(url)
    assert opened.args == (location,)  # type: ignore[attr-defined]
    assert opened.options == expected  # type: ignore[attr-defined]
    settings = settings_of({"url": url})
    assert settings == StoreSettings("srv", location, expected)
    assert pickle.loads(pickle.dumps(settings)) == settings
    config = load_config(None, environ={"KVREPLAY_STORE": url})
    assert config.store == settings


def test_options_come_from_a_table_and_from_variables(
    server: None, write: Callable[[str], Path]
) -> None:
    path = write('[store]\nurl = "srv://u@h/db?sslmode=require&pool=1"\npool = 2\nschema = "r"\n')
    location = "srv://u@h/db?sslmode=require"
    config = load_config(path, environ={})
    assert config.store == StoreSettings("srv", location, {"pool": 2, "schema": "r"})
    config = load_config(path, environ={"KVREPLAY_STORE_POOL": "3"})
    assert config.store == StoreSettings("srv", location, {"pool": 3, "schema": "r"})
    environ = {"KVREPLAY_STORE": "srv://other?port=1", "KVREPLAY_STORE_POOL": "4"}
    config = load_config(path, environ=environ)
    assert config.store == StoreSettings("srv", "srv://other?port=1", {"pool": 4})


def test_a_name_alone_is_a_whole_url(server: None) -> None:
    """Each parameter has its default, as in the driver's own variables."""
    assert settings_of({"backend": "srv", "pool": 2}) == StoreSettings("srv", "srv://", {"pool": 2})


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("srv:///db?sslmod=x", 'no option "sslmod"; nothing was opened. Did you mean "sslmode"?'),
        ("srv:///db?pol=x", 'no option "pol"; nothing was opened. Did you mean "pool"?'),
        (
            "srv:///db?zzz=x",
            'no option "zzz"; nothing was opened. Valid: "pool", "timeout", "cache',
        ),
        ("srv:///db?map_size=1", 'no option "map_size", which is one of "lmdb"'),
        ("srv:///db?sslmode", "is not name=value"),
        ("srv:///db?sslmode=a&sslmode=b", '"sslmode" is repeated'),
        ("srv:///db?pool=1&pool=1", '"pool" is repeated'),
        ("srv:///db?pool=x", 'option "pool": "x" is not an integer'),
        ("srv:///db?schema=%ff", "is not UTF-8"),
        ("srv:db", '"//" does not follow "srv:"; nothing was opened. Write srv://USER@HOST/NAME'),
        ("srv:/db", '"//" does not follow'),
        ("srv://u:%zz@h/db", 'a "%" without two hex digits'),
        ("srv:///db?options=%zz", 'a "%" without two hex digits'),
        ("srv:///d b", "it has a blank"),
        ("srv:///d\nb", "a control character"),
        ("srv:///db?options=\udcff", "a byte that is not UTF-8"),
        ("srv:///db#x", 'Write %23 for a "#"'),
        ("srv://u:a#b@h/db", 'Write %23 for a "#" in a path or a password.'),
        ("srv://u:a@b@h/db", 'it has two "@"; nothing was opened. Write %40'),
        (
            "srv://u:a/b@h/db",
            "a port is not a number; nothing was opened. Write HOST:5432, and %2F",
        ),
        ("srv://u@[::1]:x/db", "a port is not a number"),
        ("srv://one:1,two:x/db", "a port is not a number"),
        ("srv://u:a?b=c@h/db", 'a "?" stands before the "@"; nothing was opened. Write %3F'),
        ({"url": "srv:///db", "sslmod": "x"}, 'no option "sslmod"'),
        (
            {"url": "srv:///db", "sslmode": "x"},
            'the store sslmode: "sslmode" is a part of the URL of "srv"; nothing was opened. Write it'
            " there: srv://…?sslmode=VALUE.",
        ),
        ({"backend": "srv", "path": "x"}, 'has no path; nothing was opened. Write url = "srv:…".'),
    ],
)
def test_what_is_wrong_with_it_is_said(
    server: None, where: str | Mapping[str, object], says: str
) -> None:
    assert says in complaint(open_store, where)


def test_a_variable_for_a_part_of_the_url_is_a_mistake(server: None) -> None:
    for name, value in (("HOST", "10.0.0.1"), ("PORT", "5432"), ("SSLPASSWORD", "hunter2")):
        environ = {"KVREPLAY_STORE": "srv://", f"KVREPLAY_STORE_{name}": value}
        message = complaint(load_config, None, environ=environ)
        assert f'"{name.lower()}" is a part of the URL of "srv"' in message
        assert value not in message


def test_kubernetes_sets_no_part_of_the_url(server: None) -> None:
    theirs = {
        "KVREPLAY_STORE_PORT": "tcp://10.0.0.1:5432",
        "KVREPLAY_STORE_SERVICE_HOST": "10.0.0.1",
        "KVREPLAY_STORE_SERVICE_PORT": "5432",
    }
    store = {"KVREPLAY_STORE": "srv://db/replay?port=1"}
    assert load_config(None, environ=store | theirs) == load_config(None, environ=store)


def test_only_the_text_of_pairs_that_pass_through_is_not_decoded(server: None) -> None:
    opened = open_store("srv:///db?schema=a%20b%2Bc+d")
    assert opened.options == {"schema": "a b+c+d"}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "parameters",
    ['"host"', "[1]", "5", '("pool",)', '{"host": 1, "tls": 2}'],
)
def test_parameters_that_are_wrongly_declared(stranger: Stranger, parameters: str) -> None:
    stranger.install("srv", SERVER.replace("PARAMETERS =", f"PARAMETERS = {parameters} #"))
    assert "its class declares no valid PARAMETERS" in complaint(open_store, "srv://")


def test_only_a_url_has_parameters(stranger: Stranger, here: Path) -> None:
    stranger.install("srv", SERVER.replace('LOCATION = "url"', 'LOCATION = "path"'))
    assert "no valid PARAMETERS" in complaint(open_store, "srv:x")


def test_an_engine_may_have_no_parameters(stranger: Stranger) -> None:
    stranger.install("rec")
    assert engine_of("rec", "").parameters == ()
    assert 'no option "sslmode"' in complaint(open_store, "rec://h/db?sslmode=require")


def test_a_second_name_is_the_same_engine(
    stranger: Stranger, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ALIASES == {"postgres": "postgresql"}
    assert BACKENDS.keys().isdisjoint(ALIASES)
    stranger.install("srv", SERVER)
    monkeypatch.setitem(ALIASES, "server", "srv")
    first = settings_of("srv://h/db?pool=1")
    for where in ("server://h/db?pool=1", {"url": "SERVER://h/db", "pool": 1}):
        assert settings_of(where) == first
    assert settings_of({"backend": "Server"}) == settings_of("srv://")
    assert first.location == "srv://h/db"


# What libpq reads of a URL, and of what is left of it.
OF_LIBPQ = [
    "postgresql://",
    "postgresql:///",
    "postgresql:///db",
    "postgresql://?host=/run/postgresql&dbname=db",
    "postgresql://user@/db?host=/run/postgresql&sslmode=disable",
    "postgresql://user:pw@one:5432,two:5433/db?target_session_attrs=read-write",
    "postgresql://user:pw@one,two:,[::1]:5,%2Frun%2Fx:6/db?connect_timeout=5",
    "postgresql://%2Frun%2Fpostgresql/db",
    "postgresql://u%40x:a+b%20c%26d%23e%3Ff%25%2Fg%3A@[fd00::1%25eth0]/d%2Fb",
    "postgresql://u:%F0%9F%94%91@h/db?options=-c%20search_path%3Dx&application_name=a+b%2Bc%26d",
    "postgresql://u@h/db?ssl=true",  # JDBC's
    "postgresql://u:@h/db?options=&sslpassword=%3D%26%3F",
    "postgresql://u@h:/?dbname=a%3Db",
    "postgresql://u@h/db?ssl%6Dode=verify-full&sslrootcert=/etc/ca.pem",
]


@needs_postgresql
@pytest.mark.parametrize("url", OF_LIBPQ)
def test_libpq_reads_the_same_without_our_options(url: str) -> None:
    from psycopg.conninfo import conninfo_to_dict

    meant = conninfo_to_dict(url)
    rest, mark, query = url.partition("?")
    pairs = query.split("&") if mark else []
    options = {"schema": "a b", "pool_size": 20, "create": False}
    for place in range(len(pairs) + 1):
        ours = ["schema=a%20b", "pool_size=20", "create=no"]
        asked = f"{rest}?{'&'.join(pairs[:place] + ours + pairs[place:])}"
        for written in (asked, asked.replace("postgresql:", "postgres:")):
            settings = settings_of(written)
            assert conninfo_to_dict(settings.location or "") == meant
            assert settings == StoreSettings("postgresql", url, options)


@needs_postgresql
def test_no_parameter_of_libpq_is_a_variable(write: Callable[[str], Path]) -> None:
    engine = engine_of("postgresql", "")
    assert {"host", "port", "user", "password", "sslmode", "options"} <= set(engine.parameters)
    path = write('[store]\nurl = "postgresql://u@h/db"\npool_size = 20\nschema = "replay"\n')
    config = load_config(path, environ={"KVREPLAY_STORE_POOL_SIZE": "5"})
    assert config.store.options == {"pool_size": 5, "schema": "replay"}
    for name in engine.parameters:
        environ = {"KVREPLAY_STORE": "postgresql://", f"KVREPLAY_STORE_{name.upper()}": "1"}
        assert "is a part of the URL" in complaint(load_config, None, environ=environ)
    says = 'no option "slmode"; nothing was opened. Did you mean "sslmode"?'
    assert says in complaint(open_store, "postgresql:///db?slmode=require")
    says = 'no option "poolsize"; nothing was opened. Did you mean "pool_size"?'
    assert says in complaint(open_store, "postgresql:///db?poolsize=5")
