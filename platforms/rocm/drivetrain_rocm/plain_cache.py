"""Keys and values in torch's own memory, for systems whose HIP runtime has no virtual memory.

Growing makes new tensors and copies what stays, a layer at a time, so pages move: a recorded step would go on with the
old ones. A device with such a cache records nothing.

N pages, P tokens a page, G key-value heads, K head size, C some pages, B int64 words of a page.
"""

# Relaxed: torch's stubs leave methods half typed.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from drivetrain_plugins.contract.batch import NULL_PAGE
from drivetrain_plugins.contract.capabilities import KVDtype
from drivetrain_plugins.contract.memory import KVSpec
from drivetrain_triton.device.cache import KV_DTYPES, MIN_PAGES, GpuCache
from drivetrain_triton.device.virtual_memory import DriverError


class PlainCache(GpuCache):
    """Pages of all layers, each lane a tensor of `num_pages` pages."""

    def __init__(
        self,
        spec: KVSpec,
        reserved_pages: int,
        *,
        device: torch.device,
        dtypes: Mapping[KVDtype, torch.dtype] = KV_DTYPES,
    ) -> None:
        self.spec = spec
        self.reserved_pages = reserved_pages
        self.num_pages = 0
        self._device = device
        self._dtype = dtypes[spec.dtype]
        shapes = [(0, spec.page_size, layer.num_kv_heads, layer.head_dim) for layer in spec.layers]
        self.k = [torch.empty(shape, dtype=self._dtype, device=device) for shape in shapes]
        self.v = [torch.empty(shape, dtype=self._dtype, device=device) for shape in shapes]
        self.resize(MIN_PAGES)
        for lane in (*self.k, *self.v):
            lane[NULL_PAGE].view(torch.uint8).zero_()

    @property
    def mapped_bytes(self) -> int:
        return self.mapped_for(self.num_pages)

    def mapped_for(self, num_pages: int) -> int:
        return num_pages * self.spec.page_bytes

    def resize(self, num_pages: int) -> None:
        before = self.num_pages
        done: list[tuple[list[torch.Tensor], int]] = []
        try:
            for lanes in (self.k, self.v):
                for layer in range(len(lanes)):
                    lanes[layer] = self._resized(lanes[layer], num_pages)
                    done.append((lanes, layer))
        except torch.OutOfMemoryError as error:
            for lanes, layer in done:
                lanes[layer] = self._resized(lanes[layer], before)
            raise DriverError("torch.empty", "hipErrorOutOfMemory") from error
        self.num_pages = num_pages
        self.torch_bytes = self.mapped_bytes
        if self._device.type == "cuda" and num_pages < before:
            torch.cuda.empty_cache()  # what pages gave back is the device's again

    def copy(self, source_C: torch.Tensor, destination_C: torch.Tensor) -> None:
        for lane in self._lanes():
            lane.index_copy_(0, destination_C, lane.index_select(0, source_C))

    def gather(self, pages_C: torch.Tensor) -> list[torch.Tensor]:
        return [lane.index_select(0, pages_C)[None] for lane in self._lanes()]

    def scatter(self, pages_C: torch.Tensor, content: Sequence[torch.Tensor]) -> None:
        for lane, words_1CB in zip(self._lanes(), content, strict=True):
            lane.index_copy_(0, pages_C, words_1CB[0])

    def close(self) -> None:
        self.k.clear()
        self.v.clear()
        self.num_pages = self.reserved_pages = 0

    def _lanes(self) -> list[torch.Tensor]:
        """Every lane as (N, B) words, which copy alike for every type."""
        return [lane.view(lane.shape[0], -1).view(torch.int64) for lane in (*self.k, *self.v)]

    def _resized(self, lane: torch.Tensor, num_pages: int) -> torch.Tensor:
        made = torch.empty((num_pages, *lane.shape[1:]), dtype=self._dtype, device=self._device)
        kept = min(num_pages, lane.shape[0])
        made[:kept].view(torch.uint8).copy_(lane[:kept].view(torch.uint8))
        return made
