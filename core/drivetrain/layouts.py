"""Sizes of packed batches that are captured: few and fixed, so that few recordings serve every step."""

from __future__ import annotations

from dataclasses import replace

from drivetrain_plugins.contract.batch import BatchLayout
from drivetrain_plugins.contract.shapes import ShapePolicy, StepShape

_MANY_PAGES = 8
"""A captured step has room for so many times the page updates of a usual one, where it needs more than those."""


def padded_shape(
    policy: ShapePolicy,
    *,
    num_rows: int,
    num_tokens: int,
    num_samples: int,
    pages: int,
    decode_only: bool,
    total_pages: int = 0,
) -> StepShape:
    """The shape that a step is padded to. Padding tokens get a padding row to belong to, and so do padding samples.

    Raises:
        ValueError: a sealed policy has no bucket for a step of this size.
    """
    shape = policy.pad(rows=num_rows, tokens=num_tokens, pages=pages, decode_only=decode_only, total_pages=total_pages)
    padded = shape.tokens > num_tokens or (shape.captured and num_samples < num_rows)
    if decode_only or not padded or shape.rows > num_rows:
        return shape
    return policy.pad(
        rows=num_rows + 1, tokens=shape.tokens, pages=shape.pages, decode_only=False, total_pages=total_pages
    )


def captured_layout(
    shape: StepShape,
    page_size: int,
    *,
    page_updates: int = 0,
    admits: bool = False,
    biases: int = 0,
    shared_groups: int = 0,
) -> BatchLayout | None:
    """The layout of a captured step of this shape.

    Args:
        page_updates: how many it has.
        admits: whether some of its slots are newly assigned.
        biases: how many it has; recordings read none of them.
        shared_groups: as how many groups shared prefixes are told.

    Returns:
        None if it has more page updates than any captured step of this shape has room for.
    """
    if shape.total_pages:  # one layout for every step of the shape
        return BatchLayout(
            rows=shape.rows,
            tokens=shape.tokens,
            samples=shape.rows,
            page_updates=shape.total_pages,
            slot_updates=shape.rows,
            biases=biases,
            shared_groups=shared_groups,
        )
    room = shape.rows if shape.decode_only else shape.rows + shape.tokens // page_size
    if page_updates > room:
        room *= _MANY_PAGES
    if page_updates > room:
        return None
    return BatchLayout(
        rows=shape.rows,
        tokens=shape.tokens,
        samples=shape.rows,
        page_updates=room,
        slot_updates=0 if shape.decode_only and not admits else shape.rows,
        biases=biases,
        shared_groups=shared_groups,
    )


def largest_layout(policy: ShapePolicy, *, rows: int, tokens: int, columns: int, page_size: int) -> BatchLayout:
    """A layout that hardly any step exceeds.

    Args:
        rows, tokens: of the largest step.
        columns: pages of the longest row.
    """
    rows = max((rows, *policy.row_buckets, *policy.mixed_row_buckets)) + 1
    tokens = max((tokens, *policy.token_buckets))
    most_updates = max((tokens // page_size + rows + columns, *policy.total_page_buckets))
    layout = BatchLayout(
        rows=rows,
        tokens=tokens,
        samples=rows,
        page_updates=most_updates,
        slot_updates=rows,
        biases=rows,
        shared_groups=policy.max_shared_groups,
    )
    captured = StepShape(rows=rows, tokens=min(tokens, policy.max_captured_tokens), pages=columns)
    most = captured_layout(captured, page_size)
    assert most is not None, "a step without page updates has room for them"
    return replace(layout, page_updates=max(layout.page_updates, _MANY_PAGES * most.page_updates))
