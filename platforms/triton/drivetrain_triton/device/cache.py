"""Keys and values of all layers; in virtual memory every tensor has its final address and shape from the beginning.

N pages, P tokens a page, G key-value heads, K head size, L lanes, B int64 words of a page.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from drivetrain_plugins.contract.batch import NULL_PAGE
from drivetrain_plugins.contract.capabilities import KVDtype
from drivetrain_plugins.contract.memory import KVCache, KVSpec
from drivetrain_triton.device.virtual_memory import Arena, DriverError, MemoryDriver

KV_DTYPES: Mapping[KVDtype, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "fp8_e4m3": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}
"""How pages are stored, unless a part has encodings of its own."""
MIN_PAGES = 2

TensorAt = Callable[[int, int], torch.Tensor]
"""(address, bytes) -> uint8 tensor over that memory."""


@dataclass(slots=True)
class _Group:
    """Lanes whose pages have the same size.

    Attributes:
        page_bytes: of one lane. words_LNB: int64, every lane's pages; those that are not committed are not backed.
    """

    arena: Arena
    page_bytes: int
    words_LNB: torch.Tensor


class GpuCache(KVCache):
    """Pages of all layers on a device, as its allocator and its attention know them.

    Attributes:
        reserved_pages: the most that there may be.
        torch_bytes: memory of pages that torch's allocator counts as its own.
        k, v: per layer (N, P, G, K), N being at least `num_pages`.
    """

    reserved_pages: int
    torch_bytes: int = 0
    k: list[torch.Tensor]
    v: list[torch.Tensor]

    @property
    @abstractmethod
    def mapped_bytes(self) -> int:
        """Device memory behind all pages."""

    @abstractmethod
    def mapped_for(self, num_pages: int) -> int:
        """Device memory behind all pages once there are so many."""

    @abstractmethod
    def resize(self, num_pages: int) -> None:
        """Grow or shrink; pages that stay keep their content.

        Raises:
            DriverError: growth failed; everything is as it was before.
        """

    @abstractmethod
    def copy(self, source_C: torch.Tensor, destination_C: torch.Tensor) -> None:
        """Copy pages in all layers: one gather and one scatter, so that a page may be source and destination.

        Args:
            source_C, destination_C: int64 on the device.
        """

    @abstractmethod
    def gather(self, pages_C: torch.Tensor) -> list[torch.Tensor]:
        """The content of pages, (L, C, B) tensors of int64."""

    @abstractmethod
    def scatter(self, pages_C: torch.Tensor, content: Sequence[torch.Tensor]) -> None:
        """Write what `gather` gave into other pages."""

    @abstractmethod
    def close(self) -> None:
        """Give the memory back. The tensors must not be used any more."""


class ArenaCache(GpuCache):
    """Pages in virtual memory: those from `num_pages` on have addresses and no memory, and growth moves nothing.

    `k` and `v` hold `reserved_pages` pages a layer.

    Args:
        tensor_at: a uint8 tensor over device memory. dtypes: how pages are stored.
        least_bytes: address range that each group of equal lanes has at least.
    """

    def __init__(
        self,
        spec: KVSpec,
        reserved_pages: int,
        driver: MemoryDriver,
        tensor_at: TensorAt,
        dtypes: Mapping[KVDtype, torch.dtype] = KV_DTYPES,
        least_bytes: int = 0,
    ) -> None:
        self.spec = spec
        self.num_pages = 0
        self.reserved_pages = reserved_pages
        self.k: list[torch.Tensor] = []
        self.v: list[torch.Tensor] = []
        self._groups: list[_Group] = []
        sizes = lane_page_bytes(spec)
        lanes: dict[int, list[torch.Tensor]] = {}
        try:
            for page_bytes in dict.fromkeys(sizes):
                count = 2 * sizes.count(page_bytes)
                arena = Arena(driver, lanes=count, lane_bytes=reserved_pages * page_bytes, least_bytes=least_bytes)
                # The group comes first, so that a failure below finds it and gives its memory back.
                group = _Group(arena, page_bytes, torch.empty(0))
                self._groups.append(group)
                arena.resize(MIN_PAGES * page_bytes)
                whole = tensor_at(arena.address, arena.reserved_bytes)
                group.words_LNB = whole.view(torch.int64).as_strided(
                    (count, reserved_pages, page_bytes // 8), (arena.stride // 8, page_bytes // 8, 1)
                )
                group.words_LNB[:, NULL_PAGE].zero_()
                starts = range(0, count * arena.stride, arena.stride)
                lanes[page_bytes] = [whole[start : start + reserved_pages * page_bytes] for start in starts]
        except DriverError:
            self.close()
            raise
        dtype = dtypes[spec.dtype]
        for layer, page_bytes in zip(spec.layers, sizes, strict=True):
            shape = (reserved_pages, spec.page_size, layer.num_kv_heads, layer.head_dim)
            self.k.append(lanes[page_bytes].pop(0).view(dtype).view(shape))
            self.v.append(lanes[page_bytes].pop(0).view(dtype).view(shape))
        self.num_pages = MIN_PAGES

    @property
    def mapped_bytes(self) -> int:
        return sum(group.arena.mapped_bytes for group in self._groups)

    def mapped_for(self, num_pages: int) -> int:
        # Each lane is backed in whole granules.
        return sum(group.arena.mapped_for(num_pages * group.page_bytes) for group in self._groups)

    def resize(self, num_pages: int) -> None:
        before = self.num_pages
        done: list[_Group] = []
        try:
            for group in self._groups:
                group.arena.resize(num_pages * group.page_bytes)
                done.append(group)
        except DriverError:
            for group in done:
                group.arena.resize(before * group.page_bytes)
            raise
        self.num_pages = num_pages

    def copy(self, source_C: torch.Tensor, destination_C: torch.Tensor) -> None:
        for group in self._groups:
            group.words_LNB.index_copy_(1, destination_C, group.words_LNB.index_select(1, source_C))

    def gather(self, pages_C: torch.Tensor) -> list[torch.Tensor]:
        return [group.words_LNB.index_select(1, pages_C) for group in self._groups]

    def scatter(self, pages_C: torch.Tensor, content: Sequence[torch.Tensor]) -> None:
        for group, words_LCB in zip(self._groups, content, strict=True):
            group.words_LNB.index_copy_(1, pages_C, words_LCB)

    def close(self) -> None:
        self.k.clear()
        self.v.clear()
        while self._groups:
            self._groups.pop().arena.close()
        self.num_pages = self.reserved_pages = 0


def lane_page_bytes(spec: KVSpec) -> list[int]:
    """Bytes of a page of keys, which are those of a page of values, per layer."""
    item = KV_DTYPES[spec.dtype].itemsize
    return [spec.page_size * layer.num_kv_heads * layer.head_dim * item for layer in spec.layers]
