"""OLMo 2: norms after the branches instead of before them, and norms over all queries and all keys."""

from __future__ import annotations

from dataclasses import replace

from drivetrain.models.families.blocks import decoder, rms_norm
from drivetrain.models.families.config import ModelConfig
from drivetrain.models.families.family import Family
from drivetrain.models.families.llama import llama_parts
from drivetrain.models.families.names import (
    BRANCH_NORM_PLACES,
    LLAMA_PLACES,
    QK_NORM_PLACES,
    ROTARY_BUFFERS,
    WeightNames,
)
from drivetrain_plugins.contract.model import DecoderSpec, LayerSpec, QKNormSpec


def _olmo2(config: ModelConfig) -> DecoderSpec:
    bias = config.flag("attention_bias", default=False)
    parts = llama_parts(config, qkv_bias=bias, out_bias=bias)
    norm = rms_norm(config, eps=1e-5, late_weight=False)
    attention = replace(parts.attention, qk_norm=QKNormSpec(norm=norm, span="full"))
    layer = LayerSpec(mixer=attention, mlp=parts.mlp, norm=norm, pre_norm=False, branch_norm=True)
    return decoder(config, parts.size, [layer] * parts.size.layers, final_norm=norm, tied=False)


OLMO2 = Family(
    architectures=("Olmo2ForCausalLM",),
    model_types=("olmo2",),
    spec=_olmo2,
    names=WeightNames(places={**LLAMA_PLACES, **QK_NORM_PLACES, **BRANCH_NORM_PLACES}, ignored=ROTARY_BUFFERS),
)
