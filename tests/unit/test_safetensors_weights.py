"""Safetensors folders: values, shards, and headers that lie."""

from __future__ import annotations

import json
import random
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from drivetrain.errors import ModelError, UnsupportedModel, WeightError
from drivetrain.weights import open_weights

TENSORS = {
    "a.weight": torch.arange(24, dtype=torch.float32).view(4, 6),
    "b.weight": torch.randn(3, 2, generator=torch.Generator().manual_seed(0)).bfloat16(),
    "c.bias": torch.tensor([1, 2, 3]),
    "d.scale": torch.tensor(2.5),
    "e.fp8": torch.ones(2, 2).to(torch.float8_e4m3fn),
    "f.empty": torch.empty(0, 4),
}


def write_sharded(folder: Path) -> None:
    names = list(TENSORS)
    shards = {"model-00001-of-00002.safetensors": names[:2], "model-00002-of-00002.safetensors": names[2:]}
    for shard, members in shards.items():
        save_file({name: TENSORS[name] for name in members}, folder / shard)
    weight_map = {name: shard for shard, members in shards.items() for name in members}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.mark.parametrize("layout", ["file", "folder", "other name", "sharded"])
def test_values_come_back(tmp_path: Path, layout: str) -> None:
    if layout == "sharded":
        write_sharded(tmp_path)
    else:
        save_file(TENSORS, tmp_path / ("weights.safetensors" if layout == "other name" else "model.safetensors"))
    weights = open_weights(tmp_path / "model.safetensors" if layout == "file" else tmp_path)
    assert sorted(weights.names()) == sorted(TENSORS)
    for name, expected in TENSORS.items():
        got, info = weights.get(name), weights.info(name)
        assert (got.dtype, got.shape) == (info.dtype, info.shape) == (expected.dtype, expected.shape)
        assert torch.equal(got.float(), expected.float())
        assert weights.stored_bytes(name) == expected.nbytes
    assert weights.total_bytes == sum(tensor.nbytes for tensor in TENSORS.values())
    weights.close()


def test_slices_equal_slices_of_the_whole(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors")
    weights = open_weights(tmp_path)
    for dim, start, stop in ((0, 1, 3), (1, 2, 5), (1, 0, 6), (0, 2, 2)):
        expected = TENSORS["a.weight"].narrow(dim, start, stop - start)
        assert torch.equal(weights.get_slice("a.weight", dim, start, stop), expected)
    with pytest.raises(WeightError, match=r"slice 0:7 of dimension 1 lies outside 'a\.weight' of shape \[4, 6\]"):
        weights.get_slice("a.weight", 1, 0, 7)


def test_reading_maps_the_file_instead_of_copying_it(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors")
    weights = open_weights(tmp_path)
    whole, part = weights.get("a.weight"), weights.get_slice("a.weight", 0, 1, 3)
    assert part.is_contiguous()
    assert part.data_ptr() - whole.data_ptr() in (0, 24)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a.weight": "../secret.safetensors"}, "expected a plain file name"),
        ({"a.weight": 3}, "expected a plain file name"),
        ({"a.weight": "gone.safetensors"}, r"gone\.safetensors: cannot be read"),
        ({"x.weight": "one.safetensors"}, r"no tensor 'x\.weight', though"),
        (None, "has no weight_map"),
    ],
)
def test_index_that_lies_is_named(tmp_path: Path, weight_map: object, message: str) -> None:
    save_file(TENSORS, tmp_path / "one.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(WeightError, match=message):
        open_weights(tmp_path)


def test_folders_without_usable_weights_say_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(WeightError, match="no weights; expected model.safetensors"):
        open_weights(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(UnsupportedModel, match=r"only pickled weights \(pytorch_model\.bin\)"):
        open_weights(tmp_path)
    for name in ("x.safetensors", "y.safetensors"):
        save_file(TENSORS, tmp_path / name)
    with pytest.raises(WeightError, match="2 safetensors files and no model.safetensors.index.json"):
        open_weights(tmp_path)


def raw_file(path: Path, header: object, data: bytes = b"\0" * 16, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"dtype": "F32", "shape": [4], "data_offsets": [0, 32]}, "lies at 0:32 of 16 data bytes"),
        ({"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 16]}, "takes"),
        ({"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}, "has the shape"),
        ({"dtype": "F32", "shape": [4.0], "data_offsets": [0, 16]}, "has the shape"),
        ({"dtype": "F32", "shape": [4], "data_offsets": [8, 0]}, "lies at 8:0"),
        ({"dtype": "F32", "shape": [4]}, "lacks dtype, shape or data_offsets"),
        ({"dtype": "X9", "shape": [4], "data_offsets": [0, 16]}, "dtype 'X9'"),
        ([], "lacks dtype"),
    ],
)
def test_entries_that_lie_are_named(tmp_path: Path, entry: object, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        open_weights(raw_file(tmp_path / "model.safetensors", {"w": entry}))


def test_headers_that_lie_are_named(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    half = {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}
    with pytest.raises(WeightError, match="'a' and 'b' overlap"):
        open_weights(raw_file(path, {"a": half, "b": {**half, "data_offsets": [4, 16]}}))
    with pytest.raises(WeightError, match=f"header would take {2**62} bytes"):
        open_weights(raw_file(path, {}, length=2**62))
    with pytest.raises(WeightError, match="header is not JSON"):
        open_weights(raw_file(path, b"[" * 100_000))
    with pytest.raises(WeightError, match="not a JSON object"):
        open_weights(raw_file(path, []))
    path.write_bytes(b"abc")
    with pytest.raises(WeightError, match="not a sound safetensors file"):
        open_weights(path)


def test_flipped_bytes_never_crash(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(TENSORS, path)
    good = path.read_bytes()
    header_bytes = 8 + int.from_bytes(good[:8], "little")
    chance = random.Random(0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = 0
    for trial in range(600):
        broken = bytearray(good)
        for _ in range(1 + trial % 3):
            where = chance.randrange(header_bytes)
            broken[where] = chance.choice((0xFF, 0x00, 0x30, broken[where] ^ (1 << chance.randrange(8))))
        path.write_bytes(broken)
        try:
            weights = open_weights(tmp_path)
            for name in weights.names():
                weights.get(name)
        except ModelError:
            refused += 1
    assert refused > 300
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB
