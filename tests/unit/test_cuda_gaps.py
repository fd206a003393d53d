"""What the CUDA kernels cannot serve is refused before anything is loaded."""

from __future__ import annotations

import pytest

from drivetrain_cuda.gaps import kernel_gaps
from drivetrain_plugins.contract.executor import ExecutorLimits
from drivetrain_plugins.contract.memory import MemoryLimits


def limits(rows: int) -> ExecutorLimits:
    return ExecutorLimits(
        dtype="bfloat16",
        kv_dtype="bfloat16",
        max_num_rows=rows,
        max_step_tokens=8192,
        max_model_len=8192,
        page_size=64,
        memory=MemoryLimits(),
    )


@pytest.mark.parametrize("arch", ["sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"])
def test_known_parts_serve_usual_limits(arch: str) -> None:
    assert kernel_gaps(limits(512), arch, batch_invariant=True) == []


def test_more_rows_than_a_grid_holds() -> None:
    assert kernel_gaps(limits(32_000), "sm_90", batch_invariant=False) == []
    (gap,) = kernel_gaps(limits(32_001), "sm_90", batch_invariant=False)
    assert "32001 sequences" in gap
    (gap,) = kernel_gaps(limits(5_000), "sm_90", batch_invariant=True)
    assert "the 4000 that attention serves" in gap


def test_a_part_without_tables_is_named_with_those_that_have_one() -> None:
    (gap,) = kernel_gaps(limits(8), "sm_110", batch_invariant=False)
    assert "sm_110" in gap
    assert "sm_90" in gap
