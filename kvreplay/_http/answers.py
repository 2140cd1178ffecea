"""An HTTP answer: as the application gives it, and as a record keeps it.

A record keeps a map: ``status`` (an int), ``headers`` (pairs of bytes, in order, repeated ones too)
and ``body`` (bytes; ``None``: the answer was too large to keep).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

import attrs

from kvreplay._protocol.codec import Codec
from kvreplay.errors import ConfigError, InvalidResponseError

__all__ = [
    "ANSWERS",
    "Answer",
    "Headers",
    "answer",
    "answer_in",
    "is_header_name",
    "keeping",
    "marked",
    "stored",
]

Headers = tuple[tuple[bytes, bytes], ...]
"""Names and values, in their order."""

_NEVER: Final = frozenset(
    {
        *(b"set-cookie", b"set-cookie2", b"date", b"server", b"age", b"ratelimit"),
        # What belongs to one connection (RFC 9110, 7.6.1).
        *(b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer"),
        *(b"transfer-encoding", b"upgrade", b"proxy-authenticate", b"www-authenticate"),
    }
)
_NEVER_BEGINNING: Final = (b"ratelimit-", b"x-ratelimit-", b"x-rate-limit-")

_KEPT: Final = frozenset(
    {
        *(b"cache-control", b"content-disposition", b"content-encoding", b"content-language"),
        *(b"content-length", b"content-location", b"content-range", b"content-type"),
        *(b"content-security-policy", b"deprecation", b"etag", b"expires", b"last-modified"),
        *(b"link", b"location", b"sunset", b"vary", b"x-content-type-options"),
    }
)

_BODY: Final = (bytes, type(None))


@attrs.frozen
class Answer:
    """An HTTP answer.

    Attributes:
        status: its status code.
        headers: pairs of bytes, in their order.
        body: ``None``: it was too large to be kept.
    """

    status: int
    headers: Headers = attrs.field(repr=False)
    body: bytes | None = attrs.field(repr=False)


is_header_name: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+").fullmatch


def keeping(further: Iterable[str]) -> frozenset[bytes]:
    """Return the names, in lower case, of the headers that a record keeps.

    Args:
        further: those besides the usual ones.

    Raises:
        ConfigError: one of them is never kept, or no name of a header.
    """
    if isinstance(further, str) or not isinstance(further, Iterable):
        raise ConfigError(
            f"stored_headers is a {type(further).__name__}; give a tuple of names of headers"
        )
    names = set(_KEPT)
    for each in further:
        if not isinstance(each, str) or not is_header_name(each):
            raise ConfigError(f"stored_headers names {each!r}, which is no name of a header")
        name = each.lower().encode()
        if _is_never_kept(name):
            raise ConfigError(
                f"stored_headers names {each}, which belongs to one answer of one moment, and is"
                " never replayed"
            )
        names.add(name)
    return frozenset(names)


def stored(answer: Answer, kept: frozenset[bytes]) -> dict[str, Any]:
    """Return what a record keeps of an application's answer, for msgpack."""
    return {
        "status": answer.status,
        "headers": [[name, value] for name, value in answer.headers if name.lower() in kept],
        "body": answer.body,
    }


def marked(headers: Headers, marks: Headers) -> Headers:
    """Return headers with the marks, which take the place of others with their names."""
    if not marks:
        return headers
    names = {name for name, _ in marks}
    return tuple([each for each in headers if each[0].lower() not in names]) + marks


def answer_in(response: Any) -> Answer | None:
    """Return the answer that a record keeps; ``None``: it keeps something else."""
    try:  # quick way, three times as quick as a match statement: bench_http
        status, pairs, body = response["status"], response["headers"], response["body"]
        headers = tuple([(name, value) for name, value in pairs])
    except (KeyError, TypeError, ValueError):
        return None
    if type(status) is not int or type(pairs) is not list or type(body) not in _BODY:
        return None
    if not all(type(name) is type(value) is bytes for name, value in headers):
        return None
    return Answer(status, headers, body)


def _encode(response: object) -> object:
    if answer_in(response) is None:
        raise TypeError("give what kvreplay.http.answer() returns")
    return response


def _decode(response: object) -> Answer:
    found = answer_in(response)
    if found is None:
        raise TypeError("it is no HTTP answer")
    return found


ANSWERS: Final = Codec(_encode, _decode, "an HTTP answer")
"""How the layer's replay reads answers, and refuses others, such as those of a reconciler."""


def answer(
    status: int,
    body: bytes | str = b"",
    headers: Mapping[str, str] | Iterable[tuple[str | bytes, str | bytes]] = (),
) -> dict[str, Any]:
    """Return an HTTP answer as the layer stores it, to settle a key with.

    Give it to ``Replay.resolve(key, response=…)``, or to ``Applied`` in a reconciler. Every retry
    of that key then gets this answer.

    Args:
        status: the status code, 200 to 599.
        body: a ``str`` is encoded as UTF-8.
        headers: names and values, such as ``{"content-type": "application/json"}``.

    Raises:
        InvalidResponseError: it is no HTTP answer, or has a header that is never replayed, such as
            ``Set-Cookie``; nothing was changed.
    """
    if not isinstance(status, int) or not 200 <= status <= 599:
        raise InvalidResponseError(
            f"the status is {status!r}; give one of 200 to 599; nothing was changed"
        )
    if not isinstance(body, bytes | str):
        raise InvalidResponseError(
            f"the body is a {type(body).__name__}; give bytes or str, such as json.dumps returns;"
            " nothing was changed"
        )
    given = headers.items() if isinstance(headers, Mapping) else headers
    if not isinstance(given, Iterable):
        raise InvalidResponseError(
            f"the headers are a {type(headers).__name__}; give a mapping or pairs; nothing was"
            " changed"
        )
    pairs = [_header(each) for each in given]
    encoded = body.encode() if isinstance(body, str) else body
    for name, value in pairs:
        if name.lower() == b"content-length" and value != str(len(encoded)).encode():
            raise InvalidResponseError(
                "the header content-length is not the length of the body, so no server could send"
                " the answer: leave it out; nothing was changed"
            )
    return {"status": int(status), "headers": pairs, "body": encoded}


def _header(pair: object) -> list[bytes]:
    match pair:
        case [str() | bytes() as name, str() | bytes() as value]:
            encoded = [_latin_1(name), _latin_1(value)]
        case _:
            encoded = [b"", b""]
    name, value = encoded
    if is_header_name(name.decode("latin-1")) is None or _breaks(value):
        raise InvalidResponseError(
            "a header is no pair of str or bytes, has a line break, or is not Latin-1; nothing was"
            " changed"
        )
    if _is_never_kept(name.lower()):
        raise InvalidResponseError(
            f"the header {name.decode()} belongs to one answer of one moment, and is never"
            " replayed; nothing was changed"
        )
    return encoded


def _latin_1(part: str | bytes) -> bytes:
    try:
        return part.encode("latin-1") if isinstance(part, str) else part
    except UnicodeEncodeError:
        return b"\n"  # which is refused, as every other wrong part is


_breaks: Final = re.compile(rb"[\r\n\0]").search


def _is_never_kept(name: bytes) -> bool:
    return name in _NEVER or name.startswith(_NEVER_BEGINNING)
