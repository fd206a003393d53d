"""How decode and cascade attention run: one entry of a part's table, and how the right one is found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Rows = Literal["few", "many"]
"""Query rows of a program: 16, or more up to 64; never more in fp32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeConfig:
    """One way to run the kernel.

    Attributes:
        block_n: keys of a step of its loop.
        num_warps, num_stages: Triton's options.
        programs: programs that run at once on one processor.
        max_registers: bound of a thread's registers in the decode kernel. Without one, ptxas may spill a few to make
            room for one more program on a processor.
    """

    block_n: int
    num_warps: int
    num_stages: int
    programs: int
    max_registers: int | None = None

    @property
    def decode_options(self) -> dict[str, int]:
        """Further options of the decode kernel's launch."""
        return {} if self.max_registers is None else {"maxnreg": self.max_registers}


DecodeTable = Mapping[tuple[str, int, int, Rows], DecodeConfig]
"""Keys are (part, head size padded to a power of two, bytes of an element, query rows)."""


def find_decode_config(
    table: DecodeTable,
    siblings: Mapping[str, str],
    arch: str,
    *,
    head_dim: int,
    kv_bytes: int,
    query_bytes: int,
    rows: int,
    place: str,
) -> DecodeConfig:
    """The configuration for a part, head size, element sizes of cache and queries, and query rows.

    Args:
        siblings: parts that take the entries of another, where they have none.
        place: the file that the table is in, for the error.

    Raises:
        ValueError: the table has none.
    """
    padded = padded_head_dim(head_dim)
    item_bytes = 4 if max(kv_bytes, query_bytes) == 4 else kv_bytes
    few_or_many: Rows = "few" if rows <= 16 else "many"
    config = table.get((arch, padded, item_bytes, few_or_many))
    part = arch
    while config is None and part in siblings:
        part = siblings[part]
        config = table.get((part, padded, item_bytes, few_or_many))
    if config is None:
        known = sorted({arch for arch, _, _, _ in table} | set(siblings))
        raise ValueError(
            f"no decode configuration for {arch}, head size {head_dim}, {item_bytes} bytes an element; "
            f"parts are {', '.join(known)}, head sizes up to 256, 1, 2 or 4 bytes; "
            f"add an entry to {place}"
        )
    return config


def padded_head_dim(head_dim: int) -> int:
    """The power of two that a head takes in a kernel, 64 at least."""
    return max(64, 1 << (head_dim - 1).bit_length())
