"""The real model in fp32 on a device of the test's choice, and the prompts of the golden file for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from drivetrain.assembly import connect, open_model, open_model_weights
from drivetrain.config import EngineConfig
from drivetrain.engine import Engine
from drivetrain.messages import GenerateRequest
from drivetrain.runner import ModelRunner
from drivetrain.sampling import SamplingParams
from drivetrain_plugins.contract.backend import Device
from drivetrain_plugins.contract.executor import ExecutorLimits, Weights
from drivetrain_plugins.contract.memory import MemoryLimits


def golden_engine(
    path: Path,
    device: Device,
    *,
    backend: str,
    rows: int = 8,
    step_tokens: int = 128,
    max_model_len: int = 512,
    page_size: int = 64,
    pages: int = 200,
    changed: Callable[[Weights], Weights] = lambda weights: weights,
) -> Engine:
    """An engine with the model at `path`, whose weights are what `changed` makes of them."""
    config = EngineConfig(model=str(path), dtype="float32")
    model = open_model(config)
    limits = ExecutorLimits(
        dtype="float32",
        kv_dtype="float32",
        max_num_rows=rows,
        max_step_tokens=step_tokens,
        max_model_len=max_model_len,
        page_size=page_size,
        memory=MemoryLimits(max_pages=pages),
    )
    spec, weights = open_model_weights(config, model, "float32")
    executor = ModelRunner(device)
    plan = executor.load(spec, changed(weights), limits, lambda *progress: None)
    return connect(
        config, model, executor, limits, plan, backend=backend, capabilities=device.capabilities, weight_bytes=0
    )


def golden_requests(golden: Iterable[Mapping[str, Any]], **params: Any) -> list[GenerateRequest]:
    """Greedy requests for as many tokens as the golden answers have; their ids count from "0"."""
    return [
        GenerateRequest(
            request_id=str(index),
            prompt_ids=each["prompt_ids"],
            params=SamplingParams(temperature=0.0, max_tokens=len(each["output_ids"]), **params),
        )
        for index, each in enumerate(golden)
    ]
