"""Falcon, both designs: parallel branches with one or two norms and few key-value heads; or sequential with ALiBi."""

from __future__ import annotations

from drivetrain.models.families.blocks import alibi_slopes, decoder, layer_norm, rotary, score_scale, sizes
from drivetrain.models.families.config import ModelConfig
from drivetrain.models.families.family import Family
from drivetrain.models.families.names import ROTARY_BUFFERS, Either, WeightNames, fused_qkv
from drivetrain_plugins.contract.model import AttentionSpec, DecoderSpec, LayerSpec, MlpSpec


def _falcon(config: ModelConfig) -> DecoderSpec:
    config.require("apply_residual_connection_post_layernorm", False)
    size = sizes(config, max_positions=2048)
    new = config.flag("new_decoder_architecture", default=False)
    parallel = config.flag("parallel_attn", default=True)
    norms = config.integer("num_ln_in_parallel_attn", default=2 if new else 1)
    if new and not parallel:
        raise config.refuse("parallel_attn", False, "true with new_decoder_architecture")
    if norms not in ((1, 2) if new else (1,)):
        raise config.refuse("num_ln_in_parallel_attn", norms, "1, or 2 with new_decoder_architecture")
    kv_heads = size.heads
    if new or not config.flag("multi_query", default=True):
        kv_heads = config.size("num_kv_heads", default=size.heads)
    elif not new:
        kv_heads = 1
    bias = config.flag("bias", default=False)
    scale = score_scale(size.head_dim)
    alibi = config.flag("alibi", default=False)
    attention = AttentionSpec(
        num_heads=size.heads,
        num_kv_heads=kv_heads,
        head_dim=size.head_dim,
        scale=scale,
        rotary=None if alibi else rotary(config, size),
        # Falcon scales scores after the slopes have been added. `transformers` rounds slopes and biases to bfloat16,
        # which shows from 16 heads on; here they stay exact.
        alibi_slopes=tuple(slope * scale for slope in alibi_slopes(size.heads)) if alibi else (),
        qkv_bias=bias,
        out_bias=bias,
    )
    mlp = MlpSpec(
        inner_size=config.size("ffn_hidden_size", default=4 * size.hidden),
        activation=config.activation("activation", default="gelu"),
        gated=False,
        up_bias=bias,
        down_bias=bias,
    )
    norm = layer_norm(config.number("layer_norm_epsilon", default=1e-5))
    kind = "no" if not parallel else "separate" if norms == 2 else "shared"
    layer = LayerSpec(mixer=attention, mlp=mlp, norm=norm, parallel=kind)
    return decoder(config, size, [layer] * size.layers, final_norm=norm, tied=True)


_LAYER = "{root}h.{i}"

FALCON = Family(
    architectures=("FalconForCausalLM", "RWForCausalLM"),
    model_types=("falcon", "RefinedWeb", "RefinedWebModel"),
    spec=_falcon,
    names=WeightNames(
        places={
            "embed": "{root}word_embeddings",
            "layers.attn_norm": Either(modules=(f"{_LAYER}.ln_attn", f"{_LAYER}.input_layernorm")),
            "layers.mlp_norm": Either(modules=(f"{_LAYER}.ln_mlp", f"{_LAYER}.post_attention_layernorm")),
            **fused_qkv(f"{_LAYER}.self_attention.query_key_value", "grouped"),
            "layers.attn.out": f"{_LAYER}.self_attention.dense",
            "layers.mlp.up": f"{_LAYER}.mlp.dense_h_to_4h",
            "layers.mlp.down": f"{_LAYER}.mlp.dense_4h_to_h",
            "final_norm": "{root}ln_f",
            "lm_head": "lm_head",
        },
        roots=("transformer.", ""),
        ignored=("*.maybe_rotary.inv_freq", *ROTARY_BUFFERS),
    ),
)
