"""Llama: pre-norm, rotary, gated feed-forward. Many families differ by a few numbers and start from its parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from drivetrain.models.families.blocks import Sizes, decoder, rms_norm, rotary, score_scale, sizes
from drivetrain.models.families.config import ModelConfig
from drivetrain.models.families.family import Family
from drivetrain.models.families.names import LLAMA_NAMES
from drivetrain_plugins.contract.model import AttentionSpec, DecoderSpec, LayerSpec, MlpSpec, NormSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaParts:
    """The pieces of a Llama-like decoder, for families to change before they put it together."""

    size: Sizes
    norm: NormSpec
    attention: AttentionSpec
    mlp: MlpSpec


def llama_parts(config: ModelConfig, *, qkv_bias: bool, out_bias: bool, mlp_bias: bool = False) -> LlamaParts:
    """Read the pieces that all of them share."""
    size = sizes(config)
    return LlamaParts(
        size=size,
        norm=rms_norm(config),
        attention=AttentionSpec(
            num_heads=size.heads,
            num_kv_heads=size.kv_heads,
            head_dim=size.head_dim,
            scale=score_scale(size.head_dim),
            rotary=rotary(config, size),
            qkv_bias=qkv_bias,
            out_bias=out_bias,
        ),
        mlp=MlpSpec(
            inner_size=config.size("intermediate_size"),
            activation=config.activation("hidden_act", default="silu"),
            up_bias=mlp_bias,
            down_bias=mlp_bias,
        ),
    )


def windowed(parts: LlamaParts, layer_windows: Sequence[int | None]) -> list[LayerSpec]:
    """A pre-norm layer for each window."""
    return [
        LayerSpec(mixer=replace(parts.attention, window=window), mlp=parts.mlp, norm=parts.norm)
        for window in layer_windows
    ]


def _llama(config: ModelConfig) -> DecoderSpec:
    bias = config.flag("attention_bias", default=False)
    parts = llama_parts(config, qkv_bias=bias, out_bias=bias, mlp_bias=config.flag("mlp_bias", default=False))
    return decoder(config, parts.size, windowed(parts, [None] * parts.size.layers), final_norm=parts.norm, tied=False)


LLAMA = Family(architectures=("LlamaForCausalLM",), model_types=("llama",), spec=_llama, names=LLAMA_NAMES)
