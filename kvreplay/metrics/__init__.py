"""Metrics and traces, from the events of ``Replay`` and ``AsyncReplay``; see ``docs/metrics.md``.

Each of these is an ``on_event``. Each needs an extra, and is loaded when it is first used:

* :class:`PrometheusMetrics`: ``pip install 'kvreplay[prometheus]'``.
* :class:`OpenTelemetryMetrics`, :class:`OpenTelemetrySpans`: ``'kvreplay[opentelemetry]'``.

Where it is missing, its import is a :class:`~kvreplay.ConfigError`.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvreplay.metrics.opentelemetry import OpenTelemetryMetrics, OpenTelemetrySpans
    from kvreplay.metrics.prometheus import PrometheusMetrics

_LATE = {
    "OpenTelemetryMetrics": "opentelemetry",
    "OpenTelemetrySpans": "opentelemetry",
    "PrometheusMetrics": "prometheus",
}

__all__ = ["OpenTelemetryMetrics", "OpenTelemetrySpans", "PrometheusMetrics"]


def __getattr__(name: str) -> object:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(f"{__name__}.{_LATE[name]}"), name)
    return globals().setdefault(name, value)
