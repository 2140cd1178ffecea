"""What is imported when, and what is said where a library is missing."""

from __future__ import annotations

import subprocess
import sys

import pytest

import kvreplay.metrics
from support.extras import needs_opentelemetry, needs_prometheus

LIBRARIES = {"PrometheusMetrics": "prometheus_client"} | dict.fromkeys(
    ("OpenTelemetryMetrics", "OpenTelemetrySpans"), "opentelemetry"
)


def printed(script: str) -> str:
    command = [sys.executable, "-c", script]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("name", kvreplay.metrics.__all__)
def test_a_missing_library_is_told_with_its_extra(name: str) -> None:
    script = f"""
import sys
sys.modules[{LIBRARIES[name]!r}] = None
from kvreplay import ConfigError
for _ in range(2):
    try:
        from kvreplay.metrics import {name}
    except ConfigError as error:
        print(error)
"""
    first, second = printed(script).splitlines()
    assert first == second
    extra = "prometheus" if name == "PrometheusMetrics" else "opentelemetry"
    assert f'"{LIBRARIES[name]}"' in first
    assert f"pip install 'kvreplay[{extra}]'" in first


@needs_prometheus
@needs_opentelemetry
@pytest.mark.parametrize("name", kvreplay.metrics.__all__)
def test_importing_one_needs_no_other_library(name: str) -> None:
    others = sorted(set(LIBRARIES.values()) - {LIBRARIES[name]})
    script = f"""
import sys
from kvreplay.metrics import {name}
print({name}.__name__, [each for each in {others!r} if each in sys.modules])
"""
    assert printed(script) == f"{name} []"


def test_kvreplay_and_the_package_load_no_library() -> None:
    script = "import sys, kvreplay.metrics; print({'prometheus_client', 'opentelemetry'} & {*sys.modules})"
    assert printed(script) == "set()"


def test_there_is_nothing_else() -> None:
    with pytest.raises(AttributeError, match="StatsD"):
        kvreplay.metrics.StatsD  # noqa: B018
