"""Metrics and spans as the SDK of OpenTelemetry sees them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from kvreplay.events import ANSWERS, ReplayEvent
from support.decisions import DECISIONS, Way
from support.extras import needs_opentelemetry
from support.forking import Child
from support.replaying import Handler, never
from support.requesting import KEY, NAMESPACE, PARAMS

pytestmark = needs_opentelemetry
pytest.importorskip("opentelemetry.sdk")

from opentelemetry.sdk.metrics import MeterProvider  # noqa: E402
from opentelemetry.sdk.metrics.export import InMemoryMetricReader  # noqa: E402
from opentelemetry.sdk.trace import TracerProvider  # noqa: E402
from opentelemetry.sdk.trace.export import (  # noqa: E402
    SimpleSpanProcessor,
    SpanExporter,
    SpanExportResult,
)
from opentelemetry.sdk.trace.export.in_memory_span_exporter import (  # noqa: E402
    InMemorySpanExporter,
)
from opentelemetry.trace import SpanKind, StatusCode  # noqa: E402

from kvreplay.metrics import OpenTelemetryMetrics, OpenTelemetrySpans  # noqa: E402

ERRORS = {
    *("in_doubt", "doubt_begun", "store_error", "corrupt_record", "claim_lost", "response_type")
}


@pytest.fixture
def reader() -> InMemoryMetricReader:
    return InMemoryMetricReader()


@pytest.fixture
def count(reader: InMemoryMetricReader) -> OpenTelemetryMetrics:
    return OpenTelemetryMetrics(MeterProvider([reader], shutdown_on_exit=False))


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def provider(exporter: InMemorySpanExporter) -> TracerProvider:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider


def points(reader: InMemoryMetricReader, name: str, attribute: str) -> dict[Any, Any]:
    """The points of a metric, by one of their attributes."""
    data = reader.get_metrics_data()
    return {
        point.attributes[attribute]: point
        for of_resource in (data.resource_metrics if data else ())
        for of_scope in of_resource.scope_metrics
        for metric in of_scope.metrics
        if metric.name == name
        for point in metric.data.data_points
    }


@pytest.mark.parametrize("decision", ANSWERS)
def test_each_request_is_counted_once_and_is_one_span(
    way_with: Callable[..., Way],
    count: OpenTelemetryMetrics,
    reader: InMemoryMetricReader,
    provider: TracerProvider,
    exporter: InMemorySpanExporter,
    decision: str,
) -> None:
    ask, expected = DECISIONS[decision]
    ask(way_with((count, OpenTelemetrySpans(provider))))
    requests = points(reader, "kvreplay.requests", "kvreplay.decision")
    assert {kind: point.value for kind, point in requests.items()} == expected
    assert {point.attributes["kvreplay.namespace"] for point in requests.values()} == {NAMESPACE}
    durations = points(reader, "kvreplay.request.duration", "kvreplay.decision")
    assert {kind: point.count for kind, point in durations.items()} == expected

    spans = exporter.get_finished_spans()
    assert sorted(span.name for span in spans) == sorted(f"kvreplay.{kind}" for kind in expected)
    for span in spans:
        assert span.kind is SpanKind.INTERNAL
        kind = span.attributes["kvreplay.decision"]
        assert dict(span.attributes) == {
            "kvreplay.namespace": NAMESPACE,
            "kvreplay.decision": kind,
        }
        is_error = span.status.status_code is StatusCode.ERROR
        assert is_error == (kind in ERRORS)


def test_what_happens_besides_is_counted_apart(
    way_with: Callable[..., Way],
    count: OpenTelemetryMetrics,
    reader: InMemoryMetricReader,
    provider: TracerProvider,
    exporter: InMemorySpanExporter,
) -> None:
    way = way_with((count, OpenTelemetrySpans(provider)))
    replay = way.make(tombstone_ttl=0)
    replay.execute(KEY, PARAMS, Handler("r"))
    way.clock.pass_seconds(1000)
    assert replay.sweep().removed == 1
    way.store.write(NAMESPACE, "s", "k", b"not a record")
    with pytest.raises(Exception, match="cannot be read"):
        replay.records()
    events = points(reader, "kvreplay.events", "kvreplay.kind")
    assert {kind: point.value for kind, point in events.items()} == {
        "started": 1,
        "corrupt_record": 1,
    }
    (swept,) = points(reader, "kvreplay.swept_records", "kvreplay.namespace").values()
    assert swept.value == 1
    assert [span.name for span in exporter.get_finished_spans()] == ["kvreplay.completed"]


def test_a_histogram_tells_microseconds_apart(
    count: OpenTelemetryMetrics, reader: InMemoryMetricReader
) -> None:
    for duration in (0.000004, 0.000009, 0.0007, 61.0):
        count(ReplayEvent("replayed", "ns", 0, duration))
    (point,) = points(reader, "kvreplay.request.duration", "kvreplay.decision").values()
    assert [each for each in point.bucket_counts if each] == [1, 1, 1, 1]


def test_a_span_lasts_as_long_as_its_request_and_is_a_child_of_its_callers(
    way_with: Callable[..., Way], provider: TracerProvider, exporter: InMemorySpanExporter
) -> None:
    replay = way_with(OpenTelemetrySpans(provider)).make()
    before = time.time_ns()
    with provider.get_tracer("caller").start_as_current_span("caller") as caller:
        replay.execute(KEY, PARAMS, Handler("r"))
        replay.execute(KEY, PARAMS, never)
    first, second, own = exporter.get_finished_spans()
    assert own.name == "caller"
    for span in (first, second):
        assert span.parent is not None
        assert span.parent.span_id == caller.get_span_context().span_id
        assert before - 50_000_000 <= span.start_time < span.end_time <= time.time_ns()
    assert first.end_time <= second.end_time


def test_a_span_begins_when_its_request_began(
    provider: TracerProvider, exporter: InMemorySpanExporter
) -> None:
    OpenTelemetrySpans(provider)(ReplayEvent("replayed", "ns", 0, 2.5))
    (span,) = exporter.get_finished_spans()
    assert span.end_time - span.start_time == 2_500_000_000
    assert abs(span.end_time - time.time_ns()) < 60_000_000_000
    assert span.parent is None


def test_the_keys_digest_is_shown_only_if_that_is_asked_for(
    way_with: Callable[..., Way], provider: TracerProvider, exporter: InMemorySpanExporter
) -> None:
    digests: list[Any] = []
    spans = [OpenTelemetrySpans(provider), OpenTelemetrySpans(provider, key_digests=True)]
    replay = way_with((lambda event: digests.append(event.key), *spans)).make()
    replay.execute(("secret-scope", "secret-id"), "secret-param", Handler("secret-response"))
    without, with_digest = exporter.get_finished_spans()
    assert "kvreplay.key" not in without.attributes
    assert with_digest.attributes["kvreplay.key"] == digests[-1]
    assert "secret" not in without.to_json() + with_digest.to_json()


def test_an_exporter_that_fails_fails_no_request(
    way_with: Callable[..., Way], caplog: pytest.LogCaptureFixture
) -> None:
    class Lost(SpanExporter):
        def export(self, spans: object) -> SpanExportResult:
            raise OSError("nobody listens")

    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(Lost()))
    replay = way_with(OpenTelemetrySpans(provider)).make()
    assert replay.execute(KEY, PARAMS, Handler("r")).response == "r"
    assert "nobody listens" in caplog.text


def test_a_forked_child_goes_on(
    count: OpenTelemetryMetrics, provider: TracerProvider, exporter: InMemorySpanExporter
) -> None:
    spans = OpenTelemetrySpans(provider)
    event = ReplayEvent("replayed", "ns", 0, 1.0)

    def tell() -> None:
        count(event)
        spans(event)

    tell()
    Child(tell).join()
    tell()
    assert len(exporter.get_finished_spans()) == 2


def test_without_a_provider_the_global_one_is_used(way_with: Callable[..., Way]) -> None:
    """Here nobody has set one, so nothing is counted, and nothing fails."""
    replay = way_with((OpenTelemetryMetrics(), OpenTelemetrySpans())).make()
    assert replay.execute(KEY, PARAMS, Handler("r")).response == "r"
