"""Variables of the environment, which go over what a file says."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kvreplay.config.file import load_config
from kvreplay.config.registry import StoreSettings
from support.configuring import HAS_POSTGRESQL, HOUR, RECORDER, STORE, WHOLE, Stranger, complaint


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
    assert complaint(load_config, None, environ=environ).startswith(
        'KVREPLAY_STORE_PATH: the backend "memory" has no path; nothing was opened. Set KVREPLAY_ST'
    )


def test_a_variable_for_an_option_of_another_engine_names_both(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environ = {"KVREPLAY_STORE": "sqlite:data", "KVREPLAY_STORE_MAP_SIZE": "1GiB"}
    assert complaint(load_config, None, environ=environ) == (
        'KVREPLAY_STORE_MAP_SIZE: the backend "sqlite" has no option "map_size", which is one of'
        ' "lmdb"; nothing was opened. The options of "sqlite": "create", "durability",'
        ' "lock_timeout".'
    )
    environ = {"KVREPLAY_STORE": "memory:", "KVREPLAY_STORE_DURABILITY": "full"}
    others = '"lmdb", "sqlite" and "postgresql"' if HAS_POSTGRESQL else '"lmdb" and "sqlite"'
    assert complaint(load_config, None, environ=environ) == (
        'KVREPLAY_STORE_DURABILITY: the backend "memory" has no option "durability", which is one of'
        f' "filesystem", {others}; nothing was opened. The options of "memory": "create".'
    )
    environ = {"KVREPLAY_STORE": "lmdb:data", "KVREPLAY_STORE_MAP_SIZE": "1GiB"}
    assert load_config(None, environ=environ).store.options == {"map_size": 2**30}
    for name in [name for name in sys.modules if name.startswith("kvreplay.backends.lmdb")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lmdb", None)  # without its driver nothing is known of it
    environ = {"KVREPLAY_STORE": "sqlite:data", "KVREPLAY_STORE_MAP_SIZE": "1GiB"}
    assert "kvreplay has no such variable" in complaint(load_config, None, environ=environ)


def test_a_variable_for_a_store_that_nobody_names_is_wrong(write: Callable[[str], Path]) -> None:
    path = write("")
    for file in (None, path):
        environ = {"KVREPLAY_STORE_PATH": "x"}
        message = complaint(load_config, file, environ=environ)
        assert message.startswith(
            "KVREPLAY_STORE_PATH: no store is named whose setting it could be"
        )
        assert 'Did you mean "KVREPLAY_STORE"?' in message
        environ = {"KVREPLAY_STORE_MAP_SIZE": "1GiB"}
        assert "no store is named" in complaint(load_config, file, environ=environ)
        environ = {"KVREPLAY_STORE_MAP_SISE": "1GiB"}
        assert "kvreplay has no such variable" in complaint(load_config, file, environ=environ)
    with_url = 'or write [store] with url = "lmdb:PATH".'
    assert with_url in complaint(load_config, path, environ={})


@pytest.mark.parametrize("around", ["\r", "\n", "\r\n", " ", "\t "])
def test_blanks_and_line_ends_around_a_value_do_not_belong_to_it(
    write: Callable[[str], Path], here: Path, around: str
) -> None:
    """An editor of another system, or a secret that was made by echo, leaves them."""
    path = write(STORE + "[replay.a]\nttl = 1\n")
    environ = {
        "KVREPLAY_STORE": f"{around}lmdb:data?durability=process{around}",
        "KVREPLAY_STORE_MAP_SIZE": f"1MiB{around}",
        "KVREPLAY_STORE_DURABILITY": f"full{around}",
        "KVREPLAY_REPLAY_A_ON_IN_DOUBT": f"rerun{around}",
        "KVREPLAY_REPLAY_A_TTL": f"{around}1h{around}",
    }
    config = load_config(path, environ=environ)
    assert config.store == StoreSettings(
        "lmdb", str(here / "data"), {"durability": "full", "map_size": 1024**2}
    )
    assert config.replay("a") == {"namespace": "a", "ttl": HOUR, "on_in_doubt": "rerun"}
    environ = {"KVREPLAY_STORE": "lmdb:x", "KVREPLAY_STORE_PATH": f"data{around}"}
    assert load_config(path, environ=environ).store.location == str(here / "data")


KUBERNETES = {
    "KVREPLAY_STORE_SERVICE_HOST": "10.0.0.1",
    "KVREPLAY_STORE_SERVICE_PORT": "5432",
    "KVREPLAY_STORE_SERVICE_PORT_SQL": "5432",
    "KVREPLAY_STORE_PORT": "tcp://10.0.0.1:5432",
    "KVREPLAY_STORE_PORT_5432_TCP": "tcp://10.0.0.1:5432",
    "KVREPLAY_STORE_PORT_5432_TCP_PROTO": "tcp",
    "KVREPLAY_STORE_PORT_5432_TCP_PORT": "5432",
    "KVREPLAY_STORE_PORT_5432_TCP_ADDR": "10.0.0.1",
}


@pytest.mark.parametrize("service", ["kvreplay-store", "kvreplay", "kvreplay-store-service"])
@pytest.mark.parametrize("host", ["10.0.0.1", "fd00::1"])
def test_what_kubernetes_sets_for_a_service_sets_nothing(service: str, host: str) -> None:
    own = service.upper().replace("-", "_")
    theirs = {
        name.replace("KVREPLAY_STORE", own): value.replace(
            "10.0.0.1", f"[{host}]" if "://" in value and ":" in host else host
        )
        for name, value in KUBERNETES.items()
    }
    for store in ("memory:", "lmdb:data"):
        config = load_config(None, environ={"KVREPLAY_STORE": store, **theirs})
        assert config == load_config(None, environ={"KVREPLAY_STORE": store})
    assert "no store is named" in complaint(load_config, None, environ=theirs)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("KVREPLAY_STORE_PORT", "5432"),
        ("KVREPLAY_STORE_PORT", "http://10.0.0.1:5432"),
        ("KVREPLAY_STORE_HOST", "10.0.0.1"),
        ("KVREPLAY_STORE_SERVICE_HOST", "db.example"),
        ("KVREPLAY_STORE_SERVICE_PORT", "http://10.0.0.1:5432"),
        ("KVREPLAY_STORE_SERVICE", "5432"),
        ("KVREPLAY_STORE_PORT_5432", "tcp://10.0.0.1:5432"),
        ("KVREPLAY_STORE_PORT_5432_TCP_HOST", "10.0.0.1"),
        ("KVREPLAY_STORE_PORT_5432_TCP_PROTO", "http"),
        ("KVREPLAY_STORE_port", "tcp://10.0.0.1:5432"),
    ],
)
def test_what_only_looks_a_little_like_it_is_still_a_mistake(variable: str, value: str) -> None:
    environ = {"KVREPLAY_STORE": "memory:", variable: value}
    message = complaint(load_config, None, environ=environ)
    assert message.startswith(f"{variable}: kvreplay has no such variable")
    assert value not in message


def test_an_option_may_be_called_port(stranger: Stranger) -> None:
    """A stranger's: no engine of ours has one."""
    stranger.install("other", RECORDER.replace('"pool"', '"port"'))
    environ = {"KVREPLAY_STORE": "other:here", "KVREPLAY_STORE_PORT": "5432"}
    assert load_config(None, environ=environ).store.options == {"port": 5432}
    environ["KVREPLAY_STORE_PORT"] = "tcp://10.0.0.1:5432"
    assert load_config(None, environ=environ).store.options == {}


def test_a_config_can_be_pickled(write: Callable[[str], Path], here: Path) -> None:
    config = load_config(write(WHOLE + "[node]\nport = 1\n"), environ={}, also=("node",))
    copy = pickle.loads(pickle.dumps(config))
    assert copy == config
    assert repr(copy) == repr(config)
    assert copy.replay("request_invoice") == config.replay("request_invoice")
    assert pickle.loads(pickle.dumps(config.store)) == config.store
    for mapping in (copy.tables, copy.store.options):
        with pytest.raises(TypeError):
            mapping["x"] = 1
    with pytest.raises(Exception, match="replay.nobody"):
        copy.replay("nobody")
