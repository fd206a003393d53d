"""Quantized GGUF blocks to float32. The common formats run in torch; the others go through the gguf package.

Simple formats have blocks of 32 values. Nibble formats store values 0-15 in the low and 16-31 in the high halves of 16
bytes; the Q5 formats keep each value's fifth bit in a 32-bit word before them.

K-quants have blocks of 256 values with a scale for each 32 (Q4_K, Q5_K) or 16 (Q6_K) of them. Bits of one
value lie in up to two places; each decoder states where.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from drivetrain.errors import UnsupportedModel

if TYPE_CHECKING:
    import torch

CHUNK_VALUES = 1 << 19
"""Values decoded at a time: so many stay in the cache."""


def dequantize(raw: torch.Tensor, type_id: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Decode quantized rows.

    Args:
        raw: uint8, the bytes of all blocks.
        type_id: a `gguf.GGMLQuantizationType` value.
        shape: the tensor's shape, rows first.

    Returns:
        float32 of `shape`.

    Raises:
        UnsupportedModel: no decoder for this type.
    """
    import torch
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    quantization = GGMLQuantizationType(type_id)
    block_values, block_bytes = GGML_QUANT_SIZES[quantization]
    decode = _TORCH_DECODERS.get(quantization.name)
    if decode is None:
        return _dequantize_numpy(raw, quantization, shape)
    blocks = raw.view(-1, block_bytes)
    values = torch.empty(len(blocks), block_values)
    step = CHUNK_VALUES // block_values
    for start in range(0, len(blocks), step):
        decode(blocks[start : start + step], values[start : start + step])
    return values.view(shape)


def _dequantize_numpy(raw: torch.Tensor, quantization: int, shape: tuple[int, ...]) -> torch.Tensor:
    import torch
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize as gguf_dequantize

    kind = GGMLQuantizationType(quantization)
    rows = math.prod(shape[:-1])
    try:
        values = gguf_dequantize(raw.numpy().reshape(rows, -1), kind)
    except NotImplementedError as error:
        raise UnsupportedModel(
            f"GGUF type {kind.name} cannot be decoded; use a file in F16, BF16, Q8_0, Q4_0, Q4_1, Q5 or a K-quant"
        ) from error
    return torch.from_numpy(values).view(shape)  # pyright: ignore[reportUnknownMemberType] - untyped there


def _half(bytes_B2: torch.Tensor) -> torch.Tensor:
    import torch

    return bytes_B2.contiguous().view(torch.float16).float()


def _q8_0(blocks: torch.Tensor, out: torch.Tensor) -> None:
    import torch

    out.copy_(blocks[:, 2:].view(torch.int8))
    out.mul_(_half(blocks[:, :2]))


def _nibbles(packed: torch.Tensor, out: torch.Tensor) -> None:
    out[:, :16] = packed & 15
    out[:, 16:] = packed >> 4


def _q4_0(blocks: torch.Tensor, out: torch.Tensor) -> None:
    _nibbles(blocks[:, 2:], out)
    out.sub_(8).mul_(_half(blocks[:, :2]))


def _q4_1(blocks: torch.Tensor, out: torch.Tensor) -> None:
    _nibbles(blocks[:, 4:], out)
    out.mul_(_half(blocks[:, :2])).add_(_half(blocks[:, 2:4]))


def _fifth_bits(words_B4: torch.Tensor, out: torch.Tensor) -> None:
    """Add 16 to every value whose bit is set in its block's 32-bit word."""
    import torch

    shifts = torch.arange(8, dtype=torch.uint8)
    bits = (words_B4.unsqueeze(-1) >> shifts) & 1
    out.add_(bits.view(len(words_B4), 32), alpha=16)


def _q5_0(blocks: torch.Tensor, out: torch.Tensor) -> None:
    _nibbles(blocks[:, 6:], out)
    _fifth_bits(blocks[:, 2:6], out)
    out.sub_(16).mul_(_half(blocks[:, :2]))


def _q5_1(blocks: torch.Tensor, out: torch.Tensor) -> None:
    _nibbles(blocks[:, 8:], out)
    _fifth_bits(blocks[:, 4:8], out)
    out.mul_(_half(blocks[:, :2])).add_(_half(blocks[:, 2:4]))


def _scales_and_offsets(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What Q4_K and Q5_K multiply by and subtract, for each of 8 groups, from the first 16 bytes of a block.

    Scales are d times, offsets dmin times a 6-bit number. Of the 12 packed bytes s, groups 0-3 have theirs in the low
    bits of s[0:4] and s[4:8]; groups 4-7 have four bits in s[8:12] and their upper two on top of the earlier bytes.
    """
    import torch

    low, high, mixed = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = torch.cat([low & 63, (mixed & 15) | (low >> 6 << 4)], dim=1)
    offsets = torch.cat([high & 63, (mixed >> 4) | (high >> 6 << 4)], dim=1)
    return (_half(blocks[:, :2]) * scales).unsqueeze(-1), (_half(blocks[:, 2:4]) * offsets).unsqueeze(-1)


def _group_nibbles(packed: torch.Tensor, out_B8V: torch.Tensor) -> None:
    """Runs of 32 bytes hold one group in their low halves and the next in their high halves."""
    runs = packed.view(-1, 4, 32) if packed.is_contiguous() else packed.reshape(-1, 4, 32)
    out_B8V[:, 0::2] = runs & 15
    out_B8V[:, 1::2] = runs >> 4


def _q4_k(blocks: torch.Tensor, out: torch.Tensor) -> None:
    groups = out.view(-1, 8, 32)
    _group_nibbles(blocks[:, 16:], groups)
    scales, offsets = _scales_and_offsets(blocks)
    groups.mul_(scales).sub_(offsets)


def _q5_k(blocks: torch.Tensor, out: torch.Tensor) -> None:
    """Bit g of byte v is the fifth bit of value v in group g."""
    groups = out.view(-1, 8, 32)
    _group_nibbles(blocks[:, 48:], groups)
    fifth = blocks[:, 16:48]
    for group in range(8):
        groups[:, group].add_((fifth >> group) & 1, alpha=16)
    scales, offsets = _scales_and_offsets(blocks)
    groups.mul_(scales).sub_(offsets)


def _q6_k(blocks: torch.Tensor, out: torch.Tensor) -> None:
    """Each half of a block is four runs of 32 values: low and high nibbles of 64 bytes, two more bits from 32 bytes."""
    import torch

    halves = out.view(-1, 2, 4, 32)
    for half in range(2):
        nibbles = blocks[:, 64 * half : 64 * half + 64]
        upper = blocks[:, 128 + 32 * half : 160 + 32 * half]
        for run in range(4):
            part = nibbles[:, 32 * (run % 2) : 32 * (run % 2) + 32]
            bits = part & 15 if run < 2 else part >> 4
            halves[:, half, run] = bits | ((upper >> (2 * run) & 3) << 4)
    scales = _half(blocks[:, 208:]) * blocks[:, 192:208].contiguous().view(torch.int8)
    out.sub_(32)
    out.view(-1, 16, 16).mul_(scales.unsqueeze(-1))


_TORCH_DECODERS: dict[str, Callable[[torch.Tensor, torch.Tensor], None]] = {
    "Q8_0": _q8_0,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}
