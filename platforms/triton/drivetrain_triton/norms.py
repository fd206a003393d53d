"""Root-mean-square and layer norm, alone or after adding a branch to the residual stream.

T tokens, D features.
"""

# Relaxed: Triton's language is untyped; what it declares about itself holds for its compiler only.
# pyright: basic, reportArgumentType=false, reportAttributeAccessIssue=false, reportOperatorIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl

from drivetrain_plugins.contract.attention import NormWeights
from drivetrain_triton.arch import GpuArch
from drivetrain_triton.launch import launch

MAX_FEATURES = 16384
"""A token's features are held in the registers of one program."""


@triton.jit
def norm_of_row(
    x,
    weight,
    bias,
    eps,
    offset,
    width,
    mask,
    LAYER: tl.constexpr,
    WEIGHT: tl.constexpr,
    BIAS: tl.constexpr,
    LATE: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """Norm of one float32 row. With `LATE` it is rounded to `DTYPE` before the weight."""
    if LAYER:
        x = tl.where(mask, x - tl.sum(x, axis=0) / width, 0.0)
    y = x * tl.rsqrt(tl.sum(x * x, axis=0) / width + eps)
    if WEIGHT:
        if LATE:
            y = y.to(DTYPE).to(tl.float32)
        y = y * (weight + offset)
    if BIAS:
        y = y + bias
    return y


@triton.jit
def norm_kernel(
    x_TD,
    delta_TD,
    weight_D,
    bias_D,
    out_TD,
    x_stride,
    delta_stride,
    eps,
    offset,
    D: tl.constexpr,
    ADD: tl.constexpr,
    LAYER: tl.constexpr,
    WEIGHT: tl.constexpr,
    BIAS: tl.constexpr,
    LATE: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """One token a program. With `ADD`, x += delta in memory first, rounded to the type of x.

    Source: Zhang and Sennrich, Root Mean Square Layer Normalization, 2019.
    """
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    token = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK)
    mask = d < D
    weight, bias = 0.0, 0.0
    if WEIGHT:
        weight = tl.load(weight_D + d, mask, other=0.0).to(tl.float32)
    if BIAS:
        bias = tl.load(bias_D + d, mask, other=0.0).to(tl.float32)
    if PDL:
        tl.extra.cuda.gdc_wait()
    x = tl.load(x_TD + token * x_stride + d, mask, other=0.0)
    if ADD:
        delta = tl.load(delta_TD + token * delta_stride + d, mask, other=0.0)
        x = (x.to(tl.float32) + delta.to(tl.float32)).to(x_TD.dtype.element_ty)
        tl.store(x_TD + token * x_stride + d, x, mask)
    x = x.to(tl.float32)
    y = norm_of_row(x, weight, bias, eps, offset, D, mask, LAYER, WEIGHT, BIAS, LATE, x_TD.dtype.element_ty)
    tl.store(out_TD + token * D + d, y.to(out_TD.dtype.element_ty), mask)


def can_norm(x_TD: torch.Tensor, weights: NormWeights) -> bool:
    """Whether `norm` and `add_norm` serve these shapes: one weight for all rows, which fit the registers."""
    one_weight = weights.weight is None or weights.weight.ndim == 1
    one_bias = weights.bias is None or weights.bias.ndim == 1
    return x_TD.ndim == 2 and x_TD.shape[1] <= MAX_FEATURES and one_weight and one_bias


def norm(x_TD: torch.Tensor, weights: NormWeights, arch: GpuArch) -> torch.Tensor:
    """Norm of each row in float32, rounded to the type of `x_TD`. See `can_norm`.

    Args:
        x_TD: rows may lie apart.
    """
    x_TD = _rows(x_TD)
    out_TD = torch.empty(x_TD.shape, dtype=x_TD.dtype, device=x_TD.device)
    _launch(x_TD, None, weights, out_TD, arch)
    return out_TD


def add_norm(
    delta_TD: torch.Tensor, residual_TD: torch.Tensor, weights: NormWeights, arch: GpuArch
) -> tuple[torch.Tensor, torch.Tensor]:
    """(norm(delta + residual), delta + residual); the sum overwrites `residual_TD`. See `can_norm`."""
    residual_TD = _rows(residual_TD)
    out_TD = torch.empty(residual_TD.shape, dtype=residual_TD.dtype, device=residual_TD.device)
    _launch(residual_TD, _rows(delta_TD), weights, out_TD, arch)
    return out_TD, residual_TD


def _rows(x_TD: torch.Tensor) -> torch.Tensor:
    return x_TD if x_TD.stride(1) == 1 else x_TD.contiguous()


def _launch(
    x_TD: torch.Tensor, delta_TD: torch.Tensor | None, weights: NormWeights, out_TD: torch.Tensor, arch: GpuArch
) -> None:
    spec, (tokens, features) = weights.spec, x_TD.shape
    block = triton.next_power_of_2(features)
    launch(
        norm_kernel,
        (tokens,),
        x_TD,
        delta_TD,
        weights.weight,
        weights.bias,
        out_TD,
        x_TD.stride(0),
        delta_TD.stride(0) if delta_TD is not None else 0,
        spec.eps,
        spec.weight_offset,
        num_warps=max(1, min(16, block // (8 * arch.warp_size))),
        pdl=arch.pdl,
        D=features,
        ADD=delta_TD is not None,
        LAYER=spec.kind == "layer",
        WEIGHT=weights.weight is not None,
        BIAS=weights.bias is not None,
        LATE=spec.late_weight,
        BLOCK=block,
    )
