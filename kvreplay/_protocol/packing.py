"""msgpack's packers, for all threads."""

from __future__ import annotations

import functools
from collections.abc import Callable

import msgpack

__all__ = ["packer"]


def packer(*, strict_types: bool = False) -> Callable[[object], bytes]:
    """Return a function that packs a value, and that threads may call at the same time.

    One packer in C serves all threads: it packs plain values in one step. Where msgpack is pure
    Python (``MSGPACK_PUREPYTHON``, or no C extension), a shared one would mix their bytes, so each
    call makes its own.
    """
    shared = msgpack.Packer(strict_types=strict_types)
    if type(shared).__module__ == "msgpack.fallback":
        return functools.partial(msgpack.packb, strict_types=strict_types)
    pack: Callable[[object], bytes] = shared.pack
    return pack
