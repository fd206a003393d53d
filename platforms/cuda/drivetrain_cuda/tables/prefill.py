"""Configurations of prefill attention by architecture, padded head size and element size of the queries."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillConfig:
    """One way to run the kernel.

    Attributes:
        block_m: (query token, query head) pairs of a program.
        block_n: keys of a block.
        ahead: compute scores one block ahead, so that weights are computed beside the product with values.
        num_warps, num_stages: Triton's options.
        mapped: fetch whole key blocks through tensor maps (sm_90 and later) where pages allow it.
    """

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    ahead: bool = False
    mapped: bool = False


def _config(
    block_m: int, block_n: int, num_warps: int, num_stages: int, *, ahead: bool = False, mapped: bool = False
) -> PrefillConfig:
    return PrefillConfig(
        block_m=block_m, block_n=block_n, num_warps=num_warps, num_stages=num_stages, ahead=ahead, mapped=mapped
    )


PREFILL_CONFIGS: dict[tuple[str, int, int], PrefillConfig] = {
    ("sm_80", 64, 2): _config(64, 64, 8, 2),
    ("sm_80", 128, 2): _config(64, 64, 8, 2),
    ("sm_80", 256, 2): _config(64, 16, 8, 2),
    ("sm_80", 64, 4): _config(32, 32, 4, 1),
    ("sm_80", 128, 4): _config(16, 16, 4, 1),
    ("sm_80", 256, 4): _config(16, 16, 8, 1),
    ("sm_90", 64, 2): _config(128, 64, 8, 2, ahead=True, mapped=True),
    ("sm_90", 128, 2): _config(128, 64, 8, 2, ahead=True, mapped=True),
    ("sm_90", 256, 2): _config(64, 32, 8, 2),
    ("sm_90", 64, 4): _config(32, 32, 4, 1),
    ("sm_90", 128, 4): _config(16, 16, 4, 1),
    ("sm_90", 256, 4): _config(16, 16, 4, 1),
    ("sm_100", 64, 2): _config(128, 128, 8, 2),
    ("sm_100", 128, 2): _config(128, 64, 8, 2, mapped=True),
    ("sm_100", 256, 2): _config(64, 32, 8, 2),
    ("sm_100", 64, 4): _config(32, 32, 4, 1),
    ("sm_100", 128, 4): _config(16, 16, 4, 1),
    ("sm_100", 256, 4): _config(16, 16, 4, 1),
    ("sm_120", 64, 2): _config(64, 32, 4, 2),
    ("sm_120", 128, 2): _config(64, 64, 8, 2),
    ("sm_120", 256, 2): _config(32, 16, 4, 2),
    ("sm_120", 64, 4): _config(32, 32, 4, 1),
    ("sm_120", 128, 4): _config(16, 16, 4, 1),
    ("sm_120", 256, 4): _config(16, 16, 4, 1),
}
"""Keys are (architecture, head size padded to a power of two, bytes of an element)."""

SIBLINGS = {"sm_86": "sm_120", "sm_87": "sm_80", "sm_89": "sm_120", "sm_103": "sm_100", "sm_121": "sm_120"}
"""Architectures with the limits of one that has entries."""


def prefill_config(arch: str, head_dim: int, item_bytes: int) -> PrefillConfig:
    """The configuration for an architecture ("sm_90"), head size and element size of the queries.

    Raises:
        ValueError: the table has none.
    """
    padded = max(64, 1 << (head_dim - 1).bit_length())
    config = PREFILL_CONFIGS.get((SIBLINGS.get(arch, arch), padded, item_bytes))
    if config is None:
        known = sorted({arch for arch, _, _ in PREFILL_CONFIGS} | set(SIBLINGS))
        raise ValueError(
            f"no prefill configuration for {arch}, head size {head_dim}, {item_bytes} bytes an element;"
            f" architectures are {', '.join(known)}, head sizes up to 256, 2 or 4 bytes;"
            " add an entry to drivetrain_cuda/tables/prefill.py"
        )
    return config
