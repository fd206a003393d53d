"""Paged attention of rows with one token: split over chunks of tokens, merged by the program that arrives last.

M query heads of a key-value head's group, P the same without padding to a matrix, K head size padded to a power of two,
N tokens of a tile, J partial results of a row.
"""

# Relaxed: Triton's language is untyped.
# pyright: basic, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl

from drivetrain_triton.arrival import stores_done
from drivetrain_triton.attention.heads import from_cache, load_angles, load_heads, to_cache, transform_heads
from drivetrain_triton.attention.tiles import LOG2_E, LOWEST, attend_span, page_of, scores_of
from drivetrain_triton.attention.work import (
    ALL_PARTS,
    ENTRY,
    FIRST,
    FIRST_PART,
    LAST,
    LENGTH,
    OWN_PARTS,
    PART,
    SLOT,
    TOKEN,
)


@triton.jit(
    do_not_specialize=["table_stride"],
    do_not_specialize_on_alignment=["table_ptr"],
)
def decode_kernel(
    q_ptr,
    k_new_ptr,
    v_new_ptr,
    out_ptr,
    k_ptr,
    v_ptr,
    table_ptr,
    work_ptr,
    arrivals_ptr,
    part_o_ptr,
    part_ml_ptr,
    q_norm_ptr,
    k_norm_ptr,
    cos_ptr,
    sin_ptr,
    sinks_ptr,
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
    BLOCK_P: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    FUSED: tl.constexpr,
    NORM: tl.constexpr,
    LATE_WEIGHT: tl.constexpr,
    ROTARY_DIM: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    SINKS: tl.constexpr,
    ALIBI: tl.constexpr,
    SOFT_FP8: tl.constexpr,
    EXACT: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (kv heads, each CHUNKS times for PACK query heads of its group; entries of the work list).

    With FUSED, queries and keys are normed and rotated here, and the program of a row's last chunk writes the new key
    and value into the cache; it takes them from registers itself, and no other program reads them.

    Args:
        q_ptr: (T, H, K) at `token_stride`. With FUSED, k_new_ptr and v_new_ptr: (T, G, K) at the same stride.
        out_ptr: (T, H, K), contiguous, the type of q.
        k_ptr, v_ptr: (pages, page, G, K).
        table_ptr: int32 (slots, columns).
        work_ptr, arrivals_ptr: made by `plan_kernel`; arrivals are 0 before and after.
        part_o_ptr: float32 (parts, H, K). part_ml_ptr: float32 (parts, 2, H), maximum in base 2, then sum of weights.
        scale: of the scores, times log2(e) unless SOFT_CAP.
        WINDOW: tokens that a query sees, 0 for all.

    Source: Flash-Decoding (Dao et al. 2023) for the split; the merge is the log-sum-exp identity.
    """
    GROUP: tl.constexpr = NUM_HEADS // NUM_KV_HEADS
    CHUNKS: tl.constexpr = (GROUP + PACK - 1) // PACK
    kv_head = tl.program_id(0) // CHUNKS
    first_head = tl.program_id(0) % CHUNKS * PACK
    entry_ptr = work_ptr + tl.program_id(1) * ENTRY
    # All loads that depend on nothing but the entry come before the first one is needed.
    token = tl.load(entry_ptr + TOKEN).to(tl.int64)
    slot = tl.load(entry_ptr + SLOT).to(tl.int64)
    first = tl.load(entry_ptr + FIRST)
    last = tl.load(entry_ptr + LAST)
    length = tl.load(entry_ptr + LENGTH)
    part = tl.load(entry_ptr + PART)
    first_part = tl.load(entry_ptr + FIRST_PART)
    own_parts = tl.load(entry_ptr + OWN_PARTS)
    all_parts = tl.load(entry_ptr + ALL_PARTS)
    if token < 0:
        if PDL:
            # No grid ends before the one that it depends on: the next waits for this one alone.
            tl.extra.cuda.gdc_wait()
        return

    m_M = tl.arange(0, BLOCK_M)
    d_K = tl.arange(0, BLOCK_K)
    in_group_M = (m_M < PACK) & (first_head + m_M < GROUP)
    in_head_K = d_K < HEAD_DIM
    head_M = kv_head * GROUP + first_head + m_M
    one = tl.arange(0, 1)
    end = last
    if FUSED:
        end = tl.minimum(last, length - 1)
    row_table_ptr = table_ptr + slot * table_stride
    first_page = page_of(row_table_ptr, first, end, BLOCK_N, PAGE)
    NORM_Q: tl.constexpr = FUSED and NORM
    ROTARY_Q: tl.constexpr = ROTARY_DIM if FUSED else 0
    cos_1K, sin_1K = load_angles(one + (length - 1), cos_ptr, sin_ptr, BLOCK_K, ROTARY_Q, INTERLEAVED)
    if PDL:
        # The plan and the page tables are older than the kernel before; its projections are what this waits for.
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    q_MK, q_pair_MK, q_weight_K, q_pair_weight_K = load_heads(
        q_ptr, token * token_stride + head_M * HEAD_DIM, in_group_M, q_norm_ptr, HEAD_DIM, BLOCK_K, NORM_Q, ROTARY_Q,
        INTERLEAVED,
    )  # fmt: skip
    if FUSED:
        new_offset = token * token_stride + kv_head * HEAD_DIM + one
        k_1K, k_pair_1K, k_weight_K, k_pair_weight_K = load_heads(
            k_new_ptr, new_offset, one == 0, k_norm_ptr, HEAD_DIM, BLOCK_K, NORM, ROTARY_DIM, INTERLEAVED
        )
        v_1K = tl.load(v_new_ptr + new_offset[:, None] + d_K[None, :], mask=in_head_K[None, :], other=0.0)
        k_1K = transform_heads(
            k_1K, k_pair_1K, k_weight_K, k_pair_weight_K, cos_1K, sin_1K, eps, weight_offset, HEAD_DIM, NORM,
            k_norm_ptr is not None, LATE_WEIGHT, ROTARY_DIM,
        )  # fmt: skip
        k_1K = to_cache(k_1K, k_ptr.dtype.element_ty, SOFT_FP8)
        v_1K = to_cache(v_1K, v_ptr.dtype.element_ty, SOFT_FP8)
    q_MK = transform_heads(
        q_MK, q_pair_MK, q_weight_K, q_pair_weight_K, cos_1K, sin_1K, eps, weight_offset, HEAD_DIM, NORM_Q,
        q_norm_ptr is not None, LATE_WEIGHT, ROTARY_Q,
    )  # fmt: skip
    alibi_M = tl.zeros((BLOCK_M,), dtype=tl.float32)
    if ALIBI:
        alibi_M = tl.load(alibi_ptr + head_M, mask=in_group_M, other=0.0) * LOG2_E
    head_ptr = kv_head.to(tl.int64) * stride_head
    query_position_M = tl.zeros_like(m_M) + (length - 1)
    o_MK, m_max_M, l_M = attend_span(
        q_MK, k_ptr + head_ptr, v_ptr + head_ptr, row_table_ptr, first_page, first, end, length - WINDOW,
        query_position_M, alibi_M, stride_page, stride_token, scale, soft_cap, BLOCK_M, BLOCK_N, BLOCK_K, HEAD_DIM,
        PAGE, STAGES, WINDOW > 0, SOFT_CAP, ALIBI, SOFT_FP8, EXACT,
    )  # fmt: skip
    if FUSED:  # noqa: SIM102 - known while compiling
        if last == length:
            page = tl.load(row_table_ptr + (length - 1) // PAGE).to(tl.int64)
            place = page * stride_page + ((length - 1) % PAGE) * stride_token + head_ptr
            stored_1K = in_head_K[None, :] & (first_head == 0)
            tl.store(k_ptr + place + d_K[None, :], k_1K, mask=stored_1K)
            tl.store(v_ptr + place + d_K[None, :], v_1K, mask=stored_1K)
            key_1K = from_cache(k_1K, q_MK.dtype, SOFT_FP8).to(tl.float32)
            value_1K = from_cache(v_1K, q_MK.dtype, SOFT_FP8).to(tl.float32)
            dots_M = tl.sum(q_MK.to(tl.float32) * key_1K, axis=1)
            s_M = scores_of(dots_M, scale, soft_cap, SOFT_CAP)
            new_max_M = tl.maximum(m_max_M, s_M)
            p_M = tl.exp2(s_M - new_max_M)
            decay_M = tl.exp2(m_max_M - new_max_M)
            o_MK = o_MK * decay_M[:, None] + p_M[:, None] * value_1K
            l_M = l_M * decay_M + p_M
            m_max_M = new_max_M

    valid_MK = in_group_M[:, None] & in_head_K[None, :]
    out_row_ptr = out_ptr + token * (NUM_HEADS * HEAD_DIM)
    if all_parts == 1:
        if SINKS:
            sink_M = tl.load(sinks_ptr + head_M, mask=in_group_M, other=0.0) * LOG2_E
            new_max_M = tl.maximum(m_max_M, sink_M)
            decay_M = tl.exp2(m_max_M - new_max_M)
            o_MK = o_MK * decay_M[:, None]
            l_M = l_M * decay_M + tl.exp2(sink_M - new_max_M)
        o_MK = o_MK / l_M[:, None]
        tl.store(out_row_ptr + head_M[:, None] * HEAD_DIM + d_K[None, :], o_MK.to(q_MK.dtype), mask=valid_MK)
    else:
        line_M = part.to(tl.int64) * NUM_HEADS + head_M
        tl.store(part_o_ptr + line_M[:, None] * HEAD_DIM + d_K[None, :], o_MK, mask=valid_MK)
        ml_M = part_ml_ptr + part.to(tl.int64) * (2 * NUM_HEADS) + head_M
        tl.store(ml_M, m_max_M, mask=in_group_M)
        tl.store(ml_M + NUM_HEADS, l_M, mask=in_group_M)
        # All threads' stores come before the one thread's release; its acquire comes before all threads' loads.
        stores_done()
        tl.debug_barrier()
        first_entry = tl.program_id(1) - (part - first_part)
        counter_ptr = arrivals_ptr + first_entry * (NUM_KV_HEADS * CHUNKS) + tl.program_id(0)
        arrived = tl.atomic_add(counter_ptr, 1, sem="acq_rel", scope="gpu")
        if arrived == own_parts - 1:
            tl.store(counter_ptr, 0)
            tl.debug_barrier()
            _merge(
                out_row_ptr, part_o_ptr, part_ml_ptr, sinks_ptr, first_part, all_parts, kv_head * GROUP, first_head,
                NUM_HEADS, GROUP, HEAD_DIM, PACK, BLOCK_P, BLOCK_J, BLOCK_K, SINKS,
            )  # fmt: skip


@triton.jit
def _merge(
    out_row_ptr,
    part_o_ptr,
    part_ml_ptr,
    sinks_ptr,
    first_part,
    num_parts,
    group_head,
    first_head,
    NUM_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PACK: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SINKS: tl.constexpr,
):
    """Weigh the partial results of a row's group of heads, in the order of its tokens whatever order they came in."""
    p_P = tl.arange(0, BLOCK_P)
    d_K = tl.arange(0, BLOCK_K)
    in_group_P = (p_P < PACK) & (first_head + p_P < GROUP)
    head_P = group_head + first_head + p_P
    valid_PK = in_group_P[:, None] & (d_K < HEAD_DIM)[None, :]
    o_PK = tl.zeros((BLOCK_P, BLOCK_K), dtype=tl.float32)
    l_P = tl.zeros((BLOCK_P,), dtype=tl.float32)
    m_P = tl.full((BLOCK_P,), LOWEST, dtype=tl.float32)
    if SINKS:
        m_P = tl.load(sinks_ptr + head_P, mask=in_group_P, other=0.0) * LOG2_E
        l_P += 1.0
    for begin in range(0, num_parts, BLOCK_J):
        j_J = begin + tl.arange(0, BLOCK_J)
        part_J = (first_part + j_J).to(tl.int64)
        valid_JP = (j_J < num_parts)[:, None] & in_group_P[None, :]
        # Past the first-level cache, which may hold older contents.
        ml_JP = part_ml_ptr + part_J[:, None] * (2 * NUM_HEADS) + head_P[None, :]
        m_JP = tl.load(ml_JP, mask=valid_JP, other=LOWEST, cache_modifier=".cg")
        l_JP = tl.load(ml_JP + NUM_HEADS, mask=valid_JP, other=0.0, cache_modifier=".cg")
        line_JP = part_J[:, None] * NUM_HEADS + head_P[None, :]
        o_JPK = tl.load(
            part_o_ptr + line_JP[:, :, None] * HEAD_DIM + d_K[None, None, :],
            mask=(j_J < num_parts)[:, None, None] & valid_PK[None, :, :],
            other=0.0,
            cache_modifier=".cg",
        )
        new_m_P = tl.maximum(m_P, tl.max(m_JP, axis=0))
        decay_P = tl.exp2(m_P - new_m_P)
        weight_JP = tl.exp2(m_JP - new_m_P[None, :])
        l_P = l_P * decay_P + tl.sum(weight_JP * l_JP, axis=0)
        o_PK = o_PK * decay_P[:, None] + tl.sum(o_JPK * weight_JP[:, :, None], axis=0)
        m_P = new_m_P
    o_PK = o_PK / tl.where(in_group_P, l_P, 1.0)[:, None]
    out_PK = out_row_ptr + head_P[:, None] * HEAD_DIM + d_K[None, :]
    tl.store(out_PK, o_PK.to(out_row_ptr.dtype.element_ty), mask=valid_PK)
