"""What runs before the first request says the truth about itself, and is as large as what follows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from drivetrain.recordings import padding_batch
from drivetrain.warm_up import WarmUp
from drivetrain_plugins.contract.executor import ExecutorLimits
from drivetrain_plugins.contract.memory import MemoryLimits
from drivetrain_plugins.contract.shapes import ShapePolicy

PAGE = 16
LIMITS = ExecutorLimits(
    dtype="float32",
    kv_dtype="float32",
    max_num_rows=6,
    max_step_tokens=200,
    max_model_len=128,
    page_size=PAGE,
    memory=MemoryLimits(max_pages=49),
)
POLICIES = {
    "plain": ShapePolicy(),
    "rows": ShapePolicy(row_buckets=(1, 2, 4, 6), max_captured_rows=6),
    "pages": ShapePolicy(
        row_buckets=(1, 2, 4, 7),
        token_buckets=(64, 200),
        page_buckets=(2, 4, 8),
        max_captured_rows=7,
        max_captured_tokens=200,
    ),
    "pages in all": ShapePolicy(
        row_buckets=(1, 2, 4, 7),
        mixed_row_buckets=(7,),
        token_buckets=(64, 200),
        total_page_buckets=(1, 2, 4, 8, 16, 32, 48),
        max_captured_rows=6,
        max_captured_tokens=200,
        records_all=True,
        samples_inside=False,
    ),
}


@pytest.mark.parametrize("rows", [1, 2, 6])
@pytest.mark.parametrize("name", POLICIES)
def test_steps_on_padding_read_no_more_than_they_say(name: str, rows: int) -> None:
    limits = replace(LIMITS, max_num_rows=rows)
    warm_up = WarmUp(POLICIES[name], limits)
    for layout, shape, features in warm_up.eager:
        batch = padding_batch(layout, shape, rows, features)
        assert batch.max_kv <= limits.max_model_len
        assert -(-batch.max_kv // PAGE) <= batch.max_pages == shape.pages
    for step in warm_up.recorded_first:
        # A padding row that takes the tokens no row has may be longer than any real one; positions end at the table.
        batch = padding_batch(step.layout, step.shape, rows)
        assert -(-min(batch.max_kv, limits.max_model_len) // PAGE) <= batch.max_pages


@pytest.mark.parametrize("name", POLICIES)
def test_the_first_step_is_as_large_as_any_that_follows(name: str) -> None:
    layout, shape, _ = WarmUp(POLICIES[name], LIMITS).eager[0]
    assert (layout.rows, layout.tokens, shape.pages) == (6, 200, 8)
    short = WarmUp(POLICIES[name], replace(LIMITS, max_num_rows=1)).eager[0][0]
    assert (short.rows, short.tokens) == (1, 128), "no row has more tokens than its context"
