"""Virtual memory of the HIP runtime through ctypes, which torch does not offer and no package binds.

Structures and constants are those of hip_runtime_api.h (ROCm 6 and 7).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from drivetrain_triton.device.virtual_memory import DriverError

LIBRARY = "libamdhip64.so"
MAPS = Path("/proc/self/maps")
_PINNED, _DEVICE, _READ_WRITE, _MINIMUM_GRANULARITY = 1, 1, 3, 0
_FUNCTIONS = (
    "hipMemGetAllocationGranularity",
    "hipMemAddressReserve",
    "hipMemAddressFree",
    "hipMemCreate",
    "hipMemRelease",
    "hipMemMap",
    "hipMemUnmap",
    "hipMemSetAccess",
    "hipGetErrorName",
)


class Library(Protocol):
    """A loaded libamdhip64: functions by name."""

    def __getattr__(self, name: str) -> Callable[..., Any]: ...


class Location(ctypes.Structure):
    """hipMemLocation."""

    _fields_ = (("type", ctypes.c_int), ("id", ctypes.c_int))


class AllocationFlags(ctypes.Structure):
    """hipMemAllocationProp.allocFlags."""

    _fields_ = (
        ("compressionType", ctypes.c_ubyte),
        ("gpuDirectRDMACapable", ctypes.c_ubyte),
        ("usage", ctypes.c_ushort),
    )


class AllocationProperties(ctypes.Structure):
    """hipMemAllocationProp."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("requestedHandleTypes", ctypes.c_int),
        ("location", Location),
        ("win32HandleMetaData", ctypes.c_void_p),
        ("allocFlags", AllocationFlags),
    )


class AccessDescriptor(ctypes.Structure):
    """hipMemAccessDesc."""

    _fields_ = (("location", Location), ("flags", ctypes.c_int))


def loaded_library(maps: Path = MAPS) -> ctypes.CDLL:
    """The HIP runtime that this process has loaded already, torch's own; a second one would know none of its memory.

    Raises:
        OSError: none is loaded.
    """
    for line in maps.read_text(encoding="utf-8", errors="replace").splitlines():
        path = line.partition("/")
        if LIBRARY in path[2]:
            return ctypes.CDLL("/" + path[2].strip())
    raise OSError(f"{LIBRARY} is not loaded in this process")


class HipMemoryDriver:
    """`MemoryDriver` of one device through the HIP runtime.

    Raises:
        DriverError: this system or this GPU has no virtual memory management.
    """

    def __init__(self, library: Library, ordinal: int) -> None:
        self._library = library
        missing = [name for name in _FUNCTIONS if not hasattr(library, name)]
        if missing:
            raise DriverError(missing[0], "not in this HIP runtime")
        location = Location(_DEVICE, ordinal)
        self._memory = AllocationProperties(type=_PINNED, location=location)
        self._access = AccessDescriptor(location, _READ_WRITE)
        granularity = ctypes.c_size_t()
        self._call(
            "hipMemGetAllocationGranularity",
            ctypes.byref(granularity),
            ctypes.byref(self._memory),
            ctypes.c_int(_MINIMUM_GRANULARITY),
        )
        self.granularity = granularity.value
        self._sizes: dict[int, int] = {}
        self._try()

    def reserve(self, size: int) -> int:
        address = ctypes.c_void_p()
        nothing = ctypes.c_size_t(0), ctypes.c_void_p(None), ctypes.c_ulonglong(0)
        self._call("hipMemAddressReserve", ctypes.byref(address), ctypes.c_size_t(size), *nothing)
        return int(address.value or 0)

    def free(self, address: int, size: int) -> None:
        self._call("hipMemAddressFree", ctypes.c_void_p(address), ctypes.c_size_t(size))

    def map(self, address: int, size: int) -> None:
        handle = ctypes.c_void_p()
        flags = ctypes.c_ulonglong(0)
        self._call("hipMemCreate", ctypes.byref(handle), ctypes.c_size_t(size), ctypes.byref(self._memory), flags)
        try:
            self._call("hipMemMap", ctypes.c_void_p(address), ctypes.c_size_t(size), ctypes.c_size_t(0), handle, flags)
        finally:
            # The mapping keeps the memory alive; with the handle gone, unmapping frees it.
            self._call("hipMemRelease", handle)
        self._sizes[address] = size

    def allow(self, address: int, size: int) -> None:
        self._call(
            "hipMemSetAccess",
            ctypes.c_void_p(address),
            ctypes.c_size_t(size),
            ctypes.byref(self._access),
            ctypes.c_size_t(1),
        )

    def unmap(self, address: int, size: int) -> None:
        # HIP takes one mapping at a time: of a range it would give back the first alone.
        end = address + size
        while address < end:
            part = self._sizes.pop(address)
            self._call("hipMemUnmap", ctypes.c_void_p(address), ctypes.c_size_t(part))
            address += part

    def _try(self) -> None:
        """Map one granule and give it back: some systems have the functions and refuse them."""
        if self.granularity <= 0:
            raise DriverError("hipMemGetAllocationGranularity", f"granularity {self.granularity}")
        address = self.reserve(self.granularity)
        try:
            self.map(address, self.granularity)
            try:
                self.allow(address, self.granularity)
            finally:
                self.unmap(address, self.granularity)
        finally:
            self.free(address, self.granularity)

    def _call(self, name: str, *arguments: object) -> None:
        code = int(getattr(self._library, name)(*arguments))
        if code:
            name_of = self._library.hipGetErrorName
            name_of.restype = ctypes.c_char_p  # type: ignore[attr-defined]
            text = name_of(code)
            raise DriverError(name, text.decode() if isinstance(text, bytes) else f"HIP error {code}")
