"""The decoder's own duties: shared storage, sizes, types, limits, and scalings that depend on length."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

from drivetrain.errors import ConfigError, WeightError
from drivetrain.models.decoder import Decoder
from drivetrain.models.families import decoder_spec
from drivetrain_plugins.contract.executor import Weights
from drivetrain_plugins.contract.memory import KVLayerSpec
from drivetrain_plugins.contract.model import DecoderSpec, weight_shapes
from drivetrain_plugins.contract.ops import LinearWeight, Ops
from family_oracle import (
    MAX_LEN,
    VOCAB,
    Row,
    Session,
    assert_close,
    cpu_device,
    load_decoder,
    model_config,
    random_model,
    saved_tensors,
)

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": MAX_LEN,
}


class HostWeights(Weights):
    """Random weights by name, with replacements."""

    def __init__(self, spec: DecoderSpec, replaced: Mapping[str, torch.Tensor] | None = None) -> None:
        generator = torch.Generator().manual_seed(5)
        self.tensors = {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in weight_shapes(spec)}
        self.tensors |= replaced or {}

    @property
    def total_bytes(self) -> int:
        return 4 * sum(tensor.numel() for tensor in self.tensors.values())

    def load(self, name: str) -> torch.Tensor:
        return self.tensors[name]


class RecordingOps(Ops):
    """Remembers the linear layers that were prepared."""

    def __init__(self) -> None:
        self.prepared: list[LinearWeight] = []

    def prepare_linear(self, weight: LinearWeight) -> Any:
        self.prepared.append(weight)
        return super().prepare_linear(weight)


def silent(*_: object) -> None:
    """Progress that nobody watches."""


def logits_of(spec: DecoderSpec, weights: Weights) -> torch.Tensor:
    device = cpu_device()
    decoder = Decoder(spec, device, "float32", MAX_LEN)
    decoder.load(weights, silent)
    return Session(decoder, device).step([Row(0, 0, [5, 6, 7, 8])])[0]


def test_a_tied_output_matrix_shares_the_embeddings_storage() -> None:
    spec = decoder_spec(LLAMA | {"tie_word_embeddings": True})
    ops, seen = RecordingOps(), []

    class EmbedSpy(RecordingOps):
        def embed(self, ids_T: torch.Tensor, weight_VD: torch.Tensor) -> torch.Tensor:
            seen.append(weight_VD.data_ptr())
            return super().embed(ids_T, weight_VD)

    ops = EmbedSpy()
    device = cpu_device(ops=ops)
    decoder = Decoder(spec, device, "bfloat16", MAX_LEN)
    decoder.load(HostWeights(spec), silent)
    Session(decoder, device).step([Row(0, 0, [1])])
    head = ops.prepared[-1].weight
    assert tuple(head.shape) == (VOCAB, 32) and head.data_ptr() == seen[0]


def test_projections_are_packed_in_order_in_the_activation_type() -> None:
    spec = decoder_spec(LLAMA | {"attention_bias": True})
    ops, weights = RecordingOps(), HostWeights(spec)
    Decoder(spec, cpu_device(ops=ops), "bfloat16", MAX_LEN).load(weights, silent)
    qkv, _, gate_up, _ = ops.prepared[:4]
    parts = [weights.load(f"layers.0.attn.{part}.weight") for part in "qkv"]
    assert torch.equal(qkv.weight, torch.cat(parts).bfloat16())
    assert qkv.bias is not None and qkv.bias.dtype == torch.bfloat16
    assert torch.equal(qkv.bias, torch.cat([weights.load(f"layers.0.attn.{part}.bias") for part in "qkv"]).bfloat16())
    gate, up = (weights.load(f"layers.0.mlp.{part}.weight") for part in ("gate", "up"))
    assert torch.equal(gate_up.weight, torch.cat((gate, up)).bfloat16()) and gate_up.bias is None


def test_progress_rises_to_the_checkpoints_bytes() -> None:
    spec = decoder_spec(LLAMA)
    weights, seen = HostWeights(spec), []
    decoder = Decoder(spec, cpu_device(), "float32", MAX_LEN)
    decoder.load(weights, lambda phase, done, total, unit: seen.append((phase, done, total, unit)))
    done = [entry[1] for entry in seen]
    assert done == sorted(done) and done[0] == 0 and done[-1] == pytest.approx(weights.total_bytes)
    assert {(phase, total, unit) for phase, _, total, unit in seen} == {("load weights", weights.total_bytes, "B")}


def test_a_weight_of_another_shape_is_refused_with_both_shapes() -> None:
    spec = decoder_spec(LLAMA)
    weights = HostWeights(spec, {"layers.1.attn.k.weight": torch.zeros(15, 32)})
    with pytest.raises(WeightError, match=r"layers\.1\.attn\.k\.weight: got shape \[15, 32\], expected \[16, 32\]"):
        Decoder(spec, cpu_device(), "float32", MAX_LEN).load(weights, silent)


def test_the_cache_spec_names_heads_and_windows_of_each_layer() -> None:
    spec = decoder_spec(LLAMA | {"architectures": ["Gemma2ForCausalLM"], "sliding_window": 7, "head_dim": 16})
    kv = Decoder(spec, cpu_device(), "bfloat16", MAX_LEN).kv_spec("float16", 32)
    assert kv.layers == (
        KVLayerSpec(num_kv_heads=2, head_dim=16, window=7),
        KVLayerSpec(num_kv_heads=2, head_dim=16),
    )
    assert (kv.dtype, kv.page_size) == ("float16", 32)


def test_weight_bytes_count_a_tied_matrix_once_and_sinks_in_fp32() -> None:
    spec = decoder_spec(LLAMA | {"tie_word_embeddings": True})
    elements = sum(tensor.numel() for tensor in HostWeights(spec).tensors.values())
    assert Decoder(spec, cpu_device(), "bfloat16", MAX_LEN).weight_bytes == 2 * elements
    with_sinks = replace(spec, layers=tuple(replace(x, mixer=replace(x.mixer, sinks=True)) for x in spec.layers))
    assert Decoder(with_sinks, cpu_device(), "bfloat16", MAX_LEN).weight_bytes == 2 * elements + 4 * 8


def test_layers_with_the_same_rotary_share_one_table() -> None:
    layers = []

    class Spy(Ops):
        def decoder_layer(self, delta_TD, residual_TD, layer, step, keep_K=None):  # type: ignore[no-untyped-def]
            layers.append(layer)
            return super().decoder_layer(delta_TD, residual_TD, layer, step, keep_K)

    config = LLAMA | {"architectures": ["Gemma3ForCausalLM"], "num_hidden_layers": 4, "sliding_window_pattern": 2}
    spec = decoder_spec(config | {"sliding_window": 5, "head_dim": 16})
    device = cpu_device(ops=Spy())
    decoder = Decoder(spec, device, "float32", MAX_LEN)
    decoder.load(HostWeights(spec), silent)
    Session(decoder, device).step([Row(0, 0, [1])])
    tables = [layer.attention.rotary for layer in layers]
    assert tables[0] is tables[2] and tables[1] is tables[3] and tables[0] is not tables[1]


def test_sinks_take_part_of_each_heads_attention() -> None:
    plain = decoder_spec(LLAMA)
    spec = replace(plain, layers=tuple(replace(x, mixer=replace(x.mixer, sinks=True)) for x in plain.layers))
    weights = HostWeights(plain)
    sinks = {f"layers.{index}.attn.sinks": torch.full((4,), -1e9) for index in range(2)}
    silenced = HostWeights(spec, weights.tensors | sinks)
    assert_close(logits_of(spec, silenced), logits_of(plain, weights))
    heard = HostWeights(spec, silenced.tensors | {"layers.0.attn.sinks": torch.tensor([0.0, 1.0, 2.0, 3.0])})
    assert (logits_of(spec, heard) - logits_of(plain, weights)).abs().max() > 0.1


def test_the_embedding_scale_is_rounded_to_the_activation_type() -> None:
    spec = decoder_spec(LLAMA | {"architectures": ["GemmaForCausalLM"], "hidden_size": 40, "head_dim": 16})
    device, weights = cpu_device(), HostWeights(spec)
    streams: list[torch.Tensor] = []

    class Spy(Ops):
        def decoder_layer(self, delta_TD, residual_TD, layer, step, keep_K=None):  # type: ignore[no-untyped-def]
            streams.append(residual_TD.clone())
            return super().decoder_layer(delta_TD, residual_TD, layer, step, keep_K)

    device = cpu_device(ops=Spy())
    decoder = Decoder(spec, device, "bfloat16", MAX_LEN)
    decoder.load(weights, silent)
    Session(decoder, device).step([Row(0, 0, [3])])
    scale = torch.tensor(40**0.5).bfloat16()
    assert scale.item() != 40**0.5
    assert torch.equal(streams[0][0], weights.load("embed.weight")[3].bfloat16() * scale)


def test_kept_tokens_have_the_states_that_they_have_among_all() -> None:
    spec = decoder_spec(LLAMA)
    device = cpu_device()
    decoder = Decoder(spec, device, "float32", MAX_LEN)
    decoder.load(HostWeights(spec), silent)
    forward, states = decoder.forward, []
    keep_K = torch.tensor([3, 0, 3])

    def both(inputs, step):  # type: ignore[no-untyped-def]
        states.extend((forward(inputs, step, keep_K), forward(inputs, step)))
        return states[1]

    decoder.forward = both  # type: ignore[method-assign]
    Session(decoder, device).step([Row(0, 0, [5, 6, 7, 8])])
    assert states[0].shape[0] == 3
    torch.testing.assert_close(states[0], states[1][keep_K])


def test_more_positions_than_were_learned_are_refused() -> None:
    spec = decoder_spec(
        {"architectures": ["GPT2LMHeadModel"], "vocab_size": 9, "n_embd": 8} | {"n_layer": 1, "n_head": 1}
    )
    with pytest.raises(ConfigError, match="got 1025, but GPT2LMHeadModel has learned only 1024 positions"):
        Decoder(spec, cpu_device(), "float32", 1025)


def test_logits_past_the_original_length_match_the_oracle_with_long_factors() -> None:
    from transformers import Phi3Config

    rope = {
        "rope_type": "longrope",
        "short_factor": [1.0, 1.1, 1.3, 1.6],
        "long_factor": [1.5, 2.0, 4.0, 6.0],
        "rope_theta": 10000.0,
    }
    sizes = {key: value for key, value in LLAMA.items() if key not in ("architectures", "max_position_embeddings")}
    config = Phi3Config(
        **model_config(**sizes),
        max_position_embeddings=128,
        original_max_position_embeddings=24,
        rope_parameters=rope,
        tie_word_embeddings=False,
    )
    model = random_model(config)
    ids = torch.randint(0, VOCAB, (40,), generator=torch.Generator().manual_seed(8))
    device = cpu_device()
    values = model.config.to_dict() | {"architectures": ["Phi3ForCausalLM"]}
    (logits,) = Session(load_decoder(saved_tensors(model), values, device), device).step([Row(0, 0, ids.tolist())])
    with torch.inference_mode():
        assert_close(logits, model(ids[None], use_cache=False).logits[0])
