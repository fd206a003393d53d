"""Granite: Llama with a multiplier on embeddings, scores, branches and logits."""

from __future__ import annotations

from dataclasses import replace

from drivetrain.models.families.blocks import decoder
from drivetrain.models.families.config import ModelConfig
from drivetrain.models.families.family import Family
from drivetrain.models.families.llama import llama_parts
from drivetrain.models.families.names import LLAMA_NAMES
from drivetrain_plugins.contract.model import DecoderSpec, EmbeddingSpec, LayerSpec


def _granite(config: ModelConfig) -> DecoderSpec:
    bias = config.flag("attention_bias", default=False)
    parts = llama_parts(config, qkv_bias=bias, out_bias=bias, mlp_bias=config.flag("mlp_bias", default=False))
    attention = replace(parts.attention, scale=config.number("attention_multiplier", default=1.0))
    layer = LayerSpec(
        mixer=attention,
        mlp=parts.mlp,
        norm=parts.norm,
        residual_scale=config.number("residual_multiplier", default=1.0),
    )
    return decoder(
        config,
        parts.size,
        [layer] * parts.size.layers,
        final_norm=parts.norm,
        tied=False,
        embedding=EmbeddingSpec(scale=config.number("embedding_multiplier", default=1.0)),
        logits_scale=1.0 / config.number("logits_scaling", default=1.0),
    )


GRANITE = Family(architectures=("GraniteForCausalLM",), model_types=("granite",), spec=_granite, names=LLAMA_NAMES)
