"""Qwen2 (biases of queries, keys and values) and Qwen3 (norms of queries and keys); upper layers may have windows."""

from __future__ import annotations

from dataclasses import replace

from drivetrain.models.families.blocks import decoder, windows
from drivetrain.models.families.config import ModelConfig
from drivetrain.models.families.family import Family
from drivetrain.models.families.llama import llama_parts, windowed
from drivetrain.models.families.names import LLAMA_NAMES, LLAMA_PLACES, QK_NORM_PLACES, ROTARY_BUFFERS, WeightNames
from drivetrain_plugins.contract.model import DecoderSpec, QKNormSpec


def _qwen_windows(config: ModelConfig, layers: int) -> list[int | None]:
    if not config.flag("use_sliding_window", default=False):
        return [None] * layers
    first = config.integer("max_window_layers", default=28)
    return windows(config, layers, lambda layer: layer >= first)


def _qwen2(config: ModelConfig) -> DecoderSpec:
    parts = llama_parts(config, qkv_bias=True, out_bias=False)
    layers = windowed(parts, _qwen_windows(config, parts.size.layers))
    return decoder(config, parts.size, layers, final_norm=parts.norm, tied=False)


def _qwen3(config: ModelConfig) -> DecoderSpec:
    bias = config.flag("attention_bias", default=False)
    parts = llama_parts(config, qkv_bias=bias, out_bias=bias)
    parts = replace(parts, attention=replace(parts.attention, qk_norm=QKNormSpec(norm=parts.norm)))
    layers = windowed(parts, _qwen_windows(config, parts.size.layers))
    return decoder(config, parts.size, layers, final_norm=parts.norm, tied=False)


QWEN2 = Family(architectures=("Qwen2ForCausalLM",), model_types=("qwen2",), spec=_qwen2, names=LLAMA_NAMES)
QWEN3 = Family(
    architectures=("Qwen3ForCausalLM",),
    model_types=("qwen3",),
    spec=_qwen3,
    names=WeightNames(places={**LLAMA_PLACES, **QK_NORM_PLACES}, ignored=ROTARY_BUFFERS),
    defaults={"head_dim": 128},
)
