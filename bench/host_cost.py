"""Host cost of a step: scheduler, batch building and the step loop against a device that answers at once.

    python bench/host_cost.py [--rows 1 64 256] [--steps 400]

The null executor returns random tokens, so what is timed is what the host adds to every step of a real device.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time

import numpy as np

from drivetrain.batch import BatchBuilder
from drivetrain.engine import Engine
from drivetrain.messages import EngineInfo, GenerateRequest
from drivetrain.sampling import SamplingParams
from drivetrain.scheduler import Scheduler, SchedulerLimits
from drivetrain_plugins.contract.batch import StepBatch, StepOutput
from drivetrain_plugins.contract.executor import Executor
from drivetrain_plugins.contract.shapes import ShapePolicy

PAGE_SIZE = 64
PROMPT_TOKENS = 512
VOCAB_SIZE = 32_000


class NullExecutor(Executor):
    """Answers every step at once with random tokens."""

    def __init__(self) -> None:
        self._random = np.random.default_rng(0)

    @property
    def shape_policy(self) -> ShapePolicy:
        return ShapePolicy(row_buckets=(1, 2, 4, *range(8, 257, 8)), max_captured_rows=256)

    def load(self, spec, weights, limits, progress):
        raise AssertionError("the null executor has no model")

    def execute(self, batch: StepBatch) -> NullTicket:
        return NullTicket(self._random.integers(1000, VOCAB_SIZE, batch.num_samples, dtype=np.int32))

    def close(self) -> None:
        return None


class NullTicket:
    """A step that is over."""

    def __init__(self, ids: np.ndarray) -> None:
        self._ids = ids

    def ready(self) -> bool:
        return True

    def wait(self) -> StepOutput:
        return StepOutput(token_ids=self._ids)


def null_engine(rows: int, *, max_step_tokens: int = 8192, overlap: bool = True) -> Engine:
    """An engine on the null executor with room for `rows` requests of the default context."""
    max_model_len = 4096
    num_pages = rows * (max_model_len // PAGE_SIZE) + 1
    executor = NullExecutor()
    scheduler = Scheduler(
        SchedulerLimits(
            max_num_rows=rows,
            max_step_tokens=max_step_tokens,
            max_model_len=max_model_len,
            page_size=PAGE_SIZE,
            num_pages=num_pages,
            overlap=int(overlap),
        )
    )
    builder = BatchBuilder(policy=executor.shape_policy, dummy_slot=rows, page_size=PAGE_SIZE)
    info = EngineInfo(
        model="null",
        architecture="null",
        backend="null",
        device="null",
        dtype="none",
        vocab_size=VOCAB_SIZE,
        max_model_len=max_model_len,
        num_pages=num_pages,
        page_size=PAGE_SIZE,
        max_num_rows=rows,
        max_step_tokens=max_step_tokens,
        kv_bytes=0,
        weight_bytes=0,
    )
    return Engine(
        executor=executor, scheduler=scheduler, builder=builder, info=info, end_ids=frozenset({0}), overlap=overlap
    )


def time_decode(rows: int, steps: int) -> dict[str, float]:
    """Median and 99th percentile of a decode step with `rows` sequences, in microseconds."""
    engine = null_engine(rows)
    rng = np.random.default_rng(1)
    for index in range(rows):
        prompt = rng.integers(1000, VOCAB_SIZE, PROMPT_TOKENS).tolist()
        params = SamplingParams(temperature=0.0, max_tokens=steps + 64, ignore_eos=True)
        engine.submit(GenerateRequest(request_id=str(index), prompt_ids=prompt, params=params))
    while engine.stats().running < rows:
        engine.step()
    for _ in range(32):
        engine.step()
    gc.collect()
    times: list[float] = []
    for _ in range(steps):
        started = time.perf_counter()
        updates = engine.step()
        times.append(time.perf_counter() - started)
        if len(updates) != rows:
            raise SystemExit(f"a decode step of {rows} rows brought {len(updates)} updates")
    times.sort()
    return {
        "rows": rows,
        "median_us": round(statistics.median(times) * 1e6, 1),
        "p99_us": round(times[int(len(times) * 0.99)] * 1e6, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 64, 256])
    parser.add_argument("--steps", type=int, default=400)
    arguments = parser.parse_args()
    for rows in arguments.rows:
        print(json.dumps(time_decode(rows, arguments.steps)), flush=True)


if __name__ == "__main__":
    main()
