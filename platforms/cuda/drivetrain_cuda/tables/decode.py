"""Configurations of decode and cascade attention by part, padded head size, element size and group size."""

from __future__ import annotations

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


def _config(
    block_n: int, num_warps: int, num_stages: int, programs: int, max_registers: int | None = None
) -> DecodeConfig:
    return DecodeConfig(
        block_n=block_n, num_warps=num_warps, num_stages=num_stages, programs=programs, max_registers=max_registers
    )


# Keys and values of `num_stages` steps lie in shared memory: 2 * block_n * head size * bytes each. About 100 KB in
# flight a processor hide the memory's latency; two programs or more hide each other's softmax.
DECODE_CONFIGS: dict[tuple[str, int, int, Rows], DecodeConfig] = {
    ("sm_80", 64, 1, "few"): _config(64, 4, 4, 3),
    ("sm_80", 64, 2, "few"): _config(64, 4, 3, 3),
    ("sm_80", 64, 4, "few"): _config(16, 4, 3, 3),
    ("sm_80", 128, 1, "few"): _config(64, 4, 3, 3),
    ("sm_80", 128, 2, "few"): _config(32, 4, 3, 3),
    ("sm_80", 128, 4, "few"): _config(16, 4, 2, 3),
    ("sm_80", 256, 1, "few"): _config(32, 4, 3, 3),
    ("sm_80", 256, 2, "few"): _config(32, 4, 2, 2),
    ("sm_80", 256, 4, "few"): _config(16, 8, 2, 2),
    ("sm_80", 64, 1, "many"): _config(64, 4, 3, 2),
    ("sm_80", 64, 2, "many"): _config(64, 4, 3, 2),
    ("sm_80", 128, 1, "many"): _config(32, 4, 3, 2),
    ("sm_80", 128, 2, "many"): _config(32, 4, 3, 2),
    ("sm_80", 256, 1, "many"): _config(32, 8, 2, 1),
    ("sm_80", 256, 2, "many"): _config(32, 8, 2, 1),
    ("sm_90", 64, 1, "few"): _config(128, 4, 4, 3),
    ("sm_90", 64, 2, "few"): _config(64, 4, 4, 3),
    ("sm_90", 64, 4, "few"): _config(16, 4, 3, 3),
    ("sm_90", 128, 1, "few"): _config(64, 4, 3, 3),
    ("sm_90", 128, 2, "few"): _config(64, 4, 3, 2),
    ("sm_90", 128, 4, "few"): _config(16, 4, 2, 3),
    ("sm_90", 256, 1, "few"): _config(32, 4, 4, 3),
    ("sm_90", 256, 2, "few"): _config(32, 4, 3, 2),
    ("sm_90", 256, 4, "few"): _config(16, 4, 2, 2),
    ("sm_90", 64, 1, "many"): _config(64, 4, 3, 2),
    ("sm_90", 64, 2, "many"): _config(64, 4, 3, 2),
    ("sm_90", 128, 1, "many"): _config(64, 4, 3, 2),
    ("sm_90", 128, 2, "many"): _config(64, 8, 3, 2),
    ("sm_90", 256, 1, "many"): _config(32, 8, 3, 1),
    ("sm_90", 256, 2, "many"): _config(16, 8, 2, 1, 255),
    ("sm_100", 128, 1, "few"): _config(32, 4, 4, 3),
    ("sm_100", 256, 1, "few"): _config(32, 4, 4, 2, 255),
    ("sm_100", 256, 2, "few"): _config(32, 4, 3, 2, 255),
    ("sm_100", 128, 1, "many"): _config(32, 4, 3, 2),
    ("sm_120", 64, 1, "few"): _config(64, 4, 3, 3),
    ("sm_120", 64, 2, "few"): _config(64, 4, 2, 2),
    ("sm_120", 64, 4, "few"): _config(16, 4, 3, 3),
    ("sm_120", 128, 1, "few"): _config(32, 4, 3, 3),
    ("sm_120", 128, 2, "few"): _config(32, 4, 2, 2, 168),
    ("sm_120", 128, 4, "few"): _config(16, 4, 2, 2),
    ("sm_120", 256, 1, "few"): _config(16, 4, 3, 3),
    ("sm_120", 256, 2, "few"): _config(16, 4, 2, 2),
    ("sm_120", 256, 4, "few"): _config(16, 4, 2, 1),
    ("sm_120", 64, 1, "many"): _config(32, 4, 3, 2),
    ("sm_120", 64, 2, "many"): _config(32, 4, 3, 2),
    ("sm_120", 128, 1, "many"): _config(32, 4, 2, 2),
    ("sm_120", 128, 2, "many"): _config(32, 8, 2, 1),
    ("sm_120", 256, 1, "many"): _config(16, 8, 2, 1),
    ("sm_120", 256, 2, "many"): _config(32, 8, 2, 1),
}
"""Keys are (part, head size padded to a power of two, bytes of an element, query rows)."""

SIBLINGS = {
    "sm_86": "sm_120",
    "sm_87": "sm_80",
    "sm_89": "sm_120",
    "sm_100": "sm_90",
    "sm_103": "sm_100",
    "sm_121": "sm_120",
}
"""Parts that take the entries of another, where they have none: as much shared memory."""


def decode_config(arch: str, head_dim: int, kv_bytes: int, query_bytes: int, rows: int) -> DecodeConfig:
    """The configuration for a part ("sm_90"), head size, element sizes of cache and queries, and query rows.

    Raises:
        ValueError: the table has none.
    """
    padded = padded_head_dim(head_dim)
    item_bytes = 4 if max(kv_bytes, query_bytes) == 4 else kv_bytes
    key = (padded, item_bytes, "few" if rows <= 16 else "many")
    config = DECODE_CONFIGS.get((arch, *key))
    part = arch
    while config is None and part in SIBLINGS:
        part = SIBLINGS[part]
        config = DECODE_CONFIGS.get((part, *key))
    if config is None:
        known = sorted({arch for arch, _, _, _ in DECODE_CONFIGS} | set(SIBLINGS))
        raise ValueError(
            f"no decode configuration for {arch}, head size {head_dim}, {item_bytes} bytes an element; "
            f"parts are {', '.join(known)}, head sizes up to 256, 1, 2 or 4 bytes; "
            "add an entry to drivetrain_cuda/tables/decode.py"
        )
    return config


def padded_head_dim(head_dim: int) -> int:
    """The power of two that a head takes in a kernel, 64 at least."""
    return max(64, 1 << (head_dim - 1).bit_length())
