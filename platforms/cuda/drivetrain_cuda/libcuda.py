"""What the CUDA driver says about its devices, through ctypes: no context, no package, a few milliseconds a call."""

from __future__ import annotations

import ctypes
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

LIBRARY = "libcuda.so.1"
_MAJOR, _MINOR, _PROCESSORS = 75, 76, 16  # of CUdevice_attribute


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundGpu:
    """One visible GPU.

    Attributes:
        ordinal: as torch counts. capability: compute capability, (9, 0) for Hopper. uuid: in NVML's spelling.
    """

    ordinal: int
    name: str
    capability: tuple[int, int]
    memory_bytes: int
    num_processors: int
    uuid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Driver:
    """The driver and its devices.

    Attributes:
        cuda: the newest CUDA version that it serves, as "13.0".
    """

    cuda: str
    gpus: tuple[FoundGpu, ...]


class DriverRefused(Exception):
    """The driver answers with an error.

    Attributes:
        code: its number. name: its name, as CUDA_ERROR_NO_DEVICE.
    """

    def __init__(self, code: int, name: str) -> None:
        super().__init__(name)
        self.code = code
        self.name = name


class Library(Protocol):
    """A loaded libcuda: functions by name."""

    def __getattr__(self, name: str) -> Callable[..., int]: ...


def load_library() -> ctypes.CDLL:
    """Load the driver's library.

    Raises:
        OSError: it is not there, or cannot be loaded.
    """
    return ctypes.CDLL(LIBRARY)


def ask_driver(library: Library) -> Driver:
    """List what the driver shows this process; `CUDA_VISIBLE_DEVICES` is applied by the driver itself.

    Raises:
        DriverRefused: the driver is there and does not work, or sees no device.
    """
    _call(library, "cuInit", 0)
    version, count = ctypes.c_int(), ctypes.c_int()
    _call(library, "cuDriverGetVersion", ctypes.byref(version))
    _call(library, "cuDeviceGetCount", ctypes.byref(count))
    cuda = f"{version.value // 1000}.{version.value % 1000 // 10}"
    return Driver(cuda=cuda, gpus=tuple(_gpu(library, ordinal) for ordinal in range(count.value)))


def _gpu(library: Library, ordinal: int) -> FoundGpu:
    device = ctypes.c_int()
    _call(library, "cuDeviceGet", ctypes.byref(device), ordinal)
    name = ctypes.create_string_buffer(256)
    _call(library, "cuDeviceGetName", name, 256, device)
    memory = ctypes.c_size_t()
    _call(library, "cuDeviceTotalMem_v2", ctypes.byref(memory), device)
    identity = (ctypes.c_ubyte * 16)()
    _call(library, "cuDeviceGetUuid", identity, device)

    def attribute(number: int) -> int:
        value = ctypes.c_int()
        _call(library, "cuDeviceGetAttribute", ctypes.byref(value), number, device)
        return value.value

    return FoundGpu(
        ordinal=ordinal,
        name=name.value.decode(errors="replace"),
        capability=(attribute(_MAJOR), attribute(_MINOR)),
        memory_bytes=memory.value,
        num_processors=attribute(_PROCESSORS),
        uuid=f"GPU-{uuid.UUID(bytes=bytes(identity))}",
    )


def _call(library: Library, name: str, *arguments: object) -> None:
    code = getattr(library, name)(*arguments)
    if code:
        text = ctypes.c_char_p()
        known = library.cuGetErrorName(code, ctypes.byref(text)) == 0 and text.value
        raise DriverRefused(code, text.value.decode() if known and text.value else f"CUDA error {code}")
