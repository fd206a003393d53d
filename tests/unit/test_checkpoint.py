"""Checkpoint names to canonical ones: prefixes, ties, buffers, and what is said about files that do not fit."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
import torch

from drivetrain.errors import WeightError
from drivetrain.models.checkpoint import CheckpointWeights, RandomWeights
from drivetrain.models.families import decoder_spec
from drivetrain_plugins.contract.model import weight_shapes
from family_oracle import DictSource

SIZES = {"vocab_size": 11, "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 2}
LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "intermediate_size": 12,
    "num_key_value_heads": 1,
    "max_position_embeddings": 16,
    **SIZES,
}
GPT2: dict[str, Any] = {"architectures": ["GPT2LMHeadModel"], "n_positions": 16, **SIZES}
PHI3: dict[str, Any] = {**LLAMA, "architectures": ["Phi3ForCausalLM"]}
STABLELM: dict[str, Any] = {
    **LLAMA,
    "architectures": ["StableLmForCausalLM"],
    "qk_layernorm": True,
    "partial_rotary_factor": 0.5,
}


@lru_cache
def _llama_tensors() -> dict[str, torch.Tensor]:
    names: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (11, 8), "model.norm.weight": (8,)}
    for layer in range(2):
        names |= {
            f"model.layers.{layer}.input_layernorm.weight": (8,),
            f"model.layers.{layer}.post_attention_layernorm.weight": (8,),
            f"model.layers.{layer}.self_attn.q_proj.weight": (8, 8),
            f"model.layers.{layer}.self_attn.k_proj.weight": (4, 8),
            f"model.layers.{layer}.self_attn.v_proj.weight": (4, 8),
            f"model.layers.{layer}.self_attn.o_proj.weight": (8, 8),
            f"model.layers.{layer}.mlp.gate_proj.weight": (12, 8),
            f"model.layers.{layer}.mlp.up_proj.weight": (12, 8),
            f"model.layers.{layer}.mlp.down_proj.weight": (8, 12),
        }
    names["lm_head.weight"] = (11, 8)
    return {name: torch.full(shape, float(index)) for index, (name, shape) in enumerate(names.items())}


def llama_tensors() -> dict[str, torch.Tensor]:
    return dict(_llama_tensors())


def weights(tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> CheckpointWeights:
    return CheckpointWeights(DictSource(tensors), config, decoder_spec(config))


def test_every_canonical_weight_comes_from_its_own_tensor() -> None:
    tensors = llama_tensors()
    loaded = weights(tensors, LLAMA)
    names = [name for name, _ in weight_shapes(loaded.spec)]
    assert sorted(float(loaded.load(name).flatten()[0]) for name in names) == list(range(len(tensors)))
    assert loaded.load("layers.1.mlp.down.weight") is tensors["model.layers.1.mlp.down_proj.weight"]
    assert loaded.total_bytes == 4 * sum(tensor.numel() for tensor in tensors.values())


def test_a_checkpoint_of_the_bare_model_needs_no_prefix() -> None:
    tensors = {name.removeprefix("model."): tensor for name, tensor in llama_tensors().items()}
    assert weights(tensors, LLAMA).load("layers.0.attn.q.weight") is tensors["layers.0.self_attn.q_proj.weight"]


def test_a_missing_output_matrix_means_that_it_is_tied() -> None:
    tensors = llama_tensors()
    assert not weights(tensors, LLAMA).spec.tied
    del tensors["lm_head.weight"]
    loaded = weights(tensors, LLAMA)
    assert loaded.spec.tied
    assert loaded.load("lm_head.weight") is tensors["model.embed_tokens.weight"]


def test_a_tied_model_may_still_store_its_output_matrix() -> None:
    assert weights(llama_tensors(), {**LLAMA, "tie_word_embeddings": True}).spec.tied


def test_buffers_of_old_files_are_passed_over() -> None:
    tensors = llama_tensors() | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(2)}
    assert weights(tensors, LLAMA).spec.architecture == "LlamaForCausalLM"


def test_an_unexpected_tensor_is_named() -> None:
    tensors = llama_tensors() | {"model.layers.0.self_attn.q_proj.bias": torch.zeros(8)}
    with pytest.raises(WeightError, match=r"in-memory checkpoint: LlamaForCausalLM has no place for .*q_proj\.bias"):
        weights(tensors, LLAMA)


def test_a_layer_too_many_is_unexpected() -> None:
    with pytest.raises(WeightError, match=r"model\.layers\.1\..* and 4 more"):
        weights(llama_tensors(), {**LLAMA, "num_hidden_layers": 1})


def test_a_missing_tensor_is_named() -> None:
    tensors = llama_tensors()
    del tensors["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(WeightError, match=r"lacks model\.layers\.1\.mlp\.up_proj\.weight"):
        weights(tensors, LLAMA)


def test_a_checkpoint_without_embedding_is_refused() -> None:
    with pytest.raises(WeightError, match=r"model\.embed_tokens\.weight or embed_tokens\.weight"):
        weights({"x": torch.zeros(1)}, LLAMA)


def test_a_wrong_shape_is_reported_with_file_tensor_and_both_shapes() -> None:
    tensors = llama_tensors() | {"model.layers.0.mlp.down_proj.weight": torch.zeros(8, 13)}
    with pytest.raises(WeightError, match=r"in-memory.*mlp\.down_proj\.weight has shape \[8, 13\], expected \[8, 12\]"):
        weights(tensors, LLAMA).load("layers.0.mlp.down.weight")


def test_a_wrong_fused_shape_is_reported_as_it_is_stored() -> None:
    tensors = _phi3_tensors() | {"model.layers.0.self_attn.qkv_proj.weight": torch.zeros(17, 8)}
    with pytest.raises(WeightError, match=r"qkv_proj\.weight has shape \[17, 8\], expected \[16, 8\]"):
        weights(tensors, PHI3).load("layers.0.attn.v.weight")


def _phi3_tensors() -> dict[str, torch.Tensor]:
    tensors = llama_tensors()
    for layer in range(2):
        attn, mlp = f"model.layers.{layer}.self_attn", f"model.layers.{layer}.mlp"
        tensors[f"{attn}.qkv_proj.weight"] = torch.cat([tensors.pop(f"{attn}.{p}_proj.weight") for p in "qkv"])
        tensors[f"{mlp}.gate_up_proj.weight"] = torch.cat(
            [tensors.pop(f"{mlp}.{p}_proj.weight") for p in ("gate", "up")]
        )
    return tensors


def test_fused_projections_come_apart_again() -> None:
    whole, fused = weights(llama_tensors(), LLAMA), weights(_phi3_tensors(), PHI3)
    for name, _ in weight_shapes(whole.spec):
        assert torch.equal(whole.load(name), fused.load(name)), name


def test_a_fused_tensor_is_read_once_for_its_parts() -> None:
    source = DictSource(_phi3_tensors())
    reads: list[str] = []
    get = source.get

    def counted(name: str) -> torch.Tensor:
        reads.append(name)
        return get(name)

    source.get = counted  # type: ignore[method-assign]
    loaded = CheckpointWeights(source, PHI3, decoder_spec(PHI3))
    for part in "qkv":
        loaded.load(f"layers.0.attn.{part}.weight")
    assert reads == ["model.layers.0.self_attn.qkv_proj.weight"]


def test_norms_of_single_heads_are_stacked_and_none_may_be_missing() -> None:
    tensors = llama_tensors()
    for name, shape in weight_shapes(decoder_spec(STABLELM)):
        if name.endswith(("attn_norm.bias", "mlp_norm.bias", "final_norm.bias")):
            stored = name.replace("attn_norm", "input_layernorm").replace("mlp_norm", "post_attention_layernorm")
            tensors["model." + stored.replace("final_norm", "norm")] = torch.zeros(shape)
    for layer in range(2):
        for part, heads in (("q", 2), ("k", 1)):
            for head in range(heads):
                name = f"model.layers.{layer}.self_attn.{part}_layernorm.norms.{head}.weight"
                tensors[name] = torch.full((4,), 10.0 * layer + head)
    assert weights(tensors, STABLELM).load("layers.1.attn.q_norm.weight")[:, 0].tolist() == [10.0, 11.0]
    del tensors["model.layers.1.self_attn.q_layernorm.norms.1.weight"]
    with pytest.raises(WeightError, match=r"lacks model\.layers\.1\.self_attn\.q_layernorm\.norms\.1\.weight"):
        weights(tensors, STABLELM)


def test_gpt2_projections_are_transposed_and_its_tables_are_not() -> None:
    spec = decoder_spec({**GPT2, "vocab_size": 8})
    tensors: dict[str, torch.Tensor] = {"wte.weight": torch.rand(8, 8), "wpe.weight": torch.rand(16, 8)}
    for layer in range(2):
        for norm in ("ln_1", "ln_2"):
            tensors |= {f"h.{layer}.{norm}.{kind}": torch.rand(8) for kind in ("weight", "bias")}
        for module, out, width in (("attn.c_attn", 24, 8), ("attn.c_proj", 8, 8), ("mlp.c_fc", 32, 8)):
            tensors[f"h.{layer}.{module}.weight"] = torch.rand(width, out)
            tensors[f"h.{layer}.{module}.bias"] = torch.rand(out)
        tensors[f"h.{layer}.mlp.c_proj.weight"] = torch.rand(32, 8)
        tensors[f"h.{layer}.mlp.c_proj.bias"] = torch.rand(8)
        tensors[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 16, 16)
        tensors[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    tensors |= {"ln_f.weight": torch.rand(8), "ln_f.bias": torch.rand(8)}
    loaded = CheckpointWeights(DictSource(tensors), GPT2, spec)
    assert torch.equal(loaded.load("embed.weight"), tensors["wte.weight"])
    assert torch.equal(loaded.load("embed.positions"), tensors["wpe.weight"])
    assert torch.equal(loaded.load("layers.1.attn.k.weight"), tensors["h.1.attn.c_attn.weight"][:, 8:16].t())
    assert torch.equal(loaded.load("layers.1.attn.k.bias"), tensors["h.1.attn.c_attn.bias"][8:16])
    assert torch.equal(loaded.load("layers.0.attn.out.weight"), tensors["h.0.attn.c_proj.weight"].t())


def test_random_weights_have_every_shape_and_repeat_by_seed() -> None:
    spec = decoder_spec(LLAMA)
    first, same, other = (RandomWeights(spec, dtype="bfloat16", seed=seed) for seed in (1, 1, 2))
    for name, shape in weight_shapes(spec):
        drawn = first.load(name)
        assert tuple(drawn.shape) == shape and drawn.dtype == torch.bfloat16
        assert torch.equal(drawn, same.load(name)) and not torch.equal(drawn, other.load(name))
    assert first.total_bytes == 2 * sum(first.load(name).numel() for name, _ in weight_shapes(spec))
