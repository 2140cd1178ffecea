"""Split what a user asks for, a URL or a mapping, into the parts that name a store.

This module knows no engine: :mod:`kvreplay.config.registry` checks the parts against the
backend's declarations. Percent-encoding is that of RFC 3986, so a ``+`` is a plus sign.
No message shows the credentials in a URL, or its query.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from typing import Final

import attrs

from kvreplay.config.units import near, shown, wrong

__all__ = [
    "ALIASES",
    "KEYS",
    "Asked",
    "Given",
    "ask_table",
    "ask_url",
    "locate",
    "without_credentials",
]

KEYS: Final = ("url", "backend", "path")
"""The keys of a mapping that are not options."""

ALIASES: Final = {"postgres": "postgresql"}
"""Second names of backends, as URLs have them; everywhere else a backend has its one name."""

_is_scheme = re.compile(r"[a-z][a-z0-9+.-]*").fullmatch
_stray_percent = re.compile(r"%(?![0-9A-Fa-f]{2})").search
_control_character = re.compile(r"[\x00-\x1f\x7f-\x9f]").search


@attrs.frozen
class Given:
    """A value as written, and the place that a message names if the value is wrong.

    ``pair``: the whole ``name=value`` of a URL's query, percent-encoded as it stands there.
    """

    _value: object = attrs.field(repr=False)
    source: str
    pair: str | None = attrs.field(default=None, repr=False)

    @property
    def value(self) -> object:
        """The value, decoded only now: what passes through a URL need not be UTF-8."""
        if self.pair is None:
            return self._value
        return _decoded(self.pair.partition("=")[2], self.source)


def _by_its_one_name(backend: str) -> str:
    return ALIASES.get(backend, backend)


@attrs.frozen
class Asked:
    """A store as the user asked for it, split into parts; nothing is checked yet."""

    backend: str = attrs.field(converter=_by_its_one_name)
    source: str
    rest: str | None = attrs.field(
        repr=False
    )  # what a URL has between the scheme's colon and the query
    path: Given | None
    options: Mapping[str, Given]
    base: str | os.PathLike[str] | None

    def override(self, name: str, given: Given) -> Asked:
        """Replace one option, or the path, by the value of a variable."""
        if name == "path":
            return attrs.evolve(self, rest=None, path=given, base=None)
        return attrs.evolve(self, options={**self.options, name: given})


def ask_url(url: str, source: str, base: str | os.PathLike[str] | None) -> Asked:
    """Split a URL into its parts."""
    scheme, colon, rest = url.partition(":")
    scheme = scheme.lower()
    if not colon or not _is_scheme(scheme):
        raise wrong(
            source,
            "it does not begin with a backend's name and a colon",
            "Write lmdb:relative/path or lmdb:///absolute/path.",
        )
    if "#" in rest:
        raise wrong(
            source, 'it has a fragment ("#…")', 'Write %23 for a "#" in a path or a password.'
        )
    if "?" in _credentials(rest):
        raise wrong(
            source,
            'a "?" stands before the "@"',
            'Write %3F for a "?" in a password, or %40 for a "@" in the query.',
        )
    rest, mark, query = rest.partition("?")
    if (rest, query) != (rest.strip(), query.strip()):  # as if a line end made another store
        raise wrong(
            source,
            "it has a blank or a line end before or after the path, or at its end",
            "Remove that, or write %20 for a blank that belongs to the path.",
        )
    options: dict[str, Given] = {}
    for pair in query.split("&") if mark else ():
        name, equals, _ = pair.partition("=")
        if not name or not equals:
            raise wrong(source, "an option is not name=value", "Write ?name=value&name=value.")
        name = _decoded(name, source)
        if name in options:
            raise wrong(source, f"the option {shown(name)} is repeated", "Write it once.")
        place = f"{source}, option {shown(name)}"
        options[name] = Given(None, place, pair)
    return Asked(scheme, source, rest, None, options, base)


def ask_table(
    table: Mapping[str, object], source: str, base: str | os.PathLike[str] | None
) -> Asked:
    """Split a mapping into its parts; its options override those of its ``url``."""
    for key in table:
        if not isinstance(key, str):
            raise wrong(source, f"a key is of type {type(key).__name__}", "Write it as text.")
    options = {
        key: Given(value, f"{source} {key}") for key, value in table.items() if key not in KEYS
    }
    if "url" in table:
        for key in ("backend", "path"):
            if key in table:
                raise wrong(source, f'it has both "url" and "{key}"', "Write one of them.")
        url = table["url"]
        if not isinstance(url, str):
            raise wrong(f"{source} url", f"{shown(url)} is not text", 'Write "lmdb:PATH".')
        asked = ask_url(url, f"{source} url", base)
        return attrs.evolve(asked, options={**asked.options, **options})
    if "backend" not in table:
        mistyped = [(key, meant) for key in options if (meant := near(key, KEYS))]
        instead = "".join(f'Did you mean "{meant}" by "{key}"? ' for key, meant in mistyped)
        raise wrong(
            source,
            'it has neither "url" nor "backend"',
            f'{instead}Write url = "lmdb:PATH" or backend = "lmdb".',
        )
    backend = table["backend"]
    if not isinstance(backend, str) or not _is_scheme(backend.lower()):
        raise wrong(
            f"{source} backend",
            "it is not the name of a backend",
            'Write a name such as "lmdb"; a URL is written as "url".',
        )
    path = Given(table["path"], f"{source} path") if "path" in table else None
    return Asked(backend.lower(), f"{source} backend", None, path, options, base)


def locate(asked: Asked, kind: str, parameters: Collection[str] = ()) -> str | None:
    """Return an absolute path, a URL, or ``None``, as ``kind`` says.

    Args:
        parameters: the names whose pairs stay in the URL's query, each as it is written.
    """
    name = asked.backend
    if kind != "path" and asked.path is not None:
        instead = "Remove it." if kind == "none" else f'Write url = "{name}:…".'
        raise wrong(asked.path.source, f'the backend "{name}" has no path', instead)
    if kind == "none":
        if asked.rest and asked.rest != "//":
            raise wrong(asked.source, f'the backend "{name}" has no location', f"Write {name}:")
        return None
    if kind == "url":
        return _url(asked, parameters)

    path: object
    if asked.path is not None:
        path, source = asked.path.value, asked.path.source
        if isinstance(path, os.PathLike):
            path = os.fspath(path)
        if isinstance(path, str) and path != path.strip():
            raise wrong(
                source,
                "the path begins or ends with a blank or a line end",
                f"Remove that, or write a URL with %20 for a blank: {name}:PATH%20.",
            )
    elif asked.rest is not None:
        path, source = _url_path(asked.rest, name, asked.source), asked.source
    else:
        raise wrong(asked.source, f'the backend "{name}" needs a path', 'Write path = "PATH".')
    if not isinstance(path, str):
        raise wrong(source, f"{shown(path)} is not a path", "Write it as text.")
    if not path or _control_character(path):
        raise wrong(
            source,
            f"the path has a {'zero' if chr(0) in path else 'control'} character"
            if path
            else "the path is empty",
            f"Write for example {name}:relative/path or {name}:///absolute/path."
            if asked.path is None
            else 'Write for example "/var/lib/node/replay".',
        )
    if path[0] in "~$":
        raise wrong(
            source,
            f'a "{path[0]}" is not expanded',
            f'Write the whole path, or "./{path[0]}…" if the name itself begins with "{path[0]}".',
        )
    if path[0] in "\"'" and path[0] == path[-1]:  # as an env file of Docker leaves them
        raise wrong(
            source,
            "the path is in quotes, which belong to the value here",
            f"Remove them, or write ./{path} if they belong to the name.",
        )
    try:
        place = _absolute(path if asked.base is None else os.path.join(asked.base, path))
        place.encode("utf-8")
    except FileNotFoundError:
        raise wrong(
            source, "the current directory does not exist any more", "Write an absolute path."
        ) from None
    except UnicodeEncodeError:  # not every engine can open it
        raise wrong(
            source,
            "the path, or the current directory, has a byte that is not UTF-8",
            "Rename that folder, or choose another place.",
        ) from None
    return place


def _url(asked: Asked, parameters: Collection[str]) -> str:
    name, rest = asked.backend, asked.rest or ""
    if parameters:  # each has its default, so that there may be nothing else
        rest = rest or "//"
        if not rest.startswith("//"):
            raise wrong(
                asked.source,
                f'"//" does not follow "{name}:"',
                f"Write {name}://USER@HOST/NAME, or {name}:///NAME.",
            )
        _check_hosts(rest, asked.source)
    elif rest in ("", "//"):
        raise wrong(asked.source, "it names no place", f'Write a whole URL: "{name}:…".')
    kept = [
        given.pair
        for option, given in asked.options.items()
        if option in parameters and given.pair is not None
    ]
    for part in (rest, *kept):  # a driver that cannot read it might show it
        if _stray_percent(part):
            raise wrong(asked.source, 'a "%" without two hex digits', 'Write %25 for a "%".')
        if not part.isprintable() or " " in part:
            raise wrong(
                asked.source,
                "it has a blank, a control character or a byte that is not UTF-8",
                "Write it percent-encoded, such as %20 for a blank.",
            )
    return f"{name}:{rest}?{'&'.join(kept)}" if kept else f"{name}:{rest}"


def _check_hosts(rest: str, source: str) -> None:
    """Refuse what a part of a password would be taken for: a driver would show it in an error."""
    user, at, hosts = rest.removeprefix("//").partition("/")[0].partition("@")
    if not at:
        hosts = user
    if "@" in hosts:
        raise wrong(source, 'it has two "@"', 'Write %40 for a "@" in a password.')
    for host in hosts.split(","):
        port = host.rpartition("]")[2].partition(":")[2]
        if port and not port.isdecimal():
            raise wrong(
                source,
                "a port is not a number",
                'Write HOST:5432, and %2F for a "/" in a password.',
            )


def _absolute(path: str) -> str:
    """Return the absolute path of the place that the kernel would find.

    A ``..`` after a symbolic link leads to the parent of what the link points to. So what stands
    before the last one is looked up, and the rest of the path stays as it is written.
    """
    names = (path if os.path.isabs(path) else os.path.join(os.getcwd(), path)).split(os.sep)
    if os.pardir in names:
        last = len(names) - names[::-1].index(os.pardir)
        names = [os.path.realpath(os.sep.join(names[:last])), *names[last:]]
    return os.path.normpath(os.sep.join(names))


def _url_path(rest: str, scheme: str, source: str) -> str:
    if rest.startswith("//"):
        host, slash, path = rest[2:].partition("/")
        if host:
            plain = host.rpartition("@")[2] + slash + path
            if "@" in plain:  # it may hold a part of a password, which looks like a path
                plain = "PATH"
            raise wrong(
                source,
                f'the path follows "{scheme}://", but that begins a network address',
                f"Write {scheme}:///{plain} if it is absolute, {scheme}:{plain} if relative.",
            )
        rest = slash + path
    return _decoded(rest, source)


def _decoded(text: str, source: str) -> str:
    if "%" not in text:
        return text
    from urllib.parse import unquote

    if _stray_percent(text):
        raise wrong(source, 'a "%" without two hex digits', 'Write %25 for a "%".')
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise wrong(source, "its percent-encoding is not UTF-8", "Encode it as UTF-8.") from None


def _credentials(rest: str) -> str:
    """Return what may name a user: all before the first ``@``, if no slash comes before it."""
    credentials, at, _ = rest.removeprefix("//").partition("@")
    return credentials if at and rest.startswith("//") and "/" not in credentials else ""


def without_credentials(url: str) -> str:
    """Hide what is between the scheme and the last ``@``, percent-encoded or not, and the query."""
    url, mark, _ = url.partition("?")
    head, at, tail = url.rpartition("@")
    shown = f"{head.partition(':')[0]}:…@{tail}" if at else url
    return f"{shown}?…" if mark else shown
