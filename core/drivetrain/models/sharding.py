"""Tensor parallelism: the share of one rank, computed from the spec.

Query heads, inner features and vocabulary rows are split evenly; key-value heads too, or each is kept by several ranks
where there are fewer heads than ranks. What sums over ranks (`attn.out`, `mlp.down`) is split by columns, and its bias
stays with rank 0. Norms and embeddings are whole everywhere.

H query heads, G key-value heads, K head size, F inner size, V vocabulary.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from drivetrain.errors import UnsupportedModel
from drivetrain_plugins.contract.model import AttentionSpec, DecoderSpec, LayerSpec, weight_shapes


@dataclass(frozen=True, slots=True)
class Slice:
    """`start` to `stop` of one dimension. An empty slice means that another rank has the weight."""

    dim: int
    start: int
    stop: int


def shard_spec(spec: DecoderSpec, rank: int, world: int) -> DecoderSpec:
    """The spec with this rank's numbers of heads and inner features.

    Raises:
        UnsupportedModel: they do not divide by the number of ranks.
    """
    if world == 1:
        return spec
    return replace(spec, layers=tuple(_shard_layer(spec, layer, rank, world) for layer in spec.layers))


def shards(spec: DecoderSpec, rank: int, world: int) -> dict[str, Slice | None]:
    """What this rank keeps of each canonical weight; None is all of it.

    Args:
        spec: of the whole model.

    Raises:
        UnsupportedModel: the model cannot be split over so many ranks.
    """
    if world == 1:
        return {name: None for name, _ in weight_shapes(spec)}
    for layer in spec.layers:
        _shard_layer(spec, layer, rank, world)
    return {name: _slice(name, shape, spec, rank, world) for name, shape in weight_shapes(spec)}


def vocab_shard(vocab_size: int, rank: int, world: int) -> tuple[int, int]:
    """Rows of the output matrix that a rank keeps; all but the last ranks have equally many."""
    share = vocab_share(vocab_size, world)
    return min(rank * share, vocab_size), min((rank + 1) * share, vocab_size)


def vocab_share(vocab_size: int, world: int) -> int:
    """Rows of the output matrix a rank, rounded up."""
    return -(-vocab_size // world)


def _shard_layer(spec: DecoderSpec, layer: LayerSpec, rank: int, world: int) -> LayerSpec:
    attn = layer.mixer
    problem = None
    if attn.num_heads % world:
        problem = f"{attn.num_heads} attention heads"
    elif attn.num_kv_heads % world and world % attn.num_kv_heads:
        problem = f"{attn.num_kv_heads} key-value heads"
    elif layer.mlp.inner_size % world:
        problem = f"{layer.mlp.inner_size} inner features"
    elif attn.qk_norm is not None and attn.qk_norm.span == "full":
        problem = "norms over all queries and all keys together"
    if problem is not None:
        raise UnsupportedModel(
            f"{spec.architecture} has {problem}, which cannot be split over {world} ranks; "
            f"choose another number of ranks for tensor parallelism"
        )
    heads = attn.num_heads // world
    mixer = replace(
        attn,
        num_heads=heads,
        num_kv_heads=max(1, attn.num_kv_heads // world),
        alibi_slopes=attn.alibi_slopes[rank * heads : (rank + 1) * heads],
    )
    return replace(layer, mixer=mixer, mlp=replace(layer.mlp, inner_size=layer.mlp.inner_size // world))


_LAYER_NAME = re.compile(r"layers\.(\d+)\.(.+)")


def _slice(name: str, shape: tuple[int, ...], spec: DecoderSpec, rank: int, world: int) -> Slice | None:
    if name in ("lm_head.weight", "lm_head.bias"):
        return Slice(0, *vocab_shard(spec.vocab_size, rank, world))
    match = _LAYER_NAME.fullmatch(name)
    if match is None:
        return None
    attn = spec.layers[int(match[1])].mixer
    module, _, suffix = match[2].rpartition(".")
    if module in ("attn.out", "mlp.down"):
        if suffix == "bias":
            return None if rank == 0 else Slice(0, 0, 0)
        return _even(1, shape[1], rank, world)
    if module in ("mlp.gate", "mlp.up"):
        return _even(0, shape[0], rank, world)
    if match[2] == "attn.sinks" or module == "attn.q":
        return _even(0, shape[0], rank, world)
    if module in ("attn.k", "attn.v"):
        return _kv_heads(attn, rank, world, unit=attn.head_dim)
    if attn.qk_norm is not None and attn.qk_norm.span == "heads":
        if module == "attn.q_norm":
            return _even(0, shape[0], rank, world)
        if module == "attn.k_norm":
            return _kv_heads(attn, rank, world, unit=1)
    return None


def _even(dim: int, size: int, rank: int, world: int) -> Slice:
    share = size // world
    return Slice(dim, rank * share, (rank + 1) * share)


def _kv_heads(attn: AttentionSpec, rank: int, world: int, *, unit: int) -> Slice:
    count = max(1, attn.num_kv_heads // world)
    first = rank * attn.num_kv_heads // world
    return Slice(0, first * unit, (first + count) * unit)
