"""Settings as people write them: sizes, durations and words become checked values.

Every function takes the value (text, or a number of the right type) and where it came
from. It raises :class:`~kvreplay.ConfigError`, which names that place, the value and what
to write instead.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from typing import Final

from kvreplay.errors import ConfigError
from kvreplay.store.durations import UNITS, measured

__all__ = ["KINDS", "Kind", "near", "nearest", "parse", "shown", "wrong"]

Kind = str | tuple[str, ...]
"""The kind of a setting's value: a name in :data:`KINDS`, or a tuple of the legal words."""

MAX_INTEGER: Final = 2**63 - 1
MAX_SECONDS: Final = 100 * 365.25 * 86400

_SIZES: Final = {
    "B": 1,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
}
_SIZES_BY_LOWER: Final = {unit.lower(): size for unit, size in _SIZES.items()}
_BOOLEANS: Final = {
    "true": True,
    "false": False,
    "yes": True,
    "no": False,
    "on": True,
    "off": False,
    "1": True,
    "0": False,
}

_whole_number = re.compile(r"\s*([0-9]+)\s*([A-Za-z]*)\s*").fullmatch

_A_SIZE: Final = 'Write bytes, or a whole number with a unit: 4096, "512MiB", "10MB".'
_A_DURATION: Final = 'Write seconds, or a number with a unit: 30, "500ms", "10min", "1.5h", "7d".'


def wrong(where: str, problem: str, instead: str) -> ConfigError:
    """Make the error for one wrong setting; ``instead`` is a sentence that says what to write."""
    text = f"{where}: {problem}; nothing was opened. {instead}"
    # A path may hold bytes that are no text. An error that cannot be printed helps nobody.
    return ConfigError(text.encode("utf-8", "backslashreplace").decode("utf-8"))


def near(word: str, valid: Iterable[str]) -> str | None:
    """Return the valid name that is probably meant, if one is near."""
    from difflib import get_close_matches

    by_lower = {name.lower(): name for name in valid}
    # The same letters in another order come first: "GBi" means GiB, though GB is as near.
    same = [name for name in by_lower if sorted(name) == sorted(word.lower())]
    found = same or get_close_matches(word.lower(), by_lower, n=1)
    return by_lower[found[0]] if found else None


def nearest(word: str, valid: Collection[str]) -> str:
    """Say which valid name is probably meant, or list them all if none is near."""
    if (meant := near(word, valid)) is not None:
        return f'Did you mean "{meant}"?'
    if not valid:
        return "There is none to choose from."
    return "Valid: " + ", ".join(f'"{name}"' for name in valid) + "."


def shown(value: object) -> str:
    """Quote a value for a message; shorten it, and hide it if it may hold credentials."""
    if not isinstance(value, str | int | float):
        return f"a value of type {type(value).__name__}"
    if isinstance(value, str):
        if "@" in value or "://" in value:
            return "a text that looks like a URL (not shown)"
        text = value if len(value) <= 60 else f"{value[:60]}…"
        return f'"{text}"' if text.isprintable() else ascii(text)
    # A huge int cannot even be turned into text (sys.set_int_max_str_digits).
    if isinstance(value, int) and abs(value) > 10**30:
        return "an enormous number"
    return str(value)


def parse(kind: Kind, value: object, where: str) -> object:
    """Turn what the user wrote into a value of that kind.

    Raises:
        ConfigError: it names ``where``, the value, and what is valid there.
    """
    if isinstance(kind, tuple):
        return _word(value, where, kind)
    return KINDS[kind](value, where)


def size(value: object, where: str) -> int:
    """Bytes, at least 1: an int, or text such as ``"4GiB"`` (2**30) or ``"4GB"`` (10**9)."""
    if isinstance(value, str) and (match := _whole_number(value)):
        digits, unit = match.groups()
        factor = _SIZES_BY_LOWER.get(unit.lower() or "b")
        if factor is None:
            raise wrong(
                where, f'{shown(value)} has the unknown unit "{unit}"', nearest(unit, _SIZES)
            )
        number = _bounded(digits) * factor
    elif type(value) is int:
        number = value
    else:
        raise wrong(where, f"{shown(value)} is not a size", _A_SIZE)
    if not 1 <= number <= MAX_INTEGER:
        raise wrong(where, f"{shown(value)} is not from 1 to 2**63 - 1 bytes", _A_SIZE)
    return number


def integer(value: object, where: str) -> int:
    """A count, at least 0: an int, or its decimal digits."""
    if isinstance(value, str) and (match := _whole_number(value)) and not match[2]:
        number = _bounded(match[1])
    elif type(value) is int:
        number = value
    else:
        raise wrong(where, f"{shown(value)} is not an integer", "Write digits only, such as 126.")
    if not 0 <= number <= MAX_INTEGER:
        raise wrong(where, f"{shown(value)} is not from 0 to 2**63 - 1", "Write for example 126.")
    return number


def duration(value: object, where: str) -> float:
    """Seconds, from 0 to 100 years: a number, a ``timedelta``, or text such as ``"1.5h"``."""
    from datetime import timedelta

    seconds: float
    if isinstance(value, str) and (number := measured(value)):
        seconds, unit = number
        if unit:
            if unit not in UNITS:
                raise wrong(
                    where, f'{shown(value)} has the unknown unit "{unit}"', nearest(unit, UNITS)
                )
            seconds = seconds * UNITS[unit] / 1000
    elif isinstance(value, timedelta):
        seconds = value.total_seconds()
    elif type(value) is int or type(value) is float:
        seconds = value
    else:
        raise wrong(where, f"{shown(value)} is not a duration", _A_DURATION)
    # NaN fails this comparison too. An int is compared as it is: it could overflow a float.
    if not 0 <= seconds <= MAX_SECONDS:
        raise wrong(where, f"{shown(value)} is not from 0 seconds to 100 years", _A_DURATION)
    return float(seconds)


def lease(value: object, where: str) -> float | None:
    """A duration, or the word ``"none"`` for ``None``."""
    return _duration_or_none(value, where, "no claim is made")


def time_limit(value: object, where: str) -> float | None:
    """A duration, or the word ``"none"`` for ``None``."""
    return _duration_or_none(value, where, "there is no limit")


def _duration_or_none(value: object, where: str, none_means: str) -> float | None:
    if isinstance(value, str) and value.strip().lower() == "none":
        return None
    try:
        return duration(value, where)
    except ConfigError as error:
        raise ConfigError(f'{error} Or "none": {none_means}.') from None


def boolean(value: object, where: str) -> bool:
    """A bool, or one of the usual pairs of words."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        if (known := _BOOLEANS.get(value.strip().lower())) is not None:
            return known
        instead = nearest(value, _BOOLEANS)
    else:
        instead = "Write true or false."
    raise wrong(where, f"{shown(value)} is neither true nor false", instead)


def text(value: object, where: str) -> str:
    """Any text; it may be a secret, so no message shows it."""
    if not isinstance(value, str):
        raise wrong(
            where, f"a value of type {type(value).__name__} is not text", "Write it in quotes."
        )
    return value


def _word(value: object, where: str, words: tuple[str, ...]) -> str:
    if isinstance(value, str) and value in words:
        return value
    word = value if isinstance(value, str) else ""
    raise wrong(where, f"{shown(value)} is not valid", nearest(word, words))


def _bounded(digits: str) -> int:
    digits = digits.lstrip("0") or "0"
    # No valid number has more digits, and int() refuses thousands of them.
    return int(digits) if len(digits) <= 19 else MAX_INTEGER + 1


KINDS: Final[dict[str, Callable[[object, str], object]]] = {
    "size": size,
    "integer": integer,
    "duration": duration,
    "lease": lease,
    "time limit": time_limit,
    "boolean": boolean,
    "text": text,
}
"""The kinds of values, by the names that a backend's ``OPTIONS`` uses."""
