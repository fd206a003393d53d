"""Phi-3 and Phi-4: Llama with fused projections, partial rotary, LongRoPE, and windows in some sizes."""

from __future__ import annotations

from dataclasses import replace

from drivetrain.models.families.blocks import decoder, rms_norm, windows
from drivetrain.models.families.config import ModelConfig
from drivetrain.models.families.family import Family
from drivetrain.models.families.llama import llama_parts, windowed
from drivetrain.models.families.names import LLAMA_PLACES, ROTARY_BUFFERS, Fused, WeightNames, fused_qkv
from drivetrain_plugins.contract.model import DecoderSpec


def _phi3(config: ModelConfig) -> DecoderSpec:
    parts = llama_parts(config, qkv_bias=False, out_bias=False)
    parts = replace(parts, norm=rms_norm(config, eps=1e-5))
    sliding = config.given("sliding_window")
    layers = windowed(parts, windows(config, parts.size.layers, lambda layer: sliding))
    return decoder(config, parts.size, layers, final_norm=parts.norm, tied=False)


PHI3 = Family(
    architectures=("Phi3ForCausalLM",),
    model_types=("phi3",),
    spec=_phi3,
    names=WeightNames(
        places={
            **LLAMA_PLACES,
            **fused_qkv("{root}layers.{i}.self_attn.qkv_proj", "packed"),
            "layers.mlp.gate": Fused(module="{root}layers.{i}.mlp.gate_up_proj", part="gate"),
            "layers.mlp.up": Fused(module="{root}layers.{i}.mlp.gate_up_proj", part="up"),
        },
        ignored=ROTARY_BUFFERS,
    ),
)
