"""Figures of a load test: throughput, percentiles, goodput."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from drivetrain.errors import ConfigError, DrivetrainError
from drivetrain_server.bench.traffic import Sample

GOALS = ("ttft", "tpot", "latency")
TOLD_PROBLEMS = 5


class LoadFailed(DrivetrainError):
    """No request of a load test succeeded, so that there is nothing to measure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """Milliseconds."""

    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """What a load test measured. Throughput counts successful requests over the whole run, first send to last answer.

    Attributes:
        cached_tokens: prompt tokens that the server took from its prefix cache; not computed, so not comparable.
        problems: message to how many requests failed with it.
        ttft_ms: time to first token; itl_ms: gaps between events with tokens; tpot_ms: mean time per further token of
            each request; latency_ms: whole requests. None where nothing was measured.
        goals: the goals that were set, in milliseconds.
        good_requests_per_s: requests a second that met every goal; None without goals.
        good_share: their share of all requests, failed ones included; None without goals.
    """

    succeeded: int
    failed: int
    duration_s: float
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    requests_per_s: float
    output_tokens_per_s: float
    total_tokens_per_s: float
    ttft_ms: Distribution | None
    itl_ms: Distribution | None
    tpot_ms: Distribution | None
    latency_ms: Distribution | None
    goals: dict[str, float]
    good_requests_per_s: float | None
    good_share: float | None
    problems: dict[str, int]


def read_goals(texts: Sequence[str]) -> dict[str, float]:
    """Read goals such as `ttft=200`, in milliseconds.

    Raises:
        ConfigError: another name, or no positive number.
    """
    goals: dict[str, float] = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            limit = float(value)
        except ValueError:
            limit = 0.0
        if name not in GOALS or not 0 < limit < float("inf"):
            raise ConfigError(f'--goal: got "{text}", expected one of {", ".join(GOALS)}, "=" and milliseconds')
        goals[name] = limit
    return goals


def summarize(samples: Sequence[Sample], goals: Mapping[str, float] | None = None) -> LoadReport:
    """The report of all samples of one run; at least one."""
    good = [sample for sample in samples if sample.problem is None]
    duration_s = max(sample.done_s for sample in samples) - min(sample.sent_s for sample in samples)
    inputs = sum(sample.input_tokens for sample in good)
    outputs = sum(sample.output_tokens for sample in good)
    met = sum(_meets(sample, goals) for sample in good) if goals else 0
    return LoadReport(
        succeeded=len(good),
        failed=len(samples) - len(good),
        duration_s=duration_s,
        input_tokens=inputs,
        output_tokens=outputs,
        cached_tokens=sum(sample.cached_tokens for sample in good),
        requests_per_s=len(good) / duration_s,
        output_tokens_per_s=outputs / duration_s,
        total_tokens_per_s=(inputs + outputs) / duration_s,
        ttft_ms=distribution([sample.ttft_s for sample in good]),
        itl_ms=distribution([gap for sample in good for gap in sample.itl_s]),
        tpot_ms=distribution([tpot for sample in good if (tpot := sample.tpot_s) is not None]),
        latency_ms=distribution([sample.done_s - sample.sent_s for sample in good]),
        goals=dict(goals or {}),
        good_requests_per_s=met / duration_s if goals else None,
        good_share=met / len(samples) if goals else None,
        problems=dict(Counter(sample.problem for sample in samples if sample.problem is not None)),
    )


def check_any_succeeded(samples: Sequence[Sample], what: str) -> None:
    """Make sure that there is something to measure.

    Args:
        what: what the samples are, such as "requests".

    Raises:
        LoadFailed: none succeeded; says why.
    """
    problems = Counter(sample.problem for sample in samples if sample.problem is not None)
    if sum(problems.values()) < len(samples):
        return
    told = [
        problem if len(problems) == 1 else f"{count} with: {problem}"
        for problem, count in problems.most_common(TOLD_PROBLEMS)
    ]
    if len(problems) > TOLD_PROBLEMS:
        told.append(f"and {len(problems) - TOLD_PROBLEMS} other reasons")
    raise LoadFailed(f"none of {len(samples)} {what} succeeded: {'; '.join(told)}")


def distribution(seconds: Sequence[float]) -> Distribution | None:
    """Mean and percentiles (nearest rank) of some durations in seconds, as milliseconds; None of nothing."""
    if not seconds:
        return None
    ordered = sorted(second * 1000 for second in seconds)

    def rank(percent: int) -> float:
        return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]

    mean = sum(ordered) / len(ordered)
    return Distribution(mean=mean, p50=rank(50), p90=rank(90), p95=rank(95), p99=rank(99), max=ordered[-1])


def _meets(sample: Sample, goals: Mapping[str, float]) -> bool:
    reached = {"ttft": sample.ttft_s, "tpot": sample.tpot_s or 0.0, "latency": sample.done_s - sample.sent_s}
    return all(reached[name] * 1000 <= limit for name, limit in goals.items())
