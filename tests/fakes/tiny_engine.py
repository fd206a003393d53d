"""A whole engine on the CPU backend with a small random model, for tests that compare engines with each other."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch

from drivetrain.assembly import OpenedModel, connect
from drivetrain.config import EngineConfig
from drivetrain.engine import Engine
from drivetrain.grammar.compiler import GrammarCompiler
from drivetrain.messages import GenerateRequest, TokenLogprob
from drivetrain.pooling import EmbeddingFormat
from drivetrain.runner import ModelRunner
from drivetrain.sampling import SamplingParams
from drivetrain_cpu.backend import CpuBackend
from drivetrain_plugins.contract.backend import Device, RankInfo
from drivetrain_plugins.contract.capabilities import Dtype
from drivetrain_plugins.contract.executor import ExecutorLimits, Weights
from drivetrain_plugins.contract.memory import MemoryLimits
from drivetrain_plugins.contract.model import (
    AttentionSpec,
    DecoderSpec,
    LayerSpec,
    MlpSpec,
    NormSpec,
    RotarySpec,
    weight_shapes,
)

VOCAB_SIZE = 199
MAX_MODEL_LEN = 256
END_ID = 5

_NORM = NormSpec(kind="rms", eps=1e-5)


def tiny_spec(*, window: int | None = None, vocab_size: int = VOCAB_SIZE) -> DecoderSpec:
    """Two layers with grouped heads; the second may have a sliding window."""

    def layer(span: int | None) -> LayerSpec:
        mixer = AttentionSpec(
            num_heads=4, num_kv_heads=2, head_dim=16, scale=0.25, rotary=RotarySpec(dim=16, base=1e4), window=span
        )
        return LayerSpec(mixer=mixer, mlp=MlpSpec(inner_size=96, activation="silu"), norm=_NORM)

    return DecoderSpec(
        architecture="tiny",
        vocab_size=vocab_size,
        hidden_size=64,
        max_positions=MAX_MODEL_LEN,
        layers=(layer(None), layer(window)),
        final_norm=_NORM,
        tied=True,
    )


class RandomTensors(Weights):
    """Weights large enough that every position matters."""

    def __init__(self, spec: DecoderSpec, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._tensors = {
            name: torch.randn(shape, generator=generator) * 0.3 + ("norm" in name)
            for name, shape in weight_shapes(spec)
        }

    def load(self, name: str) -> torch.Tensor:
        return self._tensors[name]

    @property
    def total_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._tensors.values())


def tiny_engine(
    *,
    overlap: bool = False,
    step_tokens: int = 512,
    pages: int = 400,
    rows: int = 8,
    page_size: int = 16,
    max_waiting: int = 1000,
    window: int | None = None,
    seed: int = 0,
    vocab_size: int = VOCAB_SIZE,
    device: Device | None = None,
    end_ids: frozenset[int] = frozenset({END_ID}),
    grammars: GrammarCompiler | None = None,
    weights: Weights | None = None,
    spec: DecoderSpec | None = None,
    embedding: EmbeddingFormat | None = None,
    dtype: Dtype = "float32",
    **config: Any,
) -> Engine:
    """An engine on the CPU backend, if no `device` is given; `config` goes to `EngineConfig`."""
    spec = spec or tiny_spec(window=window, vocab_size=vocab_size)
    device = device or CpuBackend().open(RankInfo(), {"threads": 1})
    limits = ExecutorLimits(
        dtype=dtype,
        kv_dtype="float32",
        max_num_rows=rows,
        max_step_tokens=step_tokens,
        max_model_len=min(MAX_MODEL_LEN, spec.max_positions),
        page_size=page_size,
        memory=MemoryLimits(max_pages=pages),
    )
    executor = ModelRunner(device)
    plan = executor.load(spec, weights or RandomTensors(spec, seed), limits, lambda *progress: None)
    model = OpenedModel(path=Path(), name="tiny", config={}, spec=spec, end_ids=end_ids, embedding=embedding)
    return connect(
        EngineConfig(model="tiny", overlap="on" if overlap else "off", max_waiting=max_waiting, **config),
        model,
        executor,
        limits,
        plan,
        backend="cpu",
        capabilities=device.capabilities,
        weight_bytes=0,
        grammars=grammars,
    )


Answer = tuple[list[int], list[TokenLogprob], str | None]


def run(
    engine: Engine, requests: list[GenerateRequest], aborts: dict[int, list[str]] | None = None
) -> dict[Any, Answer]:
    """Submit everything, abort what `aborts` says at a step, step until all has ended; answers by (id, index)."""
    answers: dict[Any, Answer] = {}
    for request in requests:
        engine.submit(request)
    step = 0
    while engine.has_work:
        for request_id in (aborts or {}).get(step, ()):
            engine.abort(request_id)
        for update in engine.step():
            assert update.error is None, update
            ids, logprobs, _ = answers.get((update.request_id, update.index), ([], [], None))
            logprobs += update.logprobs or []
            answers[update.request_id, update.index] = (ids + update.token_ids, logprobs, update.finish_reason)
            if update.prompt_logprobs is not None:
                scored = [entry for entry in update.prompt_logprobs if entry is not None]
                answers[update.request_id, "prompt"] = ([], scored, None)
        step += 1
    return answers


def run_failing(
    engine: Engine, requests: list[GenerateRequest], planted: str
) -> tuple[dict[Any, list[int]], set[tuple[str, int]]]:
    """As `run`, where steps fail with the error `planted`: token ids by (id, index), and which of them failed."""
    answers: dict[Any, list[int]] = {}
    failed: set[tuple[str, int]] = set()
    for request in requests:
        engine.submit(request)
    while engine.has_work:
        for update in engine.step():
            key = (update.request_id, update.index)
            answers[key] = answers.get(key, []) + update.token_ids
            if update.error is not None:
                assert (update.error, update.finish_reason) == (planted, "error")
                failed.add(key)
    assert 0 < len(failed) < len(answers)
    return answers, failed


def random_requests(seed: int, count: int) -> list[GenerateRequest]:
    """Greedy, seeded, penalised, biased, scored and forked requests with shared prefixes and mixed lengths."""
    rng = random.Random(seed)
    head = [rng.randrange(6, VOCAB_SIZE) for _ in range(60)]
    kinds: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 0.8, "n": 3, "top_p": 0.9},
        {"temperature": 0.0, "repetition_penalty": 1.3, "frequency_penalty": 0.5, "logprobs": 3},
        {"temperature": 1.2, "top_k": 20, "min_p": 0.02, "min_tokens": 4},
        {"temperature": 0.0, "logit_bias": {7: 5.0}, "prompt_logprobs": 2, "logprobs": 1},
        {"temperature": 1.0, "presence_penalty": 1.0, "stop_token_ids": (11, 12)},
        {"temperature": 0.0, "ignore_eos": True},
    ]
    requests: list[GenerateRequest] = []
    for index in range(count):
        prompt = head[: rng.randint(0, 60)] + [rng.randrange(6, VOCAB_SIZE) for _ in range(rng.randint(1, 40))]
        kind, max_tokens = kinds[rng.randrange(len(kinds))], rng.randint(5, 44)
        if index % 3 == 0:  # short prompts and long answers: admitted together, they run out of pages together
            prompt, max_tokens, kind = prompt[:5], rng.randint(70, 100), kind | {"ignore_eos": True}
        params = SamplingParams(max_tokens=max_tokens, seed=rng.getrandbits(40), **kind)
        words = [[9], [10, 11], [20, 21, 22]] if rng.random() < 0.3 else []
        requests.append(
            GenerateRequest(
                request_id=f"r{index}",
                prompt_ids=prompt,
                params=params,
                bad_word_ids=words,
                priority=rng.randint(-2, 2),
                salt=rng.choice(("", "", "tenant")),
            )
        )
    return requests
