"""Host cost of the scheduler: microseconds of schedule() and land() per decode step.

    python bench/scheduler_cost.py [--steps 2000]

One step ahead, as the engine runs it; ids are landed as ints; rows need new pages at different steps. Prints medians
and the 99th percentile per step, then the least of five runs of add() and of admission for prompts of 1,024 tokens.
"""

from __future__ import annotations

import argparse
import statistics
import time
from array import array

from drivetrain.request import Request
from drivetrain.sampling import SamplingParams
from drivetrain.scheduler import Schedule, Scheduler, SchedulerLimits

PROMPT = 128
PAGE = 16


def measure(num_rows: int, num_steps: int) -> tuple[list[float], list[float]]:
    """Decodes `num_rows` requests for `num_steps` steps; returns microseconds of schedule() and of land()."""
    length = PROMPT + PAGE + num_steps + 64
    limits = SchedulerLimits(
        max_num_rows=num_rows,
        max_step_tokens=8192,
        max_model_len=length + 1,
        page_size=PAGE,
        num_pages=num_rows * (length // PAGE + 2) + 1,
    )
    scheduler = Scheduler(limits)
    for at in range(num_rows):
        scheduler.add(
            Request(
                request_id=str(at),
                prompt_ids=array("i", range(at, at + PROMPT + at % PAGE)),
                params=SamplingParams(max_tokens=num_steps + 32),
                arrival_s=float(at),
                eos_ids=frozenset({-1}),
                max_total=length,
            )
        )
    flying: Schedule | None = None
    schedule_us: list[float] = []
    land_us: list[float] = []
    while len(schedule_us) < num_steps:
        start = time.perf_counter_ns()
        step = scheduler.schedule()
        scheduled = time.perf_counter_ns()
        steady = step is not None and step.num_decode_rows == num_rows
        if flying is not None:
            results = [7] * flying.num_samples
            before = time.perf_counter_ns()
            scheduler.land(flying, results)
            after = time.perf_counter_ns()
            if steady:
                schedule_us.append((scheduled - start) / 1e3)
                land_us.append((after - before) / 1e3)
        flying = step
    return schedule_us, land_us


def measure_admission(num_requests: int, num_prompt: int) -> tuple[float, float]:
    """Adds and admits requests that share nothing; returns microseconds per request of add() and of schedule()."""
    limits = SchedulerLimits(
        max_num_rows=num_requests,
        max_step_tokens=num_requests * num_prompt,
        max_model_len=2 * num_prompt,
        page_size=PAGE,
        num_pages=num_requests * (num_prompt // PAGE + 2) + 1,
    )
    scheduler = Scheduler(limits)
    requests = [
        Request(
            request_id=str(at),
            prompt_ids=array("i", range(at, at + num_prompt)),
            params=SamplingParams(max_tokens=16),
            arrival_s=0.0,
            max_total=2 * num_prompt,
        )
        for at in range(num_requests)
    ]
    start = time.perf_counter_ns()
    for request in requests:
        scheduler.add(request)
    added = time.perf_counter_ns()
    step = scheduler.schedule()
    end = time.perf_counter_ns()
    assert step is not None and len(step.rows) == num_requests
    return (added - start) / 1e3 / num_requests, (end - added) / 1e3 / num_requests


def main() -> None:
    """Prints one line a batch size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    steps = parser.parse_args().steps
    print(f"{'rows':>5} {'schedule us':>12} {'land us':>9} {'sum us':>8} {'p99 us':>8}")
    for num_rows in (1, 64, 256):
        schedule_us, land_us = measure(num_rows, steps)
        total = [a + b for a, b in zip(schedule_us, land_us, strict=True)]
        print(
            f"{num_rows:>5} {statistics.median(schedule_us):>12.1f} {statistics.median(land_us):>9.1f} "
            f"{statistics.median(total):>8.1f} {statistics.quantiles(total, n=100)[98]:>8.1f}"
        )
    add_us, admit_us = (min(times) for times in zip(*(measure_admission(64, 1024) for _ in range(5)), strict=True))
    print(f"add {add_us:.1f} us, admit {admit_us:.1f} us per request of 1024 tokens")


if __name__ == "__main__":
    main()
