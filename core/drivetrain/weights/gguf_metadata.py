"""Typed look-ups in the metadata of a GGUF file: what has the wrong type is an error that names the key."""

from __future__ import annotations

import math

import numpy as np

from drivetrain.errors import UnsupportedModel, WeightError
from drivetrain.weights.gguf_header import GGUFHeader


class GGUFMetadata:
    """Look-ups in one file's header, typed and under the architecture's prefix.

    Args:
        header: the file's.
    """

    def __init__(self, header: GGUFHeader) -> None:
        self.header = header
        self.architecture = header.architecture

    def fail(self, key: str, value: object, expected: str) -> UnsupportedModel:
        """The error of a key whose value cannot be served."""
        return UnsupportedModel(
            f"{self.header.path}: {self.architecture}.{key} is {str(value)[:60]}, expected {expected}; "
            f"convert the model again or use its safetensors folder"
        )

    def find(self, key: str) -> object:
        """A key's value as it is; None where the file has none."""
        return self.header.metadata.get(f"{self.architecture}.{key}")

    def integer(self, key: str, default: int | None = None) -> int:
        """A key's whole number, from 0 to 2^31 - 1.

        Raises:
            UnsupportedModel: it is no such number, or absent without a default.
        """
        value = self.find(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, int) or not 0 <= value < 2**31:
            raise self.fail(key, value, "a whole number")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A key's finite number.

        Raises:
            UnsupportedModel: it is none, or absent without a default.
        """
        value = self.find(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise self.fail(key, value, "a number")
        # The file holds 32-bit floats: 9.999999747378752e-06 was written as 1e-5.
        return float(f"{value:.7g}")

    def has(self, *tensors: str) -> bool:
        """Whether the file holds all of these tensors."""
        return all(name in self.header.tensors for name in tensors)

    def rows(self, tensor: str) -> int:
        """Rows of a matrix that every model has.

        Raises:
            WeightError: the file holds no such matrix.
        """
        found = self.header.tensors.get(tensor)
        if found is None or len(found.shape) != 2:
            raise WeightError(f"{self.header.path}: no matrix {tensor!r}, which every model has; download it again")
        return found.shape[0]

    def numbers(self, tensor: str) -> list[float]:
        """A small tensor that is configuration rather than weight.

        Raises:
            WeightError: it is not float32, or larger than a megabyte.
        """
        stored = self.header.tensors[tensor]
        if stored.type_id != 0 or stored.num_bytes > 1 << 20:
            raise WeightError(f"{self.header.path}: {tensor!r} is not a small float32 tensor; convert the model again")
        with self.header.path.open("rb") as file:
            file.seek(stored.offset)
            values: list[float] = np.frombuffer(file.read(stored.num_bytes), "<f4").tolist()
        return values
