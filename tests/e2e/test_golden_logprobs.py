"""Log-probabilities of the golden answers on the real model.

The golden file was made from weights that had been rounded to bfloat16; so rounded, ours agree to 1e-4.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from drivetrain.messages import GenerateRequest
from drivetrain.sampling import SamplingParams
from drivetrain_cpu.backend import CpuBackend
from drivetrain_plugins.contract.backend import RankInfo
from drivetrain_plugins.contract.executor import Weights
from fakes.golden_engine import golden_engine

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
    device = CpuBackend().open(RankInfo(), {"threads": 1})
    engine = golden_engine(smollm2_path, device, backend="cpu", page_size=16, changed=Rounded)
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
