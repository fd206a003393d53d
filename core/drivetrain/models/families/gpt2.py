"""GPT-2: learned positions, layer norms, projections stored (in, out)."""

from __future__ import annotations

from drivetrain.models.families.blocks import decoder, layer_norm, score_scale, sizes
from drivetrain.models.families.config import ModelConfig
from drivetrain.models.families.family import Family
from drivetrain.models.families.names import WeightNames, fused_qkv
from drivetrain_plugins.contract.model import AttentionSpec, DecoderSpec, EmbeddingSpec, LayerSpec, MlpSpec


def _gpt2(config: ModelConfig) -> DecoderSpec:
    config.require("add_cross_attention", False)
    size = sizes(config, max_positions=1024)
    scale = score_scale(size.head_dim) if config.flag("scale_attn_weights", default=True) else 1.0
    by_layer = config.flag("scale_attn_by_inverse_layer_idx", default=False)
    norm = layer_norm(config.number("layer_norm_epsilon", default=1e-5))
    mlp = MlpSpec(
        inner_size=config.size("n_inner", default=4 * size.hidden),
        activation=config.activation("activation_function", default="gelu_new"),
        gated=False,
        up_bias=True,
        down_bias=True,
    )
    attentions = [
        AttentionSpec(
            num_heads=size.heads,
            num_kv_heads=size.heads,
            head_dim=size.head_dim,
            scale=scale / (layer + 1) if by_layer else scale,
            qkv_bias=True,
            out_bias=True,
        )
        for layer in range(size.layers)
    ]
    layers = [LayerSpec(mixer=attention, mlp=mlp, norm=norm) for attention in attentions]
    return decoder(
        config, size, layers, final_norm=norm, tied=True, embedding=EmbeddingSpec(positions=size.max_positions)
    )


_LAYER = "{root}h.{i}"

GPT2 = Family(
    architectures=("GPT2LMHeadModel",),
    model_types=("gpt2",),
    spec=_gpt2,
    names=WeightNames(
        places={
            "embed": "{root}wte",
            "embed.positions": "{root}wpe.weight",
            "layers.attn_norm": f"{_LAYER}.ln_1",
            "layers.mlp_norm": f"{_LAYER}.ln_2",
            **fused_qkv(f"{_LAYER}.attn.c_attn", "packed"),
            "layers.attn.out": f"{_LAYER}.attn.c_proj",
            "layers.mlp.up": f"{_LAYER}.mlp.c_fc",
            "layers.mlp.down": f"{_LAYER}.mlp.c_proj",
            "final_norm": "{root}ln_f",
            "lm_head": "lm_head",
        },
        roots=("transformer.", ""),
        transposed=True,
        ignored=("*.attn.bias", "*.attn.masked_bias"),
    ),
)
