"""Quantized GGUF blocks to float32. The five simple formats run in torch; K-quants go through the gguf package.

A block holds 32 values. Nibble formats store values 0-15 in the low and 16-31 in the high halves of 16 bytes; the Q5
formats keep each value's fifth bit in a 32-bit word before them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from drivetrain.errors import UnsupportedModel

if TYPE_CHECKING:
    import torch

CHUNK_BLOCKS = 1 << 14
"""Blocks decoded at a time: half a million values stay in the cache."""


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
    for start in range(0, len(blocks), CHUNK_BLOCKS):
        decode(blocks[start : start + CHUNK_BLOCKS], values[start : start + CHUNK_BLOCKS])
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


_TORCH_DECODERS: dict[str, Callable[[torch.Tensor, torch.Tensor], None]] = {
    "Q8_0": _q8_0,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
}
