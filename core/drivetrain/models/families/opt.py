"""OPT: learned positions from the third row on; the 350m size norms after additions and projects its embedding."""

from __future__ import annotations

from drivetrain.models.families.blocks import decoder, layer_norm, score_scale, sizes
from drivetrain.models.families.config import ModelConfig
from drivetrain.models.families.family import Family
from drivetrain.models.families.names import WeightNames, projections
from drivetrain_plugins.contract.model import AttentionSpec, DecoderSpec, EmbeddingSpec, LayerSpec, MlpSpec


def _opt(config: ModelConfig) -> DecoderSpec:
    size = sizes(config, max_positions=2048)
    bias = config.flag("enable_bias", default=True)
    affine = config.flag("layer_norm_elementwise_affine", default=True)
    before = config.flag("do_layer_norm_before", default=True)
    norm = layer_norm(1e-5, bias=affine, weight=affine)
    attention = AttentionSpec(
        num_heads=size.heads,
        num_kv_heads=size.heads,
        head_dim=size.head_dim,
        scale=score_scale(size.head_dim),
        qkv_bias=bias,
        out_bias=bias,
    )
    mlp = MlpSpec(
        inner_size=config.size("ffn_dim"),
        activation=config.activation("activation_function", default="relu"),
        gated=False,
        up_bias=bias,
        down_bias=bias,
    )
    layer = LayerSpec(mixer=attention, mlp=mlp, norm=norm, pre_norm=before, sum_norm=not before)
    width = config.size("word_embed_proj_dim", default=size.hidden)
    removed = config.flag("_remove_final_layer_norm", default=False)
    return decoder(
        config,
        size,
        [layer] * size.layers,
        final_norm=norm if before and not removed else None,
        tied=True,
        embedding=EmbeddingSpec(
            positions=size.max_positions, position_offset=2, size=0 if width == size.hidden else width
        ),
    )


_LAYER = "{root}layers.{i}"

OPT = Family(
    architectures=("OPTForCausalLM",),
    model_types=("opt",),
    spec=_opt,
    names=WeightNames(
        places={
            "embed": "{root}embed_tokens",
            "embed.positions": "{root}embed_positions.weight",
            "embed.project": "{root}project_in",
            "layers.attn_norm": f"{_LAYER}.self_attn_layer_norm",
            "layers.mlp_norm": f"{_LAYER}.final_layer_norm",
            **projections(f"{_LAYER}.self_attn", _LAYER, out="out_proj", up="fc1", down="fc2"),
            "final_norm": "{root}final_layer_norm",
            "unembed.project": "{root}project_out",
            "lm_head": "lm_head",
        },
        roots=("model.decoder.", "decoder."),
    ),
)
