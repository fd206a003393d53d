"""Calls into the CUDA driver that torch does not offer: virtual memory, and what a device is before it is used."""

# The bindings are made by Cython and typed loosely.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false, reportMissingImports=false

from __future__ import annotations

import uuid
from typing import Any

from drivetrain_plugins.errors import BackendError
from drivetrain_triton.device.virtual_memory import DriverError


def bindings() -> Any:
    """The module `cuda.bindings.driver`.

    Raises:
        BackendError: it is not installed.
    """
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise BackendError(
            f"the cuda backend needs the package cuda-bindings, which cannot be imported: {error}; "
            "pip install 'drivetrain[cuda]'"
        ) from error
    return driver


def device_uuid(ordinal: int) -> str:
    """The UUID of a visible device in NVML's spelling. Makes no context.

    Raises:
        BackendError, DriverError: no bindings, no driver, or no such device.
    """
    cuda = bindings()
    _call(cuda, "cuInit", 0)
    found = _call(cuda, "cuDeviceGetUuid", _call(cuda, "cuDeviceGet", ordinal))
    return f"GPU-{uuid.UUID(bytes=bytes(found.bytes))}"


class CudaMemoryDriver:
    """`MemoryDriver` of one device through `cuda.bindings`. The device's primary context must be current."""

    def __init__(self, ordinal: int) -> None:
        self._cuda = cuda = bindings()
        location = cuda.CUmemLocation()
        location.type = cuda.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        location.id = ordinal
        self._memory = cuda.CUmemAllocationProp()
        self._memory.type = cuda.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
        self._memory.location = location
        self._access = cuda.CUmemAccessDesc()
        self._access.location = location
        self._access.flags = cuda.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
        minimum = cuda.CUmemAllocationGranularity_flags.CU_MEM_ALLOC_GRANULARITY_MINIMUM
        self.granularity = int(_call(cuda, "cuMemGetAllocationGranularity", self._memory, minimum))

    def reserve(self, size: int) -> int:
        return int(_call(self._cuda, "cuMemAddressReserve", size, 0, 0, 0))

    def free(self, address: int, size: int) -> None:
        _call(self._cuda, "cuMemAddressFree", address, size)

    def map(self, address: int, size: int) -> None:
        handle = _call(self._cuda, "cuMemCreate", size, self._memory, 0)
        try:
            _call(self._cuda, "cuMemMap", address, size, 0, handle, 0)
        finally:
            # The mapping keeps the memory alive; with the handle gone, unmapping frees it.
            _call(self._cuda, "cuMemRelease", handle)

    def allow(self, address: int, size: int) -> None:
        _call(self._cuda, "cuMemSetAccess", address, size, [self._access], 1)

    def unmap(self, address: int, size: int) -> None:
        _call(self._cuda, "cuMemUnmap", address, size)


def _call(cuda: Any, name: str, *arguments: Any) -> Any:
    """The one result of a driver function, None if it has none."""
    status, *results = getattr(cuda, name)(*arguments)
    if int(status) != 0:
        raise DriverError(name, status.name)
    return results[0] if results else None
