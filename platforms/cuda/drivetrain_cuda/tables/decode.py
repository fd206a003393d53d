"""Configurations of decode and cascade attention by part, padded head size, element size and group size."""

from __future__ import annotations

from drivetrain_triton.attention.config import DecodeConfig, DecodeTable, find_decode_config


def _config(
    block_n: int, num_warps: int, num_stages: int, programs: int, max_registers: int | None = None
) -> DecodeConfig:
    return DecodeConfig(
        block_n=block_n, num_warps=num_warps, num_stages=num_stages, programs=programs, max_registers=max_registers
    )


# Keys and values of `num_stages` steps lie in shared memory: 2 * block_n * head size * bytes each. About 100 KB in
# flight a processor hide the memory's latency; two programs or more hide each other's softmax.
DECODE_CONFIGS: DecodeTable = {
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
    ("sm_90", 64, 2, "few"): _config(64, 2, 3, 3),
    ("sm_90", 64, 4, "few"): _config(16, 4, 3, 3),
    ("sm_90", 128, 1, "few"): _config(64, 4, 3, 3),
    ("sm_90", 128, 2, "few"): _config(32, 2, 3, 3),
    ("sm_90", 128, 4, "few"): _config(16, 4, 2, 3),
    ("sm_90", 256, 1, "few"): _config(32, 4, 4, 3),
    ("sm_90", 256, 2, "few"): _config(32, 4, 3, 2),
    ("sm_90", 256, 4, "few"): _config(16, 4, 2, 2),
    ("sm_90", 64, 1, "many"): _config(64, 4, 3, 2),
    ("sm_90", 64, 2, "many"): _config(64, 4, 3, 2),
    ("sm_90", 128, 1, "many"): _config(64, 4, 3, 2),
    ("sm_90", 128, 2, "many"): _config(64, 4, 3, 2),
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
    return find_decode_config(
        DECODE_CONFIGS,
        SIBLINGS,
        arch,
        head_dim=head_dim,
        kv_bytes=kv_bytes,
        query_bytes=query_bytes,
        rows=rows,
        place="drivetrain_cuda/tables/decode.py",
    )
