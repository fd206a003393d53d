"""Pages of keys and values: two tensors a layer.

P pages, G key-value heads, K head size.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from drivetrain_plugins.contract.memory import Allocator, KVCache, KVSpec, MemoryLimits, MemoryPlan, MemoryUse
from drivetrain_plugins.errors import OutOfMemory

FEWEST_PAGES = 2  # the null page, and one to use


class RelicCache(KVCache):
    """Keys and values of all layers, each (P page, G, K). Core never looks inside: the layout is yours to choose."""

    def __init__(self, spec: KVSpec, reserved_pages: int, device: torch.device) -> None:
        self.spec = spec
        self.num_pages = 1
        self.reserved_pages = reserved_pages
        dtype: torch.dtype = getattr(torch, spec.dtype)
        shapes = [(reserved_pages * spec.page_size, layer.num_kv_heads, layer.head_dim) for layer in spec.layers]
        self.k = [torch.zeros(shape, dtype=dtype, device=device) for shape in shapes]
        self.v = [torch.zeros(shape, dtype=dtype, device=device) for shape in shapes]

    def pages(self) -> list[torch.Tensor]:
        """Every tensor as (P, page, G, K)."""
        return [x.view(self.reserved_pages, self.spec.page_size, *x.shape[1:]) for x in (*self.k, *self.v)]


class RelicAllocator(Allocator):
    """Yours: reserve addresses only, and let `commit` back them with memory."""

    def __init__(self, device: torch.device, default_kv_bytes: int) -> None:
        self._device = device
        self._default_kv_bytes = default_kv_bytes
        self._caches: list[RelicCache] = []

    def reserve(self, spec: KVSpec, limits: MemoryLimits) -> RelicCache:
        cache = RelicCache(spec, self._num_pages(spec, limits), self._device)
        self._caches.append(cache)
        return cache

    def plan(self, cache: KVCache, limits: MemoryLimits) -> MemoryPlan:
        num_pages = min(own(cache).reserved_pages, self._num_pages(cache.spec, limits))
        return MemoryPlan(num_pages=num_pages, kv_bytes=num_pages * cache.spec.page_bytes)

    def commit(self, cache: KVCache, num_pages: int) -> None:
        reserved = own(cache).reserved_pages
        if num_pages > reserved:
            raise OutOfMemory(f"{num_pages} pages were asked for, {reserved} are reserved; ask for fewer")
        cache.num_pages = num_pages

    def copy_pages(self, cache: KVCache, source: Sequence[int], destination: Sequence[int]) -> None:
        for x in own(cache).pages():
            x[list(destination)] = x[list(source)]

    def export_pages(self, cache: KVCache, pages: Sequence[int]) -> list[torch.Tensor]:
        return [x[list(pages)].cpu() for x in own(cache).pages()]

    def import_pages(self, cache: KVCache, pages: Sequence[int], content: list[torch.Tensor]) -> None:
        for x, stored in zip(own(cache).pages(), content, strict=True):
            x[list(pages)] = stored.to(self._device)

    def release(self, cache: KVCache) -> None:
        self._caches.remove(own(cache))
        own(cache).k.clear()
        own(cache).v.clear()

    def use(self) -> MemoryUse:
        kv = sum(cache.num_pages * cache.spec.page_bytes for cache in self._caches)
        return MemoryUse(total=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), used=kv, kv=kv)

    def _num_pages(self, spec: KVSpec, limits: MemoryLimits) -> int:
        allowed = self._default_kv_bytes if limits.kv_bytes is None else limits.kv_bytes
        num_pages = min(limits.max_pages, allowed // spec.page_bytes)
        if num_pages < FEWEST_PAGES:
            raise OutOfMemory(
                f"{allowed:,} bytes hold {num_pages} pages of {spec.page_bytes:,}, expected at least {FEWEST_PAGES}; "
                "allow more KV memory"
            )
        return num_pages


def own(cache: KVCache) -> RelicCache:
    """The cache as this backend made it."""
    assert isinstance(cache, RelicCache)
    return cache
