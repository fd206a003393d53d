"""Reading the header of a GGUF file: hostile input until every count and offset was checked against the file."""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from drivetrain.errors import UnsupportedModel, WeightError

if TYPE_CHECKING:
    import numpy as np

Scalar = int | float | bool | str
MetadataValue = Scalar | list[str] | list[int] | list[float]
"""A metadata value: numeric arrays are plain lists, made from one bulk read."""

MAX_DIMENSIONS = 4
MAX_ALIGNMENT = 1 << 20
_STRING = 8
_ARRAY = 9
_SCALARS: dict[int, struct.Struct] = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_NUMPY_TYPES: dict[int, str] = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GGUFTensor:
    """Where one tensor lies. `shape` is in torch's order (rows first), `offset` counts from the file's start."""

    name: str
    shape: tuple[int, ...]
    type_id: int
    """A `gguf.GGMLQuantizationType` value, known to the gguf package."""
    offset: int
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GGUFHeader:
    """Metadata and tensor table of a file whose every range was found to lie inside it."""

    path: Path
    metadata: dict[str, MetadataValue]
    tensors: dict[str, GGUFTensor]

    @property
    def architecture(self) -> str:
        """`general.architecture`. Raises: UnsupportedModel: absent or no string."""
        value = self.metadata.get("general.architecture")
        if not isinstance(value, str):
            raise UnsupportedModel(
                f"{self.path}: the metadata has no general.architecture, got {value!r}; convert the model again"
            )
        return value


class _Cursor:
    """Reads little-endian fields from a buffer and refuses to leave it."""

    __slots__ = ("buffer", "path", "position", "size")

    def __init__(self, buffer: mmap.mmap, path: Path) -> None:
        self.buffer = buffer
        self.path = path
        self.position = 0
        self.size = len(buffer)

    def fail(self, what: str) -> WeightError:
        return WeightError(
            f"{self.path}: not a sound GGUF file: {what} at byte {self.position} of {self.size}; download it again"
        )

    def need(self, num_bytes: int, what: str) -> None:
        if num_bytes > self.size - self.position:
            raise self.fail(f"{what} needs {num_bytes} bytes, {self.size - self.position} are left")

    def scalar(self, type_id: int, what: str) -> int | float | bool:
        layout = _SCALARS[type_id]
        self.need(layout.size, what)
        (value,) = layout.unpack_from(self.buffer, self.position)
        self.position += layout.size
        return value

    def count(self, what: str) -> int:
        return int(self.scalar(10, what))

    def text(self, what: str) -> str:
        length = self.count(what)
        self.need(length, what)
        raw = self.buffer[self.position : self.position + length]
        try:
            value = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.fail(f"{what} is not UTF-8 ({error.reason})") from error
        self.position += length
        return value

    def texts(self, count: int, what: str) -> list[str]:
        """Many strings: the hot loop of the header (vocabulary and merges)."""
        buffer, position, size = self.buffer, self.position, self.size
        unpack = _SCALARS[10].unpack_from
        values: list[str] = []
        try:
            for _ in range(count):
                start = position + 8
                position = start + unpack(buffer, position)[0]
                if position > size:
                    raise self.fail(f"a string of {what} ends at byte {position}")
                values.append(buffer[start:position].decode("utf-8"))
        except struct.error as error:
            raise self.fail(f"{what} ends early") from error
        except UnicodeDecodeError as error:
            raise self.fail(f"a string of {what} is not UTF-8 ({error.reason})") from error
        self.position = position
        return values

    def value(self, what: str) -> MetadataValue:
        type_id = int(self.scalar(4, what))
        if type_id in _SCALARS:
            return self.scalar(type_id, what)
        if type_id == _STRING:
            return self.text(what)
        if type_id != _ARRAY:
            raise self.fail(f"{what} has the unknown type {type_id}, expected 0 to 12")
        item_type = int(self.scalar(4, what))
        length = self.count(what)
        if item_type == _STRING:
            self.need(length * 8, what)
            return self.texts(length, what)
        if item_type not in _NUMPY_TYPES:
            raise self.fail(f"{what} is an array of type {item_type}, expected numbers or strings")
        return self._numbers(item_type, length, what)

    def _numbers(self, item_type: int, length: int, what: str) -> list[int] | list[float]:
        import numpy as np

        num_bytes = length * _SCALARS[item_type].size
        self.need(num_bytes, what)
        items: np.ndarray = np.frombuffer(
            self.buffer, dtype=_NUMPY_TYPES[item_type], count=length, offset=self.position
        )
        self.position += num_bytes
        return items.tolist()


def read_gguf_header(path: Path) -> GGUFHeader:
    """Metadata and tensor table of a GGUF file, versions 2 and 3, little-endian.

    Every count, length and offset is compared with the file's size before it is used, so that a corrupt file ends in an
    error and never in a crash or in memory beyond a small multiple of the file.

    Raises:
        WeightError: the file cannot be read or its header is corrupt.
        UnsupportedModel: a version, byte order or tensor type that is not read.
    """
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise WeightError(f"{path}: cannot be read as GGUF ({error}); check the path and the file") from error
    with mapped:
        return _parse(_Cursor(mapped, path))


def _parse(cursor: _Cursor) -> GGUFHeader:
    cursor.need(24, "the fixed header")
    magic = cursor.buffer[:4]
    if magic != b"GGUF":
        raise cursor.fail(f"magic is {magic!r}, expected b'GGUF',")
    cursor.position = 4
    version = int(cursor.scalar(4, "version"))
    if version & 0xFFFF == 0:
        raise UnsupportedModel(f"{cursor.path}: a big-endian GGUF file; only little-endian files are read")
    if version not in (2, 3):
        raise UnsupportedModel(f"{cursor.path}: GGUF version {version}; versions 2 and 3 are read")
    num_tensors = cursor.count("the number of tensors")
    num_keys = cursor.count("the number of metadata keys")
    cursor.need(num_tensors * 24 + num_keys * 13, f"{num_keys} metadata keys and {num_tensors} tensors")
    metadata: dict[str, MetadataValue] = {}
    for _ in range(num_keys):
        key = cursor.text("a metadata key")
        if key in metadata:
            raise cursor.fail(f"the key {key!r} appears twice")
        metadata[key] = cursor.value(key)
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 8 <= alignment <= MAX_ALIGNMENT or alignment % 8:
        raise cursor.fail(f"general.alignment is {alignment!r}, expected a multiple of 8 up to {MAX_ALIGNMENT},")
    tensors = _tensor_table(cursor, num_tensors, alignment)
    return GGUFHeader(path=cursor.path, metadata=metadata, tensors=tensors)


def _tensor_table(cursor: _Cursor, num_tensors: int, alignment: int) -> dict[str, GGUFTensor]:
    entries: dict[str, tuple[tuple[int, ...], int, int, int]] = {}
    for _ in range(num_tensors):
        name = cursor.text("a tensor name")
        if name in entries:
            raise cursor.fail(f"the tensor {name!r} appears twice")
        num_dimensions = int(cursor.scalar(4, name))
        if num_dimensions > MAX_DIMENSIONS:
            raise cursor.fail(f"{name!r} has {num_dimensions} dimensions, at most {MAX_DIMENSIONS} are allowed,")
        # The file lists the fastest-varying dimension first; torch wants it last.
        shape = tuple(reversed([cursor.count(name) for _ in range(num_dimensions)]))
        type_id = int(cursor.scalar(4, name))
        entries[name] = (shape, type_id, _num_bytes(cursor, name, shape, type_id), cursor.count(name))
    data_start = -(-cursor.position // alignment) * alignment
    tensors: dict[str, GGUFTensor] = {}
    for name, (shape, type_id, num_bytes, offset) in entries.items():
        if offset % alignment:
            raise cursor.fail(f"{name!r} starts at offset {offset}, expected a multiple of {alignment},")
        start = data_start + offset
        if start + num_bytes > cursor.size:
            raise cursor.fail(f"{name!r} of {num_bytes} bytes would start at byte {start}, past the end,")
        tensors[name] = GGUFTensor(name=name, shape=shape, type_id=type_id, offset=start, num_bytes=num_bytes)
    return tensors


def _num_bytes(cursor: _Cursor, name: str, shape: tuple[int, ...], type_id: int) -> int:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        quantization = GGMLQuantizationType(type_id)
    except ValueError as error:
        raise UnsupportedModel(
            f"{cursor.path}: tensor {name!r} has the unknown type {type_id}; a newer gguf package may know it"
        ) from error
    block, block_bytes = GGML_QUANT_SIZES[quantization]
    if shape and shape[-1] % block:
        raise cursor.fail(f"{name!r} has rows of {shape[-1]} values, expected a multiple of {block},")
    return math.prod(shape) // block * block_bytes
