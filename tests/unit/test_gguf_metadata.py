"""Metadata of a GGUF file: right types, and errors that name the key."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from drivetrain.errors import UnsupportedModel, WeightError
from drivetrain.weights.gguf_header import read_gguf_header
from drivetrain.weights.gguf_metadata import GGUFMetadata
from tiny_gguf import write_gguf


def metadata_of(folder: Path, tensors: dict[str, Any] | None = None, **keys: Any) -> GGUFMetadata:
    return GGUFMetadata(read_gguf_header(write_gguf(folder / "m.gguf", "llama", keys, tensors or {})))


def test_numbers_are_those_that_were_written(tmp_path: Path) -> None:
    metadata = metadata_of(tmp_path, **{".block_count": 7, ".rope.scaling.factor": 1e-5, ".other": "x"})
    assert metadata.integer("block_count") == 7
    assert metadata.number("rope.scaling.factor") == 1e-5, "and not the nearest 32-bit float"
    assert metadata.number("block_count") == 7.0
    assert (metadata.integer("absent", 3), metadata.number("absent", 0.5)) == (3, 0.5)
    assert (metadata.find("other"), metadata.find("absent")) == ("x", None)


@pytest.mark.parametrize(
    ("value", "read", "message"),
    [
        (-1, "integer", r"llama\.key is -1, expected a whole number"),
        (0.5, "integer", r"llama\.key is 0\.5, expected a whole number"),
        (float("nan"), "number", r"llama\.key is nan, expected a number"),
        ("4", "number", r"llama\.key is 4, expected a number"),
    ],
)
def test_values_of_the_wrong_type_are_no_reason_to_guess(
    tmp_path: Path, value: object, read: str, message: str
) -> None:
    header = metadata_of(tmp_path).header
    metadata = GGUFMetadata(replace(header, metadata={**header.metadata, "llama.key": value}))  # type: ignore[dict-item]
    with pytest.raises(UnsupportedModel, match=message):
        getattr(metadata, read)("key", 1)
    with pytest.raises(UnsupportedModel, match=r"llama\.absent is None, expected"):
        getattr(metadata, read)("absent")


def test_tensors_that_are_configuration_are_small_and_whole_floats(tmp_path: Path) -> None:
    factors = np.array([1.0, 2.5, 4.0], np.float32)
    large = np.zeros((1 << 18) + 1, np.float32)
    metadata = metadata_of(
        tmp_path,
        {
            "matrix.weight": (np.zeros((5, 4)), Kind.F32),
            "factors.weight": (factors, Kind.F32),
            "half.weight": (factors, Kind.F16),
            "large.weight": (large, Kind.F32),
        },
    )
    assert metadata.numbers("factors.weight") == [1.0, 2.5, 4.0]
    for name in ("half.weight", "large.weight"):
        with pytest.raises(WeightError, match=f"'{name}' is not a small float32 tensor"):
            metadata.numbers(name)
    assert metadata.rows("matrix.weight") == 5
    for name in ("factors.weight", "absent.weight"):
        with pytest.raises(WeightError, match=f"no matrix '{name}'"):
            metadata.rows(name)
    assert metadata.has("half.weight", "large.weight")
    assert not metadata.has("half.weight", "absent.weight")
