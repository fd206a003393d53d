"""What comes after the output product: bias, scale and soft cap.

K rows, V vocabulary.
"""

# Relaxed: Triton's language is untyped; what it declares about itself holds for its compiler only.
# pyright: basic, reportArgumentType=false, reportAttributeAccessIssue=false, reportOperatorIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl

from drivetrain_triton.arch import GpuArch
from drivetrain_triton.launch import launch

_BLOCK = 1024


@triton.jit
def finished(x, scale, cap, CAP: tl.constexpr):
    """Scaled and capped float32 logits."""
    x = x * scale
    if CAP:
        # tanh by the logistic function, which does not overflow.
        x = cap * (2.0 * tl.sigmoid(2.0 * x / cap) - 1.0)
    return x


@triton.jit
def finish_kernel(
    logits_KV, bias_V, scale, cap, V, BIAS: tl.constexpr, CAP: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    """A block of one row a program, in place."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    v = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = v < V
    row = logits_KV + tl.program_id(0).to(tl.int64) * V
    x = tl.load(row + v, mask, other=0.0)
    if BIAS:
        x = x + tl.load(bias_V + v, mask, other=0.0).to(tl.float32)
    tl.store(row + v, finished(x, scale, cap, CAP), mask)


def finish(
    logits_KV: torch.Tensor, bias_V: torch.Tensor | None, scale: float, soft_cap: float | None, arch: GpuArch
) -> torch.Tensor:
    """Bias, then scale, then soft cap, in place where there is anything to do.

    Args:
        logits_KV: float32, contiguous.
    """
    if bias_V is None and scale == 1.0 and soft_cap is None:
        return logits_KV
    rows, vocab_size = logits_KV.shape
    launch(
        finish_kernel,
        (rows, triton.cdiv(vocab_size, _BLOCK)),
        *(logits_KV, bias_V, float(scale), float(soft_cap or 0.0), vocab_size),
        pdl=arch.pdl,
        BIAS=bias_V is not None,
        CAP=soft_cap is not None,
        BLOCK=_BLOCK,
    )
    return logits_KV
