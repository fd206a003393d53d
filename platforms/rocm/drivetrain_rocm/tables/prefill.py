"""Configurations of prefill attention by part, padded head size and element size of the queries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from drivetrain_rocm.parts import SIBLINGS
from drivetrain_triton.attention.config import padded_head_dim


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillConfig:
    """One way to run the kernel.

    Attributes:
        block_m: (query token, query head) pairs of a program.
        block_n: keys of a block. border_n: of a block that needs masks, which cost registers.
        num_warps, num_stages: Triton's options.
    """

    block_m: int
    block_n: int
    border_n: int
    num_warps: int
    num_stages: int


def _config(block_m: int, block_n: int, border_n: int, num_warps: int, num_stages: int) -> PrefillConfig:
    return PrefillConfig(
        block_m=block_m, block_n=block_n, border_n=border_n, num_warps=num_warps, num_stages=num_stages
    )


_CDNA = {
    (64, 2): _config(64, 64, 32, 4, 1),
    (128, 2): _config(128, 64, 32, 4, 1),
    (256, 2): _config(64, 32, 32, 4, 1),
    (64, 4): _config(64, 32, 16, 4, 1),
    (128, 4): _config(32, 16, 16, 4, 1),
    (256, 4): _config(16, 16, 16, 4, 1),
}
_RDNA3 = {
    (64, 2): _config(64, 32, 32, 4, 1),
    (128, 2): _config(128, 16, 16, 8, 1),
    (64, 4): _config(16, 16, 16, 8, 1),
    (128, 4): _config(16, 16, 16, 16, 1),
}
_RDNA4 = {
    **_RDNA3,
    (128, 2): _config(64, 32, 16, 4, 1),
    (128, 4): _config(16, 16, 16, 8, 1),
}
_FAMILIES = {"gfx90a": _CDNA, "gfx942": _CDNA, "gfx950": _CDNA, "gfx1100": _RDNA3, "gfx1201": _RDNA4}

PREFILL_CONFIGS: Mapping[tuple[str, int, int], PrefillConfig] = {
    (part, *key): config for part, table in _FAMILIES.items() for key, config in table.items()
}
"""Keys are (part, head size padded to a power of two, bytes of an element)."""


def prefill_config(arch: str, head_dim: int, item_bytes: int) -> PrefillConfig:
    """The configuration for a part ("gfx942"), head size and element size of the queries.

    Raises:
        ValueError: the table has none.
    """
    config = PREFILL_CONFIGS.get((SIBLINGS.get(arch, arch), padded_head_dim(head_dim), item_bytes))
    if config is None:
        known = sorted({part for part, _, _ in PREFILL_CONFIGS} | set(SIBLINGS))
        raise ValueError(
            f"no prefill configuration for {arch}, head size {head_dim}, {item_bytes} bytes an element; "
            f"parts are {', '.join(known)}, head sizes up to 256, 2 or 4 bytes; "
            "add an entry to drivetrain_rocm/tables/prefill.py"
        )
    return config
