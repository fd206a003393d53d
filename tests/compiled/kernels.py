"""Small kernels to compile in tests of the compiler's tools."""

# Relaxed: Triton's language is untyped; what it declares about itself holds for its compiler only.
# pyright: basic, reportArgumentType=false, reportAttributeAccessIssue=false, reportOperatorIssue=false

import triton
import triton.language as tl

LIMIT = tl.constexpr(64)


@triton.jit
def bounded(x):
    return tl.minimum(x, LIMIT)


@triton.jit
def limited(x, PDL: tl.constexpr):
    tl.store(x, bounded(tl.load(x)))


@triton.jit
def doubled(x, PDL: tl.constexpr):
    tl.store(x, 2 * bounded(tl.load(x)))


@triton.jit
def scale(x, out, factor, n, BLOCK: tl.constexpr, PDL: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    tl.store(out + i, tl.load(x + i, i < n) * factor, i < n)


@triton.jit(do_not_specialize=["first"], do_not_specialize_on_alignment=["x"])
def copy_from(x, out, first, n, BLOCK: tl.constexpr, PDL: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + first + i, i < n), i < n)


@triton.jit
def product(x, y, out, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, PDL: tl.constexpr):
    i, k, j = tl.arange(0, M)[:, None], tl.arange(0, K), tl.arange(0, N)[None, :]
    a, b = tl.load(x + i * K + k[None, :]), tl.load(y + k[:, None] * N + j)
    tl.store(out + i * N + j, tl.dot(a, b).to(out.dtype.element_ty))
