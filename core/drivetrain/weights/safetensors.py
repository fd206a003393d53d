"""Weights of a model folder in safetensors files, one or many."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from drivetrain.errors import UnsupportedModel, WeightError
from drivetrain.weights.source import TensorInfo, check_range, missing_tensor

if TYPE_CHECKING:
    import torch

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
MAX_HEADER_BYTES = 100_000_000
MAX_INDEX_BYTES = 64 << 20
_DTYPES: dict[str, tuple[str, int]] = {
    "BOOL": ("bool", 1),
    "U8": ("uint8", 1),
    "I8": ("int8", 1),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "F8_E8M0": ("float8_e8m0fnu", 1),
    "I16": ("int16", 2),
    "U16": ("uint16", 2),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "I32": ("int32", 4),
    "U32": ("uint32", 4),
    "F32": ("float32", 4),
    "I64": ("int64", 8),
    "U64": ("uint64", 8),
    "F64": ("float64", 8),
    "C64": ("complex64", 8),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SafetensorsEntry:
    """One tensor of a file: torch dtype by name, shape, bytes."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    num_bytes: int


class _Slice(Protocol):
    def __getitem__(self, key: tuple[slice, ...]) -> torch.Tensor: ...


class _OpenFile(Protocol):
    """The part of `safetensors.safe_open` that is used here."""

    def get_tensor(self, name: str) -> torch.Tensor: ...

    def get_slice(self, name: str) -> _Slice: ...


def read_safetensors_header(path: Path) -> dict[str, SafetensorsEntry]:
    """The tensors of one file, each found to lie inside it and to be as long as its shape says.

    Raises:
        WeightError: the file cannot be read, or the header is corrupt.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
                raise _corrupt(path, f"the header would take {length} bytes, the file has {size}")
            header: Any = json.loads(file.read(length))
    except OSError as error:
        raise WeightError(f"{path}: cannot be read ({error}); check the path and its permissions") from error
    except (ValueError, RecursionError) as error:
        raise _corrupt(path, f"the header is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise _corrupt(path, "the header is not a JSON object")
    entries: dict[str, SafetensorsEntry] = {}
    ranges: list[tuple[int, int, str]] = []
    for name, raw in cast("dict[str, Any]", header).items():
        if name == "__metadata__":
            continue
        entry, begin = _entry(path, name, raw, size - 8 - length)
        entries[name] = entry
        ranges.append((begin, begin + entry.num_bytes, name))
    ranges.sort()
    for (_, end, name), (begin, _, other) in itertools.pairwise(ranges):
        if begin < end:
            raise _corrupt(path, f"tensors {name!r} and {other!r} overlap")
    return entries


def _entry(path: Path, name: str, raw: Any, data_bytes: int) -> tuple[SafetensorsEntry, int]:
    match raw:
        case {"dtype": str(dtype), "shape": [*sizes], "data_offsets": [int(begin), int(end)]}:
            pass
        case _:
            raise _corrupt(path, f"tensor {name!r} lacks dtype, shape or data_offsets")
    if dtype not in _DTYPES:
        raise UnsupportedModel(f"{path}: tensor {name!r} has dtype {dtype!r}; known are {', '.join(_DTYPES)}")
    torch_name, item_bytes = _DTYPES[dtype]
    if not all(type(size) is int and 0 <= size < 2**48 for size in sizes) or len(sizes) > 16:
        raise _corrupt(path, f"tensor {name!r} has the shape {str(sizes)[:100]}")
    shape = tuple(cast("list[int]", sizes))
    num_bytes = math.prod(shape) * item_bytes
    if not 0 <= begin <= end <= data_bytes or end - begin != num_bytes:
        raise _corrupt(
            path,
            f"tensor {name!r} lies at {begin}:{end} of {data_bytes} data bytes, its shape {list(shape)} "
            f"of {dtype} takes {num_bytes}",
        )
    return SafetensorsEntry(path=path, dtype=torch_name, shape=shape, num_bytes=num_bytes), begin


def _corrupt(path: Path, what: str) -> WeightError:
    return WeightError(f"{path}: not a sound safetensors file: {what}; download it again")


class SafetensorsWeights:
    """A `WeightSource` over a model folder (or one .safetensors file), mapped and not copied.

    Raises:
        WeightError: no safetensors files there, an index that names absent files or tensors, a corrupt header.
        UnsupportedModel: only pickled weights are there, or a dtype is unknown.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._entries = _folder_entries(path)
        self._open: dict[Path, _OpenFile] = {}

    def __str__(self) -> str:
        return str(self._path)

    @property
    def total_bytes(self) -> int:
        return sum(entry.num_bytes for entry in self._entries.values())

    def names(self) -> list[str]:
        return list(self._entries)

    def stored_bytes(self, name: str) -> int:
        return self._entry(name).num_bytes

    def info(self, name: str) -> TensorInfo:
        import torch

        entry = self._entry(name)
        return TensorInfo(shape=entry.shape, dtype=getattr(torch, entry.dtype))

    def get(self, name: str) -> torch.Tensor:
        file = self._file(self._entry(name).path)
        try:
            return file.get_tensor(name)
        except Exception as error:  # the library raises its own type, OSError or RuntimeError
            raise WeightError(f"{self._entry(name).path}: tensor {name!r} cannot be read ({error})") from error

    def get_slice(self, name: str, dim: int, start: int, stop: int) -> torch.Tensor:
        entry = self._entry(name)
        check_range(self._path, name, entry.shape, dim, start, stop)
        if dim == 0 or stop - start == entry.shape[dim]:
            return self.get(name).narrow(dim, start, stop - start)  # contiguous in the mapped file: no copy
        index = (*[slice(None)] * dim, slice(start, stop))
        try:
            return self._file(entry.path).get_slice(name)[index]
        except Exception as error:
            raise WeightError(f"{entry.path}: {name!r}[{index}] cannot be read ({error})") from error

    def close(self) -> None:
        self._open.clear()

    def _entry(self, name: str) -> SafetensorsEntry:
        try:
            return self._entries[name]
        except KeyError:
            raise missing_tensor(self._path, name, list(self._entries)) from None

    def _file(self, path: Path) -> _OpenFile:
        file = self._open.get(path)
        if file is None:
            import safetensors

            try:
                file = cast("_OpenFile", safetensors.safe_open(str(path), framework="pt"))
            except Exception as error:
                raise _corrupt(path, str(error)) from error
            self._open[path] = file
        return file


def _folder_entries(path: Path) -> dict[str, SafetensorsEntry]:
    if path.is_file():
        return read_safetensors_header(path)
    if (path / INDEX_NAME).is_file():
        return _sharded_entries(path)
    if (path / SINGLE_NAME).is_file():
        return read_safetensors_header(path / SINGLE_NAME)
    files = sorted(path.glob("*.safetensors"))
    if len(files) == 1:
        return read_safetensors_header(files[0])
    if files:
        raise WeightError(
            f"{path}: {len(files)} safetensors files and no {INDEX_NAME}, so it is unclear which belong together; "
            f"add the index or keep one file"
        )
    pickled = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in path.glob(pattern))
    if pickled:
        raise UnsupportedModel(
            f"{path}: only pickled weights ({pickled[0]}), which can run code when read; convert them to safetensors"
        )
    raise WeightError(f"{path}: no weights; expected {SINGLE_NAME}, or {INDEX_NAME} with its files, or a .gguf file")


def _sharded_entries(path: Path) -> dict[str, SafetensorsEntry]:
    index_path = path / INDEX_NAME
    try:
        if index_path.stat().st_size > MAX_INDEX_BYTES:
            raise WeightError(f"{index_path}: larger than {MAX_INDEX_BYTES} bytes, which no index needs")
        index: Any = json.loads(index_path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise WeightError(f"{index_path}: cannot be read as JSON ({error}); download it again") from error
    match index:
        case {"weight_map": dict()}:
            weight_map = cast("dict[str, Any]", index["weight_map"])
        case _:
            raise WeightError(f"{index_path}: has no weight_map; download it again")
    shards: dict[str, dict[str, SafetensorsEntry]] = {}
    entries: dict[str, SafetensorsEntry] = {}
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise WeightError(f"{index_path}: tensor {name!r} is said to be in {shard!r}, expected a plain file name")
        if shard not in shards:
            shards[shard] = read_safetensors_header(path / shard)
        if name not in shards[shard]:
            raise WeightError(f"{path / shard}: no tensor {name!r}, though {INDEX_NAME} says so; download both again")
        entries[name] = shards[shard][name]
    return entries
