"""Device memory: how much there is for pages, the pages themselves, and moving them about."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from drivetrain_plugins.contract.capabilities import KVDtype
from drivetrain_plugins.contract.model import DecoderSpec

_ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "fp8_e4m3": 1, "fp8_e5m2": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class KVLayerSpec:
    """Keys and values of one layer on this rank."""

    num_kv_heads: int
    head_dim: int
    window: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KVSpec:
    """The cache of a whole model on this rank. A page id stands for the same tokens in every layer."""

    layers: tuple[KVLayerSpec, ...]
    dtype: KVDtype
    page_size: int

    @property
    def page_bytes(self) -> int:
        """Bytes of one page over all layers, keys and values."""
        item = _ITEM_BYTES[self.dtype]
        return sum(2 * layer.num_kv_heads * layer.head_dim * item * self.page_size for layer in self.layers)


def kv_spec(spec: DecoderSpec, dtype: KVDtype, page_size: int) -> KVSpec:
    """The cache that core keeps for a model, or for a rank's share of one."""
    mixers = [layer.mixer for layer in spec.layers]
    return KVSpec(
        layers=tuple(
            KVLayerSpec(num_kv_heads=mixer.num_kv_heads, head_dim=mixer.head_dim, window=mixer.window)
            for mixer in mixers
        ),
        dtype=dtype,
        page_size=page_size,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryLimits:
    """What the user allows. Exactly what is None is left to the allocator.

    Attributes:
        kv_bytes: bytes for pages.
        fraction: share of the device's memory that this process may use in all.
        max_pages: more are never useful (every slot at its longest context).
    """

    kv_bytes: int | None = None
    fraction: float = 0.9
    max_pages: int = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """How many pages there will be, and why.

    Attributes:
        num_pages: pages, the null page included.
        lines: (what, bytes) in the order of subtraction, for people.
    """

    num_pages: int
    kv_bytes: int
    lines: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryUse:
    """Bytes in use on the device by this process."""

    total: int
    used: int
    kv: int
    details: tuple[tuple[str, int], ...] = field(default=())


class KVCache(ABC):
    """An opaque handle to the pages of all layers. Only the backend that made it looks inside."""

    spec: KVSpec
    num_pages: int
    most_pages: int | None = None
    """Pages that it can ever have, where that is known when it is reserved: steps are shaped by it."""


class Allocator(ABC):
    """Pages of keys and values.

    The order at start-up is `reserve`, then weights are loaded and steps warmed up (they may use the reserved null page
    and warm-up pages), then `plan` measures what is left, then `commit`. An engine that sleeps commits the fewest pages
    and, to wake, as many as before.
    """

    @abstractmethod
    def reserve(self, spec: KVSpec, limits: MemoryLimits) -> KVCache:
        """Take the address range for the most pages that may ever exist, with few of them usable so far.

        Raises:
            OutOfMemory: not even the first pages fit.
        """

    @abstractmethod
    def plan(self, cache: KVCache, limits: MemoryLimits) -> MemoryPlan:
        """Measure what is left after weights and warm-up and say how many pages fit.

        Raises:
            OutOfMemory: fewer than two pages fit; the message has the numbers.
        """

    @abstractmethod
    def commit(self, cache: KVCache, num_pages: int) -> None:
        """Make exactly `num_pages` pages usable, in place. Captured graphs stay valid.

        May be called again with more or fewer pages, at least 2, while no step is under way. Pages that stay keep their
        content; those past `num_pages` lose theirs, and their memory is given back where the device can.

        Raises:
            OutOfMemory: they do not fit any more.
        """

    @abstractmethod
    def copy_pages(self, cache: KVCache, source: Sequence[int], destination: Sequence[int]) -> None:
        """Copy whole pages in all layers, in order with the steps before and after."""

    @abstractmethod
    def export_pages(self, cache: KVCache, pages: Sequence[int]) -> Any:
        """Page contents as host bytes in the backend's own layout, for `import_pages` of the same backend."""

    @abstractmethod
    def import_pages(self, cache: KVCache, pages: Sequence[int], content: Any) -> None:
        """Write what `export_pages` returned into other pages."""

    @abstractmethod
    def release(self, cache: KVCache) -> None:
        """Give the memory back."""

    @abstractmethod
    def use(self) -> MemoryUse:
        """Memory in use now."""
