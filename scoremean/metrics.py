"""The metrics of a service as Prometheus text: the integers that others count, rendered when somebody asks.

Format: https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence

from prometheus_client import ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from scoremean import counts
from scoremean.counts import NANOSECONDS, STATUSES, Counts, Histogram, request_cell
from scoremean.model import Stats

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_COUNTERS = {
    "scores": (counts.SCORES, "Scores counted; one that is voided later stays counted here."),
    "replays": (counts.REPLAYS, "Scores whose id was known, so that they counted nothing."),
    "voids": (counts.VOIDS, "Scores voided."),
}
_GAUGES = {
    "queue_scores": (counts.QUEUE_SCORES, "Scores that wait for a commit or are in one."),
    "connections": (counts.CONNECTIONS, "Connections open, as of the last second."),
    "journal_entries": (counts.JOURNAL_ENTRIES, "Tallies and ids in the journal, which folds write in place."),
    "disk_free_bytes": (counts.DISK_FREE_BYTES, "Free space of the store's disk, as of the last commit."),
}
_HISTOGRAMS = {
    "commit_duration_seconds": (counts.COMMIT_DURATION, NANOSECONDS, "How long a commit took, until it was durable."),
    "commit_scores": (counts.COMMIT_SCORES, 1, "Changes that one commit held: scores, replays, voids."),
    "fold_duration_seconds": (counts.FOLD_DURATION, NANOSECONDS, "How long the part of a fold took that is in a commit."),
}
_STATS = {
    "store_uuids": ("uuids", "UUIDs with a score."),
    "store_scores": ("scores", "Scores in the tallies."),
    "store_ids": ("ids", "Ids kept."),
    "store_size_bytes": ("store_size_bytes", "Size of the store."),
    "store_size_max_bytes": ("store_size_max_bytes", "Size that the store may grow to."),
}


class Metrics:
    """What one scrape gets.

    Args:
        source: the counts of all processes of the service.
        stats: what the store holds.
        routes: the method and path of each route, in the order of their numbers.
        version: of the service.
    """

    def __init__(self, source: Counts, stats: Stats, routes: Sequence[tuple[str, str]], version: str):
        self._counts = source
        self._stats = stats
        self._routes = routes
        self._version = version

    def text(self) -> bytes:
        """Return them in Prometheus's text format, version 0.0.4."""
        return generate_latest(self)  # type: ignore[arg-type]  # all that it asks of a registry is `collect`

    def collect(self) -> Iterator[Metric]:
        """Yield every metric."""
        total = self._counts.total
        for name, (cell, text) in _COUNTERS.items():
            yield CounterMetricFamily(f"scoremean_{name}", text, total(cell))
        yield self._requests()
        for name, (cell, text) in _GAUGES.items():
            yield GaugeMetricFamily(f"scoremean_{name}", text, total(cell))
        for name, (histogram, unit, text) in _HISTOGRAMS.items():
            yield self._histogram(f"scoremean_{name}", text, histogram, unit)
        for name, (member, text) in _STATS.items():
            yield GaugeMetricFamily(f"scoremean_{name}", text, getattr(self._stats, member))
        text = "Always 1; the versions are in the labels."
        build = GaugeMetricFamily("scoremean_build_info", text, labels=("version", "python"))
        build.add_metric((self._version, platform.python_version()), 1)
        yield build
        yield from self._processes()

    def _requests(self) -> Metric:
        text = "Requests answered; what is no request of a route has none as method and route."
        family = CounterMetricFamily("scoremean_http_requests", text, labels=("method", "route", "status"))
        for number, (method, path) in enumerate([("none", "none"), *self._routes]):
            for status in STATUSES:
                if answered := self._counts.total(request_cell(number, status)):
                    family.add_metric((method, path, str(status)), answered)
        return family

    def _histogram(self, name: str, text: str, histogram: Histogram, unit: int) -> Metric:
        *values, total = self._counts.totals(histogram.start, histogram.end)
        bounds = [*(str(bound / unit) for bound in histogram.bounds), "+Inf"]
        cumulative = [sum(values[: place + 1]) for place in range(len(values))]
        return HistogramMetricFamily(name, text, list(zip(bounds, cumulative)), total / unit)

    def _processes(self) -> Iterator[Metric]:
        """Yield what Prometheus's own clients tell of a process: of several, the sum, and the start of the first."""
        families: dict[str, Metric] = {}
        starts = []
        for process_id in self._counts.process_ids():
            for family in ProcessCollector(pid=lambda found=process_id: found, registry=None).collect():
                if family.name == "process_start_time_seconds":
                    starts.append(family.samples[0].value)
                elif (known := families.setdefault(family.name, family)) is not family:
                    known.samples[0] = known.samples[0]._replace(value=known.samples[0].value + family.samples[0].value)
        yield from families.values()
        if starts:  # a sandbox may hide what this needs of /proc
            text = "Unix time in seconds at which the service started."
            yield GaugeMetricFamily("process_start_time_seconds", text, min(starts))
