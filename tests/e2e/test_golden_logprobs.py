"""Log-probabilities of the golden answers on the real model.

The golden file was made from weights that had been rounded to bfloat16; so rounded, ours agree to 1e-4.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from drivetrain.assembly import connect, open_model, open_model_weights
from drivetrain.config import EngineConfig
from drivetrain.messages import GenerateRequest
from drivetrain.runner import ModelRunner
from drivetrain.sampling import SamplingParams
from drivetrain_cpu.backend import CpuBackend
from drivetrain_plugins.contract.backend import RankInfo
from drivetrain_plugins.contract.executor import ExecutorLimits, Weights
from drivetrain_plugins.contract.memory import MemoryLimits

pytestmark = pytest.mark.real_model

TOLERANCE = 1e-4


class Rounded(Weights):
    """Weights as a bfloat16 checkpoint would hold them."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights

    def load(self, name: str) -> torch.Tensor:
        return self._weights.load(name).bfloat16().float()

    @property
    def total_bytes(self) -> int:
        return self._weights.total_bytes


def test_log_probabilities_of_the_golden_answers(smollm2_path: Path, golden_outputs: list[dict[str, Any]]) -> None:
    config = EngineConfig(model=str(smollm2_path), dtype="float32")
    model = open_model(config)
    device = CpuBackend().open(RankInfo(), {"threads": 1})
    limits = ExecutorLimits(
        dtype="float32",
        kv_dtype="float32",
        max_num_rows=8,
        max_step_tokens=128,
        max_model_len=512,
        page_size=16,
        memory=MemoryLimits(max_pages=200),
    )
    spec, weights = open_model_weights(config, model, "float32")
    executor = ModelRunner(device)
    plan = executor.load(spec, Rounded(weights), limits, lambda *progress: None)
    engine = connect(
        config, model, executor, limits, plan, backend="cpu", capabilities=device.capabilities, weight_bytes=0
    )
    params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=1)
    for index, golden in enumerate(golden_outputs):
        ids = golden["prompt_ids"] + golden["output_ids"]
        engine.submit(GenerateRequest(request_id=str(index), prompt_ids=ids, params=params))
    scored: dict[str, list[Any]] = {}
    while engine.has_work:
        for update in engine.step():
            if update.prompt_logprobs is not None:
                scored[update.request_id] = update.prompt_logprobs
    for index, golden in enumerate(golden_outputs):
        answer = scored[str(index)][len(golden["prompt_ids"]) :]
        assert [entry.logprob for entry in answer] == pytest.approx(golden["logprobs"], abs=TOLERANCE)
        assert [entry.top[0][0] for entry in answer] == golden["output_ids"]
        assert all(entry.rank == 1 for entry in answer)
    engine.close()
