"""The metrics, labels, attributes and spans that the docs name are those that the code has."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from kvreplay import Replay, open_store
from kvreplay.events import ANSWERS, ReplayEvent
from kvreplay.metrics._tally import BUCKETS, OTHER_KINDS
from kvreplay.store import SweepResult
from support.extras import needs_opentelemetry, needs_prometheus

PAGE = next(
    (
        page
        for folder in Path(__file__).resolve().parents
        if (page := folder / "docs" / "metrics.md").exists()
    ),
    None,
)
pytestmark = pytest.mark.skipif(PAGE is None, reason="needs the sources: no docs above the tests")
DOCUMENTED = PAGE.read_text(encoding="utf-8") if PAGE else ""


class OfKey(ReplayEvent):
    """An event that tells of a key."""

    key = "digest"  # type: ignore[assignment]


EVENTS = [
    *(OfKey(kind, "ns", 0, 1.0) for kind in ANSWERS),
    *(ReplayEvent(kind, "ns", 0, 1.0) for kind in OTHER_KINDS),
    ReplayEvent("swept", "ns", 0, 1.0, SweepResult(1, 1, False)),
]


def rows(section: str, first: str) -> list[list[str]]:
    """The cells of a section's table whose first column has that title."""
    text = DOCUMENTED.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    table = text.partition(f"| {first} |")[2].partition("\n\n")[0]
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]
    ]


def quoted(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"`([^`]+)`", text))


def listed(label: str) -> tuple[str, ...]:
    (text,) = re.findall(rf"^- `{label}`: (.*?)(?=^- |\n\n)", DOCUMENTED, re.MULTILINE | re.DOTALL)
    return tuple(each for each in quoted(text) if "(" not in each)


def test_the_values_of_the_labels() -> None:
    assert listed("decision") == ANSWERS
    assert listed("kind") == OTHER_KINDS


@needs_prometheus
@pytest.mark.parametrize("shared", [False, True])
def test_prometheus(shared: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from prometheus_client import CollectorRegistry

    from kvreplay.metrics import PrometheusMetrics

    if shared:
        monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    registry = CollectorRegistry()
    count = PrometheusMetrics(registry)
    for event in EVENTS:
        count(event)
    found = {}
    values: dict[str, set[str]] = {}
    for metric in registry.collect():
        samples = [each for each in metric.samples if not each.name.endswith("_created")]
        name = metric.name + ("_total" if metric.type == "counter" else "")
        found[name] = (metric.type, {*samples[0].labels} - {"le"})
        for sample in samples:
            for label, value in sample.labels.items():
                values.setdefault(label, set()).add(value)
    documented = rows("Prometheus", "metric")
    assert found == {
        quoted(name)[0]: (kind, {*quoted(labels)}) for name, kind, labels, _ in documented
    }
    assert values.pop("le") == {*map(str, BUCKETS), "+Inf"}
    assert values == {"namespace": {"ns"}, "decision": {*ANSWERS}, "kind": {*OTHER_KINDS}}
    alerts = re.findall(r"(kvreplay_\w+)\{(\w+)=~?\"([\w|]+)\"", DOCUMENTED)
    assert len(alerts) >= 3
    for name, label, chosen in alerts:
        assert label in found[name][1]
        assert {*chosen.split("|")} <= values[label]


@needs_opentelemetry
def test_opentelemetry() -> None:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    from kvreplay.metrics import OpenTelemetryMetrics

    reader = InMemoryMetricReader()
    count = OpenTelemetryMetrics(MeterProvider([reader], shutdown_on_exit=False))
    for event in EVENTS:
        count(event)
    data: Any = reader.get_metrics_data()
    metrics = data.resource_metrics[0].scope_metrics[0].metrics
    found = {
        metric.name: (
            {"Sum": "counter", "Histogram": "histogram"}[type(metric.data).__name__],
            metric.unit,
            {*metric.data.data_points[0].attributes},
        )
        for metric in metrics
    }
    assert found == {
        quoted(name)[0]: (kind, quoted(unit)[0], {*quoted(attributes)})
        for name, kind, unit, attributes in rows("OpenTelemetry", "metric")
    }


@needs_opentelemetry
def test_spans() -> None:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from kvreplay.metrics import OpenTelemetrySpans

    exporter = InMemorySpanExporter()
    tracers = TracerProvider(shutdown_on_exit=False)
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    with open_store("memory:") as store:
        replay = Replay(store, "ns", ttl=60, on_event=OpenTelemetrySpans(tracers, key_digests=True))
        replay.execute(("s", "k"), None, lambda: "r")
    for decision in ANSWERS:
        OpenTelemetrySpans(tracers)(OfKey(decision, "ns", 0, 1.0))
    with_digest, *spans = exporter.get_finished_spans()
    ((name, attributes, status),) = rows("OpenTelemetry", "span")
    always, _, with_digests = attributes.partition("; ")
    assert [span.name for span in spans] == [f"{quoted(name)[0]}{each}" for each in ANSWERS]
    assert {each for span in spans for each in span.attributes} == {*quoted(always)}
    assert {*with_digest.attributes} == {*quoted(always), "kvreplay.key"}
    assert quoted(with_digests) == ("key_digests=True", "kvreplay.key")
    errors = {span.name.removeprefix("kvreplay.") for span in spans if not span.status.is_unset}
    assert errors == {*quoted(status)}
