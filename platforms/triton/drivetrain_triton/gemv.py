"""Products of one or two tokens with a weight matrix, by plain multiply-adds: as fast as the weights can be read.

M tokens (a constant), N outputs, K inputs, C chunks of eight inputs. Eight neighbouring inputs are one 16-byte load in
16 bits; their products are added within a thread, so that a thread keeps one sum a row instead of eight.

Source: arithmetic y = W x. The root-mean-square norm of x needs no pass of its own: W (x s w) = s W (x w), where the
factor s = rsqrt(mean(x^2) + eps) is known once all of x has been seen.
"""

# Relaxed: Triton's language is untyped and cannot unpack tuples.
# pyright: basic, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false
# ruff: noqa: RUF005

from __future__ import annotations

import triton
import triton.language as tl

from drivetrain_triton.activations import activated


@triton.jit
def gemv_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    norm_ptr,
    out_ptr,
    N,
    stride_x,
    stride_out,
    eps,
    norm_offset,
    M: tl.constexpr,
    K: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    UNROLL: tl.constexpr,
    NORM: tl.constexpr,
    GATE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ADD: tl.constexpr,
    BIAS: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program makes `BN` outputs of every token.

    Args:
        x_ptr: (M, K), row stride `stride_x`.
        weight_ptr: (N, K), or with GATE (2 N, K): gate rows, then up rows. Contiguous.
        bias_ptr: one element a weight row, read with BIAS.
        norm_ptr: (K), read with NORM: x is divided by its root mean square and multiplied by `norm + norm_offset`.
        out_ptr: (M, N), row stride `stride_out`. With ADD the product is added to it, else it is overwritten. With GATE
            it is `ACTIVATION(gate) * up`.
    """
    rows = tl.program_id(0) * BN + tl.arange(0, BN)
    C: tl.constexpr = BK // 8
    offs = tl.arange(0, C)[None, :, None] * 8 + tl.arange(0, 8)[None, None, :]
    # Rows past the end read the last row; they are not stored.
    base = weight_ptr + tl.minimum(rows, N - 1).to(tl.int64)[:, None, None] * K + offs
    # Weights are constant: the first of them may come before the wait for the inputs.
    w = tl.load(base, mask=offs < K, other=0.0, eviction_policy="evict_first")
    if GATE:
        up_base = base + tl.cast(N, tl.int64) * K
        u = tl.load(up_base, mask=offs < K, other=0.0, eviction_policy="evict_first")
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    # What the product is added to is loaded first: at the end, the next kernel's weights would be in its way.
    stored = rows < N
    totals = ()
    sums = ()
    up_sums = ()
    squares = ()
    for m in tl.static_range(M):
        total = tl.zeros([BN], tl.float32)
        if ADD:
            total += tl.load(out_ptr + m * stride_out + rows, mask=stored, other=0.0).to(tl.float32)
        totals = totals + (total,)
        sums = sums + (tl.zeros([BN, C], tl.float32),)
        up_sums = up_sums + (tl.zeros([BN, C], tl.float32),)
        squares = squares + (tl.zeros([1, C], tl.float32),)
    for k in tl.range(0, K, BK, loop_unroll_factor=UNROLL):
        here = offs < K - k
        ahead = offs < K - k - BK
        w_next = tl.load(base + (k + BK), mask=ahead, other=0.0, eviction_policy="evict_first")
        wf = w.to(tl.float32)
        if GATE:
            u_next = tl.load(up_base + (k + BK), mask=ahead, other=0.0, eviction_policy="evict_first")
            uf = u.to(tl.float32)
        if NORM:
            factor = tl.load(norm_ptr + k + offs, mask=here, other=0.0).to(tl.float32) + norm_offset
        new_sums = ()
        new_up_sums = ()
        new_squares = ()
        for m in tl.static_range(M):
            x = tl.load(x_ptr + m * stride_x + k + offs, mask=here, other=0.0).to(tl.float32)
            if NORM:
                new_squares = new_squares + (squares[m] + tl.sum(x * x, 2),)
                x = x * factor
            else:
                new_squares = new_squares + (squares[m],)
            new_sums = new_sums + (sums[m] + tl.sum(wf * x, 2),)
            if GATE:
                new_up_sums = new_up_sums + (up_sums[m] + tl.sum(uf * x, 2),)
            else:
                new_up_sums = new_up_sums + (up_sums[m],)
        sums = new_sums
        up_sums = new_up_sums
        squares = new_squares
        w = w_next
        if GATE:
            u = u_next
    for m in tl.static_range(M):
        y = tl.sum(sums[m], 1)
        if NORM:
            scale = tl.rsqrt(tl.sum(squares[m]) / K + eps)
            y = y * scale
        if BIAS:
            y += tl.load(bias_ptr + rows, mask=stored, other=0.0).to(tl.float32)
        if GATE:
            z = tl.sum(up_sums[m], 1)
            if NORM:
                z = z * scale
            if BIAS:
                z += tl.load(bias_ptr + N + rows, mask=stored, other=0.0).to(tl.float32)
            y = activated(y, ACTIVATION) * z
        if ADD:
            y += totals[m]
        tl.store(out_ptr + m * stride_out + rows, y.to(out_ptr.dtype.element_ty), mask=stored)
