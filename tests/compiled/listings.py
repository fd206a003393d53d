"""Some of what a model launches, for processes that tests start: enough to compare, and soon compiled."""

from __future__ import annotations

import drivetrain_cuda.variants
import drivetrain_rocm.variants
from drivetrain_plugins.contract.executor import ExecutorLimits
from drivetrain_plugins.contract.model import DecoderSpec
from drivetrain_triton.arch import GpuArch
from drivetrain_triton.launch import Variant

_SOME = frozenset({"activate_kernel", "derive_kernel", "norm_kernel", "search_kernel", "survey_kernel", "write_kernel"})


def some_of_cuda(spec: DecoderSpec, limits: ExecutorLimits, arch: GpuArch) -> list[Variant]:
    """Of the CUDA backend's."""
    return _some(drivetrain_cuda.variants.kernel_variants(spec, limits, arch))


def some_of_rocm(spec: DecoderSpec, limits: ExecutorLimits, arch: GpuArch) -> list[Variant]:
    """Of the ROCm backend's."""
    return _some(drivetrain_rocm.variants.kernel_variants(spec, limits, arch))


def _some(variants: list[Variant]) -> list[Variant]:
    return [variant for variant in variants if variant.kernel.__name__ in _SOME]
