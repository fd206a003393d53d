"""GGUF tensor names and layouts, by architecture, back to those of the Hugging Face checkpoint.

The converter that made the file renamed every tensor and changed a few layouts; the engine knows one naming only, so
each architecture has a table of names and the layout changes to undo. `{}` stands for the layer.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from drivetrain.errors import UnsupportedModel

if TYPE_CHECKING:
    import torch


class Layout(enum.Enum):
    """What the converter did to a tensor and is undone here."""

    SAME = "same"
    ROTARY_Q = "query rows permuted for interleaved rotary"
    ROTARY_K = "key rows permuted for interleaved rotary"
    ONE_PLUS = "1 + w stored for a norm"
    TRANSPOSED = "transposed from (in, out)"
    QKV_BY_HEAD = "fused rows were q, k, v by head"
    QKV_BY_GROUP = "fused rows were queries, key, value by key/value group"


_LLAMA = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "blk.{}.attn_norm": "model.layers.{}.input_layernorm",
    "blk.{}.attn_q": "model.layers.{}.self_attn.q_proj",
    "blk.{}.attn_k": "model.layers.{}.self_attn.k_proj",
    "blk.{}.attn_v": "model.layers.{}.self_attn.v_proj",
    "blk.{}.attn_output": "model.layers.{}.self_attn.o_proj",
    "blk.{}.ffn_norm": "model.layers.{}.post_attention_layernorm",
    "blk.{}.ffn_gate": "model.layers.{}.mlp.gate_proj",
    "blk.{}.ffn_up": "model.layers.{}.mlp.up_proj",
    "blk.{}.ffn_down": "model.layers.{}.mlp.down_proj",
}
_QK_NORM = {
    "blk.{}.attn_q_norm": "model.layers.{}.self_attn.q_norm",
    "blk.{}.attn_k_norm": "model.layers.{}.self_attn.k_norm",
}
_GEMMA2 = {
    **_LLAMA,
    "blk.{}.post_attention_norm": "model.layers.{}.post_attention_layernorm",
    "blk.{}.ffn_norm": "model.layers.{}.pre_feedforward_layernorm",
    "blk.{}.post_ffw_norm": "model.layers.{}.post_feedforward_layernorm",
}
_OLMO2 = {
    **{name: target for name, target in _LLAMA.items() if not name.endswith(("attn_norm", "ffn_norm"))},
    **_QK_NORM,
    "blk.{}.post_attention_norm": "model.layers.{}.post_attention_layernorm",
    "blk.{}.post_ffw_norm": "model.layers.{}.post_feedforward_layernorm",
}
_PHI3 = {
    **{name: target for name, target in _LLAMA.items() if not name.endswith(("_q", "_k", "_v", "_gate", "_up"))},
    "blk.{}.attn_qkv": "model.layers.{}.self_attn.qkv_proj",
    "blk.{}.ffn_up": "model.layers.{}.mlp.gate_up_proj",
}
_STARCODER2 = {
    **{name: target for name, target in _LLAMA.items() if not name.endswith(("_gate", "_up", "_down"))},
    "blk.{}.ffn_up": "model.layers.{}.mlp.c_fc",
    "blk.{}.ffn_down": "model.layers.{}.mlp.c_proj",
}
_GPT2 = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
    "blk.{}.attn_norm": "transformer.h.{}.ln_1",
    "blk.{}.attn_qkv": "transformer.h.{}.attn.c_attn",
    "blk.{}.attn_output": "transformer.h.{}.attn.c_proj",
    "blk.{}.ffn_norm": "transformer.h.{}.ln_2",
    "blk.{}.ffn_up": "transformer.h.{}.mlp.c_fc",
    "blk.{}.ffn_down": "transformer.h.{}.mlp.c_proj",
}
_BLOOM = {
    "token_embd": "transformer.word_embeddings",
    "token_embd_norm": "transformer.word_embeddings_layernorm",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
    "blk.{}.attn_norm": "transformer.h.{}.input_layernorm",
    "blk.{}.attn_qkv": "transformer.h.{}.self_attention.query_key_value",
    "blk.{}.attn_output": "transformer.h.{}.self_attention.dense",
    "blk.{}.ffn_norm": "transformer.h.{}.post_attention_layernorm",
    "blk.{}.ffn_up": "transformer.h.{}.mlp.dense_h_to_4h",
    "blk.{}.ffn_down": "transformer.h.{}.mlp.dense_4h_to_h",
}
_FALCON = {name: target for name, target in _BLOOM.items() if name not in ("token_embd_norm", "blk.{}.ffn_norm")}
_GPTNEOX = {
    "token_embd": "gpt_neox.embed_in",
    "output_norm": "gpt_neox.final_layer_norm",
    "output": "embed_out",
    "blk.{}.attn_norm": "gpt_neox.layers.{}.input_layernorm",
    "blk.{}.attn_qkv": "gpt_neox.layers.{}.attention.query_key_value",
    "blk.{}.attn_output": "gpt_neox.layers.{}.attention.dense",
    "blk.{}.ffn_norm": "gpt_neox.layers.{}.post_attention_layernorm",
    "blk.{}.ffn_up": "gpt_neox.layers.{}.mlp.dense_h_to_4h",
    "blk.{}.ffn_down": "gpt_neox.layers.{}.mlp.dense_4h_to_h",
}
_MPT = {
    "token_embd": "transformer.wte",
    "output_norm": "transformer.norm_f",
    "output": "lm_head",
    "blk.{}.attn_norm": "transformer.blocks.{}.norm_1",
    "blk.{}.attn_qkv": "transformer.blocks.{}.attn.Wqkv",
    "blk.{}.attn_output": "transformer.blocks.{}.attn.out_proj",
    "blk.{}.ffn_norm": "transformer.blocks.{}.norm_2",
    "blk.{}.ffn_up": "transformer.blocks.{}.ffn.up_proj",
    "blk.{}.ffn_down": "transformer.blocks.{}.ffn.down_proj",
}
_ROTARY_PERMUTED = {"attn_q": Layout.ROTARY_Q, "attn_k": Layout.ROTARY_K}
_NORM_PLUS_ONE: dict[str, Layout] = dict.fromkeys(
    ("attn_norm", "ffn_norm", "post_attention_norm", "post_ffw_norm", "attn_q_norm", "attn_k_norm", "output_norm"),
    Layout.ONE_PLUS,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Naming:
    """Names of an architecture's tensors and, by the last part of a GGUF name, the layouts to undo."""

    names: Mapping[str, str]
    layouts: Mapping[str, Layout] = field(default_factory=dict[str, Layout])


NAMINGS: Mapping[str, Naming] = {
    "llama": Naming(names=_LLAMA, layouts=_ROTARY_PERMUTED),
    "granite": Naming(names=_LLAMA, layouts=_ROTARY_PERMUTED),
    "qwen2": Naming(names=_LLAMA),
    "qwen3": Naming(names={**_LLAMA, **_QK_NORM}),
    "gemma": Naming(names=_LLAMA, layouts=_NORM_PLUS_ONE),
    "gemma2": Naming(names=_GEMMA2, layouts=_NORM_PLUS_ONE),
    "gemma3": Naming(names={**_GEMMA2, **_QK_NORM}, layouts=_NORM_PLUS_ONE),
    "phi3": Naming(names=_PHI3),
    "olmo2": Naming(names=_OLMO2),
    "starcoder2": Naming(names=_STARCODER2),
    "stablelm": Naming(names=_LLAMA),
    "command-r": Naming(names={name: target for name, target in _LLAMA.items() if name != "blk.{}.ffn_norm"}),
    "gpt2": Naming(
        names=_GPT2,
        layouts=dict.fromkeys(("attn_qkv", "attn_output", "ffn_up", "ffn_down"), Layout.TRANSPOSED),
    ),
    "falcon": Naming(names=_FALCON, layouts={"attn_qkv": Layout.QKV_BY_GROUP}),
    "bloom": Naming(names=_BLOOM, layouts={"attn_qkv": Layout.QKV_BY_HEAD}),
    "gptneox": Naming(names=_GPTNEOX, layouts={"attn_qkv": Layout.QKV_BY_HEAD}),
    "mpt": Naming(names=_MPT),
}
_FALCON_TWO_NORMS = {
    "blk.{}.attn_norm": "transformer.h.{}.ln_mlp",
    "blk.{}.attn_norm_2": "transformer.h.{}.ln_attn",
}
# Rotary factors are part of the configuration; the others are recomputed by every engine.
_NOT_WEIGHTS = re.compile(r"(blk\.\d+\.)?(rope_freqs|rope_factors_(long|short)|attn_rot_embd)(\.\w+)?|.*\.inv_freq")
_NAME = re.compile(r"(?:blk\.(?P<layer>\d+)\.)?(?P<part>\w+)\.(?P<kind>weight|bias)")


@dataclass(frozen=True, slots=True, kw_only=True)
class MappedTensor:
    """A GGUF tensor under its checkpoint name."""

    name: str
    gguf_name: str
    layout: Layout


def map_tensor_names(architecture: str, gguf_names: list[str]) -> dict[str, MappedTensor]:
    """Checkpoint name to GGUF tensor for every weight in the file.

    Raises:
        UnsupportedModel: an architecture without a table, or a tensor that its table does not know.
    """
    naming = NAMINGS.get(architecture)
    if naming is None:
        raise UnsupportedModel(
            f"GGUF architecture {architecture!r} is not served; known are {', '.join(sorted(NAMINGS))}; "
            f"use the model's safetensors folder"
        )
    names = dict(naming.names)
    if architecture == "falcon" and any("attn_norm_2" in name for name in gguf_names):
        names.update(_FALCON_TWO_NORMS)
    mapped: dict[str, MappedTensor] = {}
    for gguf_name in gguf_names:
        if _NOT_WEIGHTS.fullmatch(gguf_name):
            continue
        match = _NAME.fullmatch(gguf_name)
        layer, part, kind = match.group("layer", "part", "kind") if match else (None, gguf_name, "")
        target = names.get(part if layer is None else f"blk.{{}}.{part}")
        if target is None:
            raise UnsupportedModel(
                f"GGUF architecture {architecture!r}: no place for the tensor {gguf_name!r}; the file is of a variant "
                f"that is not served, so use the model's safetensors folder"
            )
        name = f"{target.format(layer)}.{kind}"
        layout = naming.layouts.get(part, Layout.SAME)
        if kind == "bias" and layout in (Layout.TRANSPOSED, Layout.ONE_PLUS):
            layout = Layout.SAME
        mapped[name] = MappedTensor(name=name, gguf_name=gguf_name, layout=layout)
    return mapped


def undo_layout(values: torch.Tensor, layout: Layout, num_heads: int, num_kv_heads: int) -> torch.Tensor:
    """The tensor as its checkpoint had it: a view where that is possible, else a copy.

    Args:
        values: the tensor as stored, rows (output features) first; for fused and rotary layouts also a bias.
        layout: what the converter did.
        num_heads: attention heads of the model.
        num_kv_heads: key and value heads of the model.
    """
    import torch

    rest = values.shape[1:]
    match layout:
        case Layout.SAME:
            return values
        case Layout.ONE_PLUS:
            return values - 1
        case Layout.TRANSPOSED:
            return values.t()
        case Layout.ROTARY_Q | Layout.ROTARY_K:
            heads = num_heads if layout is Layout.ROTARY_Q else num_kv_heads
            pairs = values.reshape(heads, -1, 2, *rest)
            return pairs.swapaxes(1, 2).reshape(values.shape)
        case Layout.QKV_BY_HEAD:
            return values.reshape(3, num_heads, -1, *rest).swapaxes(0, 1).reshape(values.shape)
        case Layout.QKV_BY_GROUP:
            head = values.shape[0] // (num_heads + 2 * num_kv_heads)
            ends = (num_heads * head, (num_heads + num_kv_heads) * head)
            parts = (values[: ends[0]], values[ends[0] : ends[1]], values[ends[1] :])
            groups = [part.reshape(num_kv_heads, -1, head, *rest) for part in parts]
            return torch.cat(groups, dim=1).reshape(values.shape)
