"""Pages of keys and values in device buffers: keys and values of each layer, places in order.

OpenCL reserves no addresses, so the buffers grow and shrink by being replaced; nothing is recorded that could point at
the old ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyopencl as cl

from drivetrain_opencl.queue import DeviceQueue
from drivetrain_plugins.contract.batch import NULL_PAGE
from drivetrain_plugins.contract.memory import Allocator, KVCache, KVSpec, MemoryLimits, MemoryPlan, MemoryUse
from drivetrain_plugins.errors import OutOfMemory

FEWEST_PAGES = 2  # the null page, and one to use
ITEM_BYTES = {"float32": 4, "float16": 2}

PageBytes = npt.NDArray[np.uint8]


class OpenclCache(KVCache):
    """Pages of all layers.

    Attributes:
        buffers: keys, then values, of each layer.
        sizes: bytes of a page in each buffer.
    """

    def __init__(self, spec: KVSpec, reserved_pages: int) -> None:
        self.spec = spec
        self.num_pages = 0
        self.reserved_pages = reserved_pages
        self.buffers: list[cl.Buffer] = []
        self.sizes = [
            layer.num_kv_heads * layer.head_dim * ITEM_BYTES[spec.dtype] * spec.page_size
            for layer in spec.layers
            for _ in ("keys", "values")
        ]

    def layer(self, index: int) -> tuple[cl.Buffer, cl.Buffer]:
        """Keys and values of a layer."""
        return self.buffers[2 * index], self.buffers[2 * index + 1]


class OpenclAllocator(Allocator):
    """Counts the pages of one device."""

    def __init__(self, queue: DeviceQueue, kv_share: float) -> None:
        self._queue = queue
        self._kv_share = kv_share
        self._caches: list[OpenclCache] = []

    def reserve(self, spec: KVSpec, limits: MemoryLimits) -> OpenclCache:
        cache = OpenclCache(spec, self._num_pages(spec, limits))
        self._resize(cache, NULL_PAGE + 1)
        self._caches.append(cache)
        return cache

    def plan(self, cache: KVCache, limits: MemoryLimits) -> MemoryPlan:
        num_pages = min(own(cache).reserved_pages, self._num_pages(cache.spec, limits))
        kv_bytes = num_pages * cache.spec.page_bytes
        lines = (("memory of the device", self._queue.device.global_mem_size), ("pages", kv_bytes))
        return MemoryPlan(num_pages=num_pages, kv_bytes=kv_bytes, lines=lines)

    def commit(self, cache: KVCache, num_pages: int) -> None:
        reserved = own(cache).reserved_pages
        if num_pages > reserved:
            raise OutOfMemory(f"{num_pages} pages were asked for, {reserved} are reserved; ask for fewer")
        self._resize(own(cache), num_pages)

    def copy_pages(self, cache: KVCache, source: Sequence[int], destination: Sequence[int]) -> None:
        for buffer, size in zip(own(cache).buffers, own(cache).sizes, strict=True):
            # Through memory of its own, since a page may be both read and written.
            pages = [self._queue.empty(size) for _ in source]
            for page, staged in zip(source, pages, strict=True):
                self._copy(staged, buffer, size, source=page * size)
            for page, staged in zip(destination, pages, strict=True):
                self._copy(buffer, staged, size, destination=page * size)

    def export_pages(self, cache: KVCache, pages: Sequence[int]) -> list[PageBytes]:
        content: list[PageBytes] = []
        for buffer, size in zip(own(cache).buffers, own(cache).sizes, strict=True):
            host = np.empty((len(pages), size), np.uint8)
            for row, page in zip(host, pages, strict=True):
                cl.enqueue_copy(self._queue.queue, row, buffer, src_offset=page * size, is_blocking=True)
            content.append(host)
        return content

    def import_pages(self, cache: KVCache, pages: Sequence[int], content: list[PageBytes]) -> None:
        for buffer, size, host in zip(own(cache).buffers, own(cache).sizes, content, strict=True):
            for row, page in zip(host, pages, strict=True):
                cl.enqueue_copy(self._queue.queue, buffer, row, dst_offset=page * size, is_blocking=True)

    def release(self, cache: KVCache) -> None:
        self._queue.finish()
        self._caches.remove(own(cache))
        own(cache).buffers.clear()

    def use(self) -> MemoryUse:
        kv = sum(cache.num_pages * cache.spec.page_bytes for cache in self._caches)
        return MemoryUse(total=self._queue.device.global_mem_size, used=kv, kv=kv)

    def _resize(self, cache: OpenclCache, num_pages: int) -> None:
        """Replace the buffers by larger or smaller ones with the same first pages."""
        kept = min(cache.num_pages, num_pages)
        try:
            made = [self._queue.buffer(num_pages * size) for size in cache.sizes]
        except cl.Error as error:
            raise OutOfMemory(
                f"the OpenCL device refused {num_pages * cache.spec.page_bytes:,} bytes for KV pages: {error}; "
                "lower the KV memory limit"
            ) from error
        if kept:
            for new, old, size in zip(made, cache.buffers, cache.sizes, strict=True):
                self._copy(new, old, kept * size)
        self._queue.finish()
        cache.buffers, cache.num_pages = made, num_pages

    def _copy(self, to: cl.Buffer, start: cl.Buffer, num_bytes: int, *, source: int = 0, destination: int = 0) -> None:
        cl.enqueue_copy(self._queue.queue, to, start, byte_count=num_bytes, src_offset=source, dst_offset=destination)

    def _num_pages(self, spec: KVSpec, limits: MemoryLimits) -> int:
        device = self._queue.device
        share = int(device.global_mem_size * min(self._kv_share, limits.fraction))
        allowed = share if limits.kv_bytes is None else limits.kv_bytes
        largest = max(OpenclCache(spec, 0).sizes)
        num_pages = min(limits.max_pages, allowed // spec.page_bytes, device.max_mem_alloc_size // largest)
        if num_pages < FEWEST_PAGES:
            raise OutOfMemory(
                f"{allowed:,} bytes hold {num_pages} pages of {spec.page_bytes:,}, expected at least {FEWEST_PAGES}; "
                "allow more KV memory"
            )
        return num_pages


def own(cache: KVCache) -> OpenclCache:
    """The cache as this backend made it."""
    assert isinstance(cache, OpenclCache)
    return cache
