"""Small models with random weights, built without files on any backend, and requests of every kind for them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from drivetrain.assembly import OpenedModel, connect
from drivetrain.config import EngineConfig
from drivetrain.messages import GenerateRequest
from drivetrain.runner import ModelRunner
from drivetrain.sampling import SamplingParams
from drivetrain_plugins.contract.capabilities import Dtype
from drivetrain_plugins.contract.executor import ExecutorLimits, Weights
from drivetrain_plugins.contract.memory import MemoryLimits
from drivetrain_plugins.contract.model import DecoderSpec, weight_shapes

if TYPE_CHECKING:
    from drivetrain.engine import Engine
    from drivetrain_plugins.contract.backend import Device

VOCAB_SIZE = 1031
SMALL: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}
SMALL_WITH_QK_NORM: dict[str, Any] = SMALL | {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "hidden_size": 256,
    "tie_word_embeddings": True,
}


class RandomTensors(Weights):
    """Random weights by canonical name, the same for the same name, made on `device` where they are used.

    Args:
        scale: standard deviation of all but norms, which are one more. With the usual 0.02 of initialisation hardly
            any token depends on the ones before; 0.3 shows a wrong rotary base at once.
    """

    def __init__(self, spec: DecoderSpec, *, scale: float, device: str) -> None:
        self._shapes = dict(weight_shapes(spec))
        self._scale = scale
        self._device = device

    def load(self, name: str) -> torch.Tensor:
        generator = torch.Generator(self._device).manual_seed(sum(name.encode()))
        made = torch.randn(self._shapes[name], generator=generator, device=self._device) * self._scale
        return made + 1.0 if "norm" in name else made

    @property
    def total_bytes(self) -> int:
        return sum(4 * torch.Size(shape).numel() for shape in self._shapes.values())


def build(
    device: Device,
    spec: DecoderSpec,
    weights: Weights,
    *,
    backend: str,
    dtype: Dtype,
    overlap: bool,
    rows: int,
    max_model_len: int,
    page_size: int,
    max_step_tokens: int = 2048,
) -> Engine:
    """An engine with these weights on an opened device."""
    limits = ExecutorLimits(
        dtype=dtype,
        kv_dtype=dtype,
        max_num_rows=rows,
        max_step_tokens=max_step_tokens,
        max_model_len=max_model_len,
        page_size=page_size,
        memory=MemoryLimits(max_pages=rows * -(-max_model_len // page_size) + 1),
    )
    executor = device.executor() or ModelRunner(device)
    plan = executor.load(spec, weights, limits, lambda *progress: None)
    model = OpenedModel(path=Path(), name="random", config={}, spec=spec, end_ids=frozenset({5}))
    return connect(
        EngineConfig(model="random", overlap="on" if overlap else "off"),
        model,
        executor,
        limits,
        plan,
        backend=backend,
        capabilities=device.capabilities,
        weight_bytes=0,
    )


def answers(engine: Engine, requests: list[GenerateRequest]) -> dict[tuple[str, int], list[int]]:
    """Token ids of every completion; every page is back afterwards."""
    found: dict[tuple[str, int], list[int]] = {}
    for request in requests:
        engine.submit(request)
    while engine.has_work:
        for update in engine.step():
            found.setdefault((update.request_id, update.index), []).extend(update.token_ids)
    stats = engine.stats()
    assert stats.pages_free + stats.pages_cached == stats.pages_total, stats
    return found


def mixed_requests() -> list[GenerateRequest]:
    """Greedy, seeded draws, penalties, biases, n > 1, shared prefixes.

    With these numbers no token of either small model leads the next by less than 0.002, far beyond roundings in fp32.
    """
    rng = random.Random(12)
    head = [rng.randrange(6, VOCAB_SIZE) for _ in range(90)]
    kinds: tuple[dict[str, Any], ...] = (
        {"temperature": 0.0},
        {"temperature": 0.8, "seed": 3, "n": 2},
        {"temperature": 0.0, "repetition_penalty": 1.2, "logprobs": 2},
        {"temperature": 1.0, "seed": 4, "top_p": 0.9, "top_k": 50},
        {"temperature": 0.7, "seed": 5, "logit_bias": {7: 4.0, 9: -100.0}, "min_tokens": 6},
    )
    requests: list[GenerateRequest] = []
    for index in range(24):
        prompt = head[: rng.randint(1, 90)] + [rng.randrange(6, VOCAB_SIZE) for _ in range(rng.randint(1, 120))]
        params = SamplingParams(max_tokens=rng.randint(8, 64), **kinds[index % len(kinds)])
        requests.append(GenerateRequest(request_id=str(index), prompt_ids=prompt, params=params))
    return requests
