"""Who asked, and which request: the replay key, and how it becomes a store's names."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

import attrs

from kvreplay.errors import InvalidParamsError
from kvreplay.store import NAME

__all__ = ["HASHED", "ReplayKey", "identity", "name", "scope_name", "stored_id"]

HASHED: Final = "sha256-"
"""How a name begins that stands for a text which is no legal name itself."""
_AFTER_OPERATION: Final = b"\xff"  # no byte of UTF-8, so it parts two texts, and is in no text
_is_name = re.compile(rf"(?!{HASHED}){NAME}").fullmatch


@attrs.frozen(repr=False)
class ReplayKey:
    """An idempotency key, such as ``(lsp_node_id, claim_session_id)``.

    Args:
        scope: who asked; any text, even the empty one.
        id: which request of theirs; any text except the empty one.
        operation: which of several functions it asks for; any text except the empty one. ``None``:
            there is only one. Two keys that differ only in it are two keys.

    Raises:
        InvalidParamsError: a part is not text, cannot be written as UTF-8, or is empty though it
            must not be.
    """

    scope: str
    id: str
    operation: str | None = None

    def __attrs_post_init__(self) -> None:
        scope, own = self.scope, self.id  # quick way, for ASCII texts: bench_hit
        if (
            type(scope) is type(own) is str
            and own
            and scope.isascii()
            and own.isascii()
            and self.operation is None
        ):
            return
        parts = [("scope", self.scope), ("id", self.id)]
        if self.operation is not None:
            parts.append(("operation", self.operation))
        for part, value in parts:
            if type(value) is not str:
                raise InvalidParamsError(
                    f"the key's {part} is {type(value).__name__}, not str; nothing ran"
                )
            if not value.isascii():
                try:
                    value.encode()
                except UnicodeEncodeError as error:
                    raise InvalidParamsError(
                        f"the key's {part} has a lone surrogate, which is not text; nothing ran"
                    ) from error
            if not value and part != "scope":
                raise InvalidParamsError(f"the key's {part} is empty; nothing ran")

    def __repr__(self) -> str:
        return f"<ReplayKey {self.digest()}>"

    def digest(self) -> str:
        """Return 16 hex digits that stand for the key in logs and events, and do not show it."""
        import hashlib  # late, since few callers need it

        return hashlib.sha256(identity(self)).hexdigest()[:16]


def identity(key: ReplayKey) -> bytes:
    """Return bytes that no other key has."""
    scope = key.scope.encode()
    return len(scope).to_bytes(8, "big") + scope + _identity(key.id, key.operation)


def stored_id(id_: str, operation: str | None) -> str | list[str]:
    """Return what a record holds as the id: with an operation, ``[operation, id]``."""
    return id_ if operation is None else [operation, id_]


def name(text: str, operation: str | None = None) -> str:
    """Return the store name of a scope or id. Every text has one, and no two texts share one.

    A legal LDK name that does not start with ``sha256-`` stands for itself, so that an
    operator can read it; any other text becomes ``sha256-`` and the unpadded base64url of
    the SHA-256 of its UTF-8 bytes. The empty text is the empty name, which is legal for a
    secondary namespace, not for a key.

    The id of an operation always becomes a hash, of the operation's UTF-8, the byte ``FF`` and the
    id's UTF-8. No text has that byte, so no other id has the same name.
    """
    if operation is None and (_is_name(text) or not text):
        return text
    import base64  # late, since few names need it
    import hashlib

    digest = hashlib.sha256(_identity(text, operation)).digest()
    return HASHED + base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def _identity(text: str, operation: str | None) -> bytes:
    if operation is None:
        return text.encode()
    return operation.encode() + _AFTER_OPERATION + text.encode()


_LONG: Final = 256  # characters of a scope; a client may have chosen it
_remembered_name = lru_cache(maxsize=1024)(name)


def scope_name(scope: str) -> str:
    """Return the :func:`name` of a scope. There are few: a node's peers, and not their requests."""
    return _remembered_name(scope) if len(scope) <= _LONG else name(scope)
