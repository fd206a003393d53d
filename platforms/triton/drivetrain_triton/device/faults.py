"""What an exception means: out of memory, a dead device, or a bug."""

# Relaxed: torch's stubs leave these functions half typed.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

from dataclasses import dataclass

import torch

from drivetrain_plugins.errors import BackendError, DeviceLost, OutOfMemory
from drivetrain_triton.device.virtual_memory import DriverError


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultSigns:
    """How a vendor's errors are told from others, all in lower case.

    Attributes:
        of_the_device: one of them is in every error of the device's libraries.
        out_of_memory: one of them says that memory is what was missing.
        advice: where a person finds more about a device that no longer answers.
    """

    of_the_device: tuple[str, ...]
    out_of_memory: tuple[str, ...]
    advice: str


def classify(error: Exception, device: torch.device, signs: FaultSigns) -> BackendError | None:
    """What an error out of torch, Triton or the driver means; None where the device still works and has memory.

    An illegal access, a failed assertion or a hardware fault leaves the context unusable: every later call fails too.
    That is how a dead device is told from a call that was refused.
    """
    if isinstance(error, BackendError):
        return error
    text = f"{type(error).__name__}: {error}".lower()
    if not isinstance(error, DriverError) and not any(sign in text for sign in signs.of_the_device):
        return None
    if isinstance(error, torch.OutOfMemoryError):  # from torch's allocator, which leaves the device as it was
        return _out_of_memory(error, device)
    failure = _context_failure(device)
    if failure is not None:
        return DeviceLost(
            f"{device} no longer answers ({failure}); first seen as: {_first_line(error)}. The engine has to be "
            f"started again; {signs.advice}"
        )
    if any(sign in text for sign in signs.out_of_memory):
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
