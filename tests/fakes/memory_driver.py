"""A CUDA driver's virtual memory without a GPU: host memory behind the addresses, and no mistake forgiven."""

from __future__ import annotations

import ctypes
import mmap

import torch

from drivetrain_triton.device.memory import DeviceMemory
from drivetrain_triton.device.virtual_memory import DriverError

GRANULARITY = 1 << 16
POISON = b"\xff" * 256
"""What fresh granules begin with: NaN in every floating type."""


class FakeMemoryDriver:
    """Reserves host ranges, counts what is mapped against `memory_bytes`, and checks every call.

    Attributes:
        reserved: address -> host memory of each range. mapped: address -> size of each mapping.
        allowed: addresses of granules that the device may touch. calls: names of the calls so far.
    """

    def __init__(self, memory_bytes: int = 1 << 30, granularity: int = GRANULARITY) -> None:
        self.granularity = granularity
        self.memory_bytes = memory_bytes
        self.reserved: dict[int, mmap.mmap] = {}
        self.mapped: dict[int, int] = {}
        self.allowed: set[int] = set()
        self.calls: list[str] = []
        self.failing: tuple[str, int, str] | None = None

    def fail(self, call: str, after: int, code: str = "CUDA_ERROR_OUT_OF_MEMORY") -> None:
        """Let the call `call` fail once, after so many more that work."""
        self.failing = (call, after, code)

    @property
    def used(self) -> int:
        return sum(self.mapped.values())

    def measure(self) -> DeviceMemory:
        """Memory as the allocator sees it, without tensors of torch's."""
        return DeviceMemory(total=self.memory_bytes, free=self.memory_bytes - self.used, allocated=0, reserved=0)

    def tensor_at(self, address: int, num_bytes: int) -> torch.Tensor:
        """A uint8 tensor over a reserved range, whose beginning must be usable: torch asks the driver about it."""
        assert address in self.allowed, "the beginning of a tensor is not mapped"
        assert num_bytes <= len(self.reserved[address])
        return torch.frombuffer(self.reserved[address], dtype=torch.uint8, count=num_bytes)

    def reserve(self, size: int) -> int:
        self._begin("cuMemAddressReserve", 0, size)
        memory = mmap.mmap(-1, size)
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        # Host addresses are aligned to host pages only; the arena counts from whatever it is given.
        self.reserved[address] = memory
        return address

    def free(self, address: int, size: int) -> None:
        self._begin("cuMemAddressFree", 0, size)
        assert len(self.reserved[address]) == size, "only whole ranges can be freed"
        inside = [start for start in self.mapped if address <= start < address + size]
        assert not inside, "a range was freed with memory mapped in it"
        del self.reserved[address]

    def map(self, address: int, size: int) -> None:
        base = self._begin("cuMemMap", address, size)
        for start, length in self.mapped.items():
            assert address + size <= start or start + length <= address, "mapped twice"
        if self.used + size > self.memory_bytes:
            raise DriverError("cuMemCreate", "CUDA_ERROR_OUT_OF_MEMORY")
        self.mapped[address] = size
        for start in range(address - base, address - base + size, self.granularity):
            self.reserved[base][start : start + len(POISON)] = POISON

    def allow(self, address: int, size: int) -> None:
        self._begin("cuMemSetAccess", address, size)
        covered = self._mappings(address, size)
        assert sum(self.mapped[start] for start in covered) == size, "access to a part that is not mapped all over"
        self.allowed.update(range(address, address + size, self.granularity))

    def unmap(self, address: int, size: int) -> None:
        self._begin("cuMemUnmap", address, size)
        covered = self._mappings(address, size)
        assert sum(self.mapped[start] for start in covered) == size, "unmapped a part of a mapping, or nothing"
        for start in covered:
            del self.mapped[start]
        self.allowed.difference_update(range(address, address + size, self.granularity))

    def usable(self, address: int, size: int) -> bool:
        """Whether the device may touch all of a part."""
        base = self._base(address)
        first = base + (address - base) // self.granularity * self.granularity
        return all(granule in self.allowed for granule in range(first, address + size, self.granularity))

    def _begin(self, call: str, address: int, size: int) -> int:
        self.calls.append(call)
        assert size > 0, f"{call} of nothing"
        assert size % self.granularity == 0, f"{call}: {size} bytes are not whole granules"
        base = self._base(address) if address and call != "cuMemAddressFree" else 0
        assert (address - base) % self.granularity == 0, f"{call}: an address inside of a granule"
        if base:
            assert address + size <= base + len(self.reserved[base]), f"{call}: past the reserved range"
        if self.failing is not None and self.failing[0] == call:
            _, after, code = self.failing
            self.failing = (call, after - 1, code) if after else None
            if not after:
                raise DriverError(call, code)
        return base

    def _base(self, address: int) -> int:
        found = [base for base, memory in self.reserved.items() if base <= address < base + len(memory)]
        assert found, "an address that is not reserved"
        return found[0]

    def _mappings(self, address: int, size: int) -> list[int]:
        return [start for start in self.mapped if address <= start < address + size]
