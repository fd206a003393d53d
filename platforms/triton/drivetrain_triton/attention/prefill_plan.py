"""Which program of prefill attention serves which tokens: made on the device, so that a captured plan stays right.

R rows, W work items.
"""

# Relaxed: Triton's language is untyped.
# pyright: basic, reportAttributeAccessIssue=false

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl

from drivetrain_plugins.contract.batch import StepBatch
from drivetrain_plugins.contract.shapes import StepShape
from drivetrain_plugins.contract.slots import StepInputs
from drivetrain_triton.launch import launch

PLAN_ITEMS = 64
PLAN_ROWS = 64
"""Work items of a planning program, and rows that it compares them with at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillPlan:
    """Work of prefill attention in one step, shared by all layers with equal `block_tokens`.

    Attributes:
        work_W8: (W, 8) int32, one line a block of query tokens, longest contexts first, unused lines last. Columns:
            first token of the step, number of query tokens (0 in unused lines), position of the first, keys that the
            last one sees (0 for rows of padding), slot, and three unused. So a program reads one line and no more.
        block_tokens: query tokens of a block.
        num_items: W; 0 if no row has more than one query token.
    """

    work_W8: torch.Tensor
    block_tokens: int
    num_items: int


@triton.jit
def _count_longer(start_R, length_R, blocks_R, end, BLOCK_Q: tl.constexpr):
    """Blocks of each row whose last key lies beyond `end`."""
    full_R = tl.maximum(blocks_R - 1, 0)
    shorter = tl.minimum(tl.maximum(end - start_R, 0) // BLOCK_Q, full_R)
    return full_R - shorter + ((blocks_R > 0) & (start_R + length_R > end)).to(tl.int32)


@triton.jit
def _load_rows(row_R, row_slot, row_start, query_start, num_rows, dummy_slot, BLOCK_Q: tl.constexpr):
    """(tokens in pages, query tokens, blocks) of rows; rows of padding start far below 0, behind all others."""
    mask_R = row_R < num_rows
    first_R = tl.load(query_start + row_R, mask=mask_R, other=0)
    length_R = (tl.load(query_start + row_R + 1, mask=mask_R, other=0) - first_R).to(tl.int32)
    start_R = tl.load(row_start + row_R, mask=mask_R, other=0).to(tl.int32)
    slot_R = tl.load(row_slot + row_R, mask=mask_R, other=0)
    start_R = tl.where(slot_R == dummy_slot, -(1 << 30), start_R)
    blocks_R = tl.where(length_R > 1, tl.cdiv(length_R, BLOCK_Q), 0)
    return start_R, length_R, blocks_R


@triton.jit(
    do_not_specialize=["num_rows", "num_items", "dummy_slot"],
    do_not_specialize_on_alignment=["work", "row_slot", "row_start", "query_start"],
)
def plan_kernel(
    work, row_slot, row_start, query_start, num_rows, num_items, dummy_slot,
    BLOCK_Q: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_R: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of work items). Finds each item's row, then its rank among all items by context length.

    The rank needs no sort: the blocks of a row end at regular distances, so those longer than any length are counted
    in closed form, row by row.
    """
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    item_W = tl.program_id(0) * BLOCK_W + tl.arange(0, BLOCK_W)
    lane_R = tl.arange(0, BLOCK_R)
    row_W = tl.zeros([BLOCK_W], tl.int32)
    base_W = tl.zeros([BLOCK_W], tl.int32)
    total = 0
    for first in range(0, num_rows, BLOCK_R):
        row_R = first + lane_R
        _, _, blocks_R = _load_rows(row_R, row_slot, row_start, query_start, num_rows, dummy_slot, BLOCK_Q)
        end_R = total + tl.cumsum(blocks_R, 0)
        done_WR = (end_R[None, :] <= item_W[:, None]) & (row_R < num_rows)[None, :]
        row_W += tl.sum(done_WR.to(tl.int32), 1)
        base_W = tl.maximum(base_W, tl.max(tl.where(done_WR, end_R[None, :], 0), 1))
        total += tl.sum(blocks_R, 0)

    used_W = item_W < total
    first_query_W = (item_W - base_W) * BLOCK_Q
    start_W, length_W, _ = _load_rows(row_W, row_slot, row_start, query_start, num_rows, dummy_slot, BLOCK_Q)
    end_W = start_W + tl.minimum(first_query_W + BLOCK_Q, length_W)
    rank_W = tl.zeros([BLOCK_W], tl.int32)
    for first in range(0, num_rows, BLOCK_R):
        row_R = first + lane_R
        start_R, length_R, blocks_R = _load_rows(
            row_R, row_slot, row_start, query_start, num_rows, dummy_slot, BLOCK_Q
        )  # fmt: skip
        # Equal lengths rank in the order of rows.
        end_WR = end_W[:, None] - (row_R[None, :] < row_W[:, None]).to(tl.int32)
        longer_WR = _count_longer(start_R[None, :], length_R[None, :], blocks_R[None, :], end_WR, BLOCK_Q)
        rank_W += tl.sum(longer_WR, 1)
    line_W = work + 8 * tl.where(used_W, rank_W, item_W)
    mask_W = item_W < num_items
    token_W = tl.load(query_start + row_W, mask=used_W, other=0).to(tl.int32) + first_query_W
    count_W = tl.where(used_W, tl.minimum(BLOCK_Q, length_W - first_query_W), 0)
    padding_W = start_W < 0
    tl.store(line_W, token_W, mask=mask_W)
    tl.store(line_W + 1, count_W, mask=mask_W)
    tl.store(line_W + 2, tl.where(padding_W, 0, start_W + first_query_W), mask=mask_W)
    tl.store(line_W + 3, tl.where(padding_W, 0, end_W), mask=mask_W)
    tl.store(line_W + 4, tl.load(row_slot + row_W, mask=used_W, other=0).to(tl.int32), mask=mask_W)


def count_items(shape: StepShape, batch: StepBatch | None, block_tokens: int) -> int:
    """How many blocks of query tokens a step has: exactly if `batch` is known, else at most."""
    if shape.decode_only:
        return 0
    if batch is None:
        return shape.tokens // block_tokens + shape.rows
    lengths = np.diff(batch.section("query_start"))
    return int((-(-lengths[lengths > 1] // block_tokens)).sum())


def make_plan(
    inputs: StepInputs, shape: StepShape, batch: StepBatch | None, *, block_tokens: int, pdl: bool, num_warps: int = 4
) -> PrefillPlan:
    """List the blocks of all rows with more than one query token, longest contexts first.

    Args:
        inputs: the step on the device; reads row_slot_R, row_start_R and query_start_R1.
        shape: padded upper bounds.
        batch: the host's view, for a list without unused entries; None while capturing.
        block_tokens: query tokens of a block.
        pdl: launch with programmatic dependent launch.
        num_warps: of planning itself.
    """
    num_items = count_items(shape, batch, block_tokens)
    work_W8 = torch.empty(num_items, 8, dtype=torch.int32, device=inputs.row_slot_R.device)
    if num_items:
        launch(
            plan_kernel,
            (-(-num_items // PLAN_ITEMS),),
            work_W8,
            inputs.row_slot_R,
            inputs.row_start_R,
            inputs.query_start_R1,
            inputs.row_slot_R.shape[0],
            num_items,
            inputs.page_table_SP.shape[0] - 1,
            num_warps=num_warps,
            pdl=pdl,
            BLOCK_Q=block_tokens,
            BLOCK_W=PLAN_ITEMS,
            BLOCK_R=PLAN_ROWS,
        )
    return PrefillPlan(work_W8=work_W8, block_tokens=block_tokens, num_items=num_items)
