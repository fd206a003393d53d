"""Device functions that kernels share: heads of a packed projection, normed and rotated, and numbers for the cache.

M head vectors of a block, K head size padded to a power of two.
"""

# Relaxed: Triton's language is untyped.
# pyright: basic, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _pairs(d_K, ROTARY_DIM: tl.constexpr, INTERLEAVED: tl.constexpr):
    """Of each element: the other one of its rotated pair, the pair's angle, whether it is the first."""
    HALF: tl.constexpr = ROTARY_DIM // 2
    if INTERLEAVED:
        first_K = (d_K % 2) == 0
        pair_K = d_K + 1 - 2 * (d_K % 2)
        angle_K = d_K // 2
    else:
        first_K = d_K < HALF
        pair_K = tl.where(first_K, d_K + HALF, d_K - HALF)
        angle_K = tl.where(first_K, d_K, d_K - HALF)
    return pair_K, angle_K, first_K


@triton.jit
def load_angles(
    position_M, cos_ptr, sin_ptr, BLOCK_K: tl.constexpr, ROTARY_DIM: tl.constexpr, INTERLEAVED: tl.constexpr
):
    """(cos, sin) float32 (M, BLOCK_K) of each element's pair, the sine negative for first elements; M may be 1.

    Args:
        cos_ptr, sin_ptr: float32 (positions, ROTARY_DIM / 2); unused if ROTARY_DIM is 0.
    """
    d_K = tl.arange(0, BLOCK_K)
    if ROTARY_DIM > 0:
        _, angle_K, first_K = _pairs(d_K, ROTARY_DIM, INTERLEAVED)
        turned_1K = (d_K < ROTARY_DIM)[None, :]
        angle_MK = position_M.to(tl.int64)[:, None] * (ROTARY_DIM // 2) + angle_K[None, :]
        cos_MK = tl.load(cos_ptr + angle_MK, mask=turned_1K, other=1.0)
        sin_MK = tl.load(sin_ptr + angle_MK, mask=turned_1K, other=0.0)
        sin_MK = tl.where(first_K[None, :], -sin_MK, sin_MK)
    else:
        cos_MK = tl.full((1, BLOCK_K), 1.0, tl.float32)
        sin_MK = tl.zeros((1, BLOCK_K), tl.float32)
    return cos_MK, sin_MK


@triton.jit
def load_heads(
    x_ptr,
    offset_M,
    valid_M,
    weight_ptr,
    HEAD_DIM: tl.constexpr,
    BLOCK_K: tl.constexpr,
    NORM: tl.constexpr,
    ROTARY_DIM: tl.constexpr,
    INTERLEAVED: tl.constexpr,
):
    """All that `transform_heads` needs of head vectors: (vectors, their pairs, weights, the pairs' weights).

    Loading is apart from computing so that a kernel can wait once for several loads. The other element of each rotated
    pair is loaded again, out of the first-level cache, where a shuffle would need both in registers of one thread.

    Args:
        offset_M: int64, first element of each vector.
        weight_ptr: (HEAD_DIM) of the norm, or None.
    """
    d_K = tl.arange(0, BLOCK_K)
    in_head_K = d_K < HEAD_DIM
    pair_K = d_K
    paired_K = in_head_K
    if ROTARY_DIM > 0:
        pair_K, _, _ = _pairs(d_K, ROTARY_DIM, INTERLEAVED)
        paired_K = d_K < ROTARY_DIM
    x_MK = tl.load(x_ptr + offset_M[:, None] + d_K[None, :], mask=valid_M[:, None] & in_head_K[None, :], other=0.0)
    pair_MK = x_MK
    if ROTARY_DIM > 0:
        paired_MK = valid_M[:, None] & paired_K[None, :]
        pair_MK = tl.load(x_ptr + offset_M[:, None] + pair_K[None, :], mask=paired_MK, other=0.0)
    weight_K = tl.full((BLOCK_K,), 1.0, tl.float32)
    pair_weight_K = weight_K
    if NORM and weight_ptr is not None:
        weight_K = tl.load(weight_ptr + d_K, mask=in_head_K, other=0.0).to(tl.float32)
        if ROTARY_DIM > 0:
            pair_weight_K = tl.load(weight_ptr + pair_K, mask=paired_K, other=0.0).to(tl.float32)
    return x_MK, pair_MK, weight_K, pair_weight_K


@triton.jit
def transform_heads(
    x_MK,
    pair_MK,
    weight_K,
    pair_weight_K,
    cos_MK,
    sin_MK,
    eps,
    weight_offset,
    HEAD_DIM: tl.constexpr,
    NORM: tl.constexpr,
    WEIGHT: tl.constexpr,
    LATE_WEIGHT: tl.constexpr,
    ROTARY_DIM: tl.constexpr,
):
    """Head vectors normed and rotated, in the type they had.

    Roundings are those of `contract.reference`: after the norm, before a late weight, after the rotation.

    Args:
        cos_MK, sin_MK: of `load_angles`.
        WEIGHT: whether the norm has a weight.
    """
    if NORM:
        y_MK = x_MK.to(tl.float32)
        inverse_M = tl.rsqrt(tl.sum(y_MK * y_MK, axis=1) / HEAD_DIM + eps)
        x_MK = _normed(x_MK, inverse_M, weight_K + weight_offset, WEIGHT, LATE_WEIGHT)
        pair_MK = _normed(pair_MK, inverse_M, pair_weight_K + weight_offset, WEIGHT, LATE_WEIGHT)
    if ROTARY_DIM > 0:
        x_MK = (x_MK.to(tl.float32) * cos_MK + pair_MK.to(tl.float32) * sin_MK).to(x_MK.dtype)
    return x_MK


@triton.jit
def _normed(x_MK, inverse_M, weight_K, WEIGHT: tl.constexpr, LATE_WEIGHT: tl.constexpr):
    y_MK = x_MK.to(tl.float32) * inverse_M[:, None]
    if WEIGHT:
        if LATE_WEIGHT:
            y_MK = y_MK.to(x_MK.dtype).to(tl.float32)
        y_MK = y_MK * weight_K[None, :]
    return y_MK.to(x_MK.dtype)


@triton.jit
def to_cache(x, dtype: tl.constexpr, SOFT_FP8: tl.constexpr):
    """Numbers as the cache stores them; fp8 saturates instead of overflowing.

    Args:
        dtype: element type of the cache; uint8 if SOFT_FP8.
        SOFT_FP8: encode e4m3 by hand, for parts without such an instruction.
    """
    if SOFT_FP8:
        # Scaled by 2**-120, what e4m3 can hold has the exponents of single precision; 20 bits fewer, to nearest even.
        bits = (tl.clamp(x.to(tl.float32), -448.0, 448.0) * 7.52316384526264e-37).to(tl.uint32, bitcast=True)
        low = bits & 0x7FFFFFFF
        low = (low + 0x7FFFF + ((low >> 20) & 1)) >> 20
        stored = (((bits >> 24) & 0x80) | low).to(tl.uint8)
    elif dtype == tl.float8e4nv:
        stored = tl.clamp(x.to(tl.float32), -448.0, 448.0).to(dtype)
    elif dtype == tl.float8e4b8:
        stored = tl.clamp(x.to(tl.float32), -240.0, 240.0).to(dtype)
    elif dtype == tl.float8e5 or dtype == tl.float8e5b16:  # noqa: PLR1714 - there is no `in` in Triton
        stored = tl.clamp(x.to(tl.float32), -57344.0, 57344.0).to(dtype)
    else:
        stored = x.to(dtype)
    return stored


@triton.jit
def from_cache(x, dtype: tl.constexpr, SOFT_FP8: tl.constexpr):
    """What `to_cache` stored, in the type that the matrix product takes."""
    if SOFT_FP8:
        # e4m3 is half precision with 8 less exponent bias and 7 fewer bits.
        wide = x.to(tl.uint16)
        bits = ((wide & 0x80) << 8) | ((wide & 0x7F) << 7)
        read = (bits.to(tl.float16, bitcast=True) * 256.0).to(dtype)
    else:
        read = x.to(dtype)
    return read
