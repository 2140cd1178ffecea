"""Values of the standard library that are stored as a text or a number, and made again of it."""

from __future__ import annotations

import ipaddress
import pathlib
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

import attrs

__all__ = ["LEAVES", "Leaf"]


@attrs.frozen
class Leaf:
    """How one class is stored: as a ``stored``, and made again of nothing else."""

    stored: type
    to_plain: Callable[[Any], object]
    of_plain: Callable[[Any], object]


_MICROSECOND: Final = timedelta(microseconds=1)

LEAVES: Final[dict[type, Leaf]] = {
    # ISO text: a naive one stays naive, and an aware one keeps its offset.
    datetime: Leaf(str, datetime.isoformat, datetime.fromisoformat),
    date: Leaf(str, date.isoformat, date.fromisoformat),
    time: Leaf(str, time.isoformat, time.fromisoformat),
    timedelta: Leaf(int, lambda each: each // _MICROSECOND, lambda each: timedelta(0, 0, each)),
    **{
        each: Leaf(str, str, each)
        for each in (
            *(Decimal, UUID),
            *(ipaddress.IPv4Address, ipaddress.IPv4Network, ipaddress.IPv4Interface),
            *(ipaddress.IPv6Address, ipaddress.IPv6Network, ipaddress.IPv6Interface),
            *(pathlib.Path, pathlib.PosixPath),
            *(pathlib.PurePath, pathlib.PurePosixPath, pathlib.PureWindowsPath),
        )
    },
}
"""Each class with its way. Enums and literals have ways of their own."""
