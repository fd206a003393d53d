"""The suite itself keeps to the pages that a device takes a step, as core does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from drivetrain_cpu.attention import CpuAttention
from drivetrain_cpu.backend import CpuBackend
from drivetrain_plugins.conformance.run import run_conformance
from drivetrain_plugins.conformance.tiny_llama import PAGES_A_ROW


def pages_of_steps(*, limited: bool) -> list[int]:
    """What the rows of each step read together, over a device that may take no more than the longest row does."""
    seen: list[int] = []

    class Counting(CpuAttention):
        def plan(self, inputs: Any, shape: Any, batch: Any, cache: Any) -> Any:
            size, rows = cache.spec.page_size, batch.num_rows
            starts, queries = batch.section("row_start")[:rows], batch.section("query_start")[: rows + 1]
            seen.append(int((-(-(starts + queries[1:] - queries[:-1]) // size)).sum()))
            return super().plan(inputs, shape, batch, cache)

    class Counted(CpuBackend):
        def open(self, rank: Any, options: Any) -> Any:
            device: Any = super().open(rank, options)
            policy, device.attention = device.shape_policy, Counting()
            if limited:
                device.shape_policy = lambda limits: replace(policy(limits), max_total_pages=limits.max_pages)
            return device

    report = run_conformance(Counted, {"threads": 1}, only="model.")
    assert report.passed, report.failed
    return seen


def test_models_are_run_within_the_pages_of_a_step() -> None:
    limited, free = pages_of_steps(limited=True), pages_of_steps(limited=False)
    assert max(limited) == PAGES_A_ROW < max(free)
    assert len(limited) > len(free), "what does not fit goes into steps of its own"
