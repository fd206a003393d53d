"""Rotary scaling as GGUF files tell it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from drivetrain.errors import UnsupportedModel
from drivetrain.weights.gguf_header import read_gguf_header
from drivetrain.weights.gguf_metadata import GGUFMetadata
from drivetrain.weights.gguf_rotary import rope_scaling
from tiny_gguf import write_gguf

KIND, FACTOR, ORIGINAL = ".rope.scaling.type", ".rope.scaling.factor", ".rope.scaling.original_context_length"


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, None),
        ({KIND: "none", FACTOR: 2.0}, None),
        ({KIND: "linear"}, None),
        ({KIND: "linear", FACTOR: 2.0}, {"rope_type": "linear", "factor": 2.0}),
        ({KIND: "yarn", FACTOR: 4.0}, {"rope_type": "yarn", "factor": 4.0}),
        (
            {KIND: "yarn", FACTOR: 4.0, ORIGINAL: 32},
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        ),
        ({KIND: "longrope", FACTOR: 4.0}, None),
    ],
)
def test_each_kind_has_its_configuration(tmp_path: Path, keys: dict[str, Any], expected: dict[str, Any] | None) -> None:
    metadata = GGUFMetadata(read_gguf_header(write_gguf(tmp_path / "m.gguf", "llama", keys, {})))
    assert rope_scaling(metadata, base=10000.0, head_dim=16) == expected


def test_an_unknown_kind_is_named(tmp_path: Path) -> None:
    metadata = GGUFMetadata(read_gguf_header(write_gguf(tmp_path / "m.gguf", "llama", {KIND: "spiral"}, {})))
    with pytest.raises(UnsupportedModel, match=r"rope\.scaling\.type is spiral, expected none, linear"):
        rope_scaling(metadata, base=10000.0, head_dim=16)


@pytest.mark.parametrize(
    "factors", [[0.0] * 8, [float("nan")] * 8, [float("inf")] * 8, [1.0] * 7, [1.0, 9.0] * 4], ids=str
)
def test_factors_that_are_not_llama_3s_are_refused(tmp_path: Path, factors: list[float]) -> None:
    tensors = {"rope_freqs.weight": (np.array(factors), Kind.F32)}
    metadata = GGUFMetadata(read_gguf_header(write_gguf(tmp_path / "m.gguf", "llama", {}, tensors)))
    with pytest.raises(UnsupportedModel, match="rotary factors that are not Llama 3's"):
        rope_scaling(metadata, base=10000.0, head_dim=16)
