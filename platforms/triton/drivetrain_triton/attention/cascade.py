"""Paged attention of rows that begin with the same pages: a whole block of rows reads those pages once.

The partial results join those of the rows' own chunks, and the decode kernel merges all of them.

M pairs of a row and a query head of the key-value head's group, K head size padded to a power of two.
"""

# Relaxed: Triton's language is untyped.
# pyright: basic, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl

from drivetrain_triton.attention.heads import load_angles, load_heads, transform_heads
from drivetrain_triton.attention.tiles import LOG2_E, attend_span, page_of
from drivetrain_triton.attention.work import (
    BLOCK_FIRST,
    BLOCK_LAST,
    SHARED_ENTRY,
    SHARED_FIRST,
    SHARED_LAST,
    SHARED_PART,
)


@triton.jit(
    do_not_specialize=["table_stride"],
    do_not_specialize_on_alignment=["table_ptr", "shared_rows_ptr", "kv_len_ptr", "query_start_ptr", "row_slot_ptr"],
)
def cascade_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    table_ptr,
    shared_rows_ptr,
    shared_work_ptr,
    shared_part_ptr,
    kv_len_ptr,
    query_start_ptr,
    row_slot_ptr,
    part_o_ptr,
    part_ml_ptr,
    q_norm_ptr,
    cos_ptr,
    sin_ptr,
    alibi_ptr,
    token_stride,
    table_stride,
    stride_page,
    stride_token,
    stride_head,
    scale,
    soft_cap,
    eps,
    weight_offset,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE: tl.constexpr,
    PACK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    NORM: tl.constexpr,
    LATE_WEIGHT: tl.constexpr,
    ROTARY_DIM: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    ALIBI: tl.constexpr,
    SOFT_FP8: tl.constexpr,
    EXACT: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (kv heads, each CHUNKS times for PACK query heads of its group; entries of the groups' list).

    All shared tokens come before every query: nothing is hidden.

    Args:
        q_ptr: (T, H, K) at `token_stride`, neither normed nor rotated yet if NORM or ROTARY_DIM say so.
        shared_rows_ptr: int32 (R). shared_part_ptr, shared_work_ptr: made by `plan_kernel`.
        kv_len_ptr, query_start_ptr, row_slot_ptr: int64 (R), (R + 1), (R).
        part_o_ptr, part_ml_ptr: as in `decode_kernel`.

    Source: Juravsky et al. 2024 (Hydragen) for the decomposition.
    """
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    GROUP: tl.constexpr = NUM_HEADS // NUM_KV_HEADS
    CHUNKS: tl.constexpr = (GROUP + PACK - 1) // PACK
    kv_head = tl.program_id(0) // CHUNKS
    first_head = tl.program_id(0) % CHUNKS * PACK
    entry_ptr = shared_work_ptr + tl.program_id(1) * SHARED_ENTRY
    block_first = tl.load(entry_ptr + BLOCK_FIRST)
    block_last = tl.load(entry_ptr + BLOCK_LAST)
    first = tl.load(entry_ptr + SHARED_FIRST)
    end = tl.load(entry_ptr + SHARED_LAST)
    part = tl.load(entry_ptr + SHARED_PART)
    if block_first < 0:
        return

    m_M = tl.arange(0, BLOCK_M)
    d_K = tl.arange(0, BLOCK_K)
    place_M = block_first + m_M // PACK
    in_group_M = (m_M < BLOCK_M // PACK * PACK) & (first_head + m_M % PACK < GROUP)
    valid_M = (place_M < block_last) & in_group_M
    head_M = kv_head * GROUP + first_head + m_M % PACK
    row_M = tl.load(shared_rows_ptr + place_M, mask=valid_M, other=0)
    token_M = tl.load(query_start_ptr + row_M, mask=valid_M, other=0)
    query_position_M = tl.load(kv_len_ptr + row_M, mask=valid_M, other=1).to(tl.int32) - 1
    slot = tl.load(row_slot_ptr + tl.load(shared_rows_ptr + block_first))
    row_table_ptr = table_ptr + slot * table_stride
    first_page = page_of(row_table_ptr, first, end, BLOCK_N, PAGE)
    q_MK, pair_MK, weight_K, pair_weight_K = load_heads(
        q_ptr, token_M * token_stride + head_M * HEAD_DIM, valid_M, q_norm_ptr, HEAD_DIM, BLOCK_K, NORM, ROTARY_DIM,
        INTERLEAVED,
    )  # fmt: skip
    cos_MK, sin_MK = load_angles(query_position_M, cos_ptr, sin_ptr, BLOCK_K, ROTARY_DIM, INTERLEAVED)
    q_MK = transform_heads(
        q_MK, pair_MK, weight_K, pair_weight_K, cos_MK, sin_MK, eps, weight_offset, HEAD_DIM, NORM,
        q_norm_ptr is not None, LATE_WEIGHT, ROTARY_DIM,
    )  # fmt: skip
    alibi_M = tl.zeros((BLOCK_M,), dtype=tl.float32)
    if ALIBI:
        alibi_M = tl.load(alibi_ptr + head_M, mask=valid_M, other=0.0) * LOG2_E
    head_ptr = kv_head.to(tl.int64) * stride_head
    o_MK, m_max_M, l_M = attend_span(
        q_MK, k_ptr + head_ptr, v_ptr + head_ptr, row_table_ptr, first_page, first, end, 0, query_position_M, alibi_M,
        stride_page, stride_token, scale, soft_cap, BLOCK_M, BLOCK_N, BLOCK_K, HEAD_DIM, PAGE, STAGES, False, SOFT_CAP,
        ALIBI, SOFT_FP8, EXACT,
    )  # fmt: skip
    part_M = (tl.load(shared_part_ptr + place_M, mask=valid_M, other=0) + part).to(tl.int64)
    line_M = part_M * NUM_HEADS + head_M
    valid_MK = valid_M[:, None] & (d_K < HEAD_DIM)[None, :]
    tl.store(part_o_ptr + line_M[:, None] * HEAD_DIM + d_K[None, :], o_MK, mask=valid_MK)
    ml_M = part_ml_ptr + part_M * (2 * NUM_HEADS) + head_M
    tl.store(ml_M, m_max_M, mask=valid_M)
    tl.store(ml_M + NUM_HEADS, l_M, mask=valid_M)
