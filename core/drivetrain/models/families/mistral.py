"""Mistral: Llama with a sliding window over all layers."""

from __future__ import annotations

from drivetrain.models.families.blocks import decoder, windows
from drivetrain.models.families.config import ModelConfig
from drivetrain.models.families.family import Family
from drivetrain.models.families.llama import llama_parts, windowed
from drivetrain.models.families.names import LLAMA_NAMES
from drivetrain_plugins.contract.model import DecoderSpec


def _mistral(config: ModelConfig) -> DecoderSpec:
    parts = llama_parts(config, qkv_bias=False, out_bias=False)
    sliding = config.given("sliding_window")
    layers = windowed(parts, windows(config, parts.size.layers, lambda layer: sliding))
    return decoder(config, parts.size, layers, final_norm=parts.norm, tied=False)


MISTRAL = Family(architectures=("MistralForCausalLM",), model_types=("mistral",), spec=_mistral, names=LLAMA_NAMES)
