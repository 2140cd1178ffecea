"""Durations as people write them: seconds, a timedelta, or text such as ``"10min"``."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Final

from kvreplay.errors import ConfigError

__all__ = ["UNITS", "Duration", "measured", "seconds_of"]

Duration = float | timedelta | str
"""Seconds, a timedelta, or text: a number with a unit, such as ``"500ms"`` or ``"1.5h"``."""

UNITS: Final = {
    "ms": 1,
    "s": 1000,
    "m": 60_000,
    "min": 60_000,
    "h": 3_600_000,
    "d": 86_400_000,
}
"""How many milliseconds each unit has."""

_number = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*").fullmatch


def measured(text: str) -> tuple[float, str] | None:
    """Take a text apart: its number, and its unit, which may be unknown or empty; else ``None``."""
    match = _number(text)
    return (float(match[1]), match[2]) if match else None


def seconds_of(duration: object, name: str) -> float:
    """Return the seconds of a number, a timedelta or a text; NaN and negative ones too.

    Args:
        name: the argument, for the message.

    Raises:
        ConfigError: it is none of these.
    """
    if isinstance(duration, timedelta):
        return duration.total_seconds()
    if isinstance(duration, int | float) and not isinstance(duration, bool):
        return duration
    if isinstance(duration, str):
        number, unit = measured(duration) or (0.0, "?")
        if not unit:
            return number
        if unit in UNITS:
            return number * UNITS[unit] / 1000
        raise ConfigError(
            f"{name} is no duration; write a number with a unit of {', '.join(UNITS)}, such as"
            ' "1.5h"; nothing ran'
        )
    raise ConfigError(
        f"{name} is a {type(duration).__name__}; give seconds, a timedelta, or text such as"
        ' "10min"; nothing ran'
    )
