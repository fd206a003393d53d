"""Norm and rotate queries and keys of all tokens, and store keys and values in their pages, in one pass.

M head vectors of a block (some tokens times some heads), K head size padded to a power of two.
"""

# Relaxed: Triton's language is untyped.
# pyright: basic, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl

from drivetrain_triton.attention.heads import load_angles, load_heads, to_cache, transform_heads


@triton.jit(
    do_not_specialize=["num_tokens"],
    do_not_specialize_on_alignment=["positions_ptr", "slots_ptr"],
)
def write_kernel(
    q_ptr,
    k_new_ptr,
    v_new_ptr,
    k_ptr,
    v_ptr,
    positions_ptr,
    slots_ptr,
    q_norm_ptr,
    k_norm_ptr,
    cos_ptr,
    sin_ptr,
    num_tokens,
    token_stride,
    kv_token_stride,
    stride_page,
    stride_token,
    stride_head,
    eps,
    weight_offset,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    NORM: tl.constexpr,
    LATE_WEIGHT: tl.constexpr,
    ROTARY_DIM: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    SOFT_FP8: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (blocks of tokens, blocks of kv heads, then blocks of query heads if queries change).

    Args:
        q_ptr: (T, H, K) at `token_stride`; overwritten. k_new_ptr, v_new_ptr: (T, G, K) at `kv_token_stride`.
        positions_ptr, slots_ptr: int64 (T).
        k_ptr, v_ptr: (pages, page, G, K).
    """
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    KV_BLOCKS: tl.constexpr = (NUM_KV_HEADS + BLOCK_H - 1) // BLOCK_H
    m_M = tl.arange(0, BLOCK_T * BLOCK_H)
    d_K = tl.arange(0, BLOCK_K)
    token_M = tl.program_id(0) * BLOCK_T + m_M // BLOCK_H
    in_step_M = token_M < num_tokens
    position_M = tl.load(positions_ptr + token_M, mask=in_step_M, other=0)
    cos_MK, sin_MK = load_angles(position_M, cos_ptr, sin_ptr, BLOCK_K, ROTARY_DIM, INTERLEAVED)
    token_M = token_M.to(tl.int64)
    if tl.program_id(1) < KV_BLOCKS:
        head_M = tl.program_id(1) * BLOCK_H + m_M % BLOCK_H
        valid_M = in_step_M & (head_M < NUM_KV_HEADS)
        valid_MK = valid_M[:, None] & (d_K < HEAD_DIM)[None, :]
        from_M = token_M * kv_token_stride + head_M * HEAD_DIM
        k_MK, pair_MK, weight_K, pair_weight_K = load_heads(
            k_new_ptr, from_M, valid_M, k_norm_ptr, HEAD_DIM, BLOCK_K, NORM, ROTARY_DIM, INTERLEAVED
        )
        v_MK = tl.load(v_new_ptr + from_M[:, None] + d_K[None, :], mask=valid_MK, other=0.0)
        k_MK = transform_heads(
            k_MK, pair_MK, weight_K, pair_weight_K, cos_MK, sin_MK, eps, weight_offset, HEAD_DIM, NORM,
            k_norm_ptr is not None, LATE_WEIGHT, ROTARY_DIM,
        )  # fmt: skip
        slot_M = tl.load(slots_ptr + token_M, mask=in_step_M, other=0)
        to_M = (slot_M // PAGE) * stride_page + (slot_M % PAGE) * stride_token + head_M * stride_head
        to_MK = to_M[:, None] + d_K[None, :]
        tl.store(k_ptr + to_MK, to_cache(k_MK, k_ptr.dtype.element_ty, SOFT_FP8), mask=valid_MK)
        tl.store(v_ptr + to_MK, to_cache(v_MK, v_ptr.dtype.element_ty, SOFT_FP8), mask=valid_MK)
    elif q_ptr is not None:
        head_M = (tl.program_id(1) - KV_BLOCKS) * BLOCK_H + m_M % BLOCK_H
        valid_M = in_step_M & (head_M < NUM_HEADS)
        at_M = token_M * token_stride + head_M * HEAD_DIM
        q_MK, pair_MK, weight_K, pair_weight_K = load_heads(
            q_ptr, at_M, valid_M, q_norm_ptr, HEAD_DIM, BLOCK_K, NORM, ROTARY_DIM, INTERLEAVED
        )
        q_MK = transform_heads(
            q_MK, pair_MK, weight_K, pair_weight_K, cos_MK, sin_MK, eps, weight_offset, HEAD_DIM, NORM,
            q_norm_ptr is not None, LATE_WEIGHT, ROTARY_DIM,
        )  # fmt: skip
        # Each element was read by two threads, the second time as another's pair.
        tl.debug_barrier()
        valid_MK = valid_M[:, None] & (d_K < HEAD_DIM)[None, :]
        tl.store(q_ptr + at_M[:, None] + d_K[None, :], q_MK, mask=valid_MK)
