"""Compiling a model's kernels in threads while its weights load.

Half of the kernels are for requests that ask for something special: they go on compiling while the first requests are
served. A step that needs one earlier compiles it itself.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import torch

from drivetrain_cuda.attention import decode_variants
from drivetrain_cuda.kernels.prefill_variants import prefill_variants
from drivetrain_plugins.contract.executor import ExecutorLimits, Progress
from drivetrain_plugins.contract.model import DecoderSpec
from drivetrain_plugins.errors import BackendError
from drivetrain_triton.arch import GpuArch
from drivetrain_triton.launch import Variant, compile_all
from drivetrain_triton.linear import linear_variants
from drivetrain_triton.variants import ops_variants

PHASE = "compile kernels"
MOST_THREADS = 16
SPECIAL_KERNELS = frozenset({"cascade_kernel", "bounds_kernel", "biases_kernel", "penalties_kernel", "logprobs_kernel"})
SPECIAL_CONSTANTS = ("SHARED", "FILTERED", "COUNTED")
_POLL_S = 0.02


def kernel_variants(spec: DecoderSpec, limits: ExecutorLimits, arch: GpuArch) -> list[Variant]:
    """Every kernel that this rank's share of the model launches, specialised as its launches will be.

    Those that take longest to compile come first, so that none of them begins when the others have ended.
    """
    return [
        *prefill_variants(spec, limits, arch),
        *decode_variants(spec, limits, arch),
        *linear_variants(spec, getattr(torch, limits.dtype), arch),
        *ops_variants(spec, limits, arch),
    ]


def is_special(variant: Variant) -> bool:
    """Whether a plain request alone never launches this."""
    constants = variant.constexprs
    return variant.kernel.__name__ in SPECIAL_KERNELS or any(constants.get(name) for name in SPECIAL_CONSTANTS)


def start_compiling(spec: DecoderSpec, limits: ExecutorLimits, arch: GpuArch, progress: Progress) -> Callable[[], None]:
    """`Device.compile_ahead`. One processor is left to the thread that loads weights."""
    usable = len(os.sched_getaffinity(0))
    threads = max(1, min(usable - 1, MOST_THREADS))
    variants = kernel_variants(spec, limits, arch)
    special = [variant for variant in variants if is_special(variant)]
    compilation = compile_all((variant for variant in variants if not is_special(variant)), max_workers=threads)
    total = compilation.remaining
    progress(PHASE, 0, total, "kernels")

    def wait() -> None:
        while remaining := compilation.remaining:
            progress(PHASE, total - remaining, total, "kernels")
            time.sleep(_POLL_S)
        try:
            compilation.wait()
        except RuntimeError as error:
            raise BackendError(
                f"{error}; report it with the GPU's name, and remove ~/.triton/cache if it came with an update"
            ) from error
        progress(PHASE, total, total, "kernels")
        # One thread, not to slow the start; what fails to compile fails again, aloud, where it is launched.
        compile_all(special, max_workers=1)

    return wait
