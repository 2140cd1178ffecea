"""Open the store that a URL names, or a mapping.

Such a URL is ``lmdb:///var/lib/node/replay?map_size=4GiB``.

Everything is checked before anything is opened, and no message or ``repr`` shows the
credentials in a URL, its query, or the value of an option that is text.

A backend is a class with two declarations. This module knows nothing else of it:

``OPTIONS``
    a mapping: the name of each keyword argument -> ``"size"`` (bytes, an int of at least 1),
    ``"integer"`` (at least 0), ``"duration"`` (seconds, a float), ``"boolean"``, ``"text"``,
    or a tuple of the legal words.
``LOCATION``
    ``"path"``: constructed as ``cls(absolute_path, **options)``; ``"none"``:
    ``cls(**options)``; ``"url"``: ``cls(url_without_its_query, **options)``.

A class with a URL may have a third one:

``PARAMETERS``
    the names that its driver takes in the query of a URL. They stay there, each as it is written,
    percent-encoded: ``cls("name://user@host/db?sslmode=require", **options)``. Such a URL begins
    with ``name://``, and that alone is one too: everything has its default. These names are no
    keys of a mapping, and no variables.

A third party registers its class as an entry point of the group ``kvreplay.backends``; the entry
point's name is the URL scheme. It cannot replace a built-in backend: the built-in one wins.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Final, Literal, Protocol, Self, overload, runtime_checkable

import attrs

from kvreplay.config.location import (
    KEYS,
    Asked,
    Given,
    ask_table,
    ask_url,
    locate,
    without_credentials,
)
from kvreplay.config.units import Kind, near, nearest, parse, shown, wrong
from kvreplay.errors import ConfigError
from kvreplay.store import ExpiringKVStore, TransactionalKVStore, missing_methods

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = [
    "BACKENDS",
    "Engine",
    "OpenStore",
    "OpenTransactionalStore",
    "StoreSettings",
    "check_settings",
    "engine_of",
    "open_store",
    "option_of_another",
    "others_with",
    "parameter_outside_a_url",
    "settings_of",
]

BACKENDS: Final[Mapping[str, tuple[str, str, str | None]]] = {
    # scheme: (module, class, the extra that installs its driver)
    "memory": ("kvreplay.backends.memory", "MemoryStore", None),
    "filesystem": ("kvreplay.backends.filesystem", "FilesystemStore", None),
    "lmdb": ("kvreplay.backends.lmdb", "LMDBStore", "lmdb"),
    "sqlite": ("kvreplay.backends.sqlite", "SQLiteStore", None),
    "postgresql": ("kvreplay.backends.postgresql", "PostgreSQLStore", "postgresql"),
    "etcd": ("kvreplay.backends.etcd", "EtcdStore", "etcd"),
}

ENTRY_POINTS: Final = "kvreplay.backends"

_OPTION_KINDS: Final = ("size", "integer", "duration", "boolean", "text")
_LOCATIONS: Final = ("path", "none", "url")


@runtime_checkable
class OpenStore(ExpiringKVStore, Protocol):
    """An open store. Whoever opened it closes it.

    Every built-in engine has at least these capabilities. A third party's engine may lack
    one; ``Replay`` then names it when it is needed. ``transaction()`` is not among them: see
    :class:`OpenTransactionalStore`.
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


@runtime_checkable
class OpenTransactionalStore(OpenStore, TransactionalKVStore, Protocol):
    """An open store that has ``transaction()``: what ``transactional=True`` asks for."""


def _frozen(options: Mapping[str, object]) -> Mapping[str, object]:
    return MappingProxyType(dict(options))


@attrs.frozen(repr=False)
class StoreSettings:
    """Checked settings: which store, where it is, and its options.

    Attributes:
        backend: the URL scheme, such as ``"lmdb"``.
        location: an absolute path, a URL without its options (it may hold credentials), or
            ``None``, as the backend's ``LOCATION`` says.
        options: the keyword arguments that were set, as checked values.
    """

    backend: str
    location: str | None
    options: Mapping[str, object] = attrs.field(converter=_frozen)
    _words: frozenset[str] = attrs.field(default=frozenset(), eq=False)

    def __reduce__(self) -> tuple[object, ...]:  # a frozen mapping cannot be pickled
        return StoreSettings, (self.backend, self.location, dict(self.options), self._words)

    @overload
    def open(self, *, transactional: Literal[True]) -> OpenTransactionalStore: ...

    @overload
    def open(self, *, transactional: bool = False) -> OpenStore: ...

    def open(self, *, transactional: bool = False) -> OpenStore:
        """Open the store; the engine's failures are :class:`~kvreplay.StoreError` of its own.

        Args:
            transactional: it must have ``transaction()``; see :func:`open_store`.
        """
        where = () if self.location is None else (self.location,)
        engine = engine_of(self.backend, "the store")
        if transactional and engine.shows_its_methods and not _has_transactions(engine.construct):
            raise _without_transactions(self.backend)
        store = engine.construct(*where, **self.options)
        if transactional and not _has_transactions(store):  # only the opened one shows its methods
            store.close()
            raise _without_transactions(self.backend)
        return store

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


@overload
def open_store(
    where: str | Mapping[str, object],
    *,
    base: str | os.PathLike[str] | None = None,
    transactional: Literal[True],
) -> OpenTransactionalStore: ...


@overload
def open_store(
    where: str | Mapping[str, object],
    *,
    base: str | os.PathLike[str] | None = None,
    transactional: bool = False,
) -> OpenStore: ...


def open_store(
    where: str | Mapping[str, object],
    *,
    base: str | os.PathLike[str] | None = None,
    transactional: bool = False,
) -> OpenStore:
    """Open the store that a URL or a mapping names.

    URLs: ``memory:``, ``filesystem:relative/path``, ``lmdb:///absolute/path?map_size=4GiB``.
    A mapping holds ``backend``, ``path`` and options, or ``url`` and options that override
    the URL's. This does not read the environment; :func:`kvreplay.load_config` does.

    Args:
        base: the directory that relative paths start from; by default the current one.
        transactional: the store must have ``transaction()``, and a type checker may count on it.
            Of the built-in engines, ``filesystem`` is refused.

    Raises:
        ConfigError: a name, option or value is wrong, a driver is missing, or the engine has no
            transactions; nothing was opened.
        StoreError: the engine could not open it.
    """
    return settings_of(where, base=base).open(transactional=transactional)


def settings_of(
    where: str | Mapping[str, object], *, base: str | os.PathLike[str] | None = None
) -> StoreSettings:
    """Check what a URL or a mapping asks for, as :func:`open_store` does, and open nothing."""
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
    return check_settings(asked, engine_of(asked.backend, asked.source))


@attrs.frozen
class Engine:
    """A backend class and its checked declarations."""

    construct: Callable[..., OpenStore]
    location: str
    options: Mapping[str, Kind]
    parameters: Collection[str] = ()

    @property
    def shows_its_methods(self) -> bool:
        """Whether its class tells what its stores can do; a proxy's tells it when it is open."""
        return isinstance(self.construct, type) and not hasattr(self.construct, "__getattr__")


def _has_transactions(store: object) -> bool:
    return not missing_methods(store, TransactionalKVStore)


def _without_transactions(backend: str) -> ConfigError:
    able = [name for name in BACKENDS if _offers_transactions(name)]
    return wrong(
        "the store",
        f'the backend "{backend}" has no transactions',
        f"Choose another one, such as {_listed(able, 'or')}, or open it without"
        " transactional=True.",
    )


def _offers_transactions(name: str) -> bool:
    try:
        return _has_transactions(engine_of(name, "").construct)
    except ConfigError:  # its driver is not installed
        return False


def check_settings(asked: Asked, engine: Engine) -> StoreSettings:
    """Check what was asked for against what the backend declares."""
    location = locate(asked, engine.location, engine.parameters)
    options: dict[str, object] = {}
    for name, given in asked.options.items():
        if name in engine.options:
            options[name] = parse(engine.options[name], given.value, given.source)
        elif name not in engine.parameters:
            raise _unknown_option(name, given, asked.backend, engine)
        elif given.pair is None:
            raise parameter_outside_a_url(name, asked.backend, given.source)
    words = frozenset(name for name, kind in engine.options.items() if isinstance(kind, tuple))
    return StoreSettings(asked.backend, location, options, words)


def _unknown_option(name: str, given: Given, backend: str, engine: Engine) -> ConfigError:
    if others := others_with(name, backend):
        return option_of_another(others, name, backend, engine, given.source)
    valid = (*engine.options, "path") if engine.location == "path" else tuple(engine.options)
    in_a_url = (*valid, *engine.parameters) if given.pair is not None else valid
    return wrong(
        given.source,
        f'the backend "{backend}" has no option {shown(name)}',
        nearest(name, in_a_url if near(name, in_a_url) else valid),  # a driver has very many
    )


def parameter_outside_a_url(name: str, backend: str, source: str) -> ConfigError:
    """Make the error for a parameter of a URL that stands as a key, or as a variable."""
    return wrong(
        source,
        f'"{name}" is a part of the URL of "{backend}"',
        f"Write it there: {backend}://…?{name}=VALUE.",
    )


def others_with(option: str, backend: str | None) -> list[str]:
    """Return the built-in backends with this option, besides one.

    It imports them all, but those whose driver is missing, so only an error asks for it.
    """
    return [name for name in BACKENDS if name != backend and option in _options_of_built_in(name)]


def _options_of_built_in(name: str) -> Collection[str]:
    try:
        return engine_of(name, "").options
    except ConfigError:  # its driver is not installed
        return ()


def option_of_another(
    others: Sequence[str], option: str, backend: str, engine: Engine, source: str
) -> ConfigError:
    """Make the error for an option that other backends have, and that of the store has not."""
    names = _listed(others)
    return wrong(
        source,
        f'the backend "{backend}" has no option "{option}", which is one of {names}',
        f'The options of "{backend}": {", ".join(map(_quoted, engine.options))}.'
        if engine.options
        else f'"{backend}" has no options.',
    )


def _quoted(name: str) -> str:
    return f'"{name}"'


def _listed(names: Sequence[str], last_by: str = "and") -> str:
    *first, last = map(_quoted, names)
    return f"{', '.join(first)} {last_by} {last}" if first else last


def engine_of(name: str, source: str) -> Engine:
    """Import the backend of that name, and check what it declares."""
    if name in BACKENDS:
        module, attribute, extra = BACKENDS[name]
        try:
            engine = getattr(importlib.import_module(module), attribute)
        except ImportError as error:
            if error.name is None and extra is None:
                raise
            if error.name is not None and error.name.partition(".")[0] == "kvreplay":
                raise
            raise wrong(
                source,
                f'the backend "{name}" needs the module "{error.name}", which is not installed'
                if isinstance(error, ModuleNotFoundError)
                else f'the driver of the backend "{name}" cannot be loaded ({_first_line(error)})',
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
        except Exception as error:  # not our code, it may raise anything: say whose it is
            raise wrong(
                source,
                f'the backend "{name}" of the distribution "{origin}" cannot be imported'
                f" ({type(error).__name__}: {error})",
                "Repair or upgrade that distribution.",
            ) from error
    return _declared(engine, name, origin)


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]


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


def _declared(engine: object, name: str, origin: str) -> Engine:
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
    parameters = getattr(engine, "PARAMETERS", ())
    if (
        isinstance(parameters, str)
        or not isinstance(parameters, Collection)
        or not all(isinstance(parameter, str) for parameter in parameters)
        or not options.keys().isdisjoint(parameters)
        or (parameters and location != "url")
    ):
        raise wrong(
            where,
            "its class declares no valid PARAMETERS",
            'Declare names that are no options, beside LOCATION = "url", or leave it out.',
        )
    return Engine(engine, location, options, parameters)
