"""From a packed batch of differences to a step's inputs in two kernels.

S slots, P page-table columns, C slot columns, R rows, T tokens, K samples, U page-table updates.
"""

# Relaxed: Triton's language is untyped; what it declares about itself holds for its compiler only.
# pyright: basic, reportArgumentType=false, reportAttributeAccessIssue=false, reportOperatorIssue=false

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl

from drivetrain_plugins.contract.batch import NUM_SLOT_COLUMNS, BatchLayout
from drivetrain_plugins.contract.slots import SlotState, StepInputs
from drivetrain_triton.arch import GpuArch
from drivetrain_triton.launch import launch

_BLOCK = 128
_ALIGNMENT = 2
"""Int64 elements in 16 bytes: sections begin where vector loads may."""


@triton.jit(do_not_specialize=["pages_at", "slots_at", "page_updates", "slot_updates"])
def apply_updates_kernel(
    packed,
    page_table_SP,
    params_SC,
    pages_at,
    slots_at,
    page_updates,
    slot_updates,
    P,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Write a batch's page-table entries and slot parameters. The first programs take the pages."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    page_programs = tl.cdiv(page_updates, BLOCK)
    program = tl.program_id(0)
    if program < page_programs:
        u = program * BLOCK + tl.arange(0, BLOCK)
        mask = u < page_updates
        update = packed + pages_at + u * 3
        slot, column = tl.load(update, mask, other=0), tl.load(update + 1, mask, other=0)
        tl.store(page_table_SP + slot.to(tl.int64) * P + column, tl.load(update + 2, mask, other=0), mask)
    else:
        at = (program - page_programs) * BLOCK + tl.arange(0, BLOCK)
        line, column = at // C, at % C
        mask = line < slot_updates
        update = packed + slots_at + line * (C + 1)
        slot = tl.load(update, mask, other=0)
        tl.store(params_SC + slot * C + column, tl.load(update + 1 + column, mask, other=0), mask)


@triton.jit(
    do_not_specialize=["start_at", "query_at", "ids_at", "token_row_at", "sample_at", "rows", "tokens", "samples"]
)
def derive_kernel(
    packed,
    last_token_S,
    page_table_SP,
    ids_T,
    positions_T,
    kv_slots_T,
    token_row_T,
    row_slot_R,
    row_start_R,
    kv_len_R,
    query_start_R1,
    sample_token_K,
    sample_slot_K,
    sample_position_K,
    start_at,
    query_at,
    ids_at,
    token_row_at,
    sample_at,
    rows,
    tokens,
    samples,
    P,
    PAGE: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """A block of tokens, of rows and of samples a program; everything is read from the packed batch and the slots."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)

    mask = i < tokens
    row = tl.load(packed + token_row_at + i, mask, other=0)
    slot = tl.load(packed + row, mask, other=0).to(tl.int64)
    token_id = tl.load(packed + ids_at + i, mask, other=0)
    token_id = tl.where(token_id < 0, tl.load(last_token_S + slot, mask, other=0), token_id)
    position = tl.load(packed + start_at + row, mask, other=0) + i - tl.load(packed + query_at + row, mask, other=0)
    # A padding row may be longer than any sequence: its tokens stay within the page table and the rotary tables.
    position = tl.minimum(position, P * PAGE - 1)
    page = tl.load(page_table_SP + slot * P + position // PAGE, mask, other=0).to(tl.int64)
    tl.store(ids_T + i, token_id.to(tl.int64), mask)
    tl.store(positions_T + i, position.to(tl.int64), mask)
    tl.store(kv_slots_T + i, page * PAGE + position % PAGE, mask)
    tl.store(token_row_T + i, row.to(tl.int64), mask)

    mask = i < rows
    start = tl.load(packed + start_at + i, mask, other=0)
    first = tl.load(packed + query_at + i, i <= rows, other=0)
    behind = tl.load(packed + query_at + i + 1, mask, other=0)
    tl.store(row_slot_R + i, tl.load(packed + i, mask, other=0).to(tl.int64), mask)
    tl.store(row_start_R + i, start.to(tl.int64), mask)
    tl.store(kv_len_R + i, (start + behind - first).to(tl.int64), mask)
    tl.store(query_start_R1 + i, first.to(tl.int64), i <= rows)

    mask = i < samples
    row = tl.load(packed + sample_at + i, mask, other=0)
    start, behind = tl.load(packed + start_at + row, mask, other=0), tl.load(packed + query_at + row + 1, mask, other=0)
    first = tl.load(packed + query_at + row, mask, other=0)
    tl.store(sample_token_K + i, (behind - 1).to(tl.int64), mask)
    tl.store(sample_slot_K + i, tl.load(packed + row, mask, other=0).to(tl.int64), mask)
    tl.store(sample_position_K + i, (start + behind - first).to(tl.int64), mask)


def prepare(packed: torch.Tensor, layout: BatchLayout, slots: SlotState, page_size: int, arch: GpuArch) -> StepInputs:
    """As `contract.reference.prepare`: update the slots by a packed batch, then derive its inputs.

    Args:
        packed: int32, at least `layout.size` long; kept, as some inputs are views of it.
    """
    offsets = _offsets(layout)
    columns = slots.page_table_SP.shape[1]
    page_programs = triton.cdiv(layout.page_updates, _BLOCK)
    updates = (offsets["page_updates"], offsets["slot_updates"], layout.page_updates, layout.slot_updates, columns)
    launch(
        apply_updates_kernel,
        (page_programs + triton.cdiv(layout.slot_updates * NUM_SLOT_COLUMNS, _BLOCK),),
        *(packed, slots.page_table_SP, slots.params_SC, *updates),
        pdl=arch.pdl,
        C=NUM_SLOT_COLUMNS,
        BLOCK=_BLOCK,
    )
    rows, tokens, samples = layout.rows, layout.tokens, layout.samples
    sizes = (tokens, tokens, tokens, tokens, rows, rows, rows, rows + 1, samples, samples, samples)
    made = _parts(sizes, packed.device)
    places = (offsets[name] for name in ("row_start", "query_start", "token_ids", "token_row", "sample_row"))
    launch(
        derive_kernel,
        (triton.cdiv(max(tokens, rows + 1, samples), _BLOCK),),
        *(packed, slots.last_token_S, slots.page_table_SP, *made, *places, rows, tokens, samples, columns),
        pdl=arch.pdl,
        PAGE=page_size,
        BLOCK=_BLOCK,
    )
    ids_T, positions_T, kv_slots_T, token_row_T, row_slot_R, row_start_R, kv_len_R, query_start_R1, *sample = made
    biases_at, groups_at, shared_at = offsets["biases"], offsets["shared_groups"], offsets["shared_rows"]
    groups = layout.shared_groups
    return StepInputs(
        ids_T=ids_T,
        positions_T=positions_T,
        kv_slots_T=kv_slots_T,
        token_row_T=token_row_T,
        row_slot_R=row_slot_R,
        row_start_R=row_start_R,
        kv_len_R=kv_len_R,
        query_start_R1=query_start_R1,
        sample_token_K=sample[0],
        sample_slot_K=sample[1],
        sample_position_K=sample[2],
        biases_N4=packed[biases_at : biases_at + 4 * layout.biases].view(-1, 4),
        page_table_SP=slots.page_table_SP,
        shared_rows_R=packed[shared_at : shared_at + rows] if groups else None,
        shared_groups_G3=packed[groups_at : groups_at + 3 * groups].view(-1, 3) if groups else None,
    )


@lru_cache(maxsize=4096)
def _offsets(layout: BatchLayout) -> dict[str, int]:
    return {name: offset for name, offset, _ in layout.sections}


def _parts(sizes: tuple[int, ...], device: torch.device) -> list[torch.Tensor]:
    """Aligned int64 tensors of these sizes in one allocation."""
    padded = [-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes]
    whole = torch.empty(sum(padded), dtype=torch.int64, device=device)
    return [part[:size] for part, size in zip(whole.split(padded), sizes, strict=True)]
