"""Open a store: find its mark under the prefix, or make it where nothing is yet."""

from __future__ import annotations

import re
import uuid
from typing import Any, Final

from kvreplay.backends.etcd.layout import Keys
from kvreplay.backends.etcd.operations import Operation, values_in
from kvreplay.backends.etcd.requests import (
    Asked,
    are_absent,
    get,
    one,
    put,
    transaction,
)
from kvreplay.errors import (
    ConfigError,
    CorruptStoreError,
    StoreNotFoundError,
    StoreUnavailableError,
)

__all__ = ["check_version", "find_mark"]

_FORMAT: Final = b"kvreplay 1 "
_STATUS: Final = Asked("/v3/maintenance/status", b"{}")
_LOSES: Final = re.compile(r"3\.5\.[012](?!\d)")


def check_version() -> Operation[None]:
    """Refuse a cluster that loses what it has acknowledged.

    etcd 3.5.0 to 3.5.2 may, if a member is killed:
    https://etcd.io/blog/2022/v3.5-data-corruption-postmortem/.

    Raises:
        ConfigError: the member that answers has such a version.
    """
    told: dict[str, Any] = yield _STATUS
    version = str(told.get("version", ""))
    if _LOSES.match(version):
        raise ConfigError(
            f"this etcd is {version}, which may lose acknowledged changes if a member is killed;"
            " nothing was opened: upgrade the members to 3.5.5 or later"
        )


def find_mark(keys: Keys, create: bool) -> Operation[bytes]:
    """Return what marks the store under a prefix.

    Raises:
        StoreNotFoundError: there is none, and ``create`` is false.
        CorruptStoreError: there is something else.
    """
    mark = _FORMAT + str(uuid.uuid4()).encode()
    made = [put(keys.meta, mark)] if create else []
    # Done twice it finds what it has made: so a lost answer is asked for again, as that of a read.
    looking = transaction((are_absent(keys.all),), made, (get(one(keys.meta)),), changes=False)
    try:
        told = yield looking
    except StoreUnavailableError as error:
        if not create:
            raise
        raise StoreUnavailableError(
            f"{error}. The store itself may have been made all the same: open it again"
        ) from error
    if told.get("succeeded"):
        if create:
            return mark
        raise StoreNotFoundError(
            "there is no store under the prefix, and create is false; nothing was made: kvreplay"
            " init makes one"
        )
    (found,) = values_in(told)
    if not found:
        raise CorruptStoreError(
            "other keys lie under the prefix, and no store; nothing was made: name another prefix"
        )
    if not found[0][1].startswith(_FORMAT):
        raise CorruptStoreError(
            "the store under the prefix is of another version of kvreplay, or of something else;"
            " nothing was changed: upgrade kvreplay, or name another prefix"
        )
    return found[0][1]
