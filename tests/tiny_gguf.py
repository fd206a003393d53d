"""Small GGUF files, written by the gguf package's own writer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

HIDDEN, HEADS, KV_HEADS, LAYERS, WIDTH, VOCAB = 64, 4, 2, 2, 96, 50


def write_gguf(
    path: Path,
    architecture: str,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, tuple[np.ndarray, gguf.GGMLQuantizationType]],
) -> Path:
    """Write a file; keys that begin with a dot get the architecture in front."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in metadata.items():
        name = architecture + key if key.startswith(".") else key
        match value:
            case bool():
                writer.add_bool(name, value)
            case int():
                writer.add_uint32(name, value)
            case float():
                writer.add_float32(name, value)
            case str():
                writer.add_string(name, value)
            case _:
                writer.add_array(name, value)
    for name, (values, kind) in tensors.items():
        if kind in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16):
            writer.add_tensor(name, values.astype(np.float32 if kind == 0 else np.float16))
        else:
            writer.add_tensor(name, gguf.quantize(values.astype(np.float32), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def decoder_metadata(**changes: Any) -> dict[str, Any]:
    """Keys that every decoder architecture has."""
    return {
        ".block_count": LAYERS,
        ".context_length": 128,
        ".embedding_length": HIDDEN,
        ".feed_forward_length": WIDTH,
        ".attention.head_count": HEADS,
        ".attention.head_count_kv": KV_HEADS,
        ".attention.layer_norm_rms_epsilon": 1e-5,
        ".rope.freq_base": 10000.0,
        **changes,
    }


def llama_tensors(kind: gguf.GGMLQuantizationType, seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights of a small Llama under GGUF names, `(out, in)`."""
    random = np.random.default_rng(seed)
    head = HIDDEN // HEADS
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (VOCAB, HIDDEN),
        "output_norm.weight": (HIDDEN,),
    }
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        shapes |= {
            f"{block}.attn_norm.weight": (HIDDEN,),
            f"{block}.attn_q.weight": (HIDDEN, HIDDEN),
            f"{block}.attn_k.weight": (KV_HEADS * head, HIDDEN),
            f"{block}.attn_v.weight": (KV_HEADS * head, HIDDEN),
            f"{block}.attn_output.weight": (HIDDEN, HIDDEN),
            f"{block}.ffn_norm.weight": (HIDDEN,),
            f"{block}.ffn_gate.weight": (WIDTH, HIDDEN),
            f"{block}.ffn_up.weight": (WIDTH, HIDDEN),
            f"{block}.ffn_down.weight": (HIDDEN, WIDTH),
        }
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def llama_file(path: Path, kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32) -> Path:
    """A small Llama model; matrices are of `kind`, norms float32."""
    tensors = {
        name: (values, kind if values.ndim == 2 else gguf.GGMLQuantizationType.F32)
        for name, values in llama_tensors(kind).items()
    }
    return write_gguf(path, "llama", decoder_metadata(), tensors)
