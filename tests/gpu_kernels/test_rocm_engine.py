"""A whole engine through ROCm's platform code: in the interpreter on the processor, or on an NVIDIA GPU.

Answers are compared with the CPU backend's, token by token, and on a GPU with the golden ones of a real model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from drivetrain.messages import GenerateRequest
from drivetrain.sampling import SamplingParams
from drivetrain_plugins.conformance.run import run_conformance
from drivetrain_plugins.conformance.suite import BackendConformance
from drivetrain_plugins.contract.backend import Device, RankInfo
from fakes.golden_engine import golden_engine, golden_requests
from fakes.tiny_engine import run, tiny_engine
from rocm_stand_in import RocmInterpreted, RocmInterpretedFnuz, RocmOnCuda, RocmOnCudaWithoutVirtualMemory

on_a_gpu = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.version.hip is not None, reason="needs an NVIDIA GPU"
)


@pytest.fixture
def opened(device: torch.device) -> Device:
    backend = RocmInterpreted() if device.type == "cpu" else RocmOnCuda()
    return backend.open(RankInfo(), {})


def requests() -> list[GenerateRequest]:
    """Greedy prompts of mixed lengths; two begin alike."""
    shared = [(7 * i) % 190 + 6 for i in range(40)]
    prompts = [[*shared, 9, 11], [5, 9, 13], [3], [*shared, 60, 61]]
    params = SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True, logprobs=2)
    return [
        GenerateRequest(request_id=str(index), prompt_ids=prompt, params=params) for index, prompt in enumerate(prompts)
    ]


def test_an_engine_answers_as_on_the_cpu_backend(opened: Device) -> None:
    """Chunked prompts, rows that decode beside them, shared pages, a window, log-probabilities."""
    options: dict[str, Any] = {"window": 24, "step_tokens": 32, "pages": 60, "rows": 3}
    expected = run(tiny_engine(**options), requests())
    engine = tiny_engine(device=opened, **options)
    got = run(engine, requests())
    for key, (ids, logprobs, reason) in expected.items():
        assert got[key][0] == ids
        assert got[key][2] == reason
        assert [each.logprob for each in got[key][1]] == pytest.approx([each.logprob for each in logprobs], abs=2e-4)
    assert engine.stats().prefix_hit_tokens > 0
    engine.close()


# What a page lost is NaN, which the interpreter's own maximum warns of.
@pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning")
@pytest.mark.parametrize("backend", [RocmInterpreted, RocmInterpretedFnuz])
@pytest.mark.parametrize("part", ["memory.", "capability."])
def test_pages_and_capabilities_keep_the_contract(device: torch.device, backend: type, part: str) -> None:
    if device.type == "cuda":
        pytest.skip("the suite below runs there")
    report = run_conformance(backend, only=part)
    failed = [f"{result.name}: {result.reason}" for result in report.results if result.outcome == "failed"]
    assert report.results and not failed


@on_a_gpu
class TestRocmOnCuda(BackendConformance):
    backend = "rocm_stand_in:RocmOnCuda"


@on_a_gpu
class TestRocmOnCudaWithoutVirtualMemory(BackendConformance):
    backend = "rocm_stand_in:RocmOnCudaWithoutVirtualMemory"


@on_a_gpu
def test_without_virtual_memory_nothing_is_recorded(caplog: pytest.LogCaptureFixture) -> None:
    opened = RocmOnCudaWithoutVirtualMemory().open(RankInfo(), {})
    assert not opened.capabilities.graphs
    assert "no virtual memory (this system has none)" in caplog.text
    opened.close()


@on_a_gpu
@pytest.mark.real_model
@pytest.mark.parametrize("graphs", [True, False])
def test_the_golden_answers_of_a_real_model(
    smollm2_path: Path, golden_outputs: list[dict[str, Any]], graphs: bool
) -> None:
    opened = RocmOnCuda().open(RankInfo(), {"graphs": graphs})
    engine = golden_engine(smollm2_path, opened, backend="rocm")
    answers = run(engine, golden_requests(golden_outputs, ignore_eos=True))
    assert [answers[str(at), 0][0] for at in range(len(golden_outputs))] == [
        golden["output_ids"] for golden in golden_outputs
    ]
    engine.close()
