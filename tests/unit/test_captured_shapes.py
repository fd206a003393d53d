"""Policies that record every shape: the list is all that a step can be padded to, and nothing else."""

from __future__ import annotations

import random

import pytest

from drivetrain.layouts import captured_layout, padded_shape
from drivetrain_plugins.contract.shapes import ShapePolicy, StepShape

PAGE = 16
LONGEST = 12
POLICY = ShapePolicy(
    mixed_steps=False,
    max_prefills_per_step=3,
    row_buckets=(1, 2, 4, 6),
    mixed_row_buckets=(4,),
    token_buckets=(32, 64, 128),
    total_page_buckets=(1, 2, 4, 8, 16, 32, 64, 72),
    max_captured_rows=6,
    max_captured_tokens=128,
    samples_inside=False,
    records_all=True,
    sealed=True,
)


def shape_of(lengths: list[int], tokens: list[int]) -> StepShape:
    """The shape of a step with so many keys in each row, and so many new tokens."""
    return padded_shape(
        POLICY,
        num_rows=len(lengths),
        num_tokens=sum(tokens),
        num_samples=len(lengths),
        pages=LONGEST,
        decode_only=sum(tokens) == len(tokens),
        total_pages=sum(-(-length // PAGE) for length in lengths),
    )


def test_every_step_within_the_limits_has_a_recorded_shape() -> None:
    recorded = POLICY.captured_shapes(page_size=PAGE, max_pages=LONGEST)
    assert len(set(recorded)) == len(recorded)
    rng = random.Random(3)
    met: set[StepShape] = set()
    for _ in range(60_000):
        rows = rng.randint(1, 6)
        met.add(shape_of([rng.randint(1, rng.choice((16, 60, LONGEST * PAGE))) for _ in range(rows)], [1] * rows))
        tokens = [rng.randint(1, rng.choice((2, 16, 42))) for _ in range(rng.randint(1, 3))]
        if sum(tokens) > len(tokens):
            lengths = [min(LONGEST * PAGE, count + rng.randint(0, rng.choice((1, 192)))) for count in tokens]
            met.add(shape_of(lengths, tokens))
    assert met <= set(recorded)
    # Nearly all that is recorded is met; the rest is at the edge of what can be reached.
    assert len(met) >= 0.9 * len(recorded)


def test_all_steps_of_a_shape_share_one_layout() -> None:
    shape = shape_of([16, 17], [1, 1])
    layouts = {
        captured_layout(shape, PAGE, page_updates=updates, admits=admits)
        for updates in (0, 1, 3)
        for admits in (False, True)
    }
    (layout,) = layouts
    assert layout is not None
    assert layout.page_updates == shape.total_pages == 4


@pytest.mark.parametrize("rows", [2, 6])
def test_pages_in_all_beyond_the_largest_bucket_are_refused_by_a_sealed_policy(rows: int) -> None:
    with pytest.raises(ValueError, match="pages in all"):
        POLICY.pad(rows=rows, tokens=rows, pages=1, decode_only=True, total_pages=73)


def test_policies_without_these_buckets_are_padded_as_before() -> None:
    shape = ShapePolicy(row_buckets=(4,)).pad(rows=3, tokens=3, pages=2, decode_only=True, total_pages=5)
    assert shape == StepShape(rows=4, tokens=4, pages=2, decode_only=True)
