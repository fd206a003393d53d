"""Tensor parallelism: shares reassemble to the whole, and ranks together compute what one rank computes."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from drivetrain.errors import UnsupportedModel
from drivetrain.models.decoder import Decoder
from drivetrain.models.families import decoder_spec
from drivetrain.models.sharding import Slice, shard_spec, shards
from drivetrain_plugins.contract.communicator import SoleRank
from drivetrain_plugins.contract.executor import Weights
from drivetrain_plugins.contract.model import DecoderSpec, weight_shapes
from family_oracle import MAX_LEN, VOCAB, Row, Session, assert_close, cpu_device

SHARED = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "max_position_embeddings": MAX_LEN,
}
MODELS: dict[str, dict[str, Any]] = {
    "gqa-biases": {
        "architectures": ["LlamaForCausalLM"],
        "num_key_value_heads": 2,
        "attention_bias": True,
        "mlp_bias": True,
    },
    "norms-of-heads": {
        "architectures": ["CohereForCausalLM"],
        "num_key_value_heads": 4,
        "use_qk_norm": True,
        "logit_scale": 0.5,
    },
    "alibi-sequential": {
        "architectures": ["FalconForCausalLM"],
        "multi_query": False,
        "parallel_attn": False,
        "alibi": True,
        "bias": True,
        "ffn_hidden_size": 80,
    },
    "branch-norms-caps": {
        "architectures": ["Gemma2ForCausalLM"],
        "num_key_value_heads": 2,
        "head_dim": 8,
        "sliding_window": 5,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 8.0,
    },
    "norm-after-sum": {
        "architectures": ["OPTForCausalLM"],
        "ffn_dim": 80,
        "word_embed_proj_dim": 32,
        "do_layer_norm_before": False,
    },
}


class RandomHostWeights(Weights):
    """Wide random weights by name."""

    def __init__(self, spec: DecoderSpec) -> None:
        generator = torch.Generator().manual_seed(5)
        self.tensors = {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in weight_shapes(spec)}

    @property
    def total_bytes(self) -> int:
        return 4 * sum(tensor.numel() for tensor in self.tensors.values())

    def load(self, name: str) -> torch.Tensor:
        return self.tensors[name]


class Group:
    """Ranks that are threads of this process."""

    def __init__(self, world: int) -> None:
        self.world = world
        self.barrier = threading.Barrier(world, timeout=20)
        self.parts: list[torch.Tensor] = [torch.empty(0)] * world

    def exchange(self, rank: int, x: torch.Tensor) -> Sequence[torch.Tensor]:
        self.parts[rank] = x.clone()
        self.barrier.wait()
        parts = list(self.parts)
        self.barrier.wait()
        return parts


class ThreadRank(SoleRank):
    """The collectives that a decoder uses, between threads."""

    def __init__(self, group: Group, rank: int) -> None:
        self.group, self.rank, self.world = group, rank, group.world

    def all_reduce(self, inout: torch.Tensor) -> torch.Tensor:
        return inout.copy_(sum(self.group.exchange(self.rank, inout)))

    def all_gather(self, x: torch.Tensor, dim: int = -1) -> torch.Tensor:
        return torch.cat(list(self.group.exchange(self.rank, x)), dim)


def model_spec(name: str) -> DecoderSpec:
    return decoder_spec(SHARED | MODELS[name])


def run(spec: DecoderSpec, weights: Weights, device: Any) -> torch.Tensor:
    decoder = Decoder(spec, device, "float32", MAX_LEN)
    decoder.load(weights, lambda *_: None)
    session = Session(decoder, device)
    session.step([Row(0, 0, list(range(3, 20))), Row(1, 0, [4, 5])])
    return torch.cat(session.step([Row(0, 17, [9]), Row(1, 2, [8, 7, 6])]))


@pytest.mark.parametrize("world", [2, 4, 8])
@pytest.mark.parametrize("name", MODELS)
def test_ranks_together_give_the_logits_of_one(name: str, world: int) -> None:
    spec = model_spec(name)
    weights, group = RandomHostWeights(spec), Group(world)
    devices = [cpu_device(communicator=ThreadRank(group, rank)) for rank in range(world)]
    with ThreadPoolExecutor(world) as pool:
        results = list(pool.map(lambda device: run(spec, weights, device), devices))
    whole = run(spec, weights, cpu_device())
    assert whole.shape == (4, VOCAB)
    for logits in results:
        assert_close(logits, whole)


@pytest.mark.parametrize("name", MODELS)
def test_shares_have_the_shapes_of_the_ranks_spec_and_reassemble(name: str) -> None:
    spec, world = model_spec(name), 2
    weights = RandomHostWeights(spec).tensors
    kept = [shards(spec, rank, world) for rank in range(world)]
    shapes = [dict(weight_shapes(shard_spec(spec, rank, world))) for rank in range(world)]
    for tensor_name, whole in weights.items():
        parts = [piece[tensor_name] for piece in kept]
        if parts[0] is None and parts[1] is None:
            assert all(shape[tensor_name] == tuple(whole.shape) for shape in shapes)
            continue
        if tensor_name.endswith(("attn.out.bias", "mlp.down.bias")):
            assert parts == [None, Slice(0, 0, 0)]
            continue
        assert parts[0] is not None and parts[1] is not None
        pieces = [whole.narrow(part.dim, part.start, part.stop - part.start) for part in (parts[0], parts[1])]
        assert torch.equal(torch.cat(pieces, parts[0].dim), whole), tensor_name
        if not tensor_name.startswith("lm_head"):
            assert [shape[tensor_name] for shape in shapes] == [tuple(piece.shape) for piece in pieces]


def test_key_value_heads_are_kept_by_several_ranks_where_they_are_fewer() -> None:
    spec = model_spec("gqa-biases")
    kept = [shards(spec, rank, 4)["layers.0.attn.k.weight"] for rank in range(4)]
    assert kept == [Slice(0, 0, 8), Slice(0, 0, 8), Slice(0, 8, 16), Slice(0, 8, 16)]
    assert shard_spec(spec, 3, 4).layers[0].mixer.num_kv_heads == 1


def test_the_last_ranks_may_have_fewer_vocabulary_rows() -> None:
    spec = decoder_spec(SHARED | MODELS["gqa-biases"])
    kept = [shards(spec, rank, 8)["lm_head.weight"] for rank in range(8)]
    assert kept[0] == Slice(0, 0, 13) and kept[7] == Slice(0, 91, 97)


def test_alibi_slopes_follow_their_heads() -> None:
    spec = model_spec("alibi-sequential")
    halves = [shard_spec(spec, rank, 2).layers[0].mixer.alibi_slopes for rank in range(2)]
    assert halves[0] + halves[1] == spec.layers[0].mixer.alibi_slopes


@pytest.mark.parametrize(
    ("config", "world", "message"),
    [
        (SHARED | MODELS["gqa-biases"], 3, "8 attention heads, which cannot be split over 3 ranks"),
        (
            SHARED | MODELS["gqa-biases"] | {"num_attention_heads": 12, "head_dim": 8, "num_key_value_heads": 4},
            6,
            "4 key",
        ),
        (SHARED | MODELS["gqa-biases"] | {"intermediate_size": 81}, 2, "81 inner features"),
        (SHARED | {"architectures": ["Olmo2ForCausalLM"]}, 2, "norms over all queries"),
    ],
)
def test_what_cannot_be_split_is_refused(config: dict[str, Any], world: int, message: str) -> None:
    spec = decoder_spec(config)
    with pytest.raises(UnsupportedModel, match=message):
        shards(spec, 0, world)
    with pytest.raises(UnsupportedModel, match=message):
        shard_spec(spec, 0, world)


def test_a_ranks_bytes_are_those_that_it_holds() -> None:
    spec = model_spec("gqa-biases")
    one = Decoder(spec, cpu_device(), "float32", MAX_LEN).weight_bytes
    assert one == RandomHostWeights(spec).total_bytes
    ranks = [
        Decoder(spec, cpu_device(communicator=ThreadRank(Group(2), rank)), "float32", MAX_LEN).weight_bytes
        for rank in range(2)
    ]
    whole = VOCAB * 64 + 5 * 64  # the embedding and five norms stand on both ranks
    assert sum(ranks) == one + 4 * whole
