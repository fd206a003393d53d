"""Prefill attention over pages for AMD GPUs: rows with several query tokens, read through pointers alone.

One program attends a block of consecutive tokens of one row for one key-value head. The group's query heads are packed
beside the tokens into the M dimension, so that keys and values are read once for the whole group. Keys that every query
of the block sees need no mask and have a loop of their own. There are no descriptors: built on the host, they cost
dozens of scalar registers on these parts.

M packed (token, head) pairs, N keys of a block, K head size padded to a power of two.
"""

# Relaxed: Triton's language is untyped.
# pyright: basic, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl

from drivetrain_triton.attention.heads import from_cache
from drivetrain_triton.attention.tiles import LOG2_E, LOWEST, page_of, scores_of

FIRST_TOKEN = tl.constexpr(0)
NUM_QUERIES = tl.constexpr(1)
START = tl.constexpr(2)
KV_END = tl.constexpr(3)
SLOT = tl.constexpr(4)
ENTRY = tl.constexpr(8)
"""Columns of `PrefillPlan.work_W8`."""


@triton.jit
def _attend(
    o_MK,
    m_M,
    l_M,
    q_MK,
    position_M,
    slope_M,
    k_ptr,
    v_ptr,
    table_ptr,
    begin,
    end,
    kv_end,
    stride_page,
    stride_token,
    scale,
    soft_cap,
    window,
    HEAD_DIM: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PAGE: tl.constexpr,
    STAGES: tl.constexpr,
    MASKED: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    ALIBI: tl.constexpr,
    SOFT_FP8: tl.constexpr,
):
    """Take keys [begin, end) into a running softmax: (o_MK, m_M, l_M). `begin` is a multiple of the block.

    Args:
        kv_end: one past the last key of the row that the block may see; what lies beyond in its page may be NaN.
        MASKED: some of these keys are hidden from some queries, or do not exist. Otherwise all exist and are seen.
    """
    n_N = tl.arange(0, BLOCK_N)
    d_K = tl.arange(0, BLOCK_K)
    in_head_K = d_K < HEAD_DIM
    # The id of the next block's page is loaded a block ahead, so that loads of keys wait for no other load.
    next_page = page_of(table_ptr, begin, kv_end, BLOCK_N, PAGE)
    for first in tl.range(begin, end, BLOCK_N, num_stages=STAGES):
        page = next_page.to(tl.int64) * stride_page
        next_page = page_of(table_ptr, first + BLOCK_N, kv_end, BLOCK_N, PAGE)
        key_N = first + n_N
        if BLOCK_N <= PAGE:
            offset_NK = page + ((first % PAGE + n_N) * stride_token)[:, None] + d_K[None, :]
        else:
            offset_NK = (page + (key_N % PAGE) * stride_token)[:, None] + d_K[None, :]
        if MASKED:
            # Slots that nothing was written to may hold NaN, and 0 * NaN is NaN.
            valid_NK = (key_N < kv_end)[:, None] & in_head_K[None, :]
            k_NK = tl.load(k_ptr + offset_NK, mask=valid_NK, other=0.0)
            v_NK = tl.load(v_ptr + offset_NK, mask=valid_NK, other=0.0)
        elif HEAD_DIM != BLOCK_K:
            k_NK = tl.load(k_ptr + offset_NK, mask=in_head_K[None, :], other=0.0)
            v_NK = tl.load(v_ptr + offset_NK, mask=in_head_K[None, :], other=0.0)
        else:
            k_NK = tl.load(k_ptr + offset_NK)
            v_NK = tl.load(v_ptr + offset_NK)
        k_NK = from_cache(k_NK, q_MK.dtype, SOFT_FP8)
        v_NK = from_cache(v_NK, q_MK.dtype, SOFT_FP8)
        s_MN = scores_of(tl.dot(q_MK, tl.trans(k_NK), input_precision="ieee"), scale, soft_cap, SOFT_CAP)
        if ALIBI:
            s_MN += slope_M[:, None] * (key_N[None, :] - position_M[:, None]).to(tl.float32)
        if MASKED:
            seen_MN = key_N[None, :] <= position_M[:, None]
            if WINDOW:
                seen_MN = seen_MN & (key_N[None, :] > position_M[:, None] - window)
            # Finite: a block without one visible key makes no NaN, and what it adds is multiplied by exactly 0 when the
            # row's first visible key arrives.
            s_MN = tl.where(seen_MN, s_MN, LOWEST)
        new_m_M = tl.maximum(m_M, tl.max(s_MN, axis=1))
        p_MN = tl.exp2(s_MN - new_m_M[:, None])
        decay_M = tl.exp2(m_M - new_m_M)
        l_M = l_M * decay_M + tl.sum(p_MN, axis=1)
        o_MK = tl.dot(p_MN.to(q_MK.dtype), v_NK, acc=o_MK * decay_M[:, None], input_precision="ieee")
        m_M = new_m_M
    return o_MK, m_M, l_M


@triton.jit(
    do_not_specialize=["table_stride", "window"],
    do_not_specialize_on_alignment=["table_ptr", "sinks_ptr", "alibi_ptr"],
)
def prefill_kernel(
    q_ptr,
    out_ptr,
    k_ptr,
    v_ptr,
    work_ptr,
    table_ptr,
    sinks_ptr,
    alibi_ptr,
    token_stride,
    table_stride,
    stride_page,
    stride_token,
    stride_head,
    scale,
    soft_cap,
    window,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE: tl.constexpr,
    PACK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BORDER_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    SINKS: tl.constexpr,
    ALIBI: tl.constexpr,
    SOFT_FP8: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (kv heads, each CHUNKS times for PACK query heads of its group; work items).

    Args:
        q_ptr: (T, H, K) at `token_stride`, normed and rotated.
        out_ptr: (T, H, K), contiguous, the type of q; rows of padding become 0.
        k_ptr, v_ptr: (pages, page, G, K), with this step's tokens written already.
        work_ptr: int32 (W, 8), `PrefillPlan.work_W8`.
        table_ptr: int32 (slots, columns).
        sinks_ptr, alibi_ptr: float32 (H), read with SINKS and ALIBI.
        scale: of the scores, times log2(e) unless SOFT_CAP.
        window: tokens that a query sees, read with WINDOW.
        BORDER_N: keys of a block that needs masks, which cost registers.
        PDL: always false on these parts.

    Source: Dao 2023 (FlashAttention-2) for the online softmax; Ainslie et al. 2023 (GQA) for packed groups.
    """
    GROUP: tl.constexpr = NUM_HEADS // NUM_KV_HEADS
    CHUNKS: tl.constexpr = (GROUP + PACK - 1) // PACK
    BLOCK_Q: tl.constexpr = BLOCK_M // PACK
    kv_head = tl.program_id(0) // CHUNKS
    first_head = tl.program_id(0) % CHUNKS * PACK
    entry_ptr = work_ptr + tl.program_id(1) * ENTRY
    num_queries = tl.load(entry_ptr + NUM_QUERIES)
    if num_queries == 0:
        return
    first_token = tl.load(entry_ptr + FIRST_TOKEN)
    start = tl.load(entry_ptr + START)
    # Rows of padding see nothing: what the null page holds is nobody's, and may be NaN.
    kv_end = tl.load(entry_ptr + KV_END)
    slot = tl.load(entry_ptr + SLOT).to(tl.int64)

    m_M = tl.arange(0, BLOCK_M)
    d_K = tl.arange(0, BLOCK_K)
    query_M = m_M // PACK
    member_M = first_head + m_M % PACK
    head_M = kv_head * GROUP + member_M
    token_M = first_token.to(tl.int64) + query_M
    real_M = (query_M < num_queries) & (member_M < GROUP)
    real_MK = real_M[:, None] & (d_K < HEAD_DIM)[None, :]
    q_MK = tl.load(
        q_ptr + (token_M * token_stride + head_M * HEAD_DIM)[:, None] + d_K[None, :], mask=real_MK, other=0.0
    )
    position_M = tl.where(kv_end > 0, start + query_M, -1)
    peak_M = tl.full((BLOCK_M,), LOWEST, dtype=tl.float32)
    total_M = tl.zeros((BLOCK_M,), dtype=tl.float32)
    if SINKS:
        # A sink is a key with this score and the value 0.
        peak_M = tl.load(sinks_ptr + head_M, mask=real_M, other=0.0) * LOG2_E
        total_M += 1.0
    slope_M = tl.zeros((BLOCK_M,), dtype=tl.float32)
    if ALIBI:
        slope_M = tl.load(alibi_ptr + head_M, mask=real_M, other=0.0) * LOG2_E
    o_MK = tl.zeros((BLOCK_M, BLOCK_K), dtype=tl.float32)
    row_table_ptr = table_ptr + slot * table_stride
    k_ptr += kv_head.to(tl.int64) * stride_head
    v_ptr += kv_head.to(tl.int64) * stride_head

    begin = 0
    if WINDOW:
        begin = tl.minimum(tl.maximum(start - window + 1, 0) // BORDER_N * BORDER_N, kv_end)
        # From the beginning of the last query's window on, nothing hides keys but causality.
        edge = tl.cdiv(tl.maximum(start + BLOCK_Q - window, 0), BLOCK_N) * BLOCK_N
        edge = tl.minimum(tl.maximum(edge, begin), kv_end)
        o_MK, peak_M, total_M = _attend(
            o_MK, peak_M, total_M, q_MK, position_M, slope_M, k_ptr, v_ptr, row_table_ptr, begin, edge, kv_end,
            stride_page, stride_token, scale, soft_cap, window, HEAD_DIM, BLOCK_K, BORDER_N, PAGE, 1, True, WINDOW,
            SOFT_CAP, ALIBI, SOFT_FP8,
        )  # fmt: skip
        begin = tl.cdiv(edge, BLOCK_N) * BLOCK_N
    # Keys up to the first query's own are seen by every query.
    clear = begin + tl.maximum(tl.minimum(start + 1, kv_end) - begin, 0) // BLOCK_N * BLOCK_N
    o_MK, peak_M, total_M = _attend(
        o_MK, peak_M, total_M, q_MK, position_M, slope_M, k_ptr, v_ptr, row_table_ptr, begin, clear, kv_end,
        stride_page, stride_token, scale, soft_cap, window, HEAD_DIM, BLOCK_K, BLOCK_N, PAGE, STAGES, False, WINDOW,
        SOFT_CAP, ALIBI, SOFT_FP8,
    )  # fmt: skip
    o_MK, peak_M, total_M = _attend(
        o_MK, peak_M, total_M, q_MK, position_M, slope_M, k_ptr, v_ptr, row_table_ptr, clear, kv_end, kv_end,
        stride_page, stride_token, scale, soft_cap, window, HEAD_DIM, BLOCK_K, BORDER_N, PAGE, 1, True, WINDOW,
        SOFT_CAP, ALIBI, SOFT_FP8,
    )  # fmt: skip

    total_M = tl.where(total_M > 0.0, total_M, 1.0)
    o_MK = (o_MK / total_M[:, None]).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + ((token_M * NUM_HEADS + head_M) * HEAD_DIM)[:, None] + d_K[None, :], o_MK, mask=real_MK)
