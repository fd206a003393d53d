"""Kernel tests run in a process of their own: on a GPU, or with TRITON_INTERPRET=1 on the processor."""

from __future__ import annotations

import os

import pytest
import torch

from drivetrain_triton.arch import GpuArch


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where kernels run.

    Raises:
        pytest.UsageError: there is neither a GPU nor the interpreter.
    """
    if os.environ.get("TRITON_INTERPRET") == "1":
        from drivetrain_triton.interpreter import repair

        repair()
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda")
    raise pytest.UsageError(
        "kernel tests found no GPU and TRITON_INTERPRET is not 1; run them with "
        "`TRITON_INTERPRET=1 python -m pytest tests/gpu_kernels` in a process of their own"
    )


@pytest.fixture
def interpreted(device: torch.device) -> bool:
    """Whether kernels run in the interpreter."""
    return device.type == "cpu"


@pytest.fixture(scope="session")
def arch(device: torch.device) -> GpuArch:
    """The part that kernels run on; few processors in the interpreter, so that work is split as on a large part."""
    if device.type == "cpu":
        return GpuArch(name="interpreter", num_processors=4, shared_bytes=1 << 20)
    properties = torch.cuda.get_device_properties(device)
    major, minor = torch.cuda.get_device_capability(device)
    return GpuArch(
        name=f"sm_{major}{minor}",
        num_processors=properties.multi_processor_count,
        shared_bytes=properties.shared_memory_per_block_optin,
        pdl=major >= 9,
    )
