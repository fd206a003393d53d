"""Configurations of decode and cascade attention by part, padded head size, element size and group size."""

from __future__ import annotations

from drivetrain_rocm.parts import SIBLINGS
from drivetrain_triton.attention.config import DecodeConfig, DecodeTable, Rows, find_decode_config


def _config(block_n: int, num_warps: int, num_stages: int, programs: int) -> DecodeConfig:
    return DecodeConfig(block_n=block_n, num_warps=num_warps, num_stages=num_stages, programs=programs)


# Waves share a tile's rows, of which there are few, so all of them compute a tile of 16 rows: what more waves add is
# loads in flight. The keys of a tile are as many as registers take without spilling; `programs` is how many programs
# their registers then let run at once on a compute unit.
_CDNA: dict[tuple[int, int, Rows], DecodeConfig] = {
    (64, 1, "few"): _config(64, 4, 1, 3),
    (64, 2, "few"): _config(64, 4, 1, 3),
    (64, 4, "few"): _config(32, 4, 1, 3),
    (128, 1, "few"): _config(64, 4, 1, 2),
    (128, 2, "few"): _config(64, 4, 1, 2),
    (128, 4, "few"): _config(16, 4, 1, 2),
    (256, 1, "few"): _config(32, 4, 1, 2),
    (256, 2, "few"): _config(32, 4, 1, 2),
    (256, 4, "few"): _config(16, 4, 1, 1),
    (64, 1, "many"): _config(32, 4, 1, 3),
    (64, 2, "many"): _config(32, 4, 1, 3),
    (128, 1, "many"): _config(32, 4, 1, 2),
    (128, 2, "many"): _config(32, 4, 1, 2),
    (256, 1, "many"): _config(16, 4, 1, 1),
    (256, 2, "many"): _config(16, 4, 1, 1),
}
_RDNA3: dict[tuple[int, int, Rows], DecodeConfig] = {
    (64, 1, "few"): _config(32, 4, 1, 2),
    (64, 2, "few"): _config(32, 4, 1, 2),
    (64, 4, "few"): _config(16, 8, 1, 2),
    (128, 1, "few"): _config(16, 8, 1, 1),
    (128, 2, "few"): _config(16, 8, 1, 1),
    (128, 4, "few"): _config(16, 8, 1, 1),
    (64, 1, "many"): _config(16, 8, 1, 1),
    (64, 2, "many"): _config(16, 8, 1, 1),
    (128, 1, "many"): _config(16, 16, 1, 1),
    (128, 2, "many"): _config(16, 8, 1, 1),
}
_RDNA4: dict[tuple[int, int, Rows], DecodeConfig] = {
    **_RDNA3,
    (128, 1, "few"): _config(32, 4, 1, 2),
    (128, 2, "few"): _config(32, 4, 1, 2),
    (128, 4, "few"): _config(16, 16, 1, 1),
}
_FAMILIES: dict[str, dict[tuple[int, int, Rows], DecodeConfig]] = {
    "gfx90a": {**_CDNA, (128, 2, "many"): _config(16, 4, 1, 2)},
    "gfx942": _CDNA,
    "gfx950": _CDNA,
    "gfx1100": _RDNA3,
    "gfx1201": _RDNA4,
}

DECODE_CONFIGS: DecodeTable = {
    (part, size, item_bytes, rows): config
    for part, table in _FAMILIES.items()
    for (size, item_bytes, rows), config in table.items()
}


def decode_config(arch: str, head_dim: int, kv_bytes: int, query_bytes: int, rows: int) -> DecodeConfig:
    """The configuration for a part ("gfx942"), head size, element sizes of cache and queries, and query rows.

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
        place="drivetrain_rocm/tables/decode.py",
    )
