"""The whole engine on a real GPU through plain torch ops: are answers right, and what does the host cost a step?

    PYTHONPATH=core:plugins:bench/torch_backend python bench/gpu_probe.py [--config tests/data/configs/Qwen3-0.6B.json]

Needs a CUDA device, torch and msgspec. Prints one JSON line a measurement:

- answers of a small random model in fp32 on the GPU (graphs, one step ahead) against the CPU (neither), by token;
- decode throughput with random bf16 weights, with and without running ahead;
- from a profile of steady decoding: device time a step, and the idle gap between the last kernel of a step and the
  first of the next.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import time
from pathlib import Path

import torch

from device_parts.random_model import SMALL, RandomTensors, answers, build, mixed_requests
from drivetrain.engine import Engine
from drivetrain.messages import GenerateRequest
from drivetrain.models.families import decoder_spec
from drivetrain.sampling import SamplingParams
from drivetrain_plain import PlainBackend
from drivetrain_plugins.contract.backend import RankInfo
from drivetrain_plugins.contract.capabilities import Dtype
from drivetrain_plugins.contract.model import DecoderSpec


def build_plain(
    spec: DecoderSpec, device: str, dtype: Dtype, *, overlap: bool, rows: int, max_model_len: int, scale: float = 0.02
) -> Engine:
    """An engine on the plain backend with random weights."""
    kv_bytes = 16 << 30 if device == "cuda" else 1 << 28
    opened = PlainBackend().open(RankInfo(), {"device": device, "kv_bytes": kv_bytes})
    # Weights of the check are made on the CPU for both devices: generators differ between devices.
    return build(
        opened,
        spec,
        RandomTensors(spec, scale=scale, device="cpu" if scale != 0.02 else device),
        backend="plain",
        dtype=dtype,
        overlap=overlap,
        rows=rows,
        max_model_len=max_model_len,
        page_size=64,
    )


def check_answers() -> None:
    """GPU with graphs and overlap against CPU without either, in fp32."""
    spec = decoder_spec(SMALL)
    expected = answers(
        build_plain(spec, "cpu", "float32", overlap=False, rows=8, max_model_len=512, scale=0.3), mixed_requests()
    )
    for overlap in (False, True):
        engine = build_plain(spec, "cuda", "float32", overlap=overlap, rows=8, max_model_len=512, scale=0.3)
        got = answers(engine, mixed_requests())
        wrong = [key for key in expected if expected[key] != got.get(key)]
        tokens = sum(len(ids) for ids in expected.values())
        print(
            json.dumps(
                {
                    "check": "answers",
                    "overlap": overlap,
                    "completions": len(expected),
                    "tokens": tokens,
                    "different": len(wrong),
                }
            ),
            flush=True,
        )


def decode(engine: Engine, rows: int, *, prompt: int, tokens: int) -> float:
    """Output tokens a second from the moment all rows decode."""
    rng = random.Random(rows)
    vocab_size = engine.info.vocab_size
    for index in range(rows):
        ids = [rng.randrange(1000, vocab_size) for _ in range(prompt)]
        params = SamplingParams(temperature=0.0, max_tokens=tokens + 64, ignore_eos=True)
        engine.submit(GenerateRequest(request_id=f"{rows}-{index}", prompt_ids=ids, params=params))
    made = 0
    while made < rows * 16:
        made += sum(len(update.token_ids) for update in engine.step())
    torch.cuda.synchronize()
    started, made = time.perf_counter(), 0
    while made < rows * tokens:
        made += sum(len(update.token_ids) for update in engine.step())
    return made / (time.perf_counter() - started)


def profile_gap(engine: Engine, rows: int) -> dict[str, float]:
    """Device time of a step and the gap before the next, in microseconds, medians over 40 steps."""
    from torch.profiler import ProfilerActivity, profile

    for index in range(rows):
        params = SamplingParams(temperature=0.0, max_tokens=300, ignore_eos=True)
        engine.submit(GenerateRequest(request_id=f"p{index}", prompt_ids=[1000 + index] * 128, params=params))
    for _ in range(40):
        engine.step()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as session:
        for _ in range(40):
            engine.step()
        torch.cuda.synchronize()
    events = sorted(
        (event.time_range.start, event.time_range.end, event.name)
        for event in session.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
    )
    # A step begins with the copy of its packed batch to the device.
    starts = [place for place, event in enumerate(events) if "HtoD" in event[2]]
    gaps: list[float] = []
    spans: list[float] = []
    for first, last in itertools.pairwise(starts):
        spans.append(events[last - 1][1] - events[first][0])
        gaps.append(events[last][0] - max(end for _, end, _ in events[first:last]))
    for index in range(rows):
        engine.abort(f"p{index}")
    while engine.has_work:
        engine.step()
    return {
        "rows": rows,
        "steps": len(gaps),
        "step_us": round(statistics.median(spans), 1),
        "gap_us": round(statistics.median(gaps), 1),
        "gap_p90_us": round(sorted(gaps)[int(0.9 * len(gaps))], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=Path("tests/data/configs/Qwen3-0.6B.json"))
    arguments = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    print(json.dumps({"device": torch.cuda.get_device_name(), "torch": torch.__version__}), flush=True)
    check_answers()
    spec = decoder_spec(json.loads(arguments.config.read_text()))
    for overlap in (False, True):
        started = time.perf_counter()
        engine = build_plain(spec, "cuda", "bfloat16", overlap=overlap, rows=64, max_model_len=2048)
        print(
            json.dumps(
                {"model": arguments.config.stem, "overlap": overlap, "start_s": round(time.perf_counter() - started, 1)}
            ),
            flush=True,
        )
        for rows in (1, 8, 64):
            rate = decode(engine, rows, prompt=256, tokens=200)
            print(json.dumps({"overlap": overlap, "rows": rows, "tok_s": round(rate, 1)}), flush=True)
            for index in range(rows):
                engine.abort(f"{rows}-{index}")
            while engine.has_work:
                engine.step()
        for rows in (1, 64):
            print(json.dumps({"overlap": overlap, "profile": profile_gap(engine, rows)}), flush=True)
        engine.close()
        del engine
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
