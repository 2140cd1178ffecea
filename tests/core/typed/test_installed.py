"""cattrs and pydantic are imported when a type needs them; what is missing is told before all."""

from __future__ import annotations

import subprocess
import sys

import pytest

BLOCKED = """
import sys
for name in {blocked!r}:
    sys.modules[name] = None
import attrs, datetime
from kvreplay import ConfigError
from kvreplay._typed.codecs import codec_of

@attrs.define
class Invoice:
    when: datetime.date

"""
LOADED = (
    "print([name for name in ('cattrs', 'pydantic', 'pydantic_core') if sys.modules.get(name)])"
)


def run(script: str, *blocked: str) -> str:
    command = [sys.executable, "-W", "error", "-c", BLOCKED.format(blocked=blocked) + script]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_nothing_is_imported_before_a_type_needs_it() -> None:
    plain = "assert codec_of(dict[str, int], 'f returns') is None\n"
    assert run(plain + LOADED) == "[]"
    assert run("codec_of(Invoice, 'f returns')\n" + LOADED) == "['cattrs']"


MODEL = """
import pydantic
class Model(pydantic.BaseModel):
    when: datetime.date
value = Model(when="2026-01-02")
for annotation in (Model, Model | None):
    codec = codec_of(annotation, "f returns")
    assert codec.decode(codec.encode(value)) == value
"""


def test_a_model_needs_no_cattrs() -> None:
    assert run(MODEL + LOADED, "cattrs") == "['pydantic', 'pydantic_core']"


@pytest.mark.parametrize("annotation", ["Invoice", "list[Invoice]", "datetime.date", "set[int]"])
def test_cattrs_is_missing(annotation: str) -> None:
    refused = f"""
try:
    codec_of({annotation}, "f returns")
except ConfigError as error:
    print(error)
"""
    said = run(refused, "cattrs")
    assert said.startswith("f returns ")
    assert said.endswith(
        ": cattrs stores it, and cannot be imported: pip install 'kvreplay[typed]'; nothing ran"
    )
    assert run(refused) == ""


STRANGER = """
class Model:  # as a model looks
    __pydantic_validator__ = None
try:
    codec_of(Model, "f returns")
except ConfigError as error:
    print(error)
"""


def test_pydantic_is_missing() -> None:
    assert run(STRANGER, "pydantic", "pydantic_core") == (
        "f returns Model: pydantic stores it, and cannot be imported: pip install 'pydantic>=2.12';"
        " nothing ran"
    )


def test_pydantic_is_too_old() -> None:
    assert run("import pydantic\npydantic.VERSION = '2.11.9'\n" + STRANGER) == (
        "f returns Model: pydantic 2.12 or later stores it, and 2.11.9 is installed:"
        " pip install 'pydantic>=2.12'; nothing ran"
    )
