"""What `/metrics` tells, in Prometheus's text format.

Each API process counts for itself; a `Reading` is what one has counted, and what is shown is the sum of all readings.
The names `gen_ai_*` are those of OpenTelemetry's semantic conventions for generative AI, so that dashboards made for
other servers find them here.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from drivetrain.messages import EngineInfo, EngineStats

REQUEST_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
FIRST_TOKEN_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
INTER_TOKEN_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 5.0)
QUEUE_BUCKETS_S = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
# As the semantic conventions have them.
GEN_AI_REQUEST_BUCKETS_S = tuple(0.01 * 2**power for power in range(14))
GEN_AI_FIRST_TOKEN_BUCKETS_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
)
GEN_AI_TOKEN_BUCKETS_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)


@dataclass(frozen=True, slots=True)
class _Kind:
    """A counter, or a histogram where it has bounds."""

    text: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()


_GEN_AI = ("gen_ai_operation_name",)
_KINDS = {
    "drivetrain_http_requests": _Kind("Requests answered", ("route", "method", "status")),
    "drivetrain_request_duration_seconds": _Kind(
        "From arrival to the last byte of the answer", ("route",), REQUEST_BUCKETS_S
    ),
    "drivetrain_time_to_first_token_seconds": _Kind("From arrival to the first token", bounds=FIRST_TOKEN_BUCKETS_S),
    "drivetrain_inter_token_seconds": _Kind("Between tokens of one answer", bounds=INTER_TOKEN_BUCKETS_S),
    "drivetrain_queue_seconds": _Kind("From arrival at the engine to admission to the batch", bounds=QUEUE_BUCKETS_S),
    "drivetrain_client_disconnects": _Kind("Clients gone before their answer was complete"),
    "drivetrain_slow_readers": _Kind("Streams ended because the client stopped reading"),
    "gen_ai_server_request_duration_seconds": _Kind("Duration of a request", _GEN_AI, GEN_AI_REQUEST_BUCKETS_S),
    "gen_ai_server_time_to_first_token_seconds": _Kind(
        "Time to generate the first token", _GEN_AI, GEN_AI_FIRST_TOKEN_BUCKETS_S
    ),
    "gen_ai_server_time_per_output_token_seconds": _Kind(
        "Time for each token after the first, mean of a request", _GEN_AI, GEN_AI_TOKEN_BUCKETS_S
    ),
}
_MODEL_LABEL = "gen_ai_request_model"

_ENGINE_COUNTERS = {
    "steps": ("drivetrain_steps", "Steps of the engine"),
    "prompt_tokens": ("drivetrain_prompt_tokens", "Prompt tokens computed or taken from the prefix cache"),
    "generated_tokens": ("drivetrain_generated_tokens", "Tokens generated"),
    "prefix_hit_tokens": ("drivetrain_prefix_hit_tokens", "Prompt tokens taken from the prefix cache"),
    "prefix_query_tokens": ("drivetrain_prefix_query_tokens", "Prompt tokens looked up in the prefix cache"),
    "preemptions": ("drivetrain_preemptions", "Sequences preempted for want of pages"),
    "finished": ("drivetrain_finished_requests", "Requests that the engine finished"),
    "failed": ("drivetrain_failed_requests", "Requests that the engine failed"),
    "aborted": (
        "drivetrain_aborted_requests",
        "Requests ended from outside, as by a stop string or a client that left",
    ),
    "step_s": ("drivetrain_step_seconds", "Seconds in which a step was under way, from its launch to its results"),
    "schedule_s": ("drivetrain_schedule_seconds", "Seconds spent scheduling and building batches"),
}


class Histogram:
    """Counts by bucket; one observation costs a bisection."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count `value` in, so many times."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    def buckets(self) -> list[tuple[str, float]]:
        """(upper bound, observations up to it), as Prometheus has them."""
        return buckets_of(self.bounds, self.counts)


def buckets_of(bounds: Sequence[float], counts: Sequence[int]) -> list[tuple[str, float]]:
    """(upper bound, observations up to it) of counts by bucket."""
    names = [*(f"{bound:g}" for bound in bounds), "+Inf"]
    return list(zip(names, accumulate(counts), strict=True))


class Reading(msgspec.Struct, frozen=True):
    """What one process has counted.

    Attributes:
        counters: (name, label values, count).
        histograms: (name, label values, observations by bucket, sum).
        open_requests: requests that are being answered.
    """

    counters: list[tuple[str, list[str], int]] = []
    histograms: list[tuple[str, list[str], list[int], float]] = []
    open_requests: int = 0


class Telemetry:
    """Counters and histograms of one process; the engine's own numbers are read when they are asked for."""

    def __init__(self) -> None:
        self._counters: dict[tuple[str, tuple[str, ...]], int] = {}
        self._histograms: dict[tuple[str, tuple[str, ...]], Histogram] = {}
        for name, kind in _KINDS.items():
            if not kind.labels and kind.bounds:
                self._histograms[name, ()] = Histogram(kind.bounds)
            elif not kind.labels:
                self._counters[name, ()] = 0
        self._first_token = self._histograms["drivetrain_time_to_first_token_seconds", ()]
        self._inter_token = self._histograms["drivetrain_inter_token_seconds", ()]
        self.inter_token = self._inter_token.observe
        """Count one token that came so many seconds after the one before it."""

    def request(self, route: str, method: str, status: int, elapsed_s: float) -> None:
        """Count an answered request."""
        self._count("drivetrain_http_requests", route, method, str(status))
        self._observe(elapsed_s, "drivetrain_request_duration_seconds", route)

    def tokens(self, elapsed_s: float, count: int, *, first: bool) -> None:
        """Count new tokens of one choice, that came this long after its last ones (or after the request)."""
        if first:
            self._first_token.observe(elapsed_s)
        elif count:
            self._inter_token.observe(elapsed_s / count, count)

    def queued(self, elapsed_s: float) -> None:
        """Count a request that waited so long in the engine before it ran."""
        self._observe(elapsed_s, "drivetrain_queue_seconds")

    def generated(self, operation: str, *, duration_s: float, first_token_s: float, num_tokens: int) -> None:
        """Count a complete answer of one prompt.

        Args:
            operation: `chat` or `text_completion`.
            first_token_s: from its arrival.
            num_tokens: of one choice, on the average.
        """
        self._observe(duration_s, "gen_ai_server_request_duration_seconds", operation)
        self._observe(first_token_s, "gen_ai_server_time_to_first_token_seconds", operation)
        if num_tokens > 1:
            mean_s = (duration_s - first_token_s) / (num_tokens - 1)
            self._observe(mean_s, "gen_ai_server_time_per_output_token_seconds", operation)

    def disconnect(self) -> None:
        """Count a client that went away before its answer was complete."""
        self._count("drivetrain_client_disconnects")

    def slow_reader(self) -> None:
        """Count a stream that was ended because its client stopped reading."""
        self._count("drivetrain_slow_readers")

    def reading(self, *, open_requests: int) -> Reading:
        """What has been counted until now."""
        return Reading(
            counters=[(name, list(labels), count) for (name, labels), count in self._counters.items()],
            histograms=[
                (name, list(labels), list(histogram.counts), histogram.total)
                for (name, labels), histogram in self._histograms.items()
            ],
            open_requests=open_requests,
        )

    def _count(self, name: str, *labels: str) -> None:
        key = (name, labels)
        self._counters[key] = self._counters.get(key, 0) + 1

    def _observe(self, value: float, name: str, *labels: str) -> None:
        key = (name, labels)
        histogram = self._histograms.get(key)
        if histogram is None:
            histogram = self._histograms[key] = Histogram(_KINDS[name].bounds)
        histogram.observe(value)


def merged(readings: Iterable[Reading]) -> Reading:
    """The sum of what several processes counted."""
    counters: dict[tuple[str, tuple[str, ...]], int] = {}
    histograms: dict[tuple[str, tuple[str, ...]], tuple[list[int], float]] = {}
    open_requests = 0
    for reading in readings:
        open_requests += reading.open_requests
        for name, labels, count in reading.counters:
            key = (name, tuple(labels))
            counters[key] = counters.get(key, 0) + count
        for name, labels, counts, total in reading.histograms:
            key = (name, tuple(labels))
            known, sum_s = histograms.get(key, ([0] * len(counts), 0.0))
            histograms[key] = ([one + other for one, other in zip(known, counts, strict=True)], sum_s + total)
    return Reading(
        counters=[(name, list(labels), count) for (name, labels), count in counters.items()],
        histograms=[(name, list(labels), counts, total) for (name, labels), (counts, total) in histograms.items()],
        open_requests=open_requests,
    )


def render(readings: Sequence[Reading], *, ready: bool, info: EngineInfo | None, stats: EngineStats | None) -> bytes:
    """The text of `/metrics`.

    Args:
        readings: one an API process; those of processes that have ended may be among them.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families([*_http(merged(readings), info), *_engine(ready, info, stats)]))
    return generate_latest(registry)


def _http(reading: Reading, info: EngineInfo | None) -> Iterator[Metric]:
    model = "" if info is None else info.model
    counters: dict[str, CounterMetricFamily] = {}
    histograms: dict[str, HistogramMetricFamily] = {}
    for name, kind in _KINDS.items():
        labels = [*kind.labels, *([_MODEL_LABEL] if kind.labels == _GEN_AI else [])]
        if kind.bounds:
            histograms[name] = HistogramMetricFamily(name, kind.text, labels=labels)
        else:
            counters[name] = CounterMetricFamily(name, kind.text, labels=labels)
    for name, labels, count in reading.counters:
        counters[name].add_metric(labels, count)
    for name, labels, counts, total in reading.histograms:
        kind = _KINDS[name]
        values = [*labels, *([model] if kind.labels == _GEN_AI else [])]
        histograms[name].add_metric(values, buckets_of(kind.bounds, counts), total)
    yield from counters.values()
    yield from histograms.values()
    yield GaugeMetricFamily("drivetrain_open_requests", "Requests that are being answered", value=reading.open_requests)


class _Families(Collector):
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _engine(ready: bool, info: EngineInfo | None, stats: EngineStats | None) -> Iterator[Metric]:
    yield GaugeMetricFamily("drivetrain_ready", "1 while new requests are taken", value=float(ready))
    if info is not None:
        about = GaugeMetricFamily(
            "drivetrain_engine_info", "What is served, and on what", labels=["model", "backend", "device", "dtype"]
        )
        about.add_metric([info.model, info.backend, info.device, info.dtype], 1)
        yield about
    if stats is None:
        return
    yield GaugeMetricFamily("drivetrain_requests_running", "Sequences in the batch", value=stats.running)
    yield GaugeMetricFamily("drivetrain_requests_waiting", "Requests that wait", value=stats.waiting)
    yield GaugeMetricFamily(
        "drivetrain_requests_awaiting_pages",
        "Requests that wait while the first of them finds too few KV pages",
        value=stats.awaiting_pages,
    )
    yield GaugeMetricFamily("drivetrain_requests_held", "Sequences that sit steps out now", value=stats.held)
    held = CounterMetricFamily("drivetrain_held_rows", "Times that a sequence sat steps out", labels=["awaited"])
    held.add_metric(["mask"], stats.held_for_masks)
    held.add_metric(["pages"], stats.held_for_pages)
    yield held
    pages = GaugeMetricFamily("drivetrain_kv_pages", "KV pages by state", labels=["state"])
    for state, count in (("free", stats.pages_free), ("cached", stats.pages_cached), ("used", stats.pages_used)):
        pages.add_metric([state], count)
    yield pages
    yield GaugeMetricFamily("drivetrain_kv_pages_capacity", "All KV pages", value=stats.pages_total)
    for field, (name, text) in _ENGINE_COUNTERS.items():
        yield CounterMetricFamily(name, text, value=float(getattr(stats, field)))
