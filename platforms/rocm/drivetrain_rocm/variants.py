"""Every kernel that the ROCm backend launches for a model."""

# Relaxed: variants hold what Triton takes, which is untyped.
# pyright: basic

from __future__ import annotations

import torch

from drivetrain_plugins.contract.executor import ExecutorLimits
from drivetrain_plugins.contract.model import DecoderSpec
from drivetrain_rocm.attention import RocmAttention
from drivetrain_rocm.fp8 import kv_dtypes
from drivetrain_rocm.parts import PARTS
from drivetrain_triton.arch import GpuArch
from drivetrain_triton.attention.variants import attention_variants
from drivetrain_triton.launch import Variant
from drivetrain_triton.linear import linear_variants
from drivetrain_triton.variants import ops_variants


def kernel_variants(spec: DecoderSpec, limits: ExecutorLimits, arch: GpuArch) -> list[Variant]:
    """Every kernel that this rank's share of the model launches, in an order that is always the same."""
    kv_dtype = kv_dtypes(PARTS[arch.name])[limits.kv_dtype]
    attention = RocmAttention(arch=arch.name, num_processors=arch.num_processors)
    return [
        *attention_variants(attention, spec, limits, kv_dtype),
        *linear_variants(spec, getattr(torch, limits.dtype), arch),
        *ops_variants(spec, limits, arch),
    ]
