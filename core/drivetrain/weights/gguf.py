"""Weights of a GGUF file, under the names and in the shapes of the Hugging Face checkpoint."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import TYPE_CHECKING

from drivetrain.errors import WeightError
from drivetrain.weights.gguf_dequantize import dequantize
from drivetrain.weights.gguf_header import GGUFHeader, GGUFTensor, read_gguf_header
from drivetrain.weights.gguf_names import Layout, MappedTensor, map_tensor_names, undo_layout
from drivetrain.weights.source import TensorInfo, check_range, missing_tensor

if TYPE_CHECKING:
    import torch

_F32, _F16, _BF16 = 0, 1, 30
"""Types that torch reads as they lie; all others are quantized and delivered as float32."""


class GGUFWeights:
    """A `WeightSource` over one GGUF file. F32, F16 and BF16 are views of the mapped file, the rest becomes float32.

    Args:
        path: the file.
        header: its header where the caller has read it already.

    Raises:
        WeightError: the file cannot be read or is corrupt.
        UnsupportedModel: an architecture, tensor or type that is not read.
    """

    def __init__(self, path: Path, header: GGUFHeader | None = None) -> None:
        self._path = path
        self._header = header or read_gguf_header(path)
        architecture = self._header.architecture
        self._mapped = map_tensor_names(architecture, list(self._header.tensors))
        self._num_heads = self._head_count(f"{architecture}.attention.head_count")
        self._num_kv_heads = self._head_count(f"{architecture}.attention.head_count_kv", self._num_heads)
        self._buffer = self._map()

    def __str__(self) -> str:
        return str(self._path)

    @property
    def total_bytes(self) -> int:
        return sum(self.stored_bytes(name) for name in self._mapped)

    def names(self) -> list[str]:
        return list(self._mapped)

    def stored_bytes(self, name: str) -> int:
        return self._stored(name)[1].num_bytes

    def info(self, name: str) -> TensorInfo:
        import torch

        mapped, stored = self._stored(name)
        shape = stored.shape[::-1] if mapped.layout is Layout.TRANSPOSED else stored.shape
        dtypes = {_F16: torch.float16, _BF16: torch.bfloat16}
        return TensorInfo(shape=shape, dtype=dtypes.get(stored.type_id, torch.float32))

    def get(self, name: str) -> torch.Tensor:
        mapped, stored = self._stored(name)
        values = self._read(stored, 0, stored.shape[0]) if stored.shape else self._read_scalar(stored)
        return self._undo(values, mapped)

    def get_slice(self, name: str, dim: int, start: int, stop: int) -> torch.Tensor:
        mapped, stored = self._stored(name)
        check_range(self._path, name, self.info(name).shape, dim, start, stop)
        if mapped.layout is Layout.TRANSPOSED:
            dim = len(stored.shape) - 1 - dim
        if dim == 0 and mapped.layout in (Layout.SAME, Layout.ONE_PLUS, Layout.TRANSPOSED):
            return self._undo(self._read(stored, start, stop), mapped)
        values = self.get(name)
        if mapped.layout is Layout.TRANSPOSED:
            dim = len(stored.shape) - 1 - dim
        return values.narrow(dim, start, stop - start)

    def close(self) -> None:
        # Tensors may still point into the map, so it goes when the last of them does.
        self._buffer = None

    def _stored(self, name: str) -> tuple[MappedTensor, GGUFTensor]:
        mapped = self._mapped.get(name)
        if mapped is None:
            raise missing_tensor(self._path, name, list(self._mapped))
        return mapped, self._header.tensors[mapped.gguf_name]

    def _map(self) -> mmap.mmap | None:
        try:
            with self._path.open("rb") as file:
                # A private, writable map: torch warns about read-only buffers; nothing ever reaches the file.
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except (OSError, ValueError) as error:
            raise WeightError(f"{self._path}: cannot be mapped ({error})") from error

    def _read(self, stored: GGUFTensor, start: int, stop: int) -> torch.Tensor:
        """Rows `start:stop`, decoded."""
        import torch

        if self._buffer is None:
            raise WeightError(f"{self._path}: the weights were closed before {stored.name!r} was read")
        shape = (stop - start, *stored.shape[1:])
        num_rows = stored.shape[0]
        row_bytes = stored.num_bytes // num_rows if num_rows else 0
        if not row_bytes or stop == start:
            return torch.empty(shape)
        offset, num_bytes = stored.offset + start * row_bytes, (stop - start) * row_bytes
        if len(stored.shape) == 1 and stored.type_id not in (_F32, _F16, _BF16):
            # A one-dimensional quantized tensor has blocks across its rows: decode it whole.
            whole = torch.frombuffer(self._buffer, dtype=torch.uint8, offset=stored.offset, count=stored.num_bytes)
            return dequantize(whole, stored.type_id, stored.shape)[start:stop]
        raw = torch.frombuffer(self._buffer, dtype=torch.uint8, offset=offset, count=num_bytes)
        plain = {_F32: torch.float32, _F16: torch.float16, _BF16: torch.bfloat16}.get(stored.type_id)
        if plain is not None:
            return torch.frombuffer(self._buffer, dtype=plain, offset=offset, count=num_bytes // plain.itemsize).view(
                shape
            )
        return dequantize(raw, stored.type_id, shape)

    def _read_scalar(self, stored: GGUFTensor) -> torch.Tensor:
        flat = GGUFTensor(
            name=stored.name, shape=(1,), type_id=stored.type_id, offset=stored.offset, num_bytes=stored.num_bytes
        )
        return self._read(flat, 0, 1).view(())

    def _undo(self, values: torch.Tensor, mapped: MappedTensor) -> torch.Tensor:
        try:
            return undo_layout(values, mapped.layout, self._num_heads, self._num_kv_heads)
        except RuntimeError as error:
            raise WeightError(
                f"{self._path}: {mapped.gguf_name!r} of shape {list(values.shape)} does not fit "
                f"{self._num_heads} query and {self._num_kv_heads} key/value heads ({error})"
            ) from error

    def _head_count(self, key: str, default: int | None = None) -> int:
        value = self._header.metadata.get(key, default)
        if not isinstance(value, int) or not 0 < value < 2**16:
            raise WeightError(f"{self._path}: {key} is {str(value)[:50]}, expected a number of heads")
        return value
