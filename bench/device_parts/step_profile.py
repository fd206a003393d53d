"""Where a decode step's time goes: device time by kernel, and the gaps in which the device waits.

Three readings of the same steady decoding: seconds a step without a profiler; kernels and their times from the
profiler's trace; and the idle gaps of that trace by the kernels around them. Kernels that overlap are counted once in
`busy_us`.
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch

from drivetrain.messages import GenerateRequest
from drivetrain.sampling import SamplingParams

if TYPE_CHECKING:
    from drivetrain.engine import Engine
    from workloads import Work

TIMED_STEPS = 64
TRACED_STEPS = 32
SHOWN_KERNELS = 40
SHOWN_GAPS = 12
NAME_CHARS = 110


@dataclass(frozen=True, slots=True)
class Span:
    """One kernel or copy, in microseconds."""

    start: float
    end: float
    name: str


def profile(engine: Engine, work: Work, *, temperature: float = 0.6) -> dict[str, Any]:
    """Profile steady decoding of the requests of a workload, all of them running."""
    room = TIMED_STEPS + TRACED_STEPS + 64
    for index, (prompt, answer) in enumerate(work):
        # Nobody ends before the last step that is measured.
        params = SamplingParams(temperature=temperature, max_tokens=max(answer, 2 * room), ignore_eos=True)
        engine.submit(GenerateRequest(request_id=f"profile-{index}", prompt_ids=prompt, params=params))
    try:
        started: set[str] = set()
        while len(started) < len(work):
            started |= {update.request_id for update in engine.step()}
        _steps(engine, 16)
        timed_s = _steps(engine, TIMED_STEPS)
        spans = _trace(engine)
    finally:
        for index in range(len(work)):
            engine.abort(f"profile-{index}")
        while engine.has_work:
            engine.step()
    return {"rows": len(work), "step_us": round(1e6 * timed_s / TIMED_STEPS, 1)} | summary(spans, TRACED_STEPS)


def _steps(engine: Engine, count: int) -> float:
    _synchronize()
    started = time.perf_counter()
    for _ in range(count):
        engine.step()
    _synchronize()
    return time.perf_counter() - started


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _trace(engine: Engine) -> list[Span]:
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    on_gpu = torch.cuda.is_available()
    activity, kind = (ProfilerActivity.CUDA, DeviceType.CUDA) if on_gpu else (ProfilerActivity.CPU, DeviceType.CPU)
    with profiler(activities=[activity]) as session:
        _steps(engine, TRACED_STEPS)
    spans = [
        Span(event.time_range.start, event.time_range.end, event.name)
        for event in session.events() or []
        # On a CPU only the outermost operations: the ones inside are part of their time.
        if event.device_type == kind and (on_gpu or event.cpu_parent is None)
    ]
    return sorted(spans, key=lambda span: span.start)


def summary(spans: list[Span], steps: int) -> dict[str, Any]:
    """Kernels by their share and gaps by their sum, each per step."""
    if not spans:
        return {"kernels": [], "gaps": [], "busy_us": 0.0, "idle_us": 0.0, "launches": 0.0}
    times: dict[str, list[float]] = defaultdict(list)
    for span in spans:
        times[span.name[:NAME_CHARS]].append(span.end - span.start)
    gaps: dict[tuple[str, str], list[float]] = defaultdict(list)
    end, last, idle = spans[0].end, spans[0], 0.0
    for _, span in pairwise(spans):
        if span.start > end:
            idle += span.start - end
            gaps[last.name[:NAME_CHARS], span.name[:NAME_CHARS]].append(span.start - end)
        if span.end >= end:
            end, last = span.end, span
    whole = end - spans[0].start
    total = sum(sum(each) for each in times.values())
    kernels = [
        {
            "name": name,
            "calls": round(len(each) / steps, 2),
            "us": round(sum(each) / steps, 2),
            "mean_us": round(sum(each) / len(each), 2),
            "share": round(sum(each) / total, 4),
        }
        for name, each in sorted(times.items(), key=lambda item: -sum(item[1]))
    ]
    waits = [
        {
            "after": after,
            "before": before,
            "count": round(len(each) / steps, 2),
            "us": round(sum(each) / steps, 2),
            "max_us": round(max(each), 1),
        }
        for (after, before), each in sorted(gaps.items(), key=lambda item: -sum(item[1]))
    ]
    return {
        "traced_step_us": round(whole / steps, 1),
        "busy_us": round((whole - idle) / steps, 1),
        "idle_us": round(idle / steps, 1),
        "launches": round(len(spans) / steps, 1),
        "kernels": kernels[:SHOWN_KERNELS],
        "gaps": waits[:SHOWN_GAPS],
    }
