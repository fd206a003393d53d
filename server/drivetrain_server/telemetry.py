"""What `/metrics` tells, in Prometheus's text format."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from drivetrain.messages import EngineInfo, EngineStats

REQUEST_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
FIRST_TOKEN_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
INTER_TOKEN_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 5.0)

_ENGINE_COUNTERS = {
    "steps": ("drivetrain_steps", "Steps of the engine"),
    "prompt_tokens": ("drivetrain_prompt_tokens", "Prompt tokens computed or taken from the prefix cache"),
    "generated_tokens": ("drivetrain_generated_tokens", "Tokens generated"),
    "prefix_hit_tokens": ("drivetrain_prefix_hit_tokens", "Prompt tokens taken from the prefix cache"),
    "prefix_query_tokens": ("drivetrain_prefix_query_tokens", "Prompt tokens looked up in the prefix cache"),
    "preemptions": ("drivetrain_preemptions", "Sequences preempted for want of pages"),
    "finished": ("drivetrain_finished_requests", "Requests that the engine finished"),
    "failed": ("drivetrain_failed_requests", "Requests that the engine failed"),
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
        names = [*(f"{bound:g}" for bound in self.bounds), "+Inf"]
        return list(zip(names, accumulate(self.counts), strict=True))


class Telemetry:
    """Counters and histograms of the HTTP side; the engine's own numbers are read when they are asked for."""

    def __init__(self) -> None:
        self._requests: dict[tuple[str, str, int], int] = {}
        self._latency: dict[str, Histogram] = {}
        self._first_token = Histogram(FIRST_TOKEN_BUCKETS_S)
        self._inter_token = Histogram(INTER_TOKEN_BUCKETS_S)
        self._disconnects = 0
        self._slow_readers = 0

    def request(self, route: str, method: str, status: int, elapsed_s: float) -> None:
        """Count an answered request."""
        key = (route, method, status)
        self._requests[key] = self._requests.get(key, 0) + 1
        if route not in self._latency:
            self._latency[route] = Histogram(REQUEST_BUCKETS_S)
        self._latency[route].observe(elapsed_s)

    def tokens(self, elapsed_s: float, count: int, *, first: bool) -> None:
        """Count new tokens of one choice, that came this long after its last ones (or after the request)."""
        if first:
            self._first_token.observe(elapsed_s)
        elif count:
            self._inter_token.observe(elapsed_s / count, count)

    def inter_token(self, elapsed_s: float) -> None:
        """Count one token that came so long after the one before it."""
        self._inter_token.observe(elapsed_s)

    def disconnect(self) -> None:
        """Count a client that went away before its answer was complete."""
        self._disconnects += 1

    def slow_reader(self) -> None:
        """Count a stream that was ended because its client stopped reading."""
        self._slow_readers += 1

    def render(self, *, ready: bool, info: EngineInfo | None, stats: EngineStats | None) -> bytes:
        """The text of `/metrics`."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Families([*self._http(), *_engine(ready, info, stats)]))
        return generate_latest(registry)

    def _http(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "drivetrain_http_requests", "Requests answered", labels=["route", "method", "status"]
        )
        for (route, method, status), count in self._requests.items():
            requests.add_metric([route, method, str(status)], count)
        yield requests
        latency = HistogramMetricFamily(
            "drivetrain_request_duration_seconds", "From arrival to the last byte of the answer", labels=["route"]
        )
        for route, histogram in self._latency.items():
            latency.add_metric([route], histogram.buckets(), histogram.total)
        yield latency
        for name, text, histogram in (
            ("drivetrain_time_to_first_token_seconds", "From arrival to the first token", self._first_token),
            ("drivetrain_inter_token_seconds", "Between tokens of one answer", self._inter_token),
        ):
            yield HistogramMetricFamily(name, text, buckets=histogram.buckets(), sum_value=histogram.total)
        for name, text, count in (
            ("drivetrain_client_disconnects", "Clients gone before their answer was complete", self._disconnects),
            ("drivetrain_slow_readers", "Streams ended because the client stopped reading", self._slow_readers),
        ):
            yield CounterMetricFamily(name, text, value=count)


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
    pages = GaugeMetricFamily("drivetrain_kv_pages", "KV pages by state", labels=["state"])
    for state, count in (("free", stats.pages_free), ("cached", stats.pages_cached), ("used", stats.pages_used)):
        pages.add_metric([state], count)
    yield pages
    yield GaugeMetricFamily("drivetrain_kv_pages_capacity", "All KV pages", value=stats.pages_total)
    for field, (name, text) in _ENGINE_COUNTERS.items():
        yield CounterMetricFamily(name, text, value=float(getattr(stats, field)))
