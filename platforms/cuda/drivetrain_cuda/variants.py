"""Every kernel that the CUDA backend launches for a model."""

# Relaxed: variants hold what Triton takes, which is untyped.
# pyright: basic

from __future__ import annotations

import torch

from drivetrain_cuda.attention import decode_variants
from drivetrain_cuda.kernels.prefill_variants import prefill_variants
from drivetrain_plugins.contract.executor import ExecutorLimits
from drivetrain_plugins.contract.model import DecoderSpec
from drivetrain_triton.arch import GpuArch
from drivetrain_triton.launch import Variant
from drivetrain_triton.linear import linear_variants
from drivetrain_triton.variants import ops_variants


def kernel_variants(spec: DecoderSpec, limits: ExecutorLimits, arch: GpuArch) -> list[Variant]:
    """Every kernel that this rank's share of the model launches, specialised as its launches will be."""
    return [
        *prefill_variants(spec, limits, arch),
        *decode_variants(spec, limits, arch),
        *linear_variants(spec, getattr(torch, limits.dtype), arch),
        *ops_variants(spec, limits, arch),
    ]
