"""Pages on the card.

There is no virtual memory to map behind a fixed address, and compiled graphs hold both address and size of the cache.
So its memory is taken once, before anything is compiled, by what weights and steps are expected to need.
"""

# Relaxed: torch's stubs leave methods untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from drivetrain_gaudi.cache import MIN_PAGES, GaudiCache, own
from drivetrain_gaudi.faults import classify
from drivetrain_plugins.contract.memory import Allocator, KVCache, KVSpec, MemoryLimits, MemoryPlan, MemoryUse
from drivetrain_plugins.errors import OutOfMemory

SAFETY_BYTES = 1 << 30
"""Left free beside everything that is counted: recipes, workspaces of the graph compiler, token counts of penalties."""
GATHERED_COPIES = 3
"""Copies of one layer's pages that a step may make."""


class GaudiAllocator(Allocator):
    """Pages of one card.

    Args:
        measure: (free, total) bytes now.
        fp8_max: see `Generation`.

    Attributes:
        expected_bytes: what weights and the largest step will take; set before `reserve`.
    """

    def __init__(self, device: torch.device, measure: Callable[[], tuple[int, int]], fp8_max: float | None) -> None:
        self._device = device
        self._measure = measure
        self._fp8_max = fp8_max
        self._caches: list[GaudiCache] = []
        self.expected_bytes: tuple[tuple[str, int], ...] = ()

    def reserve(self, spec: KVSpec, limits: MemoryLimits) -> GaudiCache:
        free, total = self._measure()
        expected = sum(size for _, size in self.expected_bytes)
        allowed = math.floor(total * limits.fraction) - (total - free) - expected - SAFETY_BYTES
        # A layer gathers the pages of a step, and cleans the copy, before it reads them.
        allowed = allowed * len(spec.layers) // (len(spec.layers) + GATHERED_COPIES)
        if limits.kv_bytes is not None:
            allowed = min(limits.kv_bytes, free - expected)
        num_pages = min(limits.max_pages, max(0, allowed) // spec.page_bytes)
        if num_pages < MIN_PAGES:
            needs = ", ".join(f"{what} {size:,}" for what, size in self.expected_bytes) or "nothing expected beside"
            raise OutOfMemory(
                f"fewer than {MIN_PAGES} KV pages fit: a page takes {spec.page_bytes:,} bytes and {max(0, allowed):,} "
                f"are left for pages (free {free:,} of {total:,}; {needs}; most pages {limits.max_pages}); end other "
                "programs on the card, raise the limit or use a smaller model"
            )
        try:
            cache = GaudiCache(spec, num_pages, self._device, self._fp8_max)
        except RuntimeError as error:
            meaning = classify(error)
            if meaning is None:
                raise
            raise meaning from error
        self._caches.append(cache)
        return cache

    def plan(self, cache: KVCache, limits: MemoryLimits) -> MemoryPlan:
        cache = own(cache)
        free, total = self._measure()
        num_pages = min(limits.max_pages, cache.reserved_pages)
        if limits.kv_bytes is not None:
            num_pages = min(num_pages, limits.kv_bytes // cache.spec.page_bytes)
        if num_pages < MIN_PAGES:
            raise OutOfMemory(
                f"{num_pages} KV pages of {cache.spec.page_bytes:,} bytes are allowed, expected at least {MIN_PAGES}; "
                "raise the KV memory limit"
            )
        kv_bytes = num_pages * cache.spec.page_bytes
        lines = (
            ("memory of the card", total),
            *((f"expected for {what}", size) for what, size in self.expected_bytes),
            ("pages", kv_bytes),
            ("free after the warm-up", free),
        )
        return MemoryPlan(num_pages=num_pages, kv_bytes=kv_bytes, lines=lines)

    def commit(self, cache: KVCache, num_pages: int) -> None:
        """Nothing moves: the memory was taken by `reserve`, and stays while an engine sleeps."""
        cache = own(cache)
        if not MIN_PAGES <= num_pages <= cache.reserved_pages:
            raise OutOfMemory(f"cannot commit {num_pages} pages: expected {MIN_PAGES} to {cache.reserved_pages}")
        cache.num_pages = num_pages

    def copy_pages(self, cache: KVCache, source: Sequence[int], destination: Sequence[int]) -> None:
        if not source:
            return
        source_C, destination_C = self._index(source), self._index(destination)
        for pages in own(cache).pages():
            pages.index_copy_(0, destination_C, pages.index_select(0, source_C))

    def export_pages(self, cache: KVCache, pages: Sequence[int]) -> list[torch.Tensor]:
        index = self._index(pages)
        return [whole.index_select(0, index).cpu() for whole in own(cache).pages()]

    def import_pages(self, cache: KVCache, pages: Sequence[int], content: list[torch.Tensor]) -> None:
        index = self._index(pages)
        for whole, part in zip(own(cache).pages(), content, strict=True):
            whole.index_copy_(0, index, part.to(self._device))

    def release(self, cache: KVCache) -> None:
        cache = own(cache)
        cache.k.clear()
        cache.v.clear()
        cache.num_pages = 0
        self._caches.remove(cache)

    def use(self) -> MemoryUse:
        free, total = self._measure()
        kv = sum(cache.num_pages * cache.spec.page_bytes for cache in self._caches)
        return MemoryUse(total=total, used=total - free, kv=kv, details=(("free", free),))

    def _index(self, pages: Sequence[int]) -> torch.Tensor:
        return torch.tensor(list(pages), dtype=torch.int64, device=self._device)
