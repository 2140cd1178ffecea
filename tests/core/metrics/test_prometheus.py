"""Metrics in a registry of prometheus_client."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvreplay import ConfigError, Replay
from kvreplay.events import ANSWERS, ReplayEvent
from kvreplay.testing.threads import Running
from support.decisions import DECISIONS, Way
from support.extras import needs_prometheus
from support.forking import Child
from support.replaying import Handler, never
from support.requesting import KEY, NAMESPACE, PARAMS, abandon

pytestmark = needs_prometheus
prometheus_client = pytest.importorskip("prometheus_client")

from kvreplay.metrics import PrometheusMetrics  # noqa: E402


@pytest.fixture
def registry() -> Any:
    return prometheus_client.CollectorRegistry()


@pytest.fixture
def way(way_with: Callable[..., Way], registry: Any) -> Way:
    return way_with(PrometheusMetrics(registry))


def samples(registry: Any, name: str, label: str) -> dict[str, float]:
    """The values of a metric that are not 0, by one of its labels."""
    return {
        sample.labels[label]: sample.value
        for metric in registry.collect()
        for sample in metric.samples
        if sample.name == name and sample.value
    }


def decisions(registry: Any) -> dict[str, float]:
    return samples(registry, "kvreplay_requests_total", "decision")


def others(registry: Any) -> dict[str, float]:
    return samples(registry, "kvreplay_events_total", "kind")


@pytest.mark.parametrize("decision", ANSWERS)
def test_each_request_is_counted_once_by_how_it_ended(
    way: Way, registry: Any, decision: str
) -> None:
    ask, expected = DECISIONS[decision]
    ask(way)
    assert decisions(registry) == expected
    assert samples(registry, "kvreplay_request_seconds_count", "decision") == expected
    shown = samples(registry, "kvreplay_requests_total", "namespace")
    assert set(shown) == {NAMESPACE}


def test_what_happens_besides_is_counted_apart(way: Way, registry: Any) -> None:
    replay = way.make(on_in_doubt="rerun")
    abandon(replay)
    replay.execute(KEY, PARAMS, Handler("r"))
    abandon(replay, ("s", "2"))
    assert replay.resolve(("s", "2"), response="by hand")
    abandon(replay, ("s", "3"))
    assert replay.release(("s", "3"))
    assert others(registry) == {
        "started": 4,
        "taken_over": 1,
        "resolved": 1,
        "released_by_operator": 1,
    }
    assert decisions(registry) == {"doubt_begun": 3, "completed": 1}


def test_a_damaged_record_that_nobody_asked_for_is_no_request(way: Way, registry: Any) -> None:
    way.store.write(NAMESPACE, "s", "k", b"not a record")
    replay = way.make()
    replay.sweep()
    assert others(registry) == {}
    with pytest.raises(Exception, match="cannot be read"):
        replay.records()
    assert others(registry) == {"corrupt_record": 1}
    assert decisions(registry) == {}


def test_a_sweep_counts_its_records(way: Way, registry: Any) -> None:
    replay = way.make(tombstone_ttl=0)
    for number in range(3):
        replay.execute(("s", str(number)), PARAMS, Handler("r"))
    way.clock.pass_seconds(1000)
    removed = replay.sweep().removed
    assert removed == 3
    swept = samples(registry, "kvreplay_swept_records_total", "namespace")
    assert swept == {NAMESPACE: 3}


def test_what_was_never_seen_is_shown_as_0(way: Way, registry: Any) -> None:
    """So that an alert sees the very first doubt as an increase."""
    way.make().execute(KEY, PARAMS, Handler("r"))
    labels = {"namespace": NAMESPACE, "decision": "in_doubt"}
    assert registry.get_sample_value("kvreplay_requests_total", labels) == 0


def test_the_histogram_adds_up(registry: Any) -> None:
    count = PrometheusMetrics(registry)
    durations = [0.000005, 0.000006, 0.0007, 0.3, 59.0, 61.0]
    for each in durations * 500:  # some of them are folded before
        count(ReplayEvent("replayed", "ns", 0, each))

    def sample(name: str, **labels: str) -> Any:
        labels = {"namespace": "ns", "decision": "replayed", **labels}
        return registry.get_sample_value(f"kvreplay_request_seconds_{name}", labels)

    assert sample("count") == 3000
    assert sample("sum") == pytest.approx(sum(durations) * 500)
    bounds = {"5e-06": 500, "1e-05": 1000, "0.0005": 1000, "0.001": 1500, "60.0": 2500}
    assert {bound: sample("bucket", le=bound) for bound in bounds} == bounds
    assert sample("bucket", le="+Inf") == 3000
    assert sample("bucket", le="0.5") == 2000


def test_no_key_and_no_payload_is_shown(way: Way, registry: Any) -> None:
    replay = way.make()
    key = ("secret-scope", "secret-id")
    for _ in range(2):
        replay.execute(key, {"p": "secret-param"}, Handler("secret-response"))
    text = prometheus_client.generate_latest(registry).decode()
    assert 'decision="replayed"' in text
    assert "secret" not in text


def test_threads_are_counted_exactly(store: Any, registry: Any) -> None:
    replay = Replay(store, NAMESPACE, ttl=60, on_event=PrometheusMetrics(registry))
    replay.execute(KEY, PARAMS, Handler("r"))

    def hits() -> None:
        for number in range(1000):
            replay.execute(KEY, PARAMS, never)
            if number % 100 == 0:
                prometheus_client.generate_latest(registry)

    threads = [Running(hits) for _ in range(8)]
    for each in threads:
        each.result()
    assert decisions(registry) == {"completed": 1, "replayed": 8000}
    counted = samples(registry, "kvreplay_request_seconds_count", "decision")
    assert counted == {"completed": 1, "replayed": 8000}


def test_one_object_serves_many_replays(store: Any, registry: Any) -> None:
    count = PrometheusMetrics(registry)
    for namespace in ("one", "two", "two"):
        replay = Replay(store, namespace, ttl=60, on_event=count)
        replay.execute(KEY, PARAMS, Handler("r"))
    for namespace, decision in (("one", "completed"), ("two", "completed"), ("two", "replayed")):
        labels = {"namespace": namespace, "decision": decision}
        assert registry.get_sample_value("kvreplay_requests_total", labels) == 1


def test_a_second_object_on_the_registry_is_refused(
    registry: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    count = PrometheusMetrics(registry)
    for shared in (False, True):
        if shared:
            monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
        with pytest.raises(ConfigError, match="nothing was registered"):
            PrometheusMetrics(registry)
    count(ReplayEvent("replayed", "ns", 0, 1.0))
    assert decisions(registry) == {"replayed": 1}
    PrometheusMetrics(prometheus_client.CollectorRegistry())


def test_a_forked_child_shows_its_own(registry: Any) -> None:
    count = PrometheusMetrics(registry)
    event = ReplayEvent("replayed", "ns", 0, 1.0)
    count(event)

    def child() -> None:
        assert decisions(registry) == {}
        for _ in range(2):
            count(event)
        assert decisions(registry) == {"replayed": 2}

    Child(child).join()
    assert decisions(registry) == {"replayed": 1}


WORKER = """
import sys
from kvreplay import Replay, open_store
from kvreplay.metrics import PrometheusMetrics

with open_store("memory:") as store:
    replay = Replay(store, "ns", ttl=60, tombstone_ttl=0, on_event=PrometheusMetrics())
    for _ in range(int(sys.argv[1])):
        replay.execute(("s", "k"), None, lambda: "r")
"""


def test_the_processes_of_a_server_are_added_up(tmp_path: Path, registry: Any) -> None:
    from prometheus_client import multiprocess

    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(requests)], env=environment)
        for requests in (3, 5)
    ]
    assert [worker.wait(60) for worker in workers] == [0, 0]
    multiprocess.MultiProcessCollector(registry, path=str(tmp_path))
    assert decisions(registry) == {"completed": 2, "replayed": 6}
    assert others(registry) == {"started": 2}
    counted = samples(registry, "kvreplay_request_seconds_count", "decision")
    assert counted == {"completed": 2, "replayed": 6}
    never_seen = {"namespace": "ns", "decision": "in_doubt"}
    assert registry.get_sample_value("kvreplay_requests_total", never_seen) == 0
    assert os.listdir(tmp_path)
