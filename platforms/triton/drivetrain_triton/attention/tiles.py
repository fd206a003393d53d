"""Attention of a block of queries over a span of one row's pages: the loop that decoding and cascades share.

M queries of a block, N tokens of a tile, K head size padded to a power of two.
"""

# Relaxed: Triton's language is untyped.
# pyright: basic

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.target_info import is_hip

from drivetrain_triton.attention.heads import from_cache

LOG2_E = tl.constexpr(1.4426950408889634)
LOWEST = tl.constexpr(-1.0e30)
"""Stands for minus infinity in running maxima: a difference of two of them is no NaN."""


@triton.jit
def page_of(table_ptr, start, end, BLOCK_N: tl.constexpr, PAGE: tl.constexpr):
    """Page of a tile, or of each of its tokens where a tile spans several pages; the null page beyond the end."""
    if BLOCK_N <= PAGE:
        page = tl.load(table_ptr + start // PAGE, mask=start < end, other=0)
    else:
        token_N = start + tl.arange(0, BLOCK_N)
        page = tl.load(table_ptr + token_N // PAGE, mask=token_N < end, other=0)
    return page


@triton.jit
def scores_of(dots, scale, soft_cap, SOFT_CAP: tl.constexpr):
    """Scores in base 2: `scale` includes log2(e), unless a cap comes first."""
    if SOFT_CAP:
        # tanh without overflow at either end
        tanh = 1.0 - 2.0 / (tl.exp2(dots * (2.0 * LOG2_E * scale / soft_cap)) + 1.0)
        scores = tanh * (soft_cap * LOG2_E)
    else:
        scores = dots * scale
    return scores


@triton.jit
def attend_span(
    q_MK,
    k_ptr,
    v_ptr,
    table_ptr,
    first_page,
    first,
    end,
    low,
    query_position_M,
    alibi_M,
    stride_page,
    stride_token,
    scale,
    soft_cap,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE: tl.constexpr,
    STAGES: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    ALIBI: tl.constexpr,
    SOFT_FP8: tl.constexpr,
    EXACT: tl.constexpr,
):
    """Online softmax over tokens [first, end) of a row.

    Args:
        k_ptr, v_ptr: the key-value head's first element in page 0.
        table_ptr: the row's page table. first_page: `page_of` the first tile, loaded early.
        first: a multiple of min(BLOCK_N, PAGE).
        low: with WINDOW, tokens before it are hidden.
        alibi_M: float32 slopes times log2(e), read with ALIBI.
        EXACT: multiply in fp32.

    Returns:
        (o_MK, m_M, l_M) float32: weighted sum of values, running maximum in base 2, sum of weights.

    Source: Milakov and Gimelshein 2018 (online softmax), Dao 2023 (FlashAttention-2).
    """
    d_K = tl.arange(0, BLOCK_K)
    n_N = tl.arange(0, BLOCK_N)
    in_head_K = d_K < HEAD_DIM
    o_MK = tl.zeros((BLOCK_M, BLOCK_K), dtype=tl.float32)
    m_M = tl.full((BLOCK_M,), LOWEST, dtype=tl.float32)
    # Sums of weights stay apart by column where registers allow: one exchange between warps at the end, not one a tile.
    APART: tl.constexpr = BLOCK_M * BLOCK_N <= 1024 and k_ptr.dtype.element_ty.primitive_bitwidth >= 16
    if APART:
        l_sum = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    else:
        l_sum = tl.zeros((BLOCK_M,), dtype=tl.float32)
    # The id of the next tile's page is loaded a tile ahead, so that loads of keys wait for no other load.
    next_page = first_page
    for start in tl.range(first, end, BLOCK_N, num_stages=STAGES):
        page = next_page.to(tl.int64) * stride_page
        next_page = page_of(table_ptr, start + BLOCK_N, end, BLOCK_N, PAGE)
        token_N = start + n_N
        if BLOCK_N <= PAGE:
            offset_NK = page + ((start % PAGE + n_N) * stride_token)[:, None] + d_K[None, :]
        else:
            offset_NK = (page + (token_N % PAGE) * stride_token)[:, None] + d_K[None, :]
        valid_NK = (token_N < end)[:, None] & in_head_K[None, :]
        k_NK = tl.load(k_ptr + offset_NK, mask=valid_NK, other=0.0)
        v_NK = tl.load(v_ptr + offset_NK, mask=valid_NK, other=0.0)
        k_NK = from_cache(k_NK, q_MK.dtype, SOFT_FP8)
        v_NK = from_cache(v_NK, q_MK.dtype, SOFT_FP8)
        if EXACT:
            dots_MN = tl.dot(q_MK, tl.trans(k_NK), input_precision="ieee")
        else:
            dots_MN = tl.dot(q_MK, tl.trans(k_NK))
        s_MN = scores_of(dots_MN, scale, soft_cap, SOFT_CAP)
        if ALIBI:
            s_MN += alibi_M[:, None] * (token_N[None, :] - query_position_M[:, None]).to(tl.float32)
        seen_N = token_N < end
        if WINDOW:
            if is_hip():
                # One comparison for both ends, whose masks fill scalar registers there: what lies before `low` wraps
                # around to a large number.
                seen_N = (token_N - low).to(tl.uint32) < (end - low).to(tl.uint32)
            else:
                seen_N = seen_N & (token_N >= low)
        s_MN = tl.where(seen_N[None, :], s_MN, float("-inf"))
        new_m_M = tl.maximum(m_M, tl.max(s_MN, axis=1))
        p_MN = tl.exp2(s_MN - new_m_M[:, None])
        decay_M = tl.exp2(m_M - new_m_M)
        if APART:
            l_sum = l_sum * decay_M[:, None] + p_MN
        else:
            l_sum = l_sum * decay_M + tl.sum(p_MN, axis=1)
        o_MK = o_MK * decay_M[:, None]
        if EXACT:
            o_MK = tl.dot(p_MN.to(v_NK.dtype), v_NK, acc=o_MK, input_precision="ieee")
        else:
            o_MK = tl.dot(p_MN.to(v_NK.dtype), v_NK, acc=o_MK)
        m_M = new_m_M
    if APART:
        l_M = tl.sum(l_sum, axis=1)
    else:
        l_M = l_sum
    return o_MK, m_M, l_M
