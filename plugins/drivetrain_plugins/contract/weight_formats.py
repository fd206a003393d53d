"""The weight formats that `Capabilities.quantizations` may name: how a `LinearWeight` of each lies, and what it means.

O output features, I input features; `weight` is stored as (O, ...), `parts` by these names:

    fp8_e4m3   weight float8_e4m3fn (O, I), in OCP's encoding on every device
               parts scale float32 (1, 1), (O, 1) or (ceil(O / 128), ceil(I / 128)): of all, of a row, of a square block
               value = weight * scale
    int8       weight int8 (O, I); parts scale float32 (O, 1); value = weight * scale
    int4       weight uint8 (O, I / 2): columns 2i in the low halves and 2i + 1 in the high halves
               parts scale float32 (O, I / G), zero uint8 (O, I / G), 0 to 16, for groups of G columns in a row
               value = (weight - zero) * scale, where G is 32, 64, 128 or I, and divides I
    gguf_*     weight uint8 (O, bytes of a row): a row's blocks as a .gguf file has them; no parts

What comes in other shapes (GPTQ, AWQ, compressed tensors) is brought into these when it is loaded.
"""

from __future__ import annotations

from typing import Literal, get_args

WeightFormat = Literal[
    "fp8_e4m3",
    "int8",
    "int4",
    "gguf_q8_0",
    "gguf_q4_0",
    "gguf_q4_1",
    "gguf_q5_0",
    "gguf_q5_1",
    "gguf_q4_k",
    "gguf_q5_k",
    "gguf_q6_k",
]
WEIGHT_FORMATS: tuple[WeightFormat, ...] = get_args(WeightFormat)

FP8_BLOCK = 128
"""Rows and columns of a block with a scale of its own."""
