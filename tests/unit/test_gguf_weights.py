"""GGUF weights: values, names and layouts, and headers that lie."""

from __future__ import annotations

import random
import resource
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind

from drivetrain.config_files import load_model_config
from drivetrain.errors import DrivetrainError, ModelError, UnsupportedModel, WeightError
from drivetrain.weights import open_weights
from drivetrain.weights.gguf_dequantize import dequantize
from drivetrain.weights.gguf_header import read_gguf_header
from drivetrain.weights.gguf_names import NAMINGS, Layout, map_tensor_names, undo_layout
from processor_time import slowness
from tiny_gguf import HEADS, HIDDEN, KV_HEADS, decoder_metadata, llama_file, llama_tensors, write_gguf

HEAD = HIDDEN // HEADS


@pytest.mark.parametrize("kind", [Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1])
def test_values_equal_the_gguf_packages_reader(tmp_path: Path, kind: Kind) -> None:
    path = llama_file(tmp_path / "m.gguf", kind)
    weights = open_weights(path)
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    expected = gguf.dequantize(theirs["blk.1.attn_v.weight"].data, kind)
    got = weights.get("model.layers.1.self_attn.v_proj.weight")
    assert torch.equal(got.float(), torch.from_numpy(np.array(expected)).float())
    assert got.shape == weights.info("model.layers.1.self_attn.v_proj.weight").shape
    assert got.dtype == {Kind.F16: torch.float16, Kind.BF16: torch.bfloat16}.get(kind, torch.float32)
    assert weights.total_bytes == sum(tensor.n_bytes for tensor in theirs.values())
    assert torch.equal(weights.get("model.norm.weight"), torch.from_numpy(np.array(theirs["output_norm.weight"].data)))


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"])
def test_random_blocks_of_every_format_decode_as_in_the_gguf_package(name: str) -> None:
    kind = Kind[name]
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    raw = np.random.default_rng(0).integers(0, 256, (6, 3 * block_bytes), dtype=np.uint8)
    raw[:, 1::2] &= 0x3B  # keeps every half-precision scale finite
    expected = gguf.dequantize(raw, kind)
    got = dequantize(torch.from_numpy(raw).reshape(-1), int(kind), (6, 3 * block))
    np.testing.assert_array_equal(got.numpy(), expected)


def test_large_tensors_are_decoded_in_chunks() -> None:
    values = np.random.default_rng(0).standard_normal((40, 32 * 500)).astype(np.float32)
    raw = gguf.quantize(values, Kind.Q4_1)
    got = dequantize(torch.from_numpy(raw).reshape(-1), int(Kind.Q4_1), (40, 32 * 500))
    np.testing.assert_array_equal(got.numpy(), gguf.dequantize(raw, Kind.Q4_1))


def interleaved_rotary(x_HD: torch.Tensor, angles_D2: torch.Tensor) -> torch.Tensor:
    even, odd = x_HD[:, 0::2], x_HD[:, 1::2]
    turned = (even * angles_D2.cos() - odd * angles_D2.sin(), even * angles_D2.sin() + odd * angles_D2.cos())
    return torch.stack(turned, dim=-1).flatten(1)


def half_rotary(x_HD: torch.Tensor, angles_D2: torch.Tensor) -> torch.Tensor:
    first, second = x_HD.chunk(2, dim=-1)
    turned = (first * angles_D2.cos() - second * angles_D2.sin(), second * angles_D2.cos() + first * angles_D2.sin())
    return torch.cat(turned, dim=-1)


def test_rotary_permutation_is_undone(tmp_path: Path) -> None:
    """The file's rows under interleaved rotary score like the checkpoint's rows under the rotary of two halves."""
    path = llama_file(tmp_path / "m.gguf")
    weights = open_weights(path)
    stored = llama_tensors(Kind.F32)
    x = torch.randn(HIDDEN, generator=torch.Generator().manual_seed(0))
    angles = torch.linspace(0.1, 2.0, HEAD // 2)
    scores: list[torch.Tensor] = []
    for rotary, q, k in (
        (
            interleaved_rotary,
            torch.from_numpy(stored["blk.0.attn_q.weight"]),
            torch.from_numpy(stored["blk.0.attn_k.weight"]),
        ),
        (
            half_rotary,
            weights.get("model.layers.0.self_attn.q_proj.weight"),
            weights.get("model.layers.0.self_attn.k_proj.weight"),
        ),
    ):
        q_HD = rotary((q @ x).view(HEADS, HEAD), angles)
        k_KD = (k @ x).view(KV_HEADS, HEAD)
        scores.append(torch.einsum("kgd,kd->kg", q_HD.view(KV_HEADS, -1, HEAD), rotary(k_KD, 0 * angles)))
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-4, atol=1e-4)


def test_layout_changes_invert_the_converters_steps() -> None:
    random_values = torch.randn(3 * HIDDEN, 8)
    by_head = random_values.view(HEADS, 3, HEAD, 8)
    fused = torch.cat([by_head[:, part].reshape(-1, 8) for part in range(3)])
    assert torch.equal(undo_layout(fused, Layout.QKV_BY_HEAD, HEADS, HEADS), random_values)
    assert torch.equal(undo_layout(fused[:, 0].contiguous(), Layout.QKV_BY_HEAD, HEADS, HEADS), random_values[:, 0])
    grouped = torch.randn((HEADS + 2 * KV_HEADS) * HEAD, 8)
    view = grouped.view(KV_HEADS, HEADS // KV_HEADS + 2, HEAD, 8)
    fused = torch.cat([view[:, :-2].reshape(-1, 8), view[:, -2].reshape(-1, 8), view[:, -1].reshape(-1, 8)])
    assert torch.equal(undo_layout(fused, Layout.QKV_BY_GROUP, HEADS, KV_HEADS), grouped)
    one_key = torch.randn((HEADS + 2) * HEAD, 8)
    assert torch.equal(undo_layout(one_key, Layout.QKV_BY_GROUP, HEADS, 1), one_key)
    assert torch.equal(undo_layout(torch.tensor([1.5]), Layout.ONE_PLUS, 1, 1), torch.tensor([0.5]))
    assert undo_layout(torch.zeros(3, 5), Layout.TRANSPOSED, 1, 1).shape == (5, 3)


@pytest.mark.parametrize("architecture", sorted(NAMINGS))
def test_names_are_those_of_the_gguf_packages_tables(architecture: str) -> None:
    known = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}[architecture]
    table = gguf.get_tensor_name_map(known, 4)
    for gguf_name, name in NAMINGS[architecture].names.items():
        if gguf_name == "output" and gguf.MODEL_TENSOR.OUTPUT not in gguf.MODEL_TENSORS[known]:
            continue  # always tied there
        found = {table.get_name(spelling) for spelling in (name.format(3), name.removeprefix("transformer.").format(3))}
        assert gguf_name.format(3) in found, (architecture, name)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "gemma", "gemma2", "olmo2", "phi3", "starcoder2"])
def test_names_are_those_of_transformers_models(architecture: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {
        "hidden_size": HIDDEN,
        "intermediate_size": 96,
        "num_hidden_layers": 1,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "vocab_size": 50,
        "pad_token_id": 0,
    }
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **sizes))
    expected = {name.removesuffix(".bias").removesuffix(".weight") for name in model.state_dict()}
    ours = {name.format(0) for name in NAMINGS[architecture].names.values()}
    assert expected <= ours | {"lm_head"}


def test_gpt2_matrices_come_back_as_in_and_out(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((3 * HIDDEN, HIDDEN)).astype(np.float32)
    metadata = decoder_metadata(**{".attention.layer_norm_epsilon": 1e-5})
    path = write_gguf(tmp_path / "m.gguf", "gpt2", metadata, {"blk.0.attn_qkv.weight": (values, Kind.F32)})
    weights = open_weights(path)
    name = "transformer.h.0.attn.c_attn.weight"
    assert weights.info(name).shape == (HIDDEN, 3 * HIDDEN)
    np.testing.assert_array_equal(weights.get(name).numpy(), values.T)
    np.testing.assert_array_equal(weights.get_slice(name, 1, 10, 20).numpy(), values.T[:, 10:20])
    np.testing.assert_array_equal(weights.get_slice(name, 0, 10, 20).numpy(), values.T[10:20])


def test_gemma_norms_lose_the_one(tmp_path: Path) -> None:
    path = write_gguf(
        tmp_path / "m.gguf", "gemma2", decoder_metadata(), {"output_norm.weight": (np.full(8, 1.25), Kind.F32)}
    )
    assert open_weights(path).get("model.norm.weight").tolist() == [0.25] * 8


@pytest.mark.parametrize("kind", [Kind.F32, Kind.Q4_0, Kind.Q8_0])
@pytest.mark.parametrize("part", ["q_proj", "k_proj", "v_proj"])
def test_slices_equal_slices_of_the_whole(tmp_path: Path, kind: Kind, part: str) -> None:
    weights = open_weights(llama_file(tmp_path / "m.gguf", kind))
    name = f"model.layers.0.self_attn.{part}.weight"
    whole = weights.get(name)
    for dim in (0, 1):
        for start, stop in ((0, 16), (5, 29), (7, 7), (0, whole.shape[dim])):
            assert torch.equal(weights.get_slice(name, dim, start, stop), whole.narrow(dim, start, stop - start))
    for dim, start, stop in ((2, 0, 1), (0, -1, 4), (0, 4, 3), (1, 0, whole.shape[1] + 1)):
        with pytest.raises(WeightError, match="lies outside"):
            weights.get_slice(name, dim, start, stop)


def test_unknown_names_and_closed_files(tmp_path: Path) -> None:
    weights = open_weights(llama_file(tmp_path / "m.gguf"))
    with pytest.raises(WeightError, match=r"no tensor 'model\.norm\.wieght'; the closest names are model"):
        weights.get("model.norm.wieght")
    kept = weights.get("model.norm.weight")
    weights.close()
    assert torch.isfinite(kept).all()
    with pytest.raises(WeightError, match="were closed"):
        weights.get("model.norm.weight")


def test_architectures_and_tensors_without_a_place_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="architecture 'mamba' is not served; known are bloom, command-r"):
        map_tensor_names("mamba", [])
    with pytest.raises(UnsupportedModel, match=r"no place for the tensor 'blk\.0\.ffn_gate_exps\.weight'"):
        map_tensor_names("llama", ["blk.0.ffn_gate_exps.weight"])
    path = write_gguf(tmp_path / "m.gguf", "llama", decoder_metadata(**{".expert_count": 8}), {})
    with pytest.raises(UnsupportedModel, match="mixture of experts"):
        load_model_config(path)


def test_header_equals_the_gguf_packages_reader(tmp_path: Path) -> None:
    metadata = decoder_metadata(
        **{
            "a.bools": [True, False],
            "a.floats": [1.5, 2.5],
            "a.texts": ["é", ""],
            "a.ints": [-1, 7],
            "a.text": "x" * 99,
        }
    )
    path = write_gguf(tmp_path / "m.gguf", "llama", metadata, {})
    theirs = {
        name: field.contents() for name, field in gguf.GGUFReader(path).fields.items() if not name.startswith("GGUF.")
    }
    assert read_gguf_header(path).metadata == theirs


def test_flipped_bytes_in_a_header_never_crash(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    tensors = {"token_embd.weight": (np.zeros((50, 64)), Kind.Q8_0), "output_norm.weight": (np.zeros(64), Kind.F32)}
    metadata = decoder_metadata(**{"tokenizer.ggml.tokens": ["a", "b"], "tokenizer.ggml.scores": [1.0, 2.0]})
    write_gguf(path, "llama", metadata, tensors)
    good = path.read_bytes()
    header_bytes = len(good) - 50 * 68 - 64 * 4
    chance = random.Random(0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = 0
    num_trials = 300
    for trial in range(num_trials):
        broken = bytearray(good)
        for _ in range(1 + trial % 2):
            where = chance.randrange(header_bytes)
            broken[where] = chance.choice((0xFF, 0x80, 0x00, broken[where] ^ (1 << chance.randrange(8))))
        path.write_bytes(broken)
        try:
            weights = open_weights(path)
            load_model_config(path)
            for name in weights.names():
                weights.get(name)
        except ModelError:
            refused += 1
    assert refused > num_trials // 4
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_cut_files_are_refused(tmp_path: Path) -> None:
    path = llama_file(tmp_path / "m.gguf")
    good = path.read_bytes()
    for size in (0, 3, 23, 24, 100, 500, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:size])
        with pytest.raises(WeightError):
            open_weights(path)


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (0, b"GGML", "magic is"),
        (4, (1).to_bytes(4, "little"), "version 1; versions 2 and 3"),
        (4, (3).to_bytes(4, "big"), "big-endian"),
        (8, (2**63).to_bytes(8, "little"), "needs .* bytes"),
        (16, (2**60).to_bytes(8, "little"), "needs .* bytes"),
    ],
)
def test_lies_in_the_fixed_header_are_named(tmp_path: Path, offset: int, value: bytes, message: str) -> None:
    path = llama_file(tmp_path / "m.gguf")
    data = bytearray(path.read_bytes())
    data[offset : offset + len(value)] = value
    path.write_bytes(data)
    with pytest.raises(DrivetrainError, match=message):
        read_gguf_header(path)


@pytest.mark.real_model
def test_quick_start_model_loads_in_two_seconds(smollm2_path: Path) -> None:
    import time

    start = time.thread_time()
    weights = open_weights(smollm2_path)
    num_values = sum(weights.get(name).numel() for name in weights.names())
    assert num_values == 134_515_008
    assert time.thread_time() - start < 2 * slowness()
    assert load_model_config(smollm2_path)["rope_theta"] == 100_000.0
