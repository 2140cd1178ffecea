"""OpenTelemetry: the events of replays as metrics, and each request as a span.

The library keeps locks of its own while it counts. A signal handler that makes requests could wait
for one for ever that the code holds which it has interrupted: give its replay no ``on_event`` of
these.
"""

from __future__ import annotations

import time
from typing import Final

from kvreplay.errors import ConfigError
from kvreplay.events import ReplayEvent
from kvreplay.metrics._tally import BUCKETS, is_of_request

try:
    from opentelemetry import metrics, trace
    from opentelemetry.trace import Status, StatusCode
except ModuleNotFoundError as error:
    raise ConfigError(
        f'the metrics and spans of OpenTelemetry need the module "{error.name}", which is not'
        " installed; nothing is counted. Install it: pip install 'kvreplay[opentelemetry]'"
    ) from error

__all__ = ["ERRORS", "OpenTelemetryMetrics", "OpenTelemetrySpans"]

_NAME: Final = "kvreplay"

ERRORS: Final = frozenset(
    ("in_doubt", "doubt_begun", "store_error", "corrupt_record", "claim_lost", "response_type")
)
"""The decisions that make a request's span an error: somebody should look at it."""


class OpenTelemetryMetrics:
    """Metrics of replays: give it to each of them as ``on_event``.

    ``docs/metrics.md`` has the metrics, and what they cost.

    Args:
        meter_provider: whose metrics they are; by default the global one, even if that is set
            later.
    """

    def __init__(self, meter_provider: metrics.MeterProvider | None = None) -> None:
        meter = metrics.get_meter(_NAME, meter_provider=meter_provider)
        self._requests = meter.create_counter(
            "kvreplay.requests", "{request}", "Requests, by how they ended."
        )
        self._seconds = meter.create_histogram(
            "kvreplay.request.duration",
            "s",
            "How long requests took, by how they ended.",
            explicit_bucket_boundaries_advisory=BUCKETS,
        )
        self._events = meter.create_counter(
            "kvreplay.events",
            "{event}",
            "What else happened: on the way of a request, by an operator, or to a record.",
        )
        self._swept = meter.create_counter(
            "kvreplay.swept_records", "{record}", "Records that sweeps have removed."
        )

    def __call__(self, event: ReplayEvent) -> None:
        """Count an event."""
        attributes = {"kvreplay.namespace": event.namespace}
        if event.swept is not None:
            self._swept.add(event.swept.removed, attributes)
        elif is_of_request(event):
            attributes["kvreplay.decision"] = event.kind
            self._requests.add(1, attributes)
            self._seconds.record(event.duration, attributes)
        else:
            attributes["kvreplay.kind"] = event.kind
            self._events.add(1, attributes)


class OpenTelemetrySpans:
    """Each request as a span, whose parent is the caller's own span: give it as ``on_event``.

    A span is made when its request has ended, so what a handler does is beside it, not below it.

    Args:
        tracer_provider: whose spans they are; by default the global one, even if that is set later.
        key_digests: each span has the attribute ``kvreplay.key``, which is
            :meth:`kvreplay.ReplayKey.digest`.
    """

    def __init__(
        self, tracer_provider: trace.TracerProvider | None = None, *, key_digests: bool = False
    ) -> None:
        self._tracer = trace.get_tracer(_NAME, tracer_provider=tracer_provider)
        self._key_digests = key_digests

    def __call__(self, event: ReplayEvent) -> None:
        """Make a span of an event that ends a request."""
        if not is_of_request(event):
            return
        end = time.time_ns()
        attributes = {"kvreplay.namespace": event.namespace, "kvreplay.decision": event.kind}
        if self._key_digests and event.key is not None:
            attributes["kvreplay.key"] = event.key
        span = self._tracer.start_span(
            f"kvreplay.{event.kind}",
            attributes=attributes,
            start_time=end - round(event.duration * 1e9),
        )
        if event.kind in ERRORS:
            span.set_status(Status(StatusCode.ERROR, event.kind))
        span.end(end)
