"""Pages of keys and values in host memory.

Memory is taken from the operating system as one range a layer and committed by it page by page as it is first written,
so that reserving many pages costs nothing.

N pages, G key-value heads, P tokens a page, K head size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from drivetrain_cpu.host_memory import HostMemory, host_memory
from drivetrain_plugins.contract.batch import NULL_PAGE
from drivetrain_plugins.contract.memory import (
    Allocator,
    KVCache,
    KVSpec,
    MemoryLimits,
    MemoryPlan,
    MemoryUse,
)
from drivetrain_plugins.errors import OutOfMemory

KV_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
MIN_PAGES = 2


class CpuKVCache(KVCache):
    """Pages of all layers.

    Attributes:
        layers: per layer (N, 2, G, P, K), keys then values. Heads come before tokens, so that the pages of one row and
            head gather into one dense matrix.
        dtype: of keys and values.
        num_pages: pages that may be used; the tensors hold as many as were reserved.
    """

    def __init__(self, spec: KVSpec, reserved_pages: int) -> None:
        self.spec = spec
        self.num_pages = 0
        self.reserved_pages = reserved_pages
        self.dtype = dtype = KV_DTYPES[spec.dtype]
        self.layers = [
            torch.empty(reserved_pages, 2, layer.num_kv_heads, spec.page_size, layer.head_dim, dtype=dtype)
            for layer in spec.layers
        ]
        for layer in self.layers:
            layer[NULL_PAGE].zero_()


class CpuAllocator(Allocator):
    """Counts what the machine and its control group leave free."""

    def __init__(self, kv_share: float) -> None:
        self._kv_share = kv_share
        self._caches: list[CpuKVCache] = []

    def reserve(self, spec: KVSpec, limits: MemoryLimits) -> CpuKVCache:
        memory = host_memory()
        num_pages = min(limits.max_pages, self._budget(limits, memory, held=0) // spec.page_bytes)
        if num_pages < MIN_PAGES:
            raise OutOfMemory(self._too_small(spec, limits, memory))
        if limits.kv_bytes is not None:
            _check_free(num_pages, num_pages * spec.page_bytes, memory)
        try:
            cache = CpuKVCache(spec, num_pages)
        except RuntimeError as error:
            raise OutOfMemory(
                f"the operating system refused {num_pages * spec.page_bytes:,} bytes for KV pages: {error}; "
                "lower the KV memory limit"
            ) from error
        cache.num_pages = MIN_PAGES
        self._caches.append(cache)
        return cache

    def plan(self, cache: KVCache, limits: MemoryLimits) -> MemoryPlan:
        cache = _own(cache)
        memory = host_memory()
        budget = self._budget(limits, memory, held=cache.num_pages * cache.spec.page_bytes)
        num_pages = min(limits.max_pages, cache.reserved_pages, budget // cache.spec.page_bytes)
        if num_pages < MIN_PAGES:
            raise OutOfMemory(self._too_small(cache.spec, limits, memory))
        kv_bytes = num_pages * cache.spec.page_bytes
        lines = (
            ("memory of this machine or control group", memory.total),
            ("free now", memory.available),
            ("held by this process (weights, code)", memory.resident),
            ("allowed for pages", budget),
            ("pages", kv_bytes),
        )
        return MemoryPlan(num_pages=num_pages, kv_bytes=kv_bytes, lines=lines)

    def commit(self, cache: KVCache, num_pages: int) -> None:
        cache = _own(cache)
        if not MIN_PAGES <= num_pages <= cache.reserved_pages:
            raise OutOfMemory(f"cannot commit {num_pages} pages: expected {MIN_PAGES} to {cache.reserved_pages}")
        _check_free(num_pages, (num_pages - cache.num_pages) * cache.spec.page_bytes, host_memory())
        cache.num_pages = num_pages

    def copy_pages(self, cache: KVCache, source: Sequence[int], destination: Sequence[int]) -> None:
        source_C, destination_C = torch.tensor(list(source)), torch.tensor(list(destination))
        if not source_C.numel():
            return
        for layer in _own(cache).layers:
            layer.index_copy_(0, destination_C, layer.index_select(0, source_C))

    def export_pages(self, cache: KVCache, pages: Sequence[int]) -> list[torch.Tensor]:
        index = torch.tensor(list(pages), dtype=torch.int64)
        return [layer.index_select(0, index) for layer in _own(cache).layers]

    def import_pages(self, cache: KVCache, pages: Sequence[int], content: list[torch.Tensor]) -> None:
        index = torch.tensor(list(pages), dtype=torch.int64)
        for layer, part in zip(_own(cache).layers, content, strict=True):
            layer.index_copy_(0, index, part)

    def release(self, cache: KVCache) -> None:
        cache = _own(cache)
        cache.layers.clear()
        cache.num_pages = cache.reserved_pages = 0
        self._caches.remove(cache)

    def use(self) -> MemoryUse:
        memory = host_memory()
        kv = sum(cache.num_pages * cache.spec.page_bytes for cache in self._caches)
        return MemoryUse(total=memory.total, used=memory.resident, kv=kv, details=(("free", memory.available),))

    def _budget(self, limits: MemoryLimits, memory: HostMemory, *, held: int) -> int:
        """Bytes that pages may take. Never more than is free now; `held` bytes are taken already."""
        if limits.kv_bytes is not None:
            return limits.kv_bytes
        share = math.floor((memory.available + held) * self._kv_share)
        whole = math.floor(memory.total * limits.fraction) - memory.resident + held
        return max(0, min(share, whole))

    def _too_small(self, spec: KVSpec, limits: MemoryLimits, memory: HostMemory) -> str:
        return (
            f"fewer than {MIN_PAGES} KV pages fit: a page takes {spec.page_bytes:,} bytes, "
            f"{self._budget(limits, memory, held=0):,} are allowed for pages (free {memory.available:,} of "
            f"{memory.total:,}, limit {limits.kv_bytes if limits.kv_bytes is not None else 'none'}, share "
            f"{self._kv_share}, most pages {limits.max_pages}); free memory, raise the limit or use a smaller model"
        )


def _check_free(num_pages: int, needed: int, memory: HostMemory) -> None:
    if needed > memory.available:
        raise OutOfMemory(
            f"{num_pages} pages need {needed:,} more bytes and {memory.available:,} are free; lower the KV memory limit"
        )


def _own(cache: KVCache) -> CpuKVCache:
    if not isinstance(cache, CpuKVCache):
        raise TypeError(f"this cache is a {type(cache).__name__}; expected one that the CPU allocator reserved")
    return cache
