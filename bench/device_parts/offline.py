"""The token workloads through `LLM` with random weights, beside the floor of physics on this device."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import Any

import workloads
from device_parts import floor, step_profile
from device_parts.ceilings import measure
from device_parts.folders import dummy_folder
from device_parts.settings import Record, Settings, model_config
from drivetrain.engine import Engine
from drivetrain.llm import LLM
from drivetrain.models.families import decoder_spec
from drivetrain.sampling import SamplingParams
from drivetrain.version import __version__

MAX_NUM_SEQS = 512
MAX_MODEL_LEN = 8192
TEMPERATURE = 0.6


def run(settings: Settings, record: Record) -> None:
    """Every workload on one model: `settings.models` has one name here."""
    (name,) = settings.models
    ceilings = measure()
    costs = floor.costs(decoder_spec(model_config(name)))
    record.put(model=name, ceilings=asdict(ceilings), costs=asdict(costs))
    started = time.perf_counter()
    phases: dict[str, float] = {}
    with open_llm(settings, name, phases) as llm:
        start_s = time.perf_counter() - started
        record.put(start_s=round(start_s, 2), phases=phases, info=asdict(llm.info))
        warm_up(llm)
        for workload in settings.workloads:
            work = load(settings, workload)
            floor_s = floor.workload_s(work, costs, ceilings, llm.info.max_num_rows)
            for repetition in range(settings.repetitions):
                row = timed(llm, work) | {
                    "engine": f"drivetrain {__version__}",
                    "model": name,
                    "work": workload,
                    "repetition": repetition,
                    "floor_s": round(floor_s, 3),
                    "start_s": round(start_s, 1),
                    "digest": workloads.digest(work),
                }
                row["of_floor"] = round(floor_s / row["s"], 3)
                print("ROW", json.dumps(row), flush=True)
                record.append("rows", row)
        for workload in settings.profile:
            # The profile steps the engine by hand.
            found = profile(settings, llm._engine, workload, costs, ceilings)
            record.append("profiles", found)


def open_llm(settings: Settings, name: str, phases: dict[str, float]) -> LLM:
    """The model with random weights. `phases` is filled with the seconds that each phase of the start took."""

    def on_phase(phase: Any) -> None:
        if phase.finished:
            phases[phase.name] = round(phase.elapsed_s, 3)

    fields: dict[str, Any] = {"max_num_seqs": MAX_NUM_SEQS, "max_model_len": MAX_MODEL_LEN, "dtype": "bfloat16"}
    if settings.tiny:
        fields |= {"max_num_seqs": 8, "max_model_len": 512}
    folder = dummy_folder(settings, name)
    fields |= {"backend": settings.backend, "load_format": "dummy"} | settings.engine
    return LLM(str(folder), on_phase=on_phase, **fields)


def load(settings: Settings, workload: str) -> workloads.Work:
    """A workload; shortened where this is only a try."""
    if settings.tiny:
        vocab_size = model_config(settings.models[0])["vocab_size"]
        return workloads.shortened(workloads.make(workload, vocab_size), requests=10, tokens=24)
    return workloads.make(workload)


def warm_up(llm: LLM) -> None:
    """Eight short answers, as every engine gets before the clock starts."""
    params = SamplingParams(max_tokens=16, ignore_eos=True, detokenize=False)
    llm.generate([list(range(1000, 1064))] * 8, params, progress=False)


def timed(llm: LLM, work: workloads.Work) -> dict[str, Any]:
    """One repetition from an empty prefix cache; every answer has exactly its tokens."""
    llm.reset_prefix_cache()
    params = [
        SamplingParams(temperature=TEMPERATURE, max_tokens=answer, ignore_eos=True, detokenize=False)
        for _, answer in work
    ]
    before = llm.stats()
    started = time.perf_counter()
    outputs = llm.generate([prompt for prompt, _ in work], params, progress=False)
    seconds = time.perf_counter() - started
    after = llm.stats()
    for output, (_, answer) in zip(outputs, work, strict=True):
        got = len(output.completions[0].token_ids)
        assert got == answer, f"an answer has {got} tokens, expected {answer}"
    made, read = sum(answer for _, answer in work), sum(len(prompt) for prompt, _ in work)
    steps = after.steps - before.steps
    return {
        "s": round(seconds, 3),
        "out_tok_s": round(made / seconds, 1),
        "total_tok_s": round((made + read) / seconds, 1),
        "steps": steps,
        "step_ms": round(1000 * (after.step_s - before.step_s) / steps, 3),
        "schedule_ms": round(1000 * (after.schedule_s - before.schedule_s) / steps, 3),
        "preemptions": after.preemptions - before.preemptions,
        "prefix_hit_tokens": after.prefix_hit_tokens - before.prefix_hit_tokens,
    }


def profile(settings: Settings, engine: Engine, workload: str, costs: floor.Costs, ceilings: Any) -> dict[str, Any]:
    """Steady decoding of a workload's requests, beside the floor of one such step."""
    work = load(settings, workload)[: engine.info.max_num_rows]
    engine.reset_prefix_cache()
    found = {"work": workload, **step_profile.profile(engine, work, temperature=TEMPERATURE)}
    # Half of what is timed has been answered by the middle of the measurement.
    shared = floor.shared_tokens(work)
    held = shared + sum(len(prompt) - shared + 16 + step_profile.TIMED_STEPS // 2 for prompt, _ in work)
    found["floor_us"] = round(1e6 * floor.step_s(costs, ceilings, len(work), held), 1)
    shown = {key: value for key, value in found.items() if key not in ("kernels", "gaps")}
    print("PROFILE", json.dumps(shown), flush=True)
    for kernel in found["kernels"][:16]:
        print(f"  {kernel['us']:10.1f} us {kernel['calls']:7.1f} x {kernel['share']:6.1%}  {kernel['name'][:80]}")
    for gap in found["gaps"][:4]:
        print(f"  gap {gap['us']:6.1f} us {gap['count']:6.1f} x  {gap['after'][:40]} -> {gap['before'][:40]}")
    return found
