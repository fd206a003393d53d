"""What is begun before torch is there. Imports neither torch nor Triton."""

from __future__ import annotations

from collections.abc import Callable

from drivetrain_triton.device.compilers import begin_compilers


def begin() -> Callable[[], None]:
    """Start the processes that compile kernels, where none is compiled yet; returns what ends them."""
    return begin_compilers("drivetrain_rocm.variants:kernel_variants")
