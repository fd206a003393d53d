"""Rows of an embedding.

T tokens, V vocabulary, D features.
"""

# Relaxed: Triton's language is untyped; what it declares about itself holds for its compiler only.
# pyright: basic, reportArgumentType=false, reportAttributeAccessIssue=false, reportOperatorIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl

from drivetrain_triton.arch import GpuArch
from drivetrain_triton.launch import launch

_BLOCK = 2048


@triton.jit
def embed_kernel(ids_T, weight_VD, out_TD, weight_stride, scale, D, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """A block of one token's features a program."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    token = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = d < D
    row = tl.load(ids_T + token).to(tl.int64)
    x = tl.load(weight_VD + row * weight_stride + d, mask)
    tl.store(out_TD + token * D + d, (x.to(tl.float32) * scale).to(out_TD.dtype.element_ty), mask)


def embed(ids_T: torch.Tensor, weight_VD: torch.Tensor, arch: GpuArch, *, scale: float = 1.0) -> torch.Tensor:
    """Rows of the embedding times a factor, (T, D) in the type of the weight; exact rows where the factor is 1.

    Args:
        ids_T: integers from 0 to V - 1; not checked.
    """
    weight_VD = weight_VD if weight_VD.stride(1) == 1 else weight_VD.contiguous()
    tokens, features = ids_T.shape[0], weight_VD.shape[1]
    out_TD = torch.empty((tokens, features), dtype=weight_VD.dtype, device=weight_VD.device)
    args = (ids_T, weight_VD, out_TD, weight_VD.stride(0), scale, features)
    launch(embed_kernel, (tokens, triton.cdiv(features, _BLOCK)), *args, pdl=arch.pdl, BLOCK=_BLOCK)
    return out_TD
