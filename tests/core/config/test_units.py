"""What a size, a duration, a number or a word means, and how each typo ends."""

from __future__ import annotations

from datetime import timedelta

import pytest

from kvreplay.config.units import Kind, nearest, parse
from support.configuring import HOUR, complaint


@pytest.mark.parametrize(
    ("kind", "written", "meant"),
    [
        ("size", 1, 1),
        ("size", 2**63 - 1, 2**63 - 1),
        ("size", "4096", 4096),
        ("size", "4096B", 4096),
        ("size", "64KiB", 64 * 1024),
        ("size", "512MiB", 512 * 1024**2),
        ("size", "4GiB", 4 * 1024**3),
        ("size", "2TiB", 2 * 1024**4),
        ("size", "1KB", 1000),
        ("size", "10 MB", 10_000_000),
        ("size", "1GB", 10**9),
        ("size", "1TB", 10**12),
        ("size", " 4gib ", 4 * 1024**3),
        ("size", "007", 7),
        ("integer", 0, 0),
        ("integer", "126", 126),
        ("duration", 0, 0.0),
        ("duration", 30, 30.0),
        ("duration", 0.25, 0.25),
        ("duration", "30", 30.0),
        ("duration", "2.5", 2.5),
        ("duration", "500ms", 0.5),
        ("duration", "30s", 30.0),
        ("duration", "10m", 600.0),
        ("duration", "10min", 600.0),
        ("duration", "1h", HOUR),
        ("duration", "1.5h", 1.5 * HOUR),
        ("duration", "7 d", 7 * 24 * HOUR),
        ("duration", "36525d", 36525 * 24 * HOUR),
        ("duration", timedelta(milliseconds=1500), 1.5),
        ("lease", "none", None),
        ("lease", "None", None),
        ("time limit", "none", None),
        ("time limit", "10s", 10.0),
        ("time limit", 0, 0.0),
        ("lease", "30s", 30.0),
        ("lease", 0.5, 0.5),
        ("boolean", True, True),
        ("boolean", "TRUE", True),
        ("boolean", "yes", True),
        ("boolean", "on", True),
        ("boolean", "1", True),
        ("boolean", False, False),
        ("boolean", "false", False),
        ("boolean", "no", False),
        ("boolean", "off", False),
        ("boolean", "0", False),
        ("text", "", ""),
        ("text", "ä b", "ä b"),
        (("full", "process"), "process", "process"),
    ],
)
def test_a_value_is_read_as_written(kind: Kind, written: object, meant: object) -> None:
    value = parse(kind, written, "here")
    assert value == meant
    assert type(value) is type(meant)


@pytest.mark.parametrize(
    ("kind", "written", "says"),
    [
        ("size", "4GBi", 'unknown unit "GBi"; nothing was opened. Did you mean "GiB"?'),
        ("size", "4MIB5", "is not a size"),
        ("size", "4 mibs", 'Did you mean "MiB"?'),
        ("size", "4parsec", 'Valid: "B", "KiB", "MiB"'),
        ("size", "1.5GiB", '"1.5GiB" is not a size'),
        ("size", "", '"" is not a size'),
        ("size", "-1", '"-1" is not a size'),
        ("size", "٤", "is not a size"),
        ("size", 0, "0 is not from 1 to"),
        ("size", -5, "-5 is not from 1 to"),
        ("size", "0MiB", '"0MiB" is not from 1 to'),
        ("size", 2**63, "is not from 1 to 2**63 - 1"),
        ("size", "9999999999TB", "is not from 1 to"),
        ("size", "9" * 5000, "is not from 1 to"),
        ("size", True, "True is not a size"),
        ("size", 4096.0, "4096.0 is not a size"),
        ("size", None, "a value of type NoneType is not a size"),
        ("integer", -1, "-1 is not from 0"),
        ("integer", 2**63, "is not from 0 to 2**63 - 1"),
        ("integer", "12x", '"12x" is not an integer'),
        ("integer", 1.0, "1.0 is not an integer"),
        ("integer", False, "False is not an integer"),
        ("duration", "10mins", 'unknown unit "mins"; nothing was opened. Did you mean "min"?'),
        ("duration", "1H", 'unknown unit "H"; nothing was opened. Did you mean "h"?'),
        ("duration", "1fortnight", 'Valid: "ms", "s", "m", "min", "h", "d".'),
        ("duration", "1h30m", "is not a duration"),
        ("duration", "soon", '"soon" is not a duration'),
        ("duration", "-1s", '"-1s" is not a duration'),
        ("duration", "nan", '"nan" is not a duration'),
        ("duration", -0.001, "-0.001 is not from 0 seconds to 100 years"),
        ("duration", float("nan"), "nan is not from 0"),
        ("duration", float("inf"), "inf is not from 0"),
        ("duration", float("-inf"), "-inf is not from 0"),
        ("duration", "9" * 400, "is not from 0"),
        ("duration", "36526d", "100 years"),
        ("duration", timedelta(seconds=-1), "is not from 0"),
        ("duration", True, "True is not a duration"),
        ("duration", None, "type NoneType is not a duration"),
        ("lease", "nonesuch", 'Or "none"'),
        ("time limit", "nonesuch", 'Or "none": there is no limit.'),
        ("lease", False, "False is not a duration"),
        ("boolean", "ture", 'neither true nor false; nothing was opened. Did you mean "true"?'),
        ("boolean", 1, "1 is neither true nor false; nothing was opened. Write true or false."),
        ("text", 5, "a value of type int is not text"),
        (("full", "process"), "ful", '"ful" is not valid; nothing was opened. Did you mean "full"'),
        (("full", "process"), "zzz", 'Valid: "full", "process".'),
    ],
)
def test_a_wrong_value_names_its_place_itself_and_what_is_valid(
    kind: Kind, written: object, says: str
) -> None:
    message = complaint(parse, kind, written, "the place")
    assert message.startswith("the place: ")
    assert says in message


def test_a_long_value_is_cut_and_one_with_credentials_is_not_shown() -> None:
    assert len(complaint(parse, "size", "x" * 10_000, "here")) < 250
    for secret in ("user:hunter2@host", "pg://hunter2"):
        assert "hunter2" not in complaint(parse, "size", secret, "here")
    assert "hunter3" in complaint(parse, "size", "hunter3", "here")


@pytest.mark.parametrize("kind", ["size", "integer", "duration", ("full", "process")])
def test_a_number_too_long_to_print_is_refused_like_any_other(kind: Kind) -> None:
    assert "an enormous number is not" in complaint(parse, kind, 10**5000, "here")


def test_nothing_to_choose_from_is_said() -> None:
    assert nearest("x", ()) == "There is none to choose from."
