"""Products of a few tokens with a weight matrix on the matrix units, bound by reading the weights.

M tokens (at most BM), N outputs, K inputs. The weights are the left operand, so that a tile of 64 rows feeds the widest
matrix instruction while the few tokens are its columns. Where rows alone do not fill the processors, K is split: each
program leaves its part in a buffer and the last to arrive adds all parts in their order, so that the result does not
depend on who was last.

Source: arithmetic Y = X W^T; the norm as in `gemv`.
"""

# Relaxed: Triton's language is untyped.
# pyright: basic

from __future__ import annotations

import triton
import triton.language as tl

from drivetrain_triton.activations import activated
from drivetrain_triton.arrival import stores_done


@triton.jit
def _tile(ptrs, k, offs_k, K, EVEN_K: tl.constexpr):
    """A tile of weights at column `k`."""
    if EVEN_K:
        return tl.load(ptrs + k, eviction_policy="evict_first")
    else:
        return tl.load(ptrs + k, mask=(offs_k < K - k)[None, :], other=0.0, eviction_policy="evict_first")


@triton.jit(do_not_specialize=["M"])
def skinny_gemm_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    norm_ptr,
    out_ptr,
    parts_ptr,
    arrived_ptr,
    M,
    N,
    K,
    stride_x,
    stride_out,
    eps,
    norm_offset,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    SPLIT: tl.constexpr,
    STAGES: tl.constexpr,
    EVEN_K: tl.constexpr,
    NORM: tl.constexpr,
    GATE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ADD: tl.constexpr,
    BIAS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (blocks of BN outputs, SPLIT). Arguments as in `gemv_kernel`, and:

    Args:
        parts_ptr: fp32, SPLIT parts of each block: (BN, BM), with GATE a second one, then BM sums of squares.
        arrived_ptr: int32, one counter a block, zero before and after.
    """
    block = tl.program_id(0)
    split = tl.program_id(1)
    rows = block * BN + tl.arange(0, BN)
    tokens = tl.arange(0, BM)
    offs_k = tl.arange(0, BK)
    per_split = tl.cdiv(tl.cdiv(K, BK), SPLIT) * BK
    first = split * per_split
    last = tl.minimum(first + per_split, K)
    # Rows past the end read the last row; they are not stored.
    weight_ptrs = weight_ptr + tl.minimum(rows, N - 1).to(tl.int64)[:, None] * K + offs_k[None, :]
    up_ptrs = weight_ptrs + tl.cast(N, tl.int64) * K
    x_ptrs = x_ptr + tokens[:, None] * stride_x + offs_k[None, :]
    present = (tokens < M)[:, None]
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    y = tl.zeros([BN, BM], tl.float32)
    z = tl.zeros([BN, BM], tl.float32)
    squares = tl.zeros([BM], tl.float32)
    for k in tl.range(first, last, BK, num_stages=STAGES):
        w = _tile(weight_ptrs, k, offs_k, K, EVEN_K)
        if EVEN_K:
            x = tl.load(x_ptrs + k, mask=present, other=0.0)
        else:
            x = tl.load(x_ptrs + k, mask=present & (offs_k < K - k)[None, :], other=0.0)
        if NORM:
            xf = x.to(tl.float32)
            squares += tl.sum(xf * xf, 1)
            if EVEN_K:
                factor = tl.load(norm_ptr + k + offs_k)
            else:
                factor = tl.load(norm_ptr + k + offs_k, mask=offs_k < K - k, other=0.0)
            x = (xf * (factor.to(tl.float32) + norm_offset)[None, :]).to(x.dtype)
        y = tl.dot(w, tl.trans(x), y)
        if GATE:
            z = tl.dot(_tile(up_ptrs, k, offs_k, K, EVEN_K), tl.trans(x), z)
    lines = tl.arange(0, BN)
    finishes = True
    if SPLIT > 1:
        SIZE: tl.constexpr = BN * BM * (2 if GATE else 1) + BM
        place = lines[:, None] * BM + tokens[None, :]
        parts = parts_ptr + block.to(tl.int64) * SPLIT * SIZE
        mine = parts + split * SIZE
        tl.store(mine + place, y)
        if GATE:
            tl.store(mine + BN * BM + place, z)
        if NORM:
            tl.store(mine + (SIZE - BM) + tokens, squares)
        # All threads of the program have stored before one of them says so.
        stores_done()
        tl.debug_barrier()
        finishes = tl.atomic_add(arrived_ptr + block, 1, sem="acq_rel") == SPLIT - 1
        if finishes:
            tl.store(arrived_ptr + block, 0)
            y = tl.zeros([BN, BM], tl.float32)
            z = tl.zeros([BN, BM], tl.float32)
            squares = tl.zeros([BM], tl.float32)
            for part in tl.static_range(SPLIT):
                y += tl.load(parts + part * SIZE + place, cache_modifier=".cg")
                if GATE:
                    z += tl.load(parts + part * SIZE + BN * BM + place, cache_modifier=".cg")
                if NORM:
                    squares += tl.load(parts + part * SIZE + (SIZE - BM) + tokens, cache_modifier=".cg")
    if finishes:
        if NORM:
            scale = tl.rsqrt(squares / K + eps)[None, :]
            y = y * scale
            z = z * scale
        stored = (rows < N)[:, None] & (tokens < M)[None, :]
        if BIAS:
            y += tl.load(bias_ptr + rows, mask=rows < N, other=0.0).to(tl.float32)[:, None]
        if GATE:
            if BIAS:
                z += tl.load(bias_ptr + N + rows, mask=rows < N, other=0.0).to(tl.float32)[:, None]
            y = activated(y, ACTIVATION) * z
        out = out_ptr + tokens[None, :].to(tl.int64) * stride_out + rows[:, None]
        if ADD:
            y += tl.load(out, mask=stored, other=0.0).to(tl.float32)
        tl.store(out, y.to(out_ptr.dtype.element_ty), mask=stored)
