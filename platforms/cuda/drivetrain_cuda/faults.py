"""What an exception means: out of memory, a dead device, or a bug."""

# Relaxed: torch's stubs leave these functions half typed.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

import torch

from drivetrain_cuda.virtual_memory import DriverError
from drivetrain_plugins.errors import BackendError, DeviceLost, OutOfMemory

_OUT_OF_MEMORY = ("out of memory", "cublas_status_alloc_failed", "cuda_error_out_of_memory")
_OF_THE_DEVICE = ("cuda", "cublas", "nccl", "triton error", "acceleratorerror")


def classify(error: Exception, device: torch.device) -> BackendError | None:
    """What an error out of torch, Triton or the driver means; None where the device still works and has memory.

    An illegal access, a failed assertion or a hardware fault leaves the context unusable: every later call fails too.
    That is how a dead device is told from a call that was refused.
    """
    if isinstance(error, BackendError):
        return error
    text = f"{type(error).__name__}: {error}".lower()
    if not isinstance(error, DriverError) and not any(sign in text for sign in _OF_THE_DEVICE):
        return None
    if isinstance(error, torch.OutOfMemoryError):  # from torch's allocator, which leaves the device as it was
        return _out_of_memory(error, device)
    failure = _context_failure(device)
    if failure is not None:
        return DeviceLost(
            f"{device} no longer answers ({failure}); first seen as: {_first_line(error)}. The engine has to be "
            "started again; `nvidia-smi` and the kernel log (Xid) tell more"
        )
    if any(sign in text for sign in _OUT_OF_MEMORY):
        return _out_of_memory(error, device)
    return None


def _out_of_memory(error: Exception, device: torch.device) -> OutOfMemory:
    return OutOfMemory(
        f"{device} ran out of memory: {_first_line(error)}; lower the KV memory or the step's token budget"
    )


def _context_failure(device: torch.device) -> str | None:
    if device.type != "cuda":
        return None
    try:
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        return _first_line(error)
    return None


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].strip() or type(error).__name__
