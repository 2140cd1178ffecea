"""A node's configuration: a TOML file, and ``KVREPLAY_*`` variables that override it.

The file names the store and any number of replay namespaces. Everything is checked before
anything is opened.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from types import MappingProxyType
from typing import Literal, cast, overload

import attrs

from kvreplay._protocol.record import ReplayRecord
from kvreplay._protocol.steps import Verdict
from kvreplay._runtime.settings import IN_A_FILE, ReplaySettings
from kvreplay.config.location import Asked, Given, ask_table, ask_url
from kvreplay.config.registry import (
    Engine,
    OpenStore,
    OpenTransactionalStore,
    StoreSettings,
    check_settings,
    engine_of,
    option_of_another,
    others_with,
    parameter_outside_a_url,
)
from kvreplay.config.units import nearest, parse, shown, wrong
from kvreplay.errors import ConfigError, InvalidNameError
from kvreplay.store import check_namespace

__all__ = ["Config", "load_config"]


@attrs.frozen(repr=False)
class Config:
    """What a file and the environment say, checked; nothing is open yet.

    Attributes:
        store: the store to open.
        tables: the application's own top-level tables, raw, by name.

    It can be pickled, with the credentials that the store's settings may hold.
    """

    store: StoreSettings
    tables: Mapping[str, object]
    _replays: Mapping[str, ReplaySettings]
    _source: str

    def __reduce__(self) -> tuple[object, ...]:  # a frozen mapping cannot be pickled
        return _made, (self.store, dict(self.tables), dict(self._replays), self._source)

    @property
    def replays(self) -> tuple[str, ...]:
        """The replay namespaces, in the order of the file."""
        return tuple(self._replays)

    @overload
    def open_store(self, *, transactional: Literal[True]) -> OpenTransactionalStore: ...

    @overload
    def open_store(self, *, transactional: bool = False) -> OpenStore: ...

    def open_store(self, *, transactional: bool = False) -> OpenStore:
        """Open the store.

        Args:
            transactional: it must have ``transaction()``; see :func:`kvreplay.open_store`.
        """
        return self.store.open(transactional=transactional)

    def replay(
        self,
        name: str,
        *,
        on_in_doubt: Callable[[ReplayRecord], Verdict] | None = None,
    ) -> ReplaySettings:
        """Return keyword arguments: ``Replay(store, **config.replay("request_invoice"))``.

        They are ``namespace``, ``ttl`` and every other setting that was given.

        Args:
            on_in_doubt: a reconciler, which a file cannot hold; it overrides the file.

        Raises:
            ConfigError: there is no such namespace.
        """
        if name not in self._replays:
            raise wrong(
                self._source,
                f"there is no [replay.{name}] table",
                nearest(name, self._replays),
            )
        settings = self._replays[name].copy()
        if on_in_doubt is not None:
            settings["on_in_doubt"] = on_in_doubt
        return settings

    def __repr__(self) -> str:
        return f"<Config {self.store!r} replays={self.replays} tables={tuple(self.tables)}>"


def _made(
    store: StoreSettings,
    tables: dict[str, object],
    replays: dict[str, ReplaySettings],
    source: str,
) -> Config:
    return Config(store, MappingProxyType(tables), MappingProxyType(replays), source)


def load_config(
    path: str | os.PathLike[str] | None,
    *,
    environ: Mapping[str, str] | None = None,
    also: Iterable[str] = (),
) -> Config:
    """Read a TOML file and the environment, check everything, and open nothing.

    ``KVREPLAY_STORE`` (a URL) replaces the ``[store]`` table. ``KVREPLAY_STORE_PATH`` and
    ``KVREPLAY_STORE_<OPTION>`` each set one thing of the store, whether the table or the URL
    names the store. ``KVREPLAY_REPLAY_<NAMESPACE>_<SETTING>`` sets one setting of a namespace
    that the file names; write the name in upper case, and ``_`` for ``-``. No other variable
    may start with ``KVREPLAY_``, but those that Kubernetes sets for a Service of such a name: they
    set nothing. Blanks and line ends around a value do not belong to it. A relative path in the
    file is relative to the file; a relative path in a variable is relative to the current
    directory.

    Args:
        path: the file. ``None``: only the environment is read, and it must name the store.
        environ: the environment; by default that of this process.
        also: top-level tables that belong to the application; any other is an error.

    Raises:
        ConfigError: the file cannot be read, or something in it or in the environment is
            wrong; the message names the file, table and key, or the variable.
    """
    if isinstance(also, str):
        raise wrong("also", "it is one text, not a collection of table names", 'Write ("node",).')
    also = tuple(also)
    file = None if path is None else os.fsdecode(path)
    source = "the environment" if file is None else file
    document = {} if file is None else _read_toml(file)
    for name in document:
        if name not in ("store", "replay", *also):
            raise _unknown_table(source, name, document[name], also)
    variables = {
        name: value.strip()
        for name, value in (os.environ if environ is None else environ).items()
        if name.startswith("KVREPLAY_")
    }

    asked = None
    if "KVREPLAY_STORE" in variables:
        asked = ask_url(variables["KVREPLAY_STORE"], "KVREPLAY_STORE", None)
    elif file is not None and "store" in document:
        table = _table(document["store"], f"{file} [store]")
        asked = ask_table(table, f"{file} [store]", os.path.dirname(os.path.abspath(file)))
    engine = None if asked is None else engine_of(asked.backend, asked.source)
    given = _given_replays(document.get("replay", {}), source)

    known = _known_variables(engine, given)
    for variable, value in variables.items():
        if (variable not in known or "://" in value) and _is_of_kubernetes(f"{variable}={value}"):
            continue  # pods are given it unasked
        if variable not in known:
            raise _unknown_variable(variable, known, asked, engine)
        if len(known[variable]) > 1:
            both = " and ".join(f'"{key}" of [replay.{name}]' for name, key in known[variable])
            raise wrong(variable, f"it means {both}", "Set them in the file.")
        [(namespace, setting)] = known[variable]
        if namespace is not None:
            given[namespace][setting] = Given(value, variable)
        elif asked is not None and setting != "url":
            asked = asked.override(setting, Given(value, variable))

    if asked is None or engine is None:
        raise wrong(
            source,
            "no store is named",
            'Set KVREPLAY_STORE, such as "lmdb:///var/lib/node/replay"'
            + (', or write [store] with url = "lmdb:PATH".' if file is not None else "."),
        )
    return _made(
        check_settings(asked, engine),
        {name: document[name] for name in also if name in document},
        {name: _replay(name, settings, source) for name, settings in given.items()},
        source,
    )


def _read_toml(file: str) -> dict[str, object]:
    import tomllib

    try:
        with open(file, "rb") as stream:
            data = stream.read()
    except OSError as error:
        raise wrong(file, f"it cannot be read ({error.strerror})", "Name a TOML file.") from error
    except ValueError as error:
        raise wrong(ascii(file), f"it is no path ({error})", "Name a TOML file.") from None
    try:
        return tomllib.loads(data.decode("utf-8-sig"))  # some editors begin a file with a mark
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise wrong(file, f"line {line} is not UTF-8", "Save the file as UTF-8.") from None
    except RecursionError:
        raise wrong(file, "its values are nested too deeply", "Write a plain file.") from None
    except ValueError as error:  # TOMLDecodeError, or an integer of thousands of digits
        raise wrong(file, f"it is not TOML: {error}", "Correct that line.") from None


def _unknown_table(source: str, name: str, value: object, also: tuple[str, ...]) -> ConfigError:
    instead = nearest(name, ("store", "replay", *also))
    if isinstance(value, dict | list):
        names = ", ".join(f'"{each}"' for each in (*also, name)) + ("" if also else ",")
        instead += f" If it belongs to your application: load_config(path, also=({names}))."
    return wrong(source, f'unknown table or key "{name}"', instead)


def _unknown_variable(
    variable: str, known: Collection[str], asked: Asked | None, engine: Engine | None
) -> ConfigError:
    """Make the error for a variable that sets nothing, or nothing of this very store."""
    option = variable.removeprefix("KVREPLAY_STORE_").lower()
    if variable != f"KVREPLAY_STORE_{option}".upper():
        return wrong(variable, "kvreplay has no such variable", nearest(variable, known))
    if asked is None or engine is None:
        if option == "path" or others_with(option, None):
            return wrong(
                variable, "no store is named whose setting it could be", nearest(variable, known)
            )
    elif option == "path":
        return wrong(
            variable, f'the backend "{asked.backend}" has no path', "Set KVREPLAY_STORE instead."
        )
    elif option in engine.parameters:
        return parameter_outside_a_url(option, asked.backend, variable)
    elif others := others_with(option, asked.backend):
        return option_of_another(others, option, asked.backend, engine, variable)
    return wrong(variable, "kvreplay has no such variable", nearest(variable, known))


# NAME=VALUE, as Kubernetes sets it for a Service whose name begins with "kvreplay".
_is_of_kubernetes = re.compile(
    r"""KVREPLAY_([A-Z0-9_]+_)?(
        SERVICE_HOST=[0-9a-f.:]+
        | SERVICE_PORT(_[A-Z0-9_]+)?=[0-9]+
        | PORT(_[0-9]+_(TCP|UDP|SCTP))?=(tcp|udp|sctp)://[0-9a-f.:\[\]]+
        | PORT_[0-9]+_(TCP|UDP|SCTP)_(PROTO=(tcp|udp|sctp)|PORT=[0-9]+|ADDR=[0-9a-f.:]+)
    )""",
    re.VERBOSE,
).fullmatch


def _known_variables(
    engine: Engine | None, replays: Iterable[str]
) -> dict[str, list[tuple[str | None, str]]]:
    """Map each valid variable to the (namespace, setting) it sets; for the store, no namespace.

    A variable with several of them stands for namespaces that look alike in upper case.
    """
    known: dict[str, list[tuple[str | None, str]]] = {"KVREPLAY_STORE": [(None, "url")]}
    if engine is not None:
        settings = (*engine.options, "path") if engine.location == "path" else engine.options
        known |= {f"KVREPLAY_STORE_{name.upper()}": [(None, name)] for name in settings}
    for namespace in replays:
        for setting in IN_A_FILE:
            variable = f"KVREPLAY_REPLAY_{namespace}_{setting}".upper().replace("-", "_")
            known.setdefault(variable, []).append((namespace, setting))
    return known


def _table(value: object, where: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise wrong(where, f"{shown(value)} is not a table", "Write settings below a [table].")
    return value


def _given_replays(tables: object, source: str) -> dict[str, dict[str, Given]]:
    given: dict[str, dict[str, Given]] = {}
    for name, value in _table(tables, f"{source} [replay]").items():
        where = f"{source} [replay.{name}]"
        if not isinstance(value, dict):
            raise wrong(
                f"{source} [replay] {name}",
                "it is not a table",
                "Settings belong to a namespace: write a [replay.NAME] table.",
            )
        if not name:
            raise wrong(where, "the namespace is empty", "Write a [replay.NAME] table.")
        try:
            check_namespace(name, "")
        except InvalidNameError as error:
            problem = str(error).partition(";")[0]
            raise wrong(where, problem, "Choose a name of [A-Za-z0-9_-].") from None
        for key in value:
            if key not in IN_A_FILE:
                raise wrong(where, f'unknown setting "{key}"', nearest(key, IN_A_FILE))
        given[name] = {key: Given(value[key], f"{where} {key}") for key in value}
    return given


def _replay(name: str, given: Mapping[str, Given], source: str) -> ReplaySettings:
    if "ttl" not in given:
        raise wrong(
            f"{source} [replay.{name}]", '"ttl" is missing', 'Write for example ttl = "1h".'
        )
    settings: dict[str, object] = {"namespace": name}
    for key, kind in IN_A_FILE.items():
        if key in given:
            settings[key] = parse(kind, given[key].value, given[key].source)
    return cast("ReplaySettings", settings)
