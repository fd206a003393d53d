"""Rotary scaling of a GGUF file, in the words of a Hugging Face configuration."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from drivetrain.errors import UnsupportedModel
from drivetrain.weights.gguf_metadata import GGUFMetadata


def rope_scaling(metadata: GGUFMetadata, *, base: float, head_dim: int) -> dict[str, Any] | None:
    """What stands as `rope_scaling` in a configuration; None where nothing is scaled, or the family reads it itself.

    Args:
        base: the rotary base, `rope_theta`.
        head_dim: numbers of a head that are rotated.

    Raises:
        UnsupportedModel: a kind of scaling that is not served.
        WeightError: the factors are stored in another way than llama.cpp does.
    """
    if metadata.has("rope_freqs.weight"):
        return _llama3_scaling(metadata, base, head_dim)
    kind = metadata.find("rope.scaling.type")
    if kind in (None, "none"):
        return None
    factor = metadata.number("rope.scaling.factor", 1.0)
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor} if factor != 1.0 else None
    if kind == "yarn":
        scaling: dict[str, Any] = {"rope_type": "yarn", "factor": factor}
        if metadata.find("rope.scaling.original_context_length") is not None:
            scaling["original_max_position_embeddings"] = metadata.integer("rope.scaling.original_context_length")
        return scaling
    if kind == "longrope":
        return None  # read from its own tensors by the families that have it
    raise metadata.fail("rope.scaling.type", kind, "none, linear, yarn or longrope")


def _llama3_scaling(metadata: GGUFMetadata, base: float, head_dim: int) -> dict[str, Any]:
    """Llama 3's scaling: the file holds its factors only, so the parameters are found and checked against them."""
    factors = np.array(metadata.numbers("rope_freqs.weight"))
    factor = float(f"{factors.max(initial=0.0):.6g}")
    original = metadata.integer("rope.scaling.original_context_length", 8192)
    low, high = 1.0, 4.0
    with np.errstate(divide="ignore", invalid="ignore"):  # a broken file may hold any numbers; the comparison tells
        wavelengths = 2 * math.pi * base ** (np.arange(0, head_dim, 2) / head_dim)
        smooth = (original / wavelengths - low) / (high - low)
        expected = 1 / ((1 - smooth) / factor + smooth)
        expected = np.where(wavelengths < original / high, 1.0, expected)
        expected = np.where(wavelengths > original / low, factor, expected)
    if factors.shape != expected.shape or not np.allclose(factors, expected, rtol=1e-3):
        raise UnsupportedModel(
            f"{metadata.header.path}: rope_freqs.weight holds rotary factors that are not Llama 3's; "
            f"use the model's safetensors folder"
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }
