"""GPT-NeoX and Pythia: partial rotary, two norms before parallel branches, or the usual sequence."""

from __future__ import annotations

from drivetrain.models.families.blocks import decoder, layer_norm, rotary, score_scale, sizes
from drivetrain.models.families.config import ModelConfig
from drivetrain.models.families.family import Family
from drivetrain.models.families.names import ROTARY_BUFFERS, Either, WeightNames, fused_qkv
from drivetrain_plugins.contract.model import AttentionSpec, DecoderSpec, LayerSpec, MlpSpec


def _gpt_neox(config: ModelConfig) -> DecoderSpec:
    size = sizes(config, max_positions=2048)
    bias = config.flag("attention_bias", default=True)
    attention = AttentionSpec(
        num_heads=size.heads,
        num_kv_heads=size.heads,
        head_dim=size.head_dim,
        scale=score_scale(size.head_dim),
        rotary=rotary(config, size, partial=0.25),
        qkv_bias=bias,
        out_bias=bias,
    )
    mlp = MlpSpec(
        inner_size=config.size("intermediate_size"),
        activation=config.activation("hidden_act", default="gelu"),
        gated=False,
        up_bias=True,
        down_bias=True,
    )
    norm = layer_norm(config.number("layer_norm_eps", default=1e-5))
    parallel = config.flag("use_parallel_residual", default=True)
    layer = LayerSpec(mixer=attention, mlp=mlp, norm=norm, parallel="separate" if parallel else "no")
    return decoder(config, size, [layer] * size.layers, final_norm=norm, tied=False)


_LAYER = "{root}layers.{i}"

GPT_NEOX = Family(
    architectures=("GPTNeoXForCausalLM",),
    model_types=("gpt_neox",),
    spec=_gpt_neox,
    names=WeightNames(
        places={
            "embed": "{root}embed_in",
            "layers.attn_norm": f"{_LAYER}.input_layernorm",
            "layers.mlp_norm": f"{_LAYER}.post_attention_layernorm",
            **fused_qkv(f"{_LAYER}.attention.query_key_value", "grouped"),
            "layers.attn.out": f"{_LAYER}.attention.dense",
            "layers.mlp.up": f"{_LAYER}.mlp.dense_h_to_4h",
            "layers.mlp.down": f"{_LAYER}.mlp.dense_4h_to_h",
            "final_norm": "{root}final_layer_norm",
            "lm_head": Either(modules=("embed_out", "lm_head")),
        },
        roots=("gpt_neox.", ""),
        ignored=("*.attention.bias", "*.attention.masked_bias", *ROTARY_BUFFERS),
    ),
)
