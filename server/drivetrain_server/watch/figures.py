"""What happened between two readings, in the figures that people look at."""

from __future__ import annotations

from dataclasses import dataclass

from drivetrain_server.watch.reading import Buckets, Reading

FIRST_TOKEN = "drivetrain_time_to_first_token_seconds"
INTER_TOKEN = "drivetrain_inter_token_seconds"
ENDED = ("drivetrain_finished_requests_total", "drivetrain_aborted_requests_total")


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Percentiles in milliseconds, interpolated inside the histogram's buckets."""

    p50_ms: float
    p95_ms: float
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """A server at a glance. Rates are over `interval_s`, the time between the two readings.

    Attributes:
        busy: share of the time in which a step was under way.
        batch: tokens that a step generated, on average.
        prefix_hits: share of the prompt tokens that came from the prefix cache; None where no prompt came.
        ttft, itl: of the interval; None where nothing was observed.
        pages: KV pages by state, and `capacity`.
    """

    model: str
    backend: str
    device: str
    dtype: str
    status: str
    interval_s: float
    running: int
    waiting: int
    pages: dict[str, int]
    kv_used: float
    generated_per_s: float
    prompt_per_s: float
    requests_per_s: float
    failed: int
    preemptions: int
    busy: float
    batch: float
    prefix_hits: float | None
    ttft: Latency | None
    itl: Latency | None


def figures(before: Reading, now: Reading) -> Figures:
    """The figures at `now`. A counter that fell began anew in between, and counts from zero."""
    passed = max(now.at_s - before.at_s, 1e-9)

    def grown(name: str) -> float:
        return since(before.value(name), now.value(name))

    states = {state: int(now.value("drivetrain_kv_pages", state=state)) for state in ("used", "cached", "free")}
    capacity = int(now.value("drivetrain_kv_pages_capacity"))
    steps = grown("drivetrain_steps_total")
    generated = grown("drivetrain_generated_tokens_total")
    looked_up = grown("drivetrain_prefix_query_tokens_total")
    about = now.labels("drivetrain_engine_info")
    status = "ready" if now.ready else "not ready" if now.engine else "starting"
    return Figures(
        model=about.get("model", ""),
        backend=about.get("backend", ""),
        device=about.get("device", ""),
        dtype=about.get("dtype", ""),
        status=status,
        interval_s=passed,
        running=int(now.value("drivetrain_requests_running")),
        waiting=int(now.value("drivetrain_requests_waiting")),
        pages=states | {"capacity": capacity},
        kv_used=states["used"] / capacity if capacity else 0.0,
        generated_per_s=generated / passed,
        prompt_per_s=grown("drivetrain_prompt_tokens_total") / passed,
        requests_per_s=sum(map(grown, ENDED)) / passed,
        failed=int(now.value("drivetrain_failed_requests_total")),
        preemptions=int(now.value("drivetrain_preemptions_total")),
        busy=min(1.0, grown("drivetrain_step_seconds_total") / passed),
        batch=generated / steps if steps else 0.0,
        prefix_hits=grown("drivetrain_prefix_hit_tokens_total") / looked_up if looked_up else None,
        ttft=latency(before.buckets(FIRST_TOKEN), now.buckets(FIRST_TOKEN)),
        itl=latency(before.buckets(INTER_TOKEN), now.buckets(INTER_TOKEN)),
    )


def since(before: float, now: float) -> float:
    """How far a counter has grown."""
    return now - before if now >= before else now


def latency(before: Buckets, now: Buckets) -> Latency | None:
    """Percentiles of what was observed between two states of a histogram; None of nothing."""
    earlier = dict(before)
    grown = [(bound, count - earlier.get(bound, 0.0)) for bound, count in now]
    if any(count < 0 for _, count in grown):
        grown = list(now)
    if not grown or grown[-1][1] <= 0:
        return None
    return Latency(p50_ms=_quantile(grown, 0.5), p95_ms=_quantile(grown, 0.95), count=int(grown[-1][1]))


def _quantile(buckets: list[tuple[float, float]], share: float) -> float:
    """Milliseconds below which this share lies; what lies beyond the last finite bound counts as that bound."""
    rank = share * buckets[-1][1]
    lower, below = 0.0, 0.0
    for bound, count in buckets:
        if count >= rank and count > below:
            if bound == float("inf"):
                return lower * 1000
            return (lower + (bound - lower) * (rank - below) / (count - below)) * 1000
        lower, below = bound, count
    return lower * 1000
