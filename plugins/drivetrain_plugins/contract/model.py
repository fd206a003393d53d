"""A decoder as data: what core's one decoder, a backend's fused ops and a vendor's own executor build from.

Canonical weight names, in the (out, in) order of a linear layer; `{i}` is the layer:

    embed.weight (V, E)   embed.positions (P, D)   embed.norm.weight|bias   embed.project.weight (D, E)
    layers.{i}.attn_norm | attn_post_norm | mlp_norm | mlp_post_norm .weight|bias (D)
    layers.{i}.attn.q.weight (H*K, D)  attn.k.weight, attn.v.weight (G*K, D)  attn.out.weight (D, H*K)   and .bias
    layers.{i}.attn.q_norm|k_norm.weight|bias (K), (H, K) or (H*K)     layers.{i}.attn.sinks (H)
    layers.{i}.mlp.gate.weight, mlp.up.weight (F, D)  mlp.down.weight (D, F)   and .bias
    final_norm.weight|bias (D)   lm_head.weight (V, E)   lm_head.bias (V)   unembed.project.weight (E, D)

V vocabulary, D hidden size, E embedding size (D unless projected), H query heads, G key-value heads, K head size,
F inner size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

Activation = Literal["silu", "gelu", "gelu_tanh", "gelu_quick", "relu", "relu2"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NormSpec:
    """Root-mean-square or layer norm over the last dimension, computed in fp32.

    Attributes:
        weight_offset: added to the stored weight (1.0 for Gemma).
        weight: whether there is a weight at all.
        late_weight: round the normalised value to the activation type before the weight is applied (Llama), rather
            than after (Gemma). Only visible in 16 bits.
    """

    kind: Literal["rms", "layer"]
    eps: float
    weight_offset: float = 0.0
    weight: bool = True
    bias: bool = False
    late_weight: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class RotarySpec:
    """Rotary position embedding of the first `dim` elements of each head.

    Attributes:
        style: "half" rotates element j with j + dim / 2, "interleaved" 2 j with 2 j + 1.
        scaling: "none" or the kind of frequency scaling.
        parameters: the scaling's own numbers under their Hugging Face names.
        short_factors, long_factors: per-frequency factors of "longrope".
    """

    dim: int
    base: float
    style: Literal["half", "interleaved"] = "half"
    scaling: Literal["none", "linear", "dynamic", "llama3", "yarn", "longrope"] = "none"
    parameters: tuple[tuple[str, float], ...] = ()
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class QKNormSpec:
    """Norm of queries and keys before rotary.

    Attributes:
        span: "head" shares one weight (K), "heads" has one a head (H, K), "full" norms all heads together (H K).
    """

    norm: NormSpec
    span: Literal["head", "heads", "full"] = "head"


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionSpec:
    """Grouped-query attention of one layer.

    Attributes:
        scale: factor of the scores.
        window: a token sees itself and `window - 1` tokens before it; None sees all.
        soft_cap: scores become cap * tanh(score / cap).
        sinks: one learned logit a query head joins the softmax's denominator.
        alibi_slopes: per query head, added to scores as slope * (key position - query position); empty for none.
        clip_qkv: clamp of the projections.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    rotary: RotarySpec | None = None
    window: int | None = None
    soft_cap: float | None = None
    sinks: bool = False
    alibi_slopes: tuple[float, ...] = ()
    qk_norm: QKNormSpec | None = None
    qkv_bias: bool = False
    out_bias: bool = False
    clip_qkv: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MlpSpec:
    """Feed-forward part: down(act(gate(x)) * up(x)) if gated, else down(act(up(x)))."""

    inner_size: int
    activation: Activation
    gated: bool = True
    up_bias: bool = False
    down_bias: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSpec:
    """One decoder layer.

    Attributes:
        mixer: how tokens exchange information. Other mixers join this union.
        mlp: how each token is transformed. Mixtures of experts join this union.
        pre_norm: norm the input of mixer and mlp.
        branch_norm: norm the output of mixer and mlp before it is added (Gemma 2, OLMo 2).
        sum_norm: norm the residual stream after each addition (the original transformer).
        parallel: mixer and mlp read the same stream and are added together; "shared" uses one input norm for both.
        residual_scale: factor of each branch before it is added.
    """

    mixer: AttentionSpec
    mlp: MlpSpec
    norm: NormSpec
    pre_norm: bool = True
    branch_norm: bool = False
    sum_norm: bool = False
    parallel: Literal["no", "shared", "separate"] = "no"
    residual_scale: float = 1.0

    @property
    def norm_names(self) -> tuple[str, ...]:
        """Which norms this layer has, by canonical name."""
        names: list[str] = []
        if self.pre_norm or self.sum_norm:
            names.append("attn_norm")
            if self.parallel != "shared":
                names.append("mlp_norm")
        if self.branch_norm:
            names += ["attn_post_norm", "mlp_post_norm"]
        return tuple(names)


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingSpec:
    """From ids to the residual stream.

    Attributes:
        scale: factor of the token embedding.
        positions: rows of a learned position table, 0 for none.
        position_offset: added to a position before the table is read (OPT: 2).
        norm: norm of the sum (BLOOM).
        size: width of the token embedding where it is projected to the hidden size, else 0.
    """

    scale: float = 1.0
    positions: int = 0
    position_offset: int = 0
    norm: NormSpec | None = None
    size: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderSpec:
    """A whole decoder-only model.

    Attributes:
        max_positions: longest context that the checkpoint was made for.
        logits_scale: factor of the logits.
        logits_soft_cap: logits become cap * tanh(logit / cap).
        tied: the output matrix is the embedding.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    max_positions: int
    layers: tuple[LayerSpec, ...]
    embedding: EmbeddingSpec = field(default_factory=EmbeddingSpec)
    final_norm: NormSpec | None
    tied: bool = False
    lm_head_bias: bool = False
    logits_scale: float = 1.0
    logits_soft_cap: float | None = None


def weight_shapes(spec: DecoderSpec) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Canonical name and shape of every weight of a model, in layer order."""
    width = spec.embedding.size or spec.hidden_size
    yield "embed.weight", (spec.vocab_size, width)
    if spec.embedding.positions:
        yield "embed.positions", (spec.embedding.positions + spec.embedding.position_offset, spec.hidden_size)
    if spec.embedding.norm is not None:
        yield from _norm_shapes("embed.norm", spec.embedding.norm, (width,))
    if spec.embedding.size:
        yield "embed.project.weight", (spec.hidden_size, width)
    for index, layer in enumerate(spec.layers):
        yield from _layer_shapes(f"layers.{index}", layer, spec.hidden_size)
    if spec.final_norm is not None:
        yield from _norm_shapes("final_norm", spec.final_norm, (spec.hidden_size,))
    if spec.embedding.size:
        yield "unembed.project.weight", (width, spec.hidden_size)
    if not spec.tied:
        yield "lm_head.weight", (spec.vocab_size, width)
    if spec.lm_head_bias:
        yield "lm_head.bias", (spec.vocab_size,)


def _layer_shapes(prefix: str, layer: LayerSpec, hidden: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name in layer.norm_names:
        yield from _norm_shapes(f"{prefix}.{name}", layer.norm, (hidden,))
    attn, mlp = layer.mixer, layer.mlp
    q_size, kv_size = attn.num_heads * attn.head_dim, attn.num_kv_heads * attn.head_dim
    for name, size in (("q", q_size), ("k", kv_size), ("v", kv_size)):
        yield f"{prefix}.attn.{name}.weight", (size, hidden)
        if attn.qkv_bias:
            yield f"{prefix}.attn.{name}.bias", (size,)
    yield f"{prefix}.attn.out.weight", (hidden, q_size)
    if attn.out_bias:
        yield f"{prefix}.attn.out.bias", (hidden,)
    if attn.qk_norm is not None:
        for name, heads in (("q_norm", attn.num_heads), ("k_norm", attn.num_kv_heads)):
            shape = {
                "head": (attn.head_dim,),
                "heads": (heads, attn.head_dim),
                "full": (heads * attn.head_dim,),
            }[attn.qk_norm.span]
            yield from _norm_shapes(f"{prefix}.attn.{name}", attn.qk_norm.norm, shape)
    if attn.sinks:
        yield f"{prefix}.attn.sinks", (attn.num_heads,)
    for name in ("gate", "up") if mlp.gated else ("up",):
        yield f"{prefix}.mlp.{name}.weight", (mlp.inner_size, hidden)
        if mlp.up_bias:
            yield f"{prefix}.mlp.{name}.bias", (mlp.inner_size,)
    yield f"{prefix}.mlp.down.weight", (hidden, mlp.inner_size)
    if mlp.down_bias:
        yield f"{prefix}.mlp.down.bias", (hidden,)


def _norm_shapes(prefix: str, norm: NormSpec, shape: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    if norm.weight:
        yield f"{prefix}.weight", shape
    if norm.bias:
        yield f"{prefix}.bias", shape
