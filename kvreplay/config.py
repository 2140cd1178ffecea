"""Where the store is and how requests are replayed: URLs, TOML and the environment.

A store is one line, ``lmdb:///var/lib/node/replay?map_size=4GiB``, or the same as a mapping.
A file names the store and any number of replay namespaces, and a ``KVREPLAY_*`` variable
overrides the file. Everything is checked before anything is opened, and no message or
``repr`` shows the credentials in a URL, its query, or the value of an option that is text.

A backend is a class with two declarations, which is all that this module knows of it:

``OPTIONS``
    a mapping: the name of each keyword argument -> ``"size"`` (bytes, an int of at least 1),
    ``"integer"`` (at least 0), ``"duration"`` (seconds, a float), ``"boolean"``, ``"text"``,
    or the tuple of its legal words.
``LOCATION``
    ``"path"``: constructed as ``cls(absolute_path, **options)``; ``"none"``:
    ``cls(**options)``; ``"url"``: ``cls(url_without_its_query, **options)``.

A third party registers its class as an entry point of the group ``kvreplay.backends``,
named as the URL scheme. It cannot replace a built-in backend: the built-in one wins.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType, TracebackType
from typing import (
    TYPE_CHECKING,
    Final,
    Literal,
    Protocol,
    Required,
    Self,
    TypedDict,
    cast,
    runtime_checkable,
)

import attrs

from kvreplay.errors import InvalidNameError
from kvreplay.location import (
    KEYS,
    Asked,
    Given,
    ask_table,
    ask_url,
    locate,
    without_credentials,
)
from kvreplay.store import ExpiringKVStore, check_namespace
from kvreplay.units import Kind, nearest, parse, shown, wrong

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = [
    "BACKENDS",
    "Config",
    "OpenStore",
    "ReplaySettings",
    "StoreSettings",
    "load_config",
    "open_store",
]

BACKENDS: Final[Mapping[str, tuple[str, str, str | None]]] = {
    # scheme: (module, class, the extra that installs its driver)
    "memory": ("kvreplay.backends.memory", "MemoryStore", None),
    "filesystem": ("kvreplay.backends.filesystem", "FilesystemStore", None),
    "lmdb": ("kvreplay.backends.lmdb", "LMDBStore", "lmdb"),
}

ENTRY_POINTS: Final = "kvreplay.backends"

_SETTINGS: Final[Mapping[str, Kind]] = {
    "ttl": "duration",
    "lease": "lease",
    "tombstone_ttl": "duration",
    "wait_timeout": "duration",
    "on_in_doubt": ("raise", "rerun"),
    "max_record_bytes": "size",
    "renew": "boolean",
}
_OPTION_KINDS: Final = ("size", "integer", "duration", "boolean", "text")
_LOCATIONS: Final = ("path", "none", "url")


@runtime_checkable
class OpenStore(ExpiringKVStore, Protocol):
    """What a backend gives: a store that its opener closes.

    Every engine of ours is at least this. A third party's may lack a capability, and then
    ``Replay`` names it when it is needed.
    """

    def close(self) -> None:
        """Release the engine; may be called twice."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None: ...


class ReplaySettings(TypedDict, total=False):
    """Keyword arguments for ``Replay`` and ``AsyncReplay``; durations are seconds."""

    namespace: Required[str]
    ttl: Required[float]
    lease: float | None
    tombstone_ttl: float
    wait_timeout: float
    on_in_doubt: Literal["raise", "rerun"]
    max_record_bytes: int
    renew: bool


def _frozen(options: Mapping[str, object]) -> Mapping[str, object]:
    return MappingProxyType(dict(options))


@attrs.frozen(repr=False)
class StoreSettings:
    """A checked answer to: which store, where, with which options.

    Attributes:
        backend: the URL scheme, such as ``"lmdb"``.
        location: an absolute path, a URL without its query (it may hold credentials), or
            ``None``, as the backend's ``LOCATION`` says.
        options: the keyword arguments that were set, as checked values.
    """

    backend: str
    location: str | None
    options: Mapping[str, object] = attrs.field(converter=_frozen)
    _words: frozenset[str] = attrs.field(default=frozenset(), eq=False)

    def open(self) -> OpenStore:
        """Open the store; what the engine raises is its own :class:`~kvreplay.StoreError`."""
        where = () if self.location is None else (self.location,)
        return _engine(self.backend, "the store").construct(*where, **self.options)

    def __repr__(self) -> str:
        location = self.location
        if location is not None and not os.path.isabs(location):
            location = without_credentials(location)
        # Text may be a password, unless it is one of the words that the backend declares.
        options = ", ".join(
            f"{name}=…" if isinstance(value, str) and name not in self._words else f"{name}={value}"
            for name, value in self.options.items()
        )
        return f"<StoreSettings {self.backend} location={location!r} options=({options})>"


@attrs.frozen(repr=False)
class Config:
    """What a file and the environment say, checked; nothing is open yet.

    Attributes:
        store: which store.
        tables: the application's own top-level tables, raw, by name.
    """

    store: StoreSettings
    tables: Mapping[str, object]
    _replays: Mapping[str, ReplaySettings]
    _source: str

    @property
    def replays(self) -> tuple[str, ...]:
        """The replay namespaces, in the order of the file."""
        return tuple(self._replays)

    def open_store(self) -> OpenStore:
        """Open the store."""
        return self.store.open()

    def replay(self, name: str) -> ReplaySettings:
        """Return keyword arguments: ``Replay(store, **config.replay("request_invoice"))``.

        They are ``namespace``, ``ttl`` and those others that were set.

        Raises:
            ConfigError: there is no such namespace.
        """
        if name not in self._replays:
            raise wrong(
                self._source,
                f"there is no [replay.{name}] table",
                nearest(name, self._replays),
            )
        return self._replays[name].copy()

    def __repr__(self) -> str:
        return f"<Config {self.store!r} replays={self.replays} tables={tuple(self.tables)}>"


def open_store(
    where: str | Mapping[str, object], *, base: str | os.PathLike[str] | None = None
) -> OpenStore:
    """Open the store that a URL or a mapping names.

    URLs: ``memory:``, ``filesystem:relative/path``, ``lmdb:///absolute/path?map_size=4GiB``.
    A mapping holds ``backend``, ``path`` and options, or ``url`` and options that override
    the URL's. The environment is not looked at; :func:`load_config` does that.

    Args:
        base: the directory of relative paths; by default the current one.

    Raises:
        ConfigError: a name, option or value is wrong, or a driver is missing; nothing was
            opened.
        StoreError: the engine could not open it.
    """
    if isinstance(where, str):
        asked = ask_url(where, "the store URL", base)
    elif isinstance(where, Mapping):
        asked = ask_table(where, "the store", base)
    else:
        raise wrong(
            "the store",
            f"it is a {type(where).__name__}, neither a URL nor a mapping",
            'Write "lmdb:PATH" or {"backend": "lmdb", "path": PATH}.',
        )
    return _settle(asked, _engine(asked.backend, asked.source)).open()


def load_config(
    path: str | os.PathLike[str] | None,
    *,
    environ: Mapping[str, str] | None = None,
    also: Iterable[str] = (),
) -> Config:
    """Read a TOML file and the environment, check everything, and open nothing.

    ``KVREPLAY_STORE`` (a URL) replaces the ``[store]`` table. ``KVREPLAY_STORE_PATH`` and
    ``KVREPLAY_STORE_<OPTION>`` each set one thing of the store, whichever of the two names
    it. ``KVREPLAY_REPLAY_<NAMESPACE>_<SETTING>`` sets one setting of a namespace that the
    file names (upper case, ``-`` as ``_``). No other variable may start with ``KVREPLAY_``.
    Relative paths are relative to the file, those in variables to the current directory.

    Args:
        path: the file, or ``None``: the environment alone, which must name the store.
        environ: the environment, by default the process's own.
        also: top-level tables that belong to the application; any other is an error.

    Raises:
        ConfigError: the file cannot be read, or something in it or in the environment is
            wrong; the message names the file, table and key, or the variable.
    """
    if isinstance(also, str):
        raise wrong("also", "it is one text, not a collection of table names", 'Write ("node",).')
    also = tuple(also)
    file = None if path is None else os.fspath(path)
    source = "the environment" if file is None else file
    document = {} if file is None else _read_toml(file)
    for name in document:
        if name not in ("store", "replay", *also):
            raise wrong(
                source, f'unknown table or key "{name}"', nearest(name, ("store", "replay", *also))
            )
    variables = {
        name: value
        for name, value in (os.environ if environ is None else environ).items()
        if name.startswith("KVREPLAY_")
    }

    asked = None
    if "KVREPLAY_STORE" in variables:
        asked = ask_url(variables["KVREPLAY_STORE"], "KVREPLAY_STORE", None)
    elif file is not None and "store" in document:
        table = _table(document["store"], f"{file} [store]")
        asked = ask_table(table, f"{file} [store]", os.path.dirname(os.path.abspath(file)))
    engine = None if asked is None else _engine(asked.backend, asked.source)
    given = _given_replays(document.get("replay", {}), source)

    known = _known_variables(engine, given)
    for variable, value in variables.items():
        if variable not in known:
            raise wrong(variable, "kvreplay has no such variable", nearest(variable, known))
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
    return Config(
        store=_settle(asked, engine),
        tables=MappingProxyType({name: document[name] for name in also if name in document}),
        replays=MappingProxyType(
            {name: _replay(name, settings, source) for name, settings in given.items()}
        ),
        source=source,
    )


@attrs.frozen
class _Engine:
    """A backend class and its checked declarations."""

    construct: Callable[..., OpenStore]
    location: str
    options: Mapping[str, Kind]


def _settle(asked: Asked, engine: _Engine) -> StoreSettings:
    """Check what was asked for against what the backend declares."""
    location = locate(asked, engine.location)
    options: dict[str, object] = {}
    for name, given in asked.options.items():
        if name not in engine.options:
            valid = (*engine.options, "path") if engine.location == "path" else engine.options
            raise wrong(
                given.source,
                f'the backend "{asked.backend}" has no option {shown(name)}',
                nearest(name, valid),
            )
        options[name] = parse(engine.options[name], given.value, given.source)
    words = frozenset(name for name, kind in engine.options.items() if isinstance(kind, tuple))
    return StoreSettings(asked.backend, location, options, words)


def _engine(name: str, source: str) -> _Engine:
    """Import the backend of that name, and check what it declares."""
    if name in BACKENDS:
        module, attribute, extra = BACKENDS[name]
        try:
            engine = getattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] == "kvreplay":
                raise
            raise wrong(
                source,
                f'the backend "{name}" needs the module "{error.name}", which is not installed',
                f"Install it: pip install 'kvreplay[{extra}]'"
                if extra
                else "This Python does not have it; choose another backend.",
            ) from error
        origin = "kvreplay"
    else:
        entry = _entry_point(name, source)
        origin = entry.dist.name if entry.dist is not None else entry.value
        try:
            engine = entry.load()
        except Exception as error:  # foreign code: whatever it raises, name whose it is
            raise wrong(
                source,
                f'the backend "{name}" of the distribution "{origin}" cannot be imported'
                f" ({type(error).__name__}: {error})",
                "Repair or upgrade that distribution.",
            ) from error
    return _declared(engine, name, origin)


def _entry_point(name: str, source: str) -> EntryPoint:
    from importlib.metadata import entry_points

    registered = entry_points(group=ENTRY_POINTS)
    found = {entry.value: entry for entry in registered if entry.name.lower() == name}
    if not found:
        known = (*BACKENDS, *sorted(registered.names - BACKENDS.keys()))
        raise wrong(source, f'unknown backend "{name}"', nearest(name, known))
    if len(found) > 1:
        both = " and ".join(sorted(str(e.dist.name if e.dist else e.value) for e in found.values()))
        raise wrong(source, f'the backend "{name}" is registered by {both}', "Uninstall one.")
    return next(iter(found.values()))


def _declared(engine: object, name: str, origin: str) -> _Engine:
    where = f'the backend "{name}" of the distribution "{origin}"'
    location = getattr(engine, "LOCATION", None)
    if location not in _LOCATIONS or not callable(engine):
        raise wrong(
            where, "its class declares no valid LOCATION", 'Declare "path", "none" or "url".'
        )
    options = getattr(engine, "OPTIONS", None)
    if not isinstance(options, Mapping) or not all(
        isinstance(option, str)
        and option.isidentifier()
        and option == option.lower()
        and option not in KEYS
        and (
            kind in _OPTION_KINDS
            if isinstance(kind, str)
            else isinstance(kind, tuple) and all(isinstance(word, str) for word in kind)
        )
        for option, kind in options.items()
    ):
        raise wrong(
            where,
            "its class declares no valid OPTIONS",
            "Declare a mapping of lower-case option names (not url, backend or path) to "
            + ", ".join(f'"{kind}"' for kind in _OPTION_KINDS)
            + ", or a tuple of words.",
        )
    return _Engine(engine, location, options)


def _read_toml(file: str) -> dict[str, object]:
    import tomllib

    try:
        with open(file, "rb") as stream:
            data = stream.read()
    except OSError as error:
        raise wrong(file, f"it cannot be read ({error.strerror})", "Name a TOML file.") from error
    try:
        return tomllib.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise wrong(file, f"line {line} is not UTF-8", "Save the file as UTF-8.") from None
    except ValueError as error:  # TOMLDecodeError, or an integer of thousands of digits
        raise wrong(file, f"it is not TOML: {error}", "Correct that line.") from None


def _known_variables(
    engine: _Engine | None, replays: Iterable[str]
) -> dict[str, list[tuple[str | None, str]]]:
    """Map each valid variable to the (namespace, setting) it sets; the store's have no namespace.

    More than one means that two namespaces cannot be told apart in upper case.
    """
    known: dict[str, list[tuple[str | None, str]]] = {"KVREPLAY_STORE": [(None, "url")]}
    if engine is not None:
        settings = (*engine.options, "path") if engine.location == "path" else engine.options
        known |= {f"KVREPLAY_STORE_{name.upper()}": [(None, name)] for name in settings}
    for namespace in replays:
        for setting in _SETTINGS:
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
            if key not in _SETTINGS:
                raise wrong(where, f'unknown setting "{key}"', nearest(key, _SETTINGS))
        given[name] = {key: Given(value[key], f"{where} {key}") for key in value}
    return given


def _replay(name: str, given: Mapping[str, Given], source: str) -> ReplaySettings:
    if "ttl" not in given:
        raise wrong(
            f"{source} [replay.{name}]", '"ttl" is missing', 'Write for example ttl = "1h".'
        )
    settings: dict[str, object] = {"namespace": name}
    for key, kind in _SETTINGS.items():
        if key in given:
            settings[key] = parse(kind, given[key].value, given[key].source)
    return cast("ReplaySettings", settings)
