"""Address ranges that are reserved whole and backed bit by bit, so that addresses outlive growth and shrinkage.

Knows no vendor: what it asks of a driver is `MemoryDriver`, which a platform fulfils.
"""

from __future__ import annotations

from typing import Protocol

OUT_OF_MEMORY_CODES = frozenset({"CUDA_ERROR_OUT_OF_MEMORY", "hipErrorOutOfMemory", "hipErrorMemoryAllocation"})
CHUNK_BYTES = 16 << 20
"""Most bytes of one mapping. A mapping can only be given back whole, so this bounds what a shrunken lane keeps."""


class DriverError(RuntimeError):
    """A driver call that failed.

    Attributes:
        call: the function. code: the driver's own name of the error.
    """

    def __init__(self, call: str, code: str) -> None:
        super().__init__(f"{call} failed: {code}")
        self.call = call
        self.code = code

    @property
    def out_of_memory(self) -> bool:
        """Whether memory is what was missing."""
        return self.code in OUT_OF_MEMORY_CODES


class MemoryDriver(Protocol):
    """Virtual memory of one device. Sizes and addresses are multiples of `granularity`. Each raises `DriverError`."""

    granularity: int

    def reserve(self, size: int) -> int:
        """Reserve an address range; returns its first address."""
        ...

    def free(self, address: int, size: int) -> None:
        """Give a whole reserved range back, with nothing mapped in it."""
        ...

    def map(self, address: int, size: int) -> None:
        """Back a part of a reserved range with fresh memory, which lives until it is unmapped."""
        ...

    def allow(self, address: int, size: int) -> None:
        """Let the device read and write a part that is mapped all over."""
        ...

    def unmap(self, address: int, size: int) -> None:
        """Give the memory of whole, adjoining mappings back. The device must not be using it."""
        ...


class Arena:
    """Lanes of equal length in one reserved range, each backed from its beginning up to the same point.

    Args:
        lanes: number of lanes.
        lane_bytes: most bytes that a lane may ever use.
        least_bytes: address range to reserve at least.

    Attributes:
        address: where lane 0 begins. stride: bytes from one lane's beginning to the next's.
        reserved_bytes: address range from there on.
        lane_mapped: bytes of each lane that are backed now.
    """

    def __init__(self, driver: MemoryDriver, *, lanes: int, lane_bytes: int, least_bytes: int = 0) -> None:
        self._driver = driver
        self.lanes = lanes
        self.stride = driver.granularity * -(-lane_bytes // driver.granularity)
        self.lane_mapped = 0
        self._chunks: list[int] = []  # sizes of the mappings of every lane, in order
        least_bytes = driver.granularity * -(-least_bytes // driver.granularity)
        self.reserved_bytes = max(self.lanes * self.stride, least_bytes)
        self.address = driver.reserve(self.reserved_bytes)

    @property
    def mapped_bytes(self) -> int:
        """Bytes of device memory behind all lanes."""
        return self.lanes * self.lane_mapped

    def mapped_for(self, lane_bytes: int) -> int:
        """Bytes of device memory behind all lanes once each of them has grown to `lane_bytes`."""
        return self.lanes * self._rounded(lane_bytes)

    def resize(self, lane_bytes: int) -> None:
        """Back the first `lane_bytes` of every lane, and no more than whole mappings force it to keep.

        What stays backed keeps its content and its address. New memory holds anything.

        Raises:
            DriverError: growth failed; everything is as it was before.
        """
        wanted = self._rounded(lane_bytes)
        if wanted > self.stride:
            raise ValueError(f"lanes of {self.stride:,} bytes cannot grow to {wanted:,}")
        if wanted > self.lane_mapped:
            self._grow(wanted)
        else:
            self._shrink(wanted)

    def close(self) -> None:
        """Give back all memory and the addresses."""
        self._shrink(0)
        self._driver.free(self.address, self.reserved_bytes)

    def _rounded(self, lane_bytes: int) -> int:
        granularity = self._driver.granularity
        return granularity * -(-lane_bytes // granularity)

    def _grow(self, wanted: int) -> None:
        chunk = self._rounded(CHUNK_BYTES)
        grown = wanted - self.lane_mapped
        sizes = [min(chunk, grown - start) for start in range(0, grown, chunk)]
        grown_in: list[tuple[int, int]] = []
        try:
            for lane in range(self.lanes):
                start = self.address + lane * self.stride + self.lane_mapped
                self._map(start, sizes)
                grown_in.append((start, grown))
                self._driver.allow(start, grown)
        except DriverError:
            for start, size in grown_in:
                self._driver.unmap(start, size)
            raise
        self._chunks += sizes
        self.lane_mapped = wanted

    def _map(self, start: int, sizes: list[int]) -> None:
        """Map adjoining chunks, all or none."""
        end = start
        try:
            for size in sizes:
                self._driver.map(end, size)
                end += size
        except DriverError:
            if end > start:
                self._driver.unmap(start, end - start)
            raise

    def _shrink(self, wanted: int) -> None:
        kept = self.lane_mapped
        while self._chunks and kept - self._chunks[-1] >= wanted:
            kept -= self._chunks.pop()
        if kept == self.lane_mapped:
            return
        for lane in range(self.lanes):
            self._driver.unmap(self.address + lane * self.stride + kept, self.lane_mapped - kept)
        self.lane_mapped = kept
