"""Prometheus: the events of replays as metrics in a registry of ``prometheus_client``."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator
from typing import Any, Final

import attrs

from kvreplay.errors import ConfigError
from kvreplay.metrics._tally import BUCKETS, Family, Sums, Tally

try:
    from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram
    from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
except ModuleNotFoundError as error:
    raise ConfigError(
        f'PrometheusMetrics needs the module "{error.name}", which is not installed; nothing is'
        " counted. Install it: pip install 'kvreplay[prometheus]'"
    ) from error

__all__ = ["PrometheusMetrics"]

_SECONDS: Final = "kvreplay_request_seconds"
_SECONDS_HELP: Final = "How long requests took, by how they ended."
_COUNTERS: Final[dict[Family, tuple[str, str, tuple[str, ...]]]] = {
    "requests": (
        "kvreplay_requests",
        "Requests, by how they ended.",
        ("namespace", "decision"),
    ),
    "events": (
        "kvreplay_events",
        "What else happened: on the way of a request, by an operator, or to a record.",
        ("namespace", "kind"),
    ),
    "swept": ("kvreplay_swept_records", "Records that sweeps have removed.", ("namespace",)),
}


class PrometheusMetrics(Tally):
    """Metrics of replays: give it to each of them as ``on_event``.

    One object serves any number of replays, of threads and of event loops. A forked child counts
    its own. In the multiprocess mode of ``prometheus_client`` each event is written to its shared
    files at once, which costs more; ``docs/metrics.md`` has the metrics and what they cost.

    Args:
        registry: where the metrics are shown; by default the one of ``prometheus_client``.

    Raises:
        ConfigError: the registry has these metrics already.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        try:
            if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
                super().__init__(_Shared(registry).begin, batch=1)
            else:
                super().__init__(lambda *_: _NOTHING)
                registry.register(_Collector(self))
        except ValueError as error:
            raise ConfigError(
                "the registry has metrics of these names already; nothing was registered: give all"
                " replays the same PrometheusMetrics, or give this one a registry of its own"
            ) from error


# In one process: the sums are shown when the registry is asked for them.


@attrs.frozen
class _Sums:
    many: int
    total: float
    up_to: tuple[int, ...]
    """How many numbers are at most each bound of :data:`BUCKETS`."""

    def plus(self, numbers: list[float]) -> _Sums:
        """Return the sums with these numbers too."""
        numbers.sort()
        return _Sums(
            self.many + len(numbers),
            self.total + sum(numbers),
            tuple(
                before + bisect_right(numbers, bound)
                for before, bound in zip(self.up_to, BUCKETS, strict=True)
            ),
        )


_NOTHING: Final = _Sums(0, 0.0, (0,) * len(BUCKETS))


class _Collector:
    """What the registry asks for the metrics."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally

    def describe(self) -> Iterator[Metric]:
        """Yield the metrics without values: from these the registry knows the names."""
        counters, seconds = _families()
        yield from (*counters.values(), seconds)

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        counters, seconds = _families()
        for namespace, count in self._tally.counted():
            sums, labels = count.sums, _labels(namespace, count.family, count.kind)
            assert isinstance(sums, _Sums)  # all of this process
            value = sums.total if count.family == "swept" else sums.many
            counters[count.family].add_metric(labels, value)
            if count.family == "requests" and sums.many:
                bounds = (*map(str, BUCKETS), "+Inf")
                buckets = list(zip(bounds, (*sums.up_to, sums.many), strict=True))
                seconds.add_metric(labels, buckets, sums.total)
        yield from (*counters.values(), seconds)


def _families() -> tuple[dict[Family, CounterMetricFamily], HistogramMetricFamily]:
    counters = {
        family: CounterMetricFamily(name, text, labels=labels)
        for family, (name, text, labels) in _COUNTERS.items()
    }
    labels = _COUNTERS["requests"][2]
    return counters, HistogramMetricFamily(_SECONDS, _SECONDS_HELP, labels=labels)


def _labels(namespace: str, family: Family, kind: str) -> tuple[str, ...]:
    return (namespace,) if family == "swept" else (namespace, kind)


# With many processes: the library's own metrics keep the sums in files, which it adds up.


class _Shared:
    """The metrics as ``prometheus_client`` keeps them for many processes."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.counters = {
            family: Counter(name, text, labels, registry=registry)
            for family, (name, text, labels) in _COUNTERS.items()
        }
        self.seconds = Histogram(
            *(_SECONDS, _SECONDS_HELP, _COUNTERS["requests"][2]), registry=registry, buckets=BUCKETS
        )

    def begin(self, namespace: str, family: Family, kind: str) -> Sums:
        """Show a counter from 0 on, as no rate is known of one that begins with 1."""
        labels = _labels(namespace, family, kind)
        seconds = self.seconds if family == "requests" else None
        return _SharedSums(family, self.counters[family].labels(*labels), seconds, labels)


@attrs.define
class _SharedSums:
    family: Family
    counter: Any
    seconds: Any  # the histogram of all; its part for these labels is made when it is needed
    labels: tuple[str, ...]
    own_seconds: Any = None

    def plus(self, numbers: list[float]) -> _SharedSums:
        """Add the numbers to what all processes share."""
        self.counter.inc(sum(numbers) if self.family == "swept" else len(numbers))
        if self.seconds is not None:
            if self.own_seconds is None:
                self.own_seconds = self.seconds.labels(*self.labels)
            for each in numbers:
                self.own_seconds.observe(each)
        return self
