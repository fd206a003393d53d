"""StarCoder2: layer norms and biases around grouped-query attention with a window; a feed-forward part without gate."""

from __future__ import annotations

from dataclasses import replace

from drivetrain.models.families.blocks import decoder, layer_norm, rotary, score_scale, sizes, windows
from drivetrain.models.families.config import ModelConfig
from drivetrain.models.families.family import Family
from drivetrain.models.families.names import LLAMA_PLACES, ROTARY_BUFFERS, WeightNames
from drivetrain_plugins.contract.model import AttentionSpec, DecoderSpec, LayerSpec, MlpSpec


def _starcoder2(config: ModelConfig) -> DecoderSpec:
    config.require("norm_type", "layer_norm")
    config.require("mlp_type", "default")
    size = sizes(config)
    bias = config.flag("use_bias", default=True)
    attention = AttentionSpec(
        num_heads=size.heads,
        num_kv_heads=size.kv_heads,
        head_dim=size.head_dim,
        scale=score_scale(size.head_dim),
        rotary=rotary(config, size),
        qkv_bias=bias,
        out_bias=bias,
    )
    mlp = MlpSpec(
        inner_size=config.size("intermediate_size"),
        activation=config.activation("hidden_act", default="gelu_pytorch_tanh"),
        gated=False,
        up_bias=bias,
        down_bias=bias,
    )
    norm = layer_norm(config.number("norm_epsilon", default=1e-5))
    sliding = config.given("sliding_window")
    layers = [
        LayerSpec(mixer=replace(attention, window=window), mlp=mlp, norm=norm)
        for window in windows(config, size.layers, lambda layer: sliding)
    ]
    return decoder(config, size, layers, final_norm=norm, tied=True)


STARCODER2 = Family(
    architectures=("Starcoder2ForCausalLM",),
    model_types=("starcoder2",),
    spec=_starcoder2,
    names=WeightNames(
        places={
            **LLAMA_PLACES,
            "layers.mlp.up": "{root}layers.{i}.mlp.c_fc",
            "layers.mlp.down": "{root}layers.{i}.mlp.c_proj",
        },
        ignored=ROTARY_BUFFERS,
    ),
)
