"""Pages of keys and values on the card, at addresses and in sizes that never change: compiled graphs hold both.

C pages, P tokens a page, G key-value heads, K head size, T tokens, N listed pages.
"""

# Relaxed: torch's stubs leave methods untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import torch

from drivetrain_gaudi.habana import from_fp8, to_fp8
from drivetrain_plugins.contract.capabilities import KVDtype
from drivetrain_plugins.contract.memory import KVCache, KVSpec

_STORED: dict[KVDtype, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "fp8_e4m3": torch.float8_e4m3fn,
}
MIN_PAGES = 2


class GaudiCache(KVCache):
    """Keys and values of all layers, each (C P, G, K), zero until written.

    Args:
        fp8_max: see `Generation`.
    """

    def __init__(self, spec: KVSpec, num_pages: int, device: torch.device, fp8_max: float | None) -> None:
        self.spec = spec
        self.num_pages = MIN_PAGES
        self.most_pages = self.reserved_pages = num_pages
        self._fp8_max = fp8_max if spec.dtype == "fp8_e4m3" else None
        dtype = _STORED[spec.dtype]
        shapes = [(num_pages * spec.page_size, layer.num_kv_heads, layer.head_dim) for layer in spec.layers]
        self.k = [torch.zeros(shape, dtype=dtype, device=device) for shape in shapes]
        self.v = [torch.zeros(shape, dtype=dtype, device=device) for shape in shapes]

    def write(self, layer: int, k_TGK: torch.Tensor, v_TGK: torch.Tensor, slots_T: torch.Tensor) -> None:
        """Store keys and values of tokens."""
        for stored, fresh in ((self.k[layer], k_TGK), (self.v[layer], v_TGK)):
            if self._fp8_max is None:
                stored.index_copy_(0, slots_T, fresh.to(stored.dtype))
            else:
                # As bytes: torch copies by index in few types, and bytes are among them everywhere.
                stored.view(torch.uint8).index_copy_(0, slots_T, to_fp8(fresh, self._fp8_max).view(torch.uint8))

    def read(
        self, layer: int, pages_N: torch.Tensor, filled_NP: torch.Tensor, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values (N, P, G, K) of pages.

        Zero outside of `filled_NP`, whatever memory holds, and where a number is not finite: products over the pages
        of all rows would carry one row's NaN into the others.
        """
        keep_NP11 = filled_NP[:, :, None, None]
        parts: list[torch.Tensor] = []
        for stored in (self.k[layer], self.v[layer]):
            x_NPGK = stored.unflatten(0, (-1, self.spec.page_size)).index_select(0, pages_N)
            x_NPGK = x_NPGK.to(dtype) if self._fp8_max is None else from_fp8(x_NPGK, dtype)
            parts.append(torch.where(keep_NP11 & x_NPGK.isfinite(), x_NPGK, 0.0))
        k_NPGK, v_NPGK = parts
        return k_NPGK, v_NPGK

    def pages(self) -> list[torch.Tensor]:
        """Every tensor as (C, P, G, K), fp8 as bytes."""
        whole = [x.unflatten(0, (-1, self.spec.page_size)) for x in (*self.k, *self.v)]
        return whole if self._fp8_max is None else [x.view(torch.uint8) for x in whole]


def own(cache: KVCache) -> GaudiCache:
    """The cache as this backend made it."""
    if not isinstance(cache, GaudiCache):
        raise TypeError(f"this cache is a {type(cache).__name__}; expected one that the Gaudi allocator reserved")
    return cache
