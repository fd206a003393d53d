"""Memory of the device as the allocator counts it, and tensors over memory that torch did not allocate."""

# Relaxed: torch's stubs leave these functions half typed.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMemory:
    """Bytes.

    Attributes:
        total, free: of the device, whoever uses it.
        allocated: in tensors of this process. reserved: what torch holds for tensors, these included.
    """

    total: int
    free: int
    allocated: int
    reserved: int


def device_memory(device: torch.device) -> DeviceMemory:
    """Measure now."""
    free, total = torch.cuda.mem_get_info(device)
    return DeviceMemory(
        total=total,
        free=free,
        allocated=torch.cuda.memory_allocated(device),
        reserved=torch.cuda.memory_reserved(device),
    )


def tensor_at(device: torch.device, address: int, num_bytes: int) -> torch.Tensor:
    """A uint8 tensor over device memory that the caller keeps alive. Its beginning must be mapped."""
    return torch.as_tensor(_Memory(address, num_bytes), device=device)


class _Memory:
    """What torch asks of foreign device memory."""

    def __init__(self, address: int, num_bytes: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (num_bytes,),
            "typestr": "|u1",
            "data": (address, False),
            "strides": None,
            "version": 3,
        }
