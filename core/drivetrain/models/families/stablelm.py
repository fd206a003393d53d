"""StableLM: Llama with layer norms and partial rotary; some sizes run the branches in parallel or norm each head."""

from __future__ import annotations

from drivetrain.models.families.blocks import decoder, layer_norm, rotary, score_scale, sizes
from drivetrain.models.families.config import ModelConfig
from drivetrain.models.families.family import Family
from drivetrain.models.families.names import LLAMA_PLACES, ROTARY_BUFFERS, Stacked, WeightNames
from drivetrain_plugins.contract.model import AttentionSpec, DecoderSpec, LayerSpec, MlpSpec, QKNormSpec


def _stablelm(config: ModelConfig) -> DecoderSpec:
    size = sizes(config)
    eps = config.number("layer_norm_eps", default=1e-5)
    per_head = config.flag("qk_layernorm", default=False)
    attention = AttentionSpec(
        num_heads=size.heads,
        num_kv_heads=size.kv_heads,
        head_dim=size.head_dim,
        scale=score_scale(size.head_dim),
        rotary=rotary(config, size, partial=0.25),
        qk_norm=QKNormSpec(norm=layer_norm(eps, bias=False), span="heads") if per_head else None,
        qkv_bias=config.flag("use_qkv_bias", default=False),
    )
    mlp = MlpSpec(
        inner_size=config.size("intermediate_size"), activation=config.activation("hidden_act", default="silu")
    )
    norm = layer_norm(eps)
    parallel = config.flag("use_parallel_residual", default=False)
    layer = LayerSpec(mixer=attention, mlp=mlp, norm=norm, parallel="shared" if parallel else "no")
    return decoder(config, size, [layer] * size.layers, final_norm=norm, tied=False)


STABLELM = Family(
    architectures=("StableLmForCausalLM", "StableLMEpochForCausalLM"),
    model_types=("stablelm", "stablelm_epoch"),
    spec=_stablelm,
    names=WeightNames(
        places={
            **LLAMA_PLACES,
            "layers.attn.q_norm": Stacked(module="{root}layers.{i}.self_attn.q_layernorm.norms.{h}"),
            "layers.attn.k_norm": Stacked(module="{root}layers.{i}.self_attn.k_layernorm.norms.{h}"),
        },
        ignored=ROTARY_BUFFERS,
    ),
)
