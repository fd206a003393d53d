"""The plan of a decode step, made on the device: which program attends which tokens of which row.

One program reads the lengths of all rows, chooses one chunk length for them and lists the chunks. Rows stand in the
order of `shared_rows` where the step shares prefixes; a row's leading shared tokens then belong to its group's list.

R rows, S shared groups, J chunks of a row, C fields of a list entry, W entries.
"""

# Relaxed: Triton's language is untyped.
# pyright: basic, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl

# Fields of an entry of the rows' list.
TOKEN = tl.constexpr(0)
"""Index of the row's only token in the step, -1 in entries of no row."""
SLOT = tl.constexpr(1)
FIRST = tl.constexpr(2)
LAST = tl.constexpr(3)
LENGTH = tl.constexpr(4)
"""Tokens of the whole row; the chunk that ends there owns the new token."""
PART = tl.constexpr(5)
"""Where this chunk's partial result goes."""
FIRST_PART = tl.constexpr(6)
"""Partial results of a row lie side by side: its own chunks, then its group's."""
OWN_PARTS = tl.constexpr(7)
ALL_PARTS = tl.constexpr(8)
ENTRY = tl.constexpr(16)
"""Integers an entry: 64 bytes."""

# Fields of an entry of the groups' list.
BLOCK_FIRST = tl.constexpr(0)
"""First place in `shared_rows` of a block of rows, -1 in entries of no group."""
BLOCK_LAST = tl.constexpr(1)
SHARED_FIRST = tl.constexpr(2)
SHARED_LAST = tl.constexpr(3)
SHARED_PART = tl.constexpr(4)
"""Which of the group's chunks."""
SHARED_ENTRY = tl.constexpr(8)


@triton.jit
def _next_chunk(chunk, longest, UNIT: tl.constexpr):
    """About a fifth more; the longest span is tried last."""
    larger = tl.maximum(chunk + UNIT, (chunk * 19 // 16) // UNIT * UNIT)
    return tl.where(chunk >= longest, longest + 1, tl.minimum(larger, longest))


@triton.jit
def _choose_chunk(span_R, weight_R, entries, places, least_count, longest, OVERHEAD: tl.constexpr, UNIT: tl.constexpr):
    """Chunk length with the least estimated time under which the list has room.

    A chunk costs OVERHEAD tokens of a program's time beyond its own tokens, spread over the programs that run at once;
    half a chunk is the expected wait for the last program.

    Args:
        span_R: tokens to attend, 0 where there is nothing to do.
        weight_R: entries that each chunk of a row takes.
        entries: room in the list.
        places: entries that run at once.
        least_count: fewer entries than this cost as much.
        longest: the longest span, rounded up to UNIT: always fits.
    """
    least = tl.cdiv(tl.sum(span_R * weight_R, axis=0), entries)
    chunk = tl.minimum(tl.maximum(tl.cdiv(least, UNIT), 1) * UNIT, longest)
    best = longest
    best_cost = 2147483647
    # No longer chunk can cost less than half its length.
    while (chunk <= longest) & (chunk // 2 < best_cost):
        count = tl.sum(tl.cdiv(span_R, chunk) * weight_R, axis=0)
        cost = (tl.maximum(count, least_count) * OVERHEAD) // places + chunk // 2
        better = (count <= entries) & (cost < best_cost)
        best = tl.where(better, chunk, best)
        best_cost = tl.where(better, cost, best_cost)
        chunk = _next_chunk(chunk, longest, UNIT)
    return best


@triton.jit(
    do_not_specialize=[
        "num_rows",
        "num_groups",
        "entries",
        "shared_entries",
        "places",
        "max_tokens",
        "window",
        "fixed_chunk",
    ],
    do_not_specialize_on_alignment=[
        "kv_len_ptr",
        "query_start_ptr",
        "row_slot_ptr",
        "shared_rows_ptr",
        "shared_groups_ptr",
    ],
)
def plan_kernel(
    kv_len_ptr,
    query_start_ptr,
    row_slot_ptr,
    shared_rows_ptr,
    shared_groups_ptr,
    work_ptr,
    shared_work_ptr,
    shared_part_ptr,
    arrivals_ptr,
    num_rows,
    num_groups,
    entries,
    shared_entries,
    places,
    max_tokens,
    window,
    fixed_chunk,
    BLOCK_R: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_J: tl.constexpr,
    UNIT: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    OVERHEAD: tl.constexpr,
    SHARED_OVERHEAD: tl.constexpr,
    COUNTERS: tl.constexpr,
    WINDOW: tl.constexpr,
    SHARED: tl.constexpr,
    ROWS_A_BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """List the chunks of rows with one token, and with SHARED those of groups. One program.

    Writes every entry of the lists, -1 where there is nothing to do, and zeroes the counters of arrivals.

    Args:
        kv_len_ptr, query_start_ptr, row_slot_ptr: int64 (R), (R + 1), (R).
        shared_rows_ptr, shared_groups_ptr: int32 (R), (S, 3), read with SHARED.
        work_ptr: int32 (entries, ENTRY). shared_work_ptr: int32 (shared_entries, SHARED_ENTRY).
        shared_part_ptr: int32 (R), by place in `shared_rows`: the row's first partial result that its group writes.
        arrivals_ptr: int32 (entries, COUNTERS).
        places: entries that run at once.
        max_tokens: no row is longer; padding may claim to be.
        window: read with WINDOW.
        UNIT: chunks are multiples of it.
        ALIGNMENT: chunks begin at multiples of it, unless a group's shared tokens end elsewhere.
        fixed_chunk: chunk length that depends on no other row, 0 to choose.
    """
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    place_R = tl.arange(0, BLOCK_R)
    real_R = place_R < num_rows
    row_R = place_R
    if SHARED:
        row_R = tl.load(shared_rows_ptr + place_R, mask=real_R, other=0)
    token_R = tl.load(query_start_ptr + row_R, mask=real_R, other=0).to(tl.int32)
    token_end_R = tl.load(query_start_ptr + row_R + 1, mask=real_R, other=0).to(tl.int32)
    length_R = tl.load(kv_len_ptr + row_R, mask=real_R, other=0).to(tl.int32)
    slot_R = tl.load(row_slot_ptr + row_R, mask=real_R, other=0).to(tl.int32)
    decodes_R = real_R & (token_end_R - token_R == 1)
    length_R = tl.minimum(length_R, max_tokens)
    first_R = tl.zeros_like(length_R)
    if WINDOW:
        first_R = tl.maximum(length_R - window, 0) // ALIGNMENT * ALIGNMENT
    shared_parts_R = tl.zeros_like(length_R)
    if SHARED:
        group_S = tl.arange(0, BLOCK_S)
        real_S = group_S < num_groups
        begin_S = tl.load(shared_groups_ptr + group_S * 3, mask=real_S, other=0)
        end_S = tl.load(shared_groups_ptr + group_S * 3 + 1, mask=real_S, other=0)
        tokens_S = tl.load(shared_groups_ptr + group_S * 3 + 2, mask=real_S, other=0)
        tokens_S = tl.where(end_S > begin_S, tokens_S, 0)
        blocks_S = tl.where(tokens_S > 0, tl.cdiv(end_S - begin_S, ROWS_A_BLOCK), 0)
        longest_shared = tl.cdiv(tl.maximum(tl.max(tokens_S, axis=0), 1), UNIT) * UNIT
        # Each part of a prefix is merged by every row of its group, even where all programs run at once.
        shared_chunk = _choose_chunk(
            tokens_S, blocks_S, shared_entries, places, 0, longest_shared, SHARED_OVERHEAD, UNIT
        )
        parts_S = tl.cdiv(tokens_S, shared_chunk)
        for group in range(num_groups):
            begin = tl.load(shared_groups_ptr + group * 3)
            end = tl.load(shared_groups_ptr + group * 3 + 1)
            tokens = tl.load(shared_groups_ptr + group * 3 + 2)
            inside_R = (place_R >= begin) & (place_R < end)
            first_R = tl.where(inside_R, tokens, first_R)
            shared_parts_R = tl.where(inside_R, tl.cdiv(tokens, shared_chunk), shared_parts_R)
        _list_shared(
            shared_work_ptr, begin_S, end_S, tokens_S, blocks_S, parts_S, shared_chunk, shared_entries, BLOCK_S,
            BLOCK_R * BLOCK_J // BLOCK_S, ROWS_A_BLOCK,
        )  # fmt: skip
    # The new token joins the last chunk even where it is one token more.
    span_R = tl.where(decodes_R, tl.maximum(length_R - first_R - 1, 1), 0)
    chunk = fixed_chunk
    if fixed_chunk == 0:
        longest = tl.cdiv(tl.maximum(tl.max(span_R, axis=0), 1), UNIT) * UNIT
        once_R = tl.full((BLOCK_R,), 1, tl.int32)
        chunk = _choose_chunk(span_R, once_R, entries, places, places, longest, OVERHEAD, UNIT)
    own_R = tl.cdiv(span_R, chunk)
    all_R = tl.where(decodes_R, own_R + shared_parts_R, 0)
    entry_R = tl.cumsum(own_R, axis=0) - own_R
    part_R = tl.cumsum(all_R, axis=0) - all_R
    if SHARED:
        tl.store(shared_part_ptr + place_R, part_R + own_R, mask=real_R)
    most = tl.max(own_R, axis=0)
    for begin in range(0, most, BLOCK_J):
        j_J = begin + tl.arange(0, BLOCK_J)
        listed_RJ = j_J[None, :] < own_R[:, None]
        entry_RJ = work_ptr + (entry_R[:, None] + j_J[None, :]) * ENTRY
        first_RJ = first_R[:, None] + j_J[None, :] * chunk
        last_RJ = tl.where(j_J[None, :] == own_R[:, None] - 1, length_R[:, None], first_RJ + chunk)
        zero_RJ = tl.zeros_like(first_RJ)
        tl.store(entry_RJ + TOKEN, token_R[:, None] + zero_RJ, mask=listed_RJ)
        tl.store(entry_RJ + SLOT, slot_R[:, None] + zero_RJ, mask=listed_RJ)
        tl.store(entry_RJ + FIRST, first_RJ, mask=listed_RJ)
        tl.store(entry_RJ + LAST, last_RJ, mask=listed_RJ)
        tl.store(entry_RJ + LENGTH, length_R[:, None] + zero_RJ, mask=listed_RJ)
        tl.store(entry_RJ + PART, part_R[:, None] + j_J[None, :], mask=listed_RJ)
        tl.store(entry_RJ + FIRST_PART, part_R[:, None] + zero_RJ, mask=listed_RJ)
        tl.store(entry_RJ + OWN_PARTS, own_R[:, None] + zero_RJ, mask=listed_RJ)
        tl.store(entry_RJ + ALL_PARTS, all_R[:, None] + zero_RJ, mask=listed_RJ)
    i_256 = tl.arange(0, 256)
    for begin in range(tl.sum(own_R, axis=0), entries, 256):
        tl.store(work_ptr + (begin + i_256) * ENTRY + TOKEN, -1, mask=begin + i_256 < entries)
    for begin in range(0, entries * COUNTERS, 256):
        tl.store(arrivals_ptr + begin + i_256, 0, mask=begin + i_256 < entries * COUNTERS)


@triton.jit
def _list_shared(
    shared_work_ptr,
    begin_S,
    end_S,
    tokens_S,
    blocks_S,
    parts_S,
    chunk,
    shared_entries,
    BLOCK_S: tl.constexpr,
    BLOCK_J: tl.constexpr,
    ROWS_A_BLOCK: tl.constexpr,
):
    """Entries of (block of rows, chunk) of each group, blocks of one chunk side by side."""
    count_S = blocks_S * parts_S
    entry_S = tl.cumsum(count_S, axis=0) - count_S
    safe_blocks_S = tl.maximum(blocks_S, 1)
    for begin in range(0, tl.max(count_S, axis=0), BLOCK_J):
        j_J = begin + tl.arange(0, BLOCK_J)
        listed_SJ = j_J[None, :] < count_S[:, None]
        entry_SJ = shared_work_ptr + (entry_S[:, None] + j_J[None, :]) * SHARED_ENTRY
        part_SJ = j_J[None, :] // safe_blocks_S[:, None]
        block_SJ = j_J[None, :] % safe_blocks_S[:, None]
        from_SJ = begin_S[:, None] + block_SJ * ROWS_A_BLOCK
        first_SJ = part_SJ * chunk
        tl.store(entry_SJ + BLOCK_FIRST, from_SJ, mask=listed_SJ)
        tl.store(entry_SJ + BLOCK_LAST, tl.minimum(from_SJ + ROWS_A_BLOCK, end_S[:, None]), mask=listed_SJ)
        tl.store(entry_SJ + SHARED_FIRST, first_SJ, mask=listed_SJ)
        tl.store(entry_SJ + SHARED_LAST, tl.minimum(first_SJ + chunk, tokens_S[:, None]), mask=listed_SJ)
        tl.store(entry_SJ + SHARED_PART, part_SJ, mask=listed_SJ)
    i_256 = tl.arange(0, 256)
    for begin in range(tl.sum(count_S, axis=0), shared_entries, 256):
        entry_256 = shared_work_ptr + (begin + i_256) * SHARED_ENTRY
        tl.store(entry_256 + BLOCK_FIRST, -1, mask=begin + i_256 < shared_entries)
