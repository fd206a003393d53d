"""Device functions that kernels share: heads of a packed projection, normed and rotated, and numbers for the cache.

M head vectors of a block, K head size padded to a power of two.
"""

# Relaxed: Triton's language is untyped.
# pyright: basic

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_heads(
    x_ptr,
    offset_M,
    valid_M,
    position_M,
    weight_ptr,
    cos_ptr,
    sin_ptr,
    eps,
    weight_offset,
    HEAD_DIM: tl.constexpr,
    BLOCK_K: tl.constexpr,
    NORM: tl.constexpr,
    LATE_WEIGHT: tl.constexpr,
    ROTARY_DIM: tl.constexpr,
    INTERLEAVED: tl.constexpr,
):
    """Head vectors (M, BLOCK_K), normed and rotated, in the type of `x_ptr`; what is not valid is 0.

    Roundings are those of `contract.reference`: after the norm, before a late weight, after the rotation. The other
    element of each rotated pair is loaded a second time, out of the first-level cache, where a shuffle would need both
    in registers of one thread.

    Args:
        offset_M: int64, first element of each vector.
        weight_ptr: (HEAD_DIM) of the norm, or None.
        cos_ptr, sin_ptr: float32 (positions, ROTARY_DIM / 2).
        ROTARY_DIM: 0 does not rotate.
    """
    d_K = tl.arange(0, BLOCK_K)
    valid_MK = valid_M[:, None] & (d_K < HEAD_DIM)[None, :]
    x_MK = tl.load(x_ptr + offset_M[:, None] + d_K[None, :], mask=valid_MK, other=0.0)
    if NORM:
        y_MK = x_MK.to(tl.float32)
        inverse_M = tl.rsqrt(tl.sum(y_MK * y_MK, axis=1) / HEAD_DIM + eps)
        x_MK = _normed(x_MK, inverse_M, d_K, weight_ptr, weight_offset, HEAD_DIM, LATE_WEIGHT)
    if ROTARY_DIM > 0:
        HALF: tl.constexpr = ROTARY_DIM // 2
        if INTERLEAVED:
            pair_K = d_K + 1 - 2 * (d_K % 2)
            first_K = (d_K % 2) == 0
            angle_K = d_K // 2
        else:
            first_K = d_K < HALF
            pair_K = tl.where(first_K, d_K + HALF, d_K - HALF)
            angle_K = tl.where(first_K, d_K, d_K - HALF)
        turned_K = d_K < ROTARY_DIM
        turned_MK = valid_M[:, None] & turned_K[None, :]
        pair_MK = tl.load(x_ptr + offset_M[:, None] + pair_K[None, :], mask=turned_MK, other=0.0)
        if NORM:
            pair_MK = _normed(pair_MK, inverse_M, pair_K, weight_ptr, weight_offset, ROTARY_DIM, LATE_WEIGHT)
        angle_MK = position_M.to(tl.int64)[:, None] * HALF + angle_K[None, :]
        cos_MK = tl.load(cos_ptr + angle_MK, mask=turned_MK, other=1.0)
        sin_MK = tl.load(sin_ptr + angle_MK, mask=turned_MK, other=0.0)
        sin_MK = tl.where(first_K[None, :], -sin_MK, sin_MK)
        x_MK = (x_MK.to(tl.float32) * cos_MK + pair_MK.to(tl.float32) * sin_MK).to(x_MK.dtype)
    return x_MK


@triton.jit
def _normed(x_MK, inverse_M, d_K, weight_ptr, weight_offset, LIMIT: tl.constexpr, LATE_WEIGHT: tl.constexpr):
    y_MK = x_MK.to(tl.float32) * inverse_M[:, None]
    if weight_ptr is not None:
        w_K = tl.load(weight_ptr + d_K, mask=d_K < LIMIT, other=0.0).to(tl.float32) + weight_offset
        if LATE_WEIGHT:
            y_MK = y_MK.to(x_MK.dtype).to(tl.float32)
        y_MK = y_MK * w_K[None, :]
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
    elif dtype == tl.float8e5:
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
