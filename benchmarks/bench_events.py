"""What do events, metrics and spans add to a hit?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from prometheus_client import CollectorRegistry

from benchmarks.conftest import Sizes
from benchmarks.measure import calling, in_turn
from benchmarks.workload import (
    NAMESPACE,
    PARAMS,
    RESPONSE,
    SCOPE,
    never,
    request_id,
    respond,
    url_of,
)
from kvreplay import Replay, open_store
from kvreplay.metrics import OpenTelemetryMetrics, OpenTelemetrySpans, PrometheusMetrics

KEY = (SCOPE, request_id(0))


class Nowhere(SpanExporter):
    """So that what is measured is what the request waits for, and not the network."""

    def export(self, spans: object) -> SpanExportResult:
        return SpanExportResult.SUCCESS


Note = Callable[..., None]


@pytest.mark.parametrize("engine", ["lmdb", "memory"])
def test_hit_with_prometheus(
    benchmark: Any, note: Note, sizes: Sizes, engine: str, folder: Path
) -> None:
    observers = {
        "an empty function": lambda event: None,
        "Prometheus": PrometheusMetrics(CollectorRegistry()),
    }
    _measure(benchmark, note, sizes, url_of(engine, folder), engine, observers)


# Apart from Prometheus, since the thread that exports spans disturbs whoever comes next.
@pytest.mark.parametrize("engine", ["lmdb", "memory"])
def test_hit_with_opentelemetry(
    benchmark: Any, note: Note, sizes: Sizes, engine: str, folder: Path
) -> None:
    meters = MeterProvider([InMemoryMetricReader()])
    tracers = TracerProvider()
    tracers.add_span_processor(BatchSpanProcessor(Nowhere()))
    metrics = OpenTelemetryMetrics(meters)
    observers = {
        "OpenTelemetry's metrics": metrics,
        "OpenTelemetry's metrics and spans": (metrics, OpenTelemetrySpans(tracers)),
    }
    _measure(benchmark, note, sizes, url_of(engine, folder), engine, observers)
    tracers.shutdown()
    meters.shutdown()


def _measure(
    benchmark: Any,
    note: Note,
    sizes: Sizes,
    url: str,
    engine: str,
    observers: Mapping[str, Any],
) -> None:
    """Note a row for each observer, beside the same hit without one."""
    with open_store(url) as store:
        hits = []
        for on_event in (None, *observers.values()):
            replay = Replay(store, NAMESPACE, ttl=3600, on_event=on_event)
            assert replay.execute(KEY, PARAMS, respond).response == RESPONSE
            hits.append(lambda replay=replay: replay.execute(KEY, PARAMS, never))
        without, *medians = in_turn(
            benchmark, *(calling(hit, sizes.calls) for hit in hits), rounds=sizes.rounds
        )
    for what, seconds in zip(observers, medians, strict=True):
        figures = {"µs": seconds * 1e6, "µs without": without * 1e6, "x without": seconds / without}
        note(f"events/{engine}, {what}", figures)
