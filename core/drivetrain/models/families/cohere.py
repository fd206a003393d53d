"""Command R (1 and 2): one norm before parallel branches, interleaved rotary, scaled logits; later windows, of which
the full layers between have no positions."""

from __future__ import annotations

from dataclasses import replace

from drivetrain.models.families.blocks import Sizes, decoder, layer_norm, rotary, score_scale, sizes, windows
from drivetrain.models.families.config import ModelConfig
from drivetrain.models.families.family import Family
from drivetrain.models.families.names import LLAMA_PLACES, QK_NORM_PLACES, ROTARY_BUFFERS, WeightNames
from drivetrain_plugins.contract.model import AttentionSpec, DecoderSpec, LayerSpec, MlpSpec, QKNormSpec


def _attention(config: ModelConfig, size: Sizes, *, base: float) -> AttentionSpec:
    bias = config.flag("attention_bias", default=False)
    return AttentionSpec(
        num_heads=size.heads,
        num_kv_heads=size.kv_heads,
        head_dim=size.head_dim,
        scale=score_scale(size.head_dim),
        rotary=rotary(config, size, base=base, style="interleaved"),
        qkv_bias=bias,
        out_bias=bias,
    )


def _decoder(config: ModelConfig, size: Sizes, mixers: list[AttentionSpec]) -> DecoderSpec:
    norm = layer_norm(config.number("layer_norm_eps", default=1e-5), bias=False)
    mlp = MlpSpec(
        inner_size=config.size("intermediate_size"), activation=config.activation("hidden_act", default="silu")
    )
    return decoder(
        config,
        size,
        [LayerSpec(mixer=mixer, mlp=mlp, norm=norm, parallel="shared") for mixer in mixers],
        final_norm=norm,
        tied=True,
        logits_scale=config.number("logit_scale", default=0.0625),
    )


def _cohere(config: ModelConfig) -> DecoderSpec:
    size = sizes(config)
    attention = _attention(config, size, base=500_000.0)
    if config.flag("use_qk_norm", default=False):
        norm = layer_norm(config.number("layer_norm_eps", default=1e-5), bias=False)
        attention = replace(attention, qk_norm=QKNormSpec(norm=norm, span="heads"))
    return _decoder(config, size, [attention] * size.layers)


def _cohere2(config: ModelConfig) -> DecoderSpec:
    size = sizes(config)
    attention = _attention(config, size, base=10_000.0)
    pattern = config.size("sliding_window_pattern", default=4)
    layer_windows = windows(config, size.layers, lambda layer: (layer + 1) % pattern != 0)
    return _decoder(
        config,
        size,
        [
            replace(attention, rotary=None) if window is None else replace(attention, window=window)
            for window in layer_windows
        ],
    )


_PLACES = {key: place for key, place in LLAMA_PLACES.items() if key != "layers.mlp_norm"}

COHERE = Family(
    architectures=("CohereForCausalLM",),
    model_types=("cohere",),
    spec=_cohere,
    names=WeightNames(places={**_PLACES, **QK_NORM_PLACES}, ignored=ROTARY_BUFFERS),
)
COHERE2 = Family(
    architectures=("Cohere2ForCausalLM",),
    model_types=("cohere2",),
    spec=_cohere2,
    names=WeightNames(places=_PLACES, ignored=ROTARY_BUFFERS),
)
