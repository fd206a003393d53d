"""Which step shapes a GPU backend records, as data."""

from __future__ import annotations

from drivetrain_plugins.contract.executor import ExecutorLimits
from drivetrain_plugins.contract.shapes import ShapePolicy

ROW_BUCKETS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256)
"""A step of few rows costs what its weights cost to read; near the next bucket padding costs at most a quarter."""

ROW_STEP = 64
"""Distance of further buckets."""

MIXED_ROW_BUCKETS = (8, 32, 128)
TOKEN_BUCKETS = (32, 64, 128, 256, 384, 512)
"""Steps with prefill up to the largest are recorded: there the host would take longer than the device. Each pair of
rows and tokens is a recording of its own, so the rows have fewer buckets; padding rows end at once."""

MAX_SHARED_GROUPS = 8
MIN_SHARED_ROWS = 4
MIN_SHARED_TOKENS = 512


def row_buckets(num_rows: int) -> tuple[int, ...]:
    """Buckets for decode steps of up to `num_rows` rows, the last one being `num_rows` itself."""
    regular = (*ROW_BUCKETS, *range(ROW_BUCKETS[-1] + ROW_STEP, num_rows, ROW_STEP))
    return (*(bucket for bucket in regular if bucket < num_rows), num_rows)


def shape_policy(limits: ExecutorLimits, *, graphs: bool) -> ShapePolicy:
    """The policy under these limits.

    Pages have no buckets: attention plans on the device, for any length. The rows of a step with prefill have room for
    one more, which its padding tokens belong to.
    """
    rows = row_buckets(limits.max_num_rows)
    if not graphs:
        return ShapePolicy(
            row_buckets=rows,
            max_shared_groups=MAX_SHARED_GROUPS,
            min_shared_rows=MIN_SHARED_ROWS,
            min_shared_tokens=MIN_SHARED_TOKENS,
        )
    most_mixed = limits.max_num_rows + 1
    tokens = tuple(bucket for bucket in TOKEN_BUCKETS if bucket <= limits.max_step_tokens)
    return ShapePolicy(
        row_buckets=rows,
        mixed_row_buckets=(*(bucket for bucket in MIXED_ROW_BUCKETS if bucket < most_mixed), most_mixed),
        token_buckets=tokens,
        max_captured_rows=rows[-1],
        max_captured_tokens=tokens[-1] if tokens else 0,
        max_shared_groups=MAX_SHARED_GROUPS,
        min_shared_rows=MIN_SHARED_ROWS,
        min_shared_tokens=MIN_SHARED_TOKENS,
    )
