"""Embeddings: the hidden states of `transformers`, pooled, whatever the scheduler does to the prompt on the way."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from drivetrain.engine import Engine
from drivetrain.errors import ModelError, PromptTooLong, RequestError
from drivetrain.messages import GenerateRequest
from drivetrain.models.checkpoint import CheckpointWeights
from drivetrain.models.families import decoder_spec
from drivetrain.pooling import (
    EMBEDDING_PARAMS,
    EmbeddingFormat,
    PoolingKind,
    check_dimensions,
    embedding_format,
    embedding_of,
    shaped,
)
from drivetrain.sampling import SamplingParams
from drivetrain_plugins.contract.model import EmbeddingSpec
from fakes.tiny_engine import MAX_MODEL_LEN, VOCAB_SIZE, RandomTensors, tiny_engine, tiny_spec
from family_oracle import VOCAB, DictSource, model_config, random_model, saved_tensors

SIZES = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", SIZES),
    "mistral-window": ("MistralConfig", {**SIZES, "sliding_window": 6}),
    "qwen3": ("Qwen3Config", {**SIZES, "head_dim": 16}),
    "gemma2": ("Gemma2Config", {**SIZES, "head_dim": 16, "sliding_window": 6, "query_pre_attn_scalar": 24}),
    "gpt2": ("GPT2Config", {"n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "opt-projected": (
        "OPTConfig",
        {
            "hidden_size": 48,
            "ffn_dim": 80,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 64,
            "word_embed_proj_dim": 32,
            "do_layer_norm_before": False,
        },
    ),
    "bloom": ("BloomConfig", {"hidden_size": 48, "n_layer": 2, "n_head": 4}),
}
KINDS: tuple[PoolingKind, ...] = ("last", "mean")


def fmt(pooling: PoolingKind) -> EmbeddingFormat:
    return EmbeddingFormat(pooling=pooling, dimensions=None)


def embed(engine: Engine, prompts: Sequence[Sequence[int]], **fields: Any) -> list[np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for at, prompt in enumerate(prompts):
        engine.submit(
            GenerateRequest(
                request_id=f"e{at}", prompt_ids=list(prompt), params=EMBEDDING_PARAMS, embeds=True, **fields
            )
        )
    while engine.has_work:
        for update in engine.step():
            vector = embedding_of(update)
            if vector is not None:
                assert update.finish_reason == "stop"
                assert update.request_id not in found
                found[update.request_id] = vector
    return [found[f"e{at}"] for at in range(len(prompts))]


def pooled_states(states_TD: torch.Tensor, pooling: PoolingKind) -> np.ndarray:
    return (states_TD[-1] if pooling == "last" else states_TD.mean(0)).numpy()


def assert_same(got: Sequence[np.ndarray], expected: Sequence[np.ndarray], limit: float = 1e-4) -> None:
    for one, other in zip(got, expected, strict=True):
        assert one.shape == other.shape
        assert np.abs(one - other).max() <= limit * max(1.0, np.abs(other).max())


@pytest.mark.parametrize("family", FAMILIES)
def test_pooled_states_are_those_of_transformers(family: str) -> None:
    import transformers

    name, values = FAMILIES[family]
    config = getattr(transformers, name)(**model_config(**values))
    model = random_model(config)
    raw = config.to_dict() | {"architectures": [type(model).__name__]}
    weights = CheckpointWeights(DictSource(saved_tensors(model)), raw, decoder_spec(raw))
    rng = random.Random(5)
    prompts = [[rng.randrange(VOCAB) for _ in range(length)] for length in (1, 7, 33, 60)]
    with torch.no_grad():
        states = [model.base_model(torch.tensor([prompt])).last_hidden_state[0] for prompt in prompts]
    for pooling in KINDS:
        # 13 tokens a step cut the longer prompts into chunks that end nowhere near a page's end.
        engine = tiny_engine(spec=weights.spec, weights=weights, embedding=fmt(pooling), step_tokens=13, page_size=4)
        assert engine.info.embedding_size == states[0].shape[1]
        assert_same(embed(engine, prompts), [pooled_states(each, pooling) for each in states])
        engine.close()


@pytest.mark.parametrize("size", [0, 32], ids=["plain", "projected"])
def test_sums_that_float16_cannot_hold_are_kept_in_float32(size: int) -> None:
    spec = replace(tiny_spec(), embedding=EmbeddingSpec(size=size))
    weights = RandomTensors(spec, 3)
    weights.load("final_norm.weight").mul_(4000.0)
    prompt = [6 + at * 7 % 150 for at in range(250)]
    engines = [
        tiny_engine(spec=spec, weights=weights, embedding=fmt("mean"), dtype=dtype, step_tokens=200)
        for dtype in ("float32", "float16")
    ]
    (expected,), (got,) = (embed(engine, [prompt]) for engine in engines)
    assert np.abs(expected).max() * len(prompt) > 2 * float(torch.finfo(torch.float16).max)
    assert_same([got], [expected], 2e-2)


def test_a_checkpoint_without_its_output_matrix_is_the_same_model() -> None:
    import transformers

    model = random_model(transformers.Qwen3Config(**model_config(**SIZES, head_dim=16)))
    bare = {name.removeprefix("model."): x for name, x in saved_tensors(model).items() if not name.startswith("lm_")}
    raw = model.config.to_dict() | {"architectures": ["Qwen3Model"], "tie_word_embeddings": False}
    weights = CheckpointWeights(DictSource(bare), raw, decoder_spec(raw))
    engine = tiny_engine(spec=weights.spec, weights=weights, embedding=fmt("last"))
    with torch.no_grad():
        states = model.base_model(torch.tensor([[3, 1, 4, 1, 5]])).last_hidden_state[0]
    assert_same(embed(engine, [[3, 1, 4, 1, 5]]), [states[-1].numpy()])


@pytest.mark.parametrize("pooling", KINDS)
@pytest.mark.parametrize("overlap", [False, True])
def test_chunks_preemption_prefixes_and_answers_beside_change_nothing(pooling: PoolingKind, overlap: bool) -> None:
    rng = random.Random(11)
    head = [rng.randrange(6, VOCAB_SIZE) for _ in range(50)]
    prompts = [head[: rng.choice((0, 16, 33, 50))] + [rng.randrange(6, VOCAB_SIZE) for _ in range(n)] for n in
               (1, 90, 17, 120, 5, 64, 33, 100)]  # fmt: skip
    plain = tiny_engine(embedding=fmt(pooling), prefix_cache=False, step_tokens=1024)
    expected = [embed(plain, [prompt])[0] for prompt in prompts]
    busy = tiny_engine(embedding=fmt(pooling), overlap=overlap, step_tokens=40, pages=20, page_size=16, rows=6)
    for at in range(4):
        params = SamplingParams(temperature=0.0, max_tokens=90, ignore_eos=True)
        busy.submit(GenerateRequest(request_id=f"g{at}", prompt_ids=head[: 9 * at + 1], params=params, priority=1))
    assert_same(embed(busy, prompts), expected, 1e-5)
    assert busy.stats().preemptions > 0
    assert_same(embed(busy, prompts), expected, 1e-5)
    stats = busy.stats()
    assert (stats.running, stats.waiting, stats.pages_used) == (0, 0, 0)
    assert stats.pages_free + stats.pages_cached == stats.pages_total


def test_only_the_last_token_may_come_from_behind_a_cached_prefix() -> None:
    prompt = list(range(6, 106))
    for pooling, cached in (("last", 96), ("mean", 0)):
        engine = tiny_engine(embedding=fmt(pooling), page_size=16)  # type: ignore[arg-type]
        embed(engine, [prompt])
        assert engine.stats().prefix_hit_tokens == 0
        embed(engine, [prompt])
        assert engine.stats().prefix_hit_tokens == cached
        # What an embedding computed serves answers too.
        engine.submit(GenerateRequest(request_id="g", prompt_ids=prompt, params=SamplingParams(max_tokens=1)))
        while engine.has_work:
            engine.step()
        assert engine.stats().prefix_hit_tokens == cached + 96


def test_an_aborted_embedding_leaves_nothing() -> None:
    engine = tiny_engine(embedding=fmt("mean"), step_tokens=16, overlap=True)
    prompt = list(range(6, 106))
    engine.submit(GenerateRequest(request_id="e", prompt_ids=prompt, params=EMBEDDING_PARAMS, embeds=True))
    engine.step()
    engine.step()
    engine.abort("e")
    updates = [update for _ in range(5) for update in engine.step()]
    assert [update.finish_reason for update in updates] == ["abort"]
    assert updates[0].embedding is None
    assert engine.stats().pages_used == 0
    assert not engine.has_work
    assert engine._reports._sums._sums == {}, "what landed of it is forgotten"


def test_a_prompt_may_fill_the_whole_context() -> None:
    engine = tiny_engine(embedding=fmt("last"))
    prompt = [6 + at % 100 for at in range(MAX_MODEL_LEN)]
    (vector,) = embed(engine, [prompt])
    assert vector.shape == (64,)
    with pytest.raises(PromptTooLong, match="257 tokens are more than the context of 256"):
        embed(engine, [[*prompt, 7]])


def test_without_embeddings_the_refusal_says_how_to_get_them() -> None:
    with pytest.raises(RequestError, match=r'pooling = "last" or "mean"') as refused:
        embed(tiny_engine(), [[7]])
    assert refused.value.param == "model"


def test_vectors_are_cut_first_and_brought_to_length_one_then() -> None:
    vector = np.array([3.0, 4.0, 12.0], np.float32)
    assert shaped(vector, None).tolist() == pytest.approx([3 / 13, 4 / 13, 12 / 13])
    assert shaped(vector, 2).tolist() == pytest.approx([0.6, 0.8])
    assert shaped(vector, 2, normalize=False).tolist() == [3.0, 4.0]
    assert shaped(np.zeros(2, np.float32), None).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("asked", "allowed", "message"),
    [(65, None, "have 1 to 64; got 65"), (16, (), "have 64; got 16"), (16, (32, 8), "have 8, 32, 64; got 16")],
)
def test_dimensions_that_a_model_does_not_have(asked: int, allowed: tuple[int, ...] | None, message: str) -> None:
    check_dimensions(64, 64, ())
    check_dimensions(8, 64, (8, 32))
    with pytest.raises(RequestError, match=message):
        check_dimensions(asked, 64, allowed)


def folder(
    tmp_path: Path, *, modes: dict[str, object] | None = None, modules: Sequence[str] = (), **config: Any
) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(config))
    if modes is not None:
        (tmp_path / "1_Pooling").mkdir()
        (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 64, **modes}))
    if modules:
        listed = [{"idx": at, "type": f"sentence_transformers.models.{name}"} for at, name in enumerate(modules)]
        (tmp_path / "modules.json").write_text(json.dumps(listed))
    return tmp_path


def test_a_folder_made_for_embeddings_says_how(tmp_path: Path) -> None:
    modes = {"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False}
    path = folder(tmp_path, modes=modes, modules=["Transformer", "Pooling", "Normalize"])
    assert embedding_format(path, "auto") == EmbeddingFormat(pooling="last", dimensions=None)
    assert embedding_format(path, "mean") == EmbeddingFormat(pooling="mean", dimensions=())
    assert embedding_format(path, "none") is None


def test_a_folder_that_says_nothing_serves_embeddings_on_demand_only(tmp_path: Path) -> None:
    path = folder(tmp_path, matryoshka_dimensions=[32, 8])
    assert embedding_format(path, "auto") is None
    assert embedding_format(path, "last") == EmbeddingFormat(pooling="last", dimensions=(32, 8))
    assert embedding_format(tmp_path / "model.gguf", "auto") is None
    assert embedding_format(tmp_path / "model.gguf", "mean") == EmbeddingFormat(pooling="mean", dimensions=())


@pytest.mark.parametrize(
    ("modes", "modules", "message"),
    [
        ({"pooling_mode_cls_token": True}, [], "pooling_mode_cls_token is not served"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}, [], "max_tokens and pooling_mode_mean"),
        ({}, [], "no pooling mode"),
        ({"pooling_mode_mean_tokens": True}, ["Transformer", "Pooling", "Dense"], "the module Dense is not served"),
    ],
)
def test_a_folder_that_asks_for_more_is_refused(
    tmp_path: Path, modes: dict[str, object], modules: list[str], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        embedding_format(folder(tmp_path, modes=modes, modules=modules), "auto")
