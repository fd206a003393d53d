"""Gemma 1 to 3: norms that store their weight less one, scaled embeddings; later soft caps, branch norms, windows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from drivetrain.models.families.blocks import Sizes, decoder, rms_norm, rotary, score_scale, sizes, windows
from drivetrain.models.families.config import ModelConfig
from drivetrain.models.families.family import Family
from drivetrain.models.families.names import (
    BRANCH_NORM_PLACES,
    LLAMA_NAMES,
    LLAMA_PLACES,
    QK_NORM_PLACES,
    ROTARY_BUFFERS,
    Either,
    WeightNames,
)
from drivetrain_plugins.contract.model import (
    AttentionSpec,
    DecoderSpec,
    EmbeddingSpec,
    LayerSpec,
    MlpSpec,
    NormSpec,
    QKNormSpec,
)


def _norm(config: ModelConfig) -> NormSpec:
    return rms_norm(config, late_weight=False, offset=1.0)


def _attention(config: ModelConfig, size: Sizes, scale: float) -> AttentionSpec:
    config.require("use_bidirectional_attention", False)
    bias = config.flag("attention_bias", default=False)
    return AttentionSpec(
        num_heads=size.heads,
        num_kv_heads=size.kv_heads,
        head_dim=size.head_dim,
        scale=scale,
        rotary=rotary(config, size, layer_type="full_attention"),
        soft_cap=config.optional_number("attn_logit_softcapping"),
        qkv_bias=bias,
        out_bias=bias,
    )


def _mlp(config: ModelConfig, *activation_keys: str) -> MlpSpec:
    return MlpSpec(
        inner_size=config.size("intermediate_size"),
        activation=config.activation(*activation_keys, default="gelu_pytorch_tanh"),
    )


def _decoder(config: ModelConfig, size: Sizes, layers: Sequence[LayerSpec]) -> DecoderSpec:
    return decoder(
        config,
        size,
        layers,
        final_norm=_norm(config),
        tied=True,
        embedding=EmbeddingSpec(scale=math.sqrt(size.hidden)),
        logits_soft_cap=config.optional_number("final_logit_softcapping"),
    )


def _gemma(config: ModelConfig) -> DecoderSpec:
    size = sizes(config)
    mlp = _mlp(config, "hidden_activation", "hidden_act")
    if not config.given("hidden_activation") and mlp.activation == "gelu":
        # The first files say "gelu" and mean its tanh form, in which the models were trained.
        mlp = replace(mlp, activation="gelu_tanh")
    layer = LayerSpec(mixer=_attention(config, size, score_scale(size.head_dim)), mlp=mlp, norm=_norm(config))
    return _decoder(config, size, [layer] * size.layers)


def _branch_normed(config: ModelConfig, mixer: AttentionSpec) -> LayerSpec:
    return LayerSpec(mixer=mixer, mlp=_mlp(config, "hidden_activation"), norm=_norm(config), branch_norm=True)


def _gemma2(config: ModelConfig) -> DecoderSpec:
    size = sizes(config)
    attention = _attention(config, size, score_scale(config.number("query_pre_attn_scalar", default=256)))
    layer_windows = windows(config, size.layers, lambda layer: layer % 2 == 0)
    layers = [_branch_normed(config, replace(attention, window=window)) for window in layer_windows]
    return _decoder(config, size, layers)


def _gemma3(config: ModelConfig) -> DecoderSpec:
    size = sizes(config)
    attention = _attention(config, size, score_scale(config.number("query_pre_attn_scalar", default=256)))
    attention = replace(
        attention,
        qk_norm=QKNormSpec(norm=_norm(config)),
        rotary=rotary(config, size, base=1_000_000.0, layer_type="full_attention"),
    )
    local = rotary(
        config, size, base=10_000.0, layer_type="sliding_attention", base_key="rope_local_base_freq", scaled=False
    )
    pattern = config.size("sliding_window_pattern", default=6)
    layer_windows = windows(config, size.layers, lambda layer: (layer + 1) % pattern != 0)
    mixers = [
        attention if window is None else replace(attention, window=window, rotary=local) for window in layer_windows
    ]
    return _decoder(config, size, [_branch_normed(config, mixer) for mixer in mixers])


_HEAD_DIM = {"head_dim": 256}
_GEMMA3_DEFAULTS = {
    "head_dim": 256,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 262_208,
    "max_position_embeddings": 131_072,
}
_GEMMA2_PLACES = {**LLAMA_PLACES, **BRANCH_NORM_PLACES}
_GEMMA3_PLACES = {**_GEMMA2_PLACES, **QK_NORM_PLACES}

GEMMA = Family(
    architectures=("GemmaForCausalLM",), model_types=("gemma",), spec=_gemma, names=LLAMA_NAMES, defaults=_HEAD_DIM
)
GEMMA2 = Family(
    architectures=("Gemma2ForCausalLM",),
    model_types=("gemma2",),
    spec=_gemma2,
    names=WeightNames(places=_GEMMA2_PLACES, ignored=ROTARY_BUFFERS),
    defaults=_HEAD_DIM,
)
GEMMA3 = Family(
    architectures=("Gemma3ForCausalLM",),
    model_types=("gemma3_text",),
    spec=_gemma3,
    names=WeightNames(places=_GEMMA3_PLACES, ignored=ROTARY_BUFFERS),
    defaults=_GEMMA3_DEFAULTS,
)
# The text part of checkpoints that also see; images are not served.
GEMMA3_TEXT_PART = Family(
    architectures=("Gemma3ForConditionalGeneration",),
    model_types=("gemma3",),
    spec=_gemma3,
    names=WeightNames(
        places={**_GEMMA3_PLACES, "lm_head": Either(modules=("lm_head", "language_model.lm_head"))},
        roots=("model.language_model.", "language_model.model."),
        ignored=(
            *ROTARY_BUFFERS,
            "vision_tower.*",
            "model.vision_tower.*",
            "multi_modal_projector.*",
            "model.multi_modal_projector.*",
        ),
    ),
    defaults=_GEMMA3_DEFAULTS,
    text_section="text_config",
)
