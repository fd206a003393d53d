"""BLOOM: ALiBi instead of positions, and a norm of the embeddings."""

from __future__ import annotations

from drivetrain.models.families.blocks import alibi_slopes, decoder, layer_norm, score_scale, sizes
from drivetrain.models.families.config import ModelConfig
from drivetrain.models.families.family import Family
from drivetrain.models.families.names import WeightNames, fused_qkv
from drivetrain_plugins.contract.model import AttentionSpec, DecoderSpec, EmbeddingSpec, LayerSpec, MlpSpec


def _bloom(config: ModelConfig) -> DecoderSpec:
    config.require("apply_residual_connection_post_layernorm", False)
    size = sizes(config, max_positions=2048)
    attention = AttentionSpec(
        num_heads=size.heads,
        num_kv_heads=size.heads,
        head_dim=size.head_dim,
        scale=score_scale(size.head_dim),
        alibi_slopes=alibi_slopes(size.heads),
        qkv_bias=True,
        out_bias=True,
    )
    mlp = MlpSpec(inner_size=4 * size.hidden, activation="gelu_tanh", gated=False, up_bias=True, down_bias=True)
    norm = layer_norm(config.number("layer_norm_epsilon", default=1e-5))
    layer = LayerSpec(mixer=attention, mlp=mlp, norm=norm)
    return decoder(config, size, [layer] * size.layers, final_norm=norm, tied=True, embedding=EmbeddingSpec(norm=norm))


_LAYER = "{root}h.{i}"

BLOOM = Family(
    architectures=("BloomForCausalLM",),
    model_types=("bloom",),
    spec=_bloom,
    names=WeightNames(
        places={
            "embed": "{root}word_embeddings",
            "embed.norm": "{root}word_embeddings_layernorm",
            "layers.attn_norm": f"{_LAYER}.input_layernorm",
            "layers.mlp_norm": f"{_LAYER}.post_attention_layernorm",
            **fused_qkv(f"{_LAYER}.self_attention.query_key_value", "grouped"),
            "layers.attn.out": f"{_LAYER}.self_attention.dense",
            "layers.mlp.up": f"{_LAYER}.mlp.dense_h_to_4h",
            "layers.mlp.down": f"{_LAYER}.mlp.dense_4h_to_h",
            "final_norm": "{root}ln_f",
            "lm_head": "lm_head",
        },
        roots=("transformer.", ""),
    ),
)
