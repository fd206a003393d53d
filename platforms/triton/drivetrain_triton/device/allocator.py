"""Pages of keys and values, sized by measuring what weights, libraries and recorded steps left."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from drivetrain_plugins.contract.memory import (
    Allocator,
    KVCache,
    KVSpec,
    MemoryLimits,
    MemoryPlan,
    MemoryUse,
)
from drivetrain_plugins.errors import OutOfMemory
from drivetrain_triton.device.cache import MIN_PAGES, GpuCache
from drivetrain_triton.device.memory import DeviceMemory
from drivetrain_triton.device.virtual_memory import DriverError

SAFETY_BYTES = 512 << 20
"""Left free beside the pages: token counts of penalties, cuBLAS workspaces and kernels that are loaded later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemorySource:
    """What the allocator asks of its device.

    Attributes:
        measure: memory now.
        synchronize: wait until nothing on the device uses pages.
        others: bytes that others used before this process opened the device.
    """

    measure: Callable[[], DeviceMemory]
    synchronize: Callable[[], None]
    others: int


class GpuAllocator(Allocator):
    """Pages on one device.

    Args:
        make_cache: from a spec and the most pages.
    """

    def __init__(
        self, device: torch.device, make_cache: Callable[[KVSpec, int], GpuCache], source: MemorySource
    ) -> None:
        self._device = device
        self._make_cache = make_cache
        self._source = source
        self._caches: list[GpuCache] = []

    def reserve(self, spec: KVSpec, limits: MemoryLimits) -> GpuCache:
        memory = self._source.measure()
        allowed = limits.kv_bytes if limits.kv_bytes is not None else math.floor(memory.total * limits.fraction)
        num_pages = min(limits.max_pages, allowed // spec.page_bytes)
        if num_pages < MIN_PAGES:
            raise OutOfMemory(
                f"fewer than {MIN_PAGES} KV pages fit: a page takes {spec.page_bytes:,} bytes and {allowed:,} are "
                f"allowed for pages (most pages {limits.max_pages}); raise the limit or use a smaller model"
            )
        try:
            cache = self._make_cache(spec, num_pages)
        except DriverError as error:
            raise self._refused(error, "the first KV pages", memory) from error
        self._caches.append(cache)
        return cache

    def plan(self, cache: KVCache, limits: MemoryLimits) -> MemoryPlan:
        cache = _own(cache)
        memory = self._source.measure()
        page_bytes = cache.spec.page_bytes
        most = min(limits.max_pages, cache.reserved_pages)
        held = memory.total - memory.free - self._source.others - cache.mapped_bytes  # by this process, pages apart
        allocated, reserved = memory.allocated - cache.torch_bytes, memory.reserved - cache.torch_bytes
        held = max(held, reserved)
        if limits.kv_bytes is not None:
            num_pages = min(most, limits.kv_bytes // page_bytes)
            room = cache.mapped_for(num_pages)
            free = memory.free + cache.mapped_bytes
            safety = 0
        else:
            safety = SAFETY_BYTES
            free = min(math.floor(memory.total * limits.fraction) - held, memory.free + cache.mapped_bytes) - safety
            room = max(0, free)
            num_pages = _most_pages(cache, room, most)
        if num_pages < MIN_PAGES or room > free:
            raise OutOfMemory(
                f"{max(num_pages, MIN_PAGES)} KV pages need {cache.mapped_for(max(num_pages, MIN_PAGES)):,} bytes and "
                f"{max(0, free):,} are free for them: of {memory.total:,} others use {self._source.others:,}, this "
                f"process {held:,} ({allocated:,} in weights and buffers); end other programs on the device, "
                "lower the KV memory limit or use a smaller model"
            )
        mapped = cache.mapped_for(num_pages)
        untouched = memory.total - self._source.others - held - safety - room
        lines = (
            ("memory of the device", memory.total),
            ("used by others", self._source.others),
            ("context, libraries and recorded steps", held - reserved),
            ("weights and buffers", allocated),
            ("workspaces of steps", reserved - allocated),
            ("safety", safety),
            ("not to be used, by the limit", untouched),
            ("room for pages", room),
            ("pages", num_pages * page_bytes),
            ("rounding of pages to the driver's granularity", mapped - num_pages * page_bytes),
            ("room that needs no more pages", room - mapped),
        )
        return MemoryPlan(num_pages=num_pages, kv_bytes=num_pages * page_bytes, lines=lines)

    def commit(self, cache: KVCache, num_pages: int) -> None:
        cache = _own(cache)
        if not MIN_PAGES <= num_pages <= cache.reserved_pages:
            raise OutOfMemory(f"cannot commit {num_pages} pages: expected {MIN_PAGES} to {cache.reserved_pages}")
        if num_pages < cache.num_pages:
            self._source.synchronize()
        try:
            cache.resize(num_pages)
        except DriverError as error:
            raise self._refused(error, f"{num_pages} KV pages", self._source.measure()) from error

    @torch.inference_mode()
    def copy_pages(self, cache: KVCache, source: Sequence[int], destination: Sequence[int]) -> None:
        if len(source):
            _own(cache).copy(self._index(source), self._index(destination))

    def export_pages(self, cache: KVCache, pages: Sequence[int]) -> list[torch.Tensor]:
        parts: list[torch.Tensor] = []
        for part_LCB in _own(cache).gather(self._index(pages)):
            host_LCB = torch.empty(part_LCB.shape, dtype=part_LCB.dtype, pin_memory=self._pinned)
            parts.append(host_LCB.copy_(part_LCB, non_blocking=True))
        self._source.synchronize()
        return parts

    @torch.inference_mode()
    def import_pages(self, cache: KVCache, pages: Sequence[int], content: list[torch.Tensor]) -> None:
        parts = [part_LCB.to(self._device, non_blocking=True) for part_LCB in content]
        _own(cache).scatter(self._index(pages), parts)

    def release(self, cache: KVCache) -> None:
        cache = _own(cache)
        self._source.synchronize()
        self._caches.remove(cache)
        cache.close()

    def use(self) -> MemoryUse:
        memory = self._source.measure()
        kv = sum(cache.num_pages * cache.spec.page_bytes for cache in self._caches)
        details = (
            ("free", memory.free),
            ("in tensors", memory.allocated),
            ("held for tensors", memory.reserved),
            ("mapped for pages", sum(cache.mapped_bytes for cache in self._caches)),
        )
        used = max(0, memory.total - memory.free - self._source.others)
        return MemoryUse(total=memory.total, used=used, kv=kv, details=details)

    def close(self) -> None:
        """Release every cache that is left."""
        for cache in list(self._caches):
            self.release(cache)

    @property
    def _pinned(self) -> bool:
        return self._device.type == "cuda"

    def _index(self, pages: Sequence[int]) -> torch.Tensor:
        host_C = torch.tensor(list(pages), dtype=torch.int64, pin_memory=self._pinned)
        return host_C.to(self._device, non_blocking=True)

    def _refused(self, error: DriverError, what: str, memory: DeviceMemory) -> Exception:
        if not error.out_of_memory:
            return error
        return OutOfMemory(
            f"the device has no memory for {what}: {error}; {memory.free:,} of {memory.total:,} bytes are free; "
            "end other programs on the device or lower the KV memory limit"
        )


def _most_pages(cache: GpuCache, room: int, most: int) -> int:
    """The most pages, up to `most`, whose memory fits into `room`."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if cache.mapped_for(middle) <= room:
            low = middle
        else:
            high = middle - 1
    return low


def _own(cache: KVCache) -> GpuCache:
    if not isinstance(cache, GpuCache):
        raise TypeError(f"this cache is a {type(cache).__name__}; expected one that this allocator reserved")
    return cache
