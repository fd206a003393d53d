"""What most families read in the same way: sizes, norms, rotary scaling, windows, ALiBi slopes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from drivetrain.models.families.config import ModelConfig
from drivetrain_plugins.contract.model import DecoderSpec, EmbeddingSpec, LayerSpec, NormSpec, RotarySpec

Scaling = Literal["none", "linear", "dynamic", "llama3", "yarn", "longrope"]

_SCALINGS: dict[str, Scaling] = {
    "default": "none",
    "none": "none",
    "linear": "linear",
    "dynamic": "dynamic",
    "llama3": "llama3",
    "yarn": "yarn",
    "longrope": "longrope",
    "su": "longrope",
}
_REQUIRED: dict[Scaling, tuple[str, ...]] = {
    "none": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": (),
    "longrope": (),
}
_OPTIONAL: dict[Scaling, tuple[str, ...]] = {
    "none": (),
    "linear": (),
    "dynamic": (),
    "llama3": (),
    "yarn": ("factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"),
    "longrope": ("factor", "attention_factor"),
}
_ELSEWHERE = frozenset(
    ("rope_type", "type", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings", "finetuned")
)
_LISTS = ("short_factor", "long_factor")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """The numbers that every decoder has."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    max_positions: int


def sizes(config: ModelConfig, *, max_positions: int | None = None) -> Sizes:
    """Read them under any of their names.

    Raises:
        UnsupportedModel: one is missing, or heads do not divide.
    """
    hidden = config.size("hidden_size", "n_embd", "n_embed", "d_model")
    heads = config.size("num_attention_heads", "n_head", "n_heads")
    kv_heads = config.size("num_key_value_heads", default=heads)
    if heads % kv_heads:
        raise config.refuse("num_key_value_heads", kv_heads, f"a divisor of {heads} attention heads")
    if not config.given("head_dim") and hidden % heads:
        raise config.refuse("hidden_size", hidden, f"a multiple of {heads} attention heads")
    return Sizes(
        hidden=hidden,
        layers=config.size("num_hidden_layers", "n_layer", "n_layers"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=config.size("head_dim", default=hidden // heads),
        vocab=config.size("vocab_size"),
        max_positions=config.size(
            "max_position_embeddings", "n_positions", "max_seq_len", "seq_length", default=max_positions
        ),
    )


def decoder(
    config: ModelConfig,
    size: Sizes,
    layers: Sequence[LayerSpec],
    *,
    final_norm: NormSpec | None,
    tied: bool,
    embedding: EmbeddingSpec | None = None,
    lm_head_bias: bool = False,
    logits_scale: float = 1.0,
    logits_soft_cap: float | None = None,
) -> DecoderSpec:
    """The whole model. `tied` is the family's default, which the configuration overrides."""
    return DecoderSpec(
        architecture=config.architecture,
        vocab_size=size.vocab,
        hidden_size=size.hidden,
        max_positions=size.max_positions,
        layers=tuple(layers),
        embedding=embedding or EmbeddingSpec(),
        final_norm=final_norm,
        tied=config.flag("tie_word_embeddings", default=tied),
        lm_head_bias=lm_head_bias,
        logits_scale=logits_scale,
        logits_soft_cap=logits_soft_cap,
    )


def rms_norm(config: ModelConfig, *, eps: float = 1e-6, late_weight: bool = True, offset: float = 0.0) -> NormSpec:
    """Root-mean-square norm with the configuration's epsilon."""
    return NormSpec(
        kind="rms",
        eps=config.number("rms_norm_eps", default=eps),
        weight_offset=offset,
        late_weight=late_weight,
    )


def layer_norm(eps: float, *, bias: bool = True, weight: bool = True) -> NormSpec:
    """Layer norm as torch computes it: weight and bias before rounding."""
    return NormSpec(kind="layer", eps=eps, bias=bias, weight=weight, late_weight=False)


def windows(config: ModelConfig, layers: int, sliding: Callable[[int], bool]) -> list[int | None]:
    """Each layer's window: by `layer_types` where the configuration has it, else where `sliding(layer)`."""
    types = config.strings("layer_types")
    if types is None:
        types = ["sliding_attention" if sliding(layer) else "full_attention" for layer in range(layers)]
    for kind in types:
        if kind not in ("sliding_attention", "full_attention"):
            raise config.refuse("layer_types", kind, "full_attention or sliding_attention")
    if len(types) != layers:
        raise config.refuse("layer_types", f"{len(types)} entries", f"one for each of {layers} layers")
    if "sliding_attention" not in types:
        return [None] * layers
    window = config.size("sliding_window")
    return [window if kind == "sliding_attention" else None for kind in types]


def rotary(
    config: ModelConfig,
    size: Sizes,
    *,
    base: float = 10000.0,
    style: Literal["half", "interleaved"] = "half",
    partial: float = 1.0,
    layer_type: str | None = None,
    base_key: str = "rope_theta",
    scaled: bool = True,
) -> RotarySpec:
    """Rotary embedding and its scaling, from either generation of configurations.

    Newer files have `rope_parameters`, by layer type in some families; older ones `rope_theta` and `rope_scaling`.

    Args:
        base, partial: the family's defaults.
        base_key: the older name of this layer type's base.
        scaled: whether the older `rope_scaling` applies to this layer type.
    """
    table = _rotary_table(config, layer_type, scaled=scaled)
    theta = table.number("rope_theta", default=config.number(base_key, "rotary_emb_base", default=base))
    share = table.number(
        "partial_rotary_factor", default=config.number("partial_rotary_factor", "rotary_pct", default=partial)
    )
    kind = _scaling(table)
    dim = int(size.head_dim * share)
    if dim < 2 or dim % 2 or dim > size.head_dim:
        raise config.refuse("partial_rotary_factor", share, f"an even part of heads of {size.head_dim}")
    return RotarySpec(
        dim=dim,
        base=theta,
        style=style,
        scaling=kind,
        parameters=_parameters(config, table, kind, size.max_positions),
        short_factors=_factors(table, "short_factor", dim) if kind == "longrope" else (),
        long_factors=_factors(table, "long_factor", dim) if kind == "longrope" else (),
    )


def _rotary_table(config: ModelConfig, layer_type: str | None, *, scaled: bool) -> ModelConfig:
    empty = ModelConfig({}, config.architecture)
    table = config.section("rope_parameters")
    if table is None:
        return (config.section("rope_scaling") if scaled else None) or empty
    by_layer_type = any(table.given(key) for key in ("full_attention", "sliding_attention"))
    if layer_type is None or not by_layer_type:
        return table
    return table.section(layer_type) or empty


def _scaling(table: ModelConfig) -> Scaling:
    kind = table.text("rope_type", "type", default="default")
    if kind not in _SCALINGS:
        raise table.refuse("rope_type", kind, f"one of {', '.join(_SCALINGS)}")
    return _SCALINGS[kind]


def _parameters(
    config: ModelConfig, table: ModelConfig, kind: Scaling, max_positions: int
) -> tuple[tuple[str, float], ...]:
    """A scaling's numbers, complete: what the file leaves to defaults that depend on other keys is filled in."""
    if kind == "none":
        return ()
    known = {*_ELSEWHERE, *_REQUIRED[kind], *_OPTIONAL[kind]}
    known |= {"truncate"} if kind == "yarn" else set(_LISTS) if kind == "longrope" else set()
    for key in table.given_keys():
        if key not in known:
            raise table.refuse(f"rope_parameters.{key}", table.raw(key), f"no such key with rope_type {kind!r}")
    numbers = {key: table.number(key) for key in _REQUIRED[kind]}
    numbers |= {key: table.number(key) for key in _OPTIONAL[kind] if table.given(key)}
    if kind == "dynamic":
        numbers["original_max_position_embeddings"] = float(max_positions)
    if kind in ("llama3", "yarn", "longrope"):
        original = config.number(
            "original_max_position_embeddings",
            default=table.number("original_max_position_embeddings", default=float(max_positions)),
        )
        numbers["original_max_position_embeddings"] = original
        numbers.setdefault("factor", max_positions / original)
    if kind == "yarn":
        numbers["truncate"] = float(table.flag("truncate", default=True))
    return tuple(sorted(numbers.items()))


def _factors(table: ModelConfig, key: str, dim: int) -> tuple[float, ...]:
    factors = table.numbers(key)
    if len(factors) != dim // 2:
        raise table.refuse(key, f"{len(factors)} entries", f"a list of {dim // 2} numbers")
    return factors


def alibi_slopes(num_heads: int, max_bias: float = 8.0) -> tuple[float, ...]:
    """Slope of each head: a geometric series, filled up from the series of twice as many heads.

    Source: "Train Short, Test Long: Attention with Linear Biases Enables Input Length Extrapolation".
    """
    power = 1 << (num_heads.bit_length() - 1)
    slopes = [2.0 ** (-max_bias * (head + 1) / power) for head in range(power)]
    slopes += [2.0 ** (-max_bias * (2 * head + 1) / (2 * power)) for head in range(num_heads - power)]
    return tuple(slopes)


def score_scale(head_dim: float) -> float:
    """One over the square root of the head size."""
    return 1.0 / math.sqrt(head_dim)
