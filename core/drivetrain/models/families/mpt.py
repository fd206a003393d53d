"""MPT: ALiBi, no biases anywhere, optionally clamped projections."""

from __future__ import annotations

from drivetrain.models.families.blocks import alibi_slopes, decoder, layer_norm, score_scale, sizes
from drivetrain.models.families.config import ModelConfig
from drivetrain.models.families.family import Family
from drivetrain.models.families.names import WeightNames, fused_qkv
from drivetrain_plugins.contract.model import AttentionSpec, DecoderSpec, LayerSpec, MlpSpec


def _mpt(config: ModelConfig) -> DecoderSpec:
    config.require("no_bias", True)
    config.require("logit_scale")
    config.require("norm_type", "low_precision_layernorm", "layernorm")
    size = sizes(config, max_positions=2048)
    options = config.section("attn_config") or ModelConfig({}, config.architecture)
    options.require("attn_type", "multihead_attention")
    options.require("kv_n_heads", size.heads)
    options.require("alibi", True)
    options.require("prefix_lm", False)
    options.require("qk_ln", False)
    options.require("attn_uses_sequence_id", False)
    attention = AttentionSpec(
        num_heads=size.heads,
        num_kv_heads=size.heads,
        head_dim=size.head_dim,
        scale=options.number("softmax_scale", default=score_scale(size.head_dim)),
        alibi_slopes=alibi_slopes(size.heads, options.number("alibi_bias_max", default=8)),
        clip_qkv=options.optional_number("clip_qkv") or None,
    )
    mlp = MlpSpec(inner_size=config.size("expansion_ratio", default=4) * size.hidden, activation="gelu", gated=False)
    norm = layer_norm(config.number("layer_norm_epsilon", default=1e-5), bias=False)
    layer = LayerSpec(mixer=attention, mlp=mlp, norm=norm)
    return decoder(config, size, [layer] * size.layers, final_norm=norm, tied=True)


_LAYER = "{root}blocks.{i}"

MPT = Family(
    architectures=("MptForCausalLM", "MPTForCausalLM"),
    model_types=("mpt",),
    spec=_mpt,
    names=WeightNames(
        places={
            "embed": "{root}wte",
            "layers.attn_norm": f"{_LAYER}.norm_1",
            "layers.mlp_norm": f"{_LAYER}.norm_2",
            **fused_qkv(f"{_LAYER}.attn.Wqkv", "packed"),
            "layers.attn.out": f"{_LAYER}.attn.out_proj",
            "layers.mlp.up": f"{_LAYER}.ffn.up_proj",
            "layers.mlp.down": f"{_LAYER}.ffn.down_proj",
            "final_norm": "{root}norm_f",
            "lm_head": "lm_head",
        },
        roots=("transformer.", ""),
    ),
)
