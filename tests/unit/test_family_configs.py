"""Configurations of well-known models: what they parse to, and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from drivetrain.errors import UnsupportedModel
from drivetrain.models.families import FAMILIES, decoder_spec, family_of
from drivetrain_plugins.contract import reference
from drivetrain_plugins.contract.model import DecoderSpec, weight_shapes

CONFIGS = Path(__file__).parents[1] / "data" / "configs"

PARAMETERS = {
    "Llama-3.1-8B": 8_030_261_248,
    "Llama-3.2-1B": 1_235_814_400,
    "Mistral-7B-Instruct-v0.3": 7_248_023_552,
    "Qwen3-0.6B": 596_049_920,
    "Qwen3-8B": 8_190_735_360,
    "falcon-7b": 6_921_720_704,
    "gpt-neox-20b": 20_554_567_680,
}
MIXTURES = {
    "Mixtral-8x7B-v0.1": "MixtralForCausalLM",
    "Qwen3-30B-A3B": "Qwen3MoeForCausalLM",
    "gpt-oss-20b": "GptOssForCausalLM",
}


def config(name: str) -> dict[str, Any]:
    return json.loads((CONFIGS / f"{name}.json").read_text())


def llama(**changes: Any) -> dict[str, Any]:
    return config("Llama-3.2-1B") | changes


def small(architecture: str, **values: Any) -> dict[str, Any]:
    return {
        "architectures": [architecture],
        "vocab_size": 100,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
    } | values


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_known_model_has_its_published_number_of_parameters(name: str) -> None:
    spec = decoder_spec(config(name))
    assert sum(math.prod(shape) for _, shape in weight_shapes(spec)) == PARAMETERS[name]


@pytest.mark.parametrize("name", MIXTURES)
def test_a_mixture_of_experts_is_refused_with_what_is_served(name: str) -> None:
    with pytest.raises(UnsupportedModel, match=f"{MIXTURES[name]}.*Served: .*LlamaForCausalLM.*Qwen3ForCausalLM"):
        decoder_spec(config(name))


def test_every_known_configuration_is_covered_here() -> None:
    assert {path.stem for path in CONFIGS.glob("*.json")} == {*PARAMETERS, *MIXTURES}


def test_a_misspelt_architecture_gets_a_suggestion() -> None:
    with pytest.raises(UnsupportedModel, match="The closest is LlamaForCausalLM"):
        family_of({"architectures": ["LLamaForCausalLM"]})


def test_the_model_type_names_the_family_where_architectures_are_missing() -> None:
    assert family_of({"model_type": "qwen3"}) is FAMILIES["Qwen3ForCausalLM"]
    with pytest.raises(UnsupportedModel, match="neither architectures nor model_type"):
        family_of({"hidden_size": 3})


def test_llama_31_has_its_scaled_rotary_and_grouped_heads() -> None:
    spec = decoder_spec(config("Llama-3.1-8B"))
    attention = spec.layers[0].mixer
    assert (attention.num_heads, attention.num_kv_heads, attention.head_dim) == (32, 8, 128)
    assert attention.rotary is not None and attention.rotary.scaling == "llama3"
    assert dict(attention.rotary.parameters)["original_max_position_embeddings"] == 8192
    assert spec.max_positions == 131072 and not spec.tied


def _gemma3_new() -> dict[str, Any]:
    return small(
        "Gemma3ForCausalLM",
        sliding_window=9,
        layer_types=["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 2e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 3e4},
        },
    )


def _gemma3_old() -> dict[str, Any]:
    return small(
        "Gemma3ForCausalLM",
        sliding_window=9,
        sliding_window_pattern=3,
        rope_theta=2e6,
        rope_local_base_freq=3e4,
        rope_scaling={"rope_type": "linear", "factor": 8.0},
    )


def _neox_new() -> dict[str, Any]:
    return small(
        "GPTNeoXForCausalLM",
        rope_parameters={"rope_type": "default", "rope_theta": 5e4, "partial_rotary_factor": 0.5},
    )


def _neox_old() -> dict[str, Any]:
    return small("GPTNeoXForCausalLM", rotary_pct=0.5, rotary_emb_base=5e4)


def _cohere2_new() -> dict[str, Any]:
    types = ["sliding_attention", "full_attention"] * 2
    rope = {"rope_type": "default", "rope_theta": 5e4}
    return small("Cohere2ForCausalLM", sliding_window=5, layer_types=types, rope_parameters=rope)


def _cohere2_old() -> dict[str, Any]:
    return small("Cohere2ForCausalLM", sliding_window=5, sliding_window_pattern=2, rope_theta=5e4)


def _qwen2_new() -> dict[str, Any]:
    types = ["full_attention", "sliding_attention", "sliding_attention", "sliding_attention"]
    return small("Qwen2ForCausalLM", use_sliding_window=True, sliding_window=5, layer_types=types)


def _qwen2_old() -> dict[str, Any]:
    return small("Qwen2ForCausalLM", use_sliding_window=True, sliding_window=5, max_window_layers=1)


@pytest.mark.parametrize(
    ("new", "old"),
    [
        (_gemma3_new, _gemma3_old),
        (_neox_new, _neox_old),
        (_cohere2_new, _cohere2_old),
        (_qwen2_new, _qwen2_old),
    ],
)
def test_both_generations_of_configurations_give_the_same_spec(
    new: Callable[[], dict[str, Any]], old: Callable[[], dict[str, Any]]
) -> None:
    assert decoder_spec(new()) == decoder_spec(old())


def test_gemma_3_turns_local_and_global_layers_differently() -> None:
    layers = decoder_spec(_gemma3_old()).layers
    assert [layer.mixer.window for layer in layers] == [9, 9, None, 9]
    assert [layer.mixer.rotary.base for layer in layers if layer.mixer.rotary] == [3e4, 3e4, 2e6, 3e4]
    assert [layer.mixer.rotary.scaling for layer in layers if layer.mixer.rotary] == ["none", "none", "linear", "none"]


def test_the_text_part_of_a_seeing_gemma_3_is_read_with_its_unwritten_defaults() -> None:
    spec = decoder_spec(
        {
            "architectures": ["Gemma3ForConditionalGeneration"],
            "model_type": "gemma3",
            "text_config": {
                "hidden_size": 2560,
                "intermediate_size": 10240,
                "model_type": "gemma3_text",
                "num_hidden_layers": 34,
                "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
                "sliding_window": 1024,
            },
            "vision_config": {"hidden_size": 1152},
        }
    )
    assert sum(math.prod(shape) for _, shape in weight_shapes(spec)) == 3_880_263_168
    assert spec.layers[5].mixer.window is None and spec.layers[4].mixer.window == 1024


def windows(spec: DecoderSpec) -> list[int | None]:
    return [layer.mixer.window for layer in spec.layers]


def test_windows_follow_each_familys_rule() -> None:
    assert windows(decoder_spec(small("MistralForCausalLM", sliding_window=7))) == [7] * 4
    assert windows(decoder_spec(small("MistralForCausalLM", sliding_window=None))) == [None] * 4
    off = small("Qwen2ForCausalLM", use_sliding_window=False, sliding_window=7, max_window_layers=0)
    assert windows(decoder_spec(off)) == [None] * 4
    assert windows(decoder_spec(small("Gemma2ForCausalLM", sliding_window=7))) == [7, None, 7, None]


ACTIVATIONS = ["silu", "swish", "gelu", "gelu_python", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "quick_gelu"]


@pytest.mark.parametrize("name", [*ACTIVATIONS, "relu", "relu2"])
def test_an_activation_means_what_its_name_means_elsewhere(name: str) -> None:
    from transformers.activations import ACT2FN

    x = torch.linspace(-6, 6, 101)
    activation = decoder_spec(llama(hidden_act=name)).layers[0].mlp.activation
    torch.testing.assert_close(reference.activate(x, activation), ACT2FN[name](x), rtol=1e-5, atol=1e-6)


FALCON = {"architectures": ["FalconForCausalLM"], "vocab_size": 9, "hidden_size": 64}
FALCON |= {"num_hidden_layers": 1, "num_attention_heads": 4}
MPT = {"architectures": ["MPTForCausalLM"], "vocab_size": 9, "d_model": 64, "n_heads": 4, "n_layers": 1}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (llama(hidden_act="mish"), "hidden_act = 'mish'"),
        (llama(hidden_size="big"), "hidden_size = 'big'"),
        (llama(num_hidden_layers=0), "num_hidden_layers = 0"),
        (llama(num_key_value_heads=5), "num_key_value_heads = 5"),
        (llama(head_dim=None, num_attention_heads=24, num_key_value_heads=24), "hidden_size = 2048"),
        (llama(attention_bias="yes"), "attention_bias = 'yes'"),
        (llama(vocab_size=None), "lacks vocab_size"),
        (llama(is_encoder_decoder=True), "is_encoder_decoder = True"),
        (llama(quantization_config={"quant_method": "awq"}), "quant_method = 'awq'"),
        (llama(partial_rotary_factor=0.01), "partial_rotary_factor = 0.01"),
        (small("GemmaForCausalLM", use_bidirectional_attention=True), "use_bidirectional_attention = True"),
        (small("Gemma2ForCausalLM", sliding_window=4, layer_types=["x"] * 4), "layer_types = 'x'"),
        (small("Gemma2ForCausalLM", sliding_window=4, layer_types=["full_attention"]), "layer_types = '1 entries'"),
        ({**FALCON, "new_decoder_architecture": True, "parallel_attn": False}, "parallel_attn = False"),
        ({**FALCON, "num_ln_in_parallel_attn": 2}, "num_ln_in_parallel_attn = 2"),
        ({**FALCON, "apply_residual_connection_post_layernorm": True}, "apply_residual_connection_post_layernorm"),
        (
            {"architectures": ["BloomForCausalLM"], "apply_residual_connection_post_layernorm": True},
            "apply_residual_connection_post_layernorm = True",
        ),
        ({"architectures": ["GPT2LMHeadModel"], "add_cross_attention": True}, "add_cross_attention = True"),
        ({**MPT, "attn_config": {"alibi": False}}, "alibi = False"),
        ({**MPT, "attn_config": {"qk_ln": True}}, "qk_ln = True"),
        ({**MPT, "attn_config": {"attn_type": "multiquery_attention"}}, "attn_type = 'multiquery_attention'"),
        ({**MPT, "no_bias": False}, "no_bias = False"),
        ({**MPT, "logit_scale": "inv_sqrt_d_model"}, "logit_scale = 'inv_sqrt_d_model'"),
        ({"architectures": ["Gemma3ForConditionalGeneration"]}, "lacks text_config"),
    ],
)
def test_an_option_that_is_not_served_is_refused_by_key_and_value(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        decoder_spec(values)
