"""How a family's checkpoint names map to canonical ones, as data.

Keys are canonical modules without layer number, such as `layers.attn.q`; values say where the weights stand in the
checkpoint. In a checkpoint name `{root}` is the prefix that some files have and others lack, `{i}` the layer.

H query heads, G key-value heads, K head size, F inner size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from drivetrain_plugins.contract.model import LayerSpec

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Fused:
    """One of several projections that the checkpoint stores as one tensor.

    Attributes:
        part: which of them.
        order: "packed" has all queries, then all keys, then all values (or gate, then up); "grouped" has the queries,
            the key and the value of one key-value head after another.
    """

    module: str
    part: Literal["q", "k", "v", "gate", "up"]
    order: Literal["packed", "grouped"] = "packed"

    def rows(self, layer: LayerSpec) -> int:
        """Rows that the fused tensor has."""
        if self.part in ("gate", "up"):
            return 2 * layer.mlp.inner_size
        attn = layer.mixer
        return (attn.num_heads + 2 * attn.num_kv_heads) * attn.head_dim

    def take(self, fused: torch.Tensor, layer: LayerSpec) -> torch.Tensor:
        """This part of a fused weight (rows, in) or bias (rows); a view where the order allows it."""
        if self.part in ("gate", "up"):
            inner = layer.mlp.inner_size
            return fused[:inner] if self.part == "gate" else fused[inner:]
        attn = layer.mixer
        heads, kv_heads, size = attn.num_heads, attn.num_kv_heads, attn.head_dim
        if self.order == "packed":
            start = {"q": 0, "k": heads, "v": heads + kv_heads}[self.part] * size
            return fused[start : start + (heads if self.part == "q" else kv_heads) * size]
        queries = heads // kv_heads
        groups = fused.reshape(kv_heads, queries + 2, size, *fused.shape[1:])
        wanted = {"q": groups[:, :queries], "k": groups[:, queries], "v": groups[:, queries + 1]}[self.part]
        return wanted.reshape(-1, *fused.shape[1:])


@dataclass(frozen=True, slots=True, kw_only=True)
class Stacked:
    """One module a head, stacked here. `{h}` in the name is the head."""

    module: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Either:
    """The first of several modules that the checkpoint has."""

    modules: tuple[str, ...]


Place = str | Fused | Stacked | Either


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightNames:
    """Where a family keeps its weights.

    Attributes:
        places: by canonical module; whole names (with suffix) for weights whose canonical name has no suffix.
        roots: possible values of `{root}`; the one whose embedding exists is meant.
        transposed: projections are stored (in, out), as GPT-2's are.
        ignored: patterns (`fnmatch`) of names that are no weights, or belong to parts that are not served.
    """

    places: Mapping[str, Place]
    roots: tuple[str, ...] = ("model.", "")
    transposed: bool = False
    ignored: tuple[str, ...] = ()


def projections(attention: str, mlp: str, *, out: str, up: str, down: str, gate: str | None = None) -> dict[str, Place]:
    """Attention and feed-forward modules of a layer that stores q, k and v apart."""
    places: dict[str, Place] = {f"layers.attn.{part}": f"{attention}.{part}_proj" for part in "qkv"}
    places |= {"layers.attn.out": f"{attention}.{out}", "layers.mlp.up": f"{mlp}.{up}"}
    places |= {"layers.mlp.down": f"{mlp}.{down}"}
    if gate is not None:
        places["layers.mlp.gate"] = f"{mlp}.{gate}"
    return places


def fused_qkv(module: str, order: Literal["packed", "grouped"]) -> dict[str, Place]:
    """Queries, keys and values out of one module."""
    return {
        "layers.attn.q": Fused(module=module, part="q", order=order),
        "layers.attn.k": Fused(module=module, part="k", order=order),
        "layers.attn.v": Fused(module=module, part="v", order=order),
    }


_LAYER = "{root}layers.{i}"
LLAMA_PLACES: Mapping[str, Place] = {
    "embed": "{root}embed_tokens",
    "layers.attn_norm": f"{_LAYER}.input_layernorm",
    "layers.mlp_norm": f"{_LAYER}.post_attention_layernorm",
    **projections(
        f"{_LAYER}.self_attn", f"{_LAYER}.mlp", out="o_proj", gate="gate_proj", up="up_proj", down="down_proj"
    ),
    "final_norm": "{root}norm",
    "lm_head": "lm_head",
}
ROTARY_BUFFERS = ("*.rotary_emb.inv_freq",)
LLAMA_NAMES = WeightNames(places=LLAMA_PLACES, ignored=ROTARY_BUFFERS)
QK_NORM_PLACES: Mapping[str, Place] = {
    "layers.attn.q_norm": f"{_LAYER}.self_attn.q_norm",
    "layers.attn.k_norm": f"{_LAYER}.self_attn.k_norm",
}
BRANCH_NORM_PLACES: Mapping[str, Place] = {
    "layers.attn_post_norm": f"{_LAYER}.post_attention_layernorm",
    "layers.mlp_norm": f"{_LAYER}.pre_feedforward_layernorm",
    "layers.mlp_post_norm": f"{_LAYER}.post_feedforward_layernorm",
}
