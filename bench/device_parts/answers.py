"""Are the answers right: golden outputs of a real model, and small random models against the CPU in fp32.

In fp32 every token has to be the reference's. In bf16 a near tie may fall either way and the answers part from there,
so the reference's answer is given as a prompt, and the likeliest next token has to be its own wherever that led by
more than `CLEAR_MARGIN` nats.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from device_parts.random_model import (
    SMALL,
    SMALL_WITH_QK_NORM,
    VOCAB_SIZE,
    RandomTensors,
    answers,
    build,
    mixed_requests,
)
from device_parts.settings import ROOT, Record, Settings
from drivetrain.config import EngineConfig
from drivetrain.devices import choose, open_device
from drivetrain.engine import Engine
from drivetrain.llm import LLM
from drivetrain.messages import GenerateRequest, Update
from drivetrain.models.families import decoder_spec
from drivetrain.sampling import SamplingParams
from drivetrain_plugins.contract.capabilities import Dtype

GOLDEN = ROOT / "tests/data/golden-SmolLM2-135M-Instruct.json"
CLEAR_MARGIN = 0.5
EXACT_SCALE = 0.3
ROUNDED_SCALE = 0.12
"""Of the weights in fp32 and bf16: larger ones make every token hang on all before it, and roundings too."""


REFERENCE: dict[str, Any] = {"cpu": {"threads": 1}}
"""Options of the reference backend: these models are too small for more threads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A greedy answer and by how much each of its tokens led."""

    prompt_ids: list[int]
    output_ids: list[int]
    margins: Sequence[float]

    def lead(self, place: int) -> float | None:
        """By how much the token at a place led; None past the end."""
        return self.margins[place] if place < len(self.margins) else None


def run(settings: Settings, record: Record) -> None:
    """Random models first, then the golden outputs where the model's file is there."""
    for name, config in (("grouped queries", SMALL), ("query and key norms", SMALL_WITH_QK_NORM)):
        _check_random(settings, record, name, config)
    if settings.golden_model:
        _check_golden(settings, record)
    else:
        record.put(golden="not run: no model file was given")


def _check_random(settings: Settings, record: Record, name: str, config: dict[str, Any]) -> None:
    reference = _engine(config, "cpu", "float32", EXACT_SCALE, overlap=False, options=REFERENCE)
    expected = answers(reference, mixed_requests())
    reference.close()
    reference = _engine(config, "cpu", "float32", ROUNDED_SCALE, overlap=False, options=REFERENCE)
    clear = _references(reference)
    reference.close()
    options = settings.engine.get("backend_options", {})
    for overlap in (False, True):
        engine = _engine(config, settings.backend, "float32", EXACT_SCALE, overlap=overlap, options=options)
        got = answers(engine, mixed_requests())
        engine.close()
        different = {
            f"{request}/{index}": _first_difference(ids, got[request, index])
            for (request, index), ids in expected.items()
            if got[request, index] != ids
        }
        row = {"model": name, "dtype": "float32", "overlap": overlap, "completions": len(expected)}
        row |= {"tokens": sum(map(len, expected.values())), "different": different}
        print("ANSWERS", json.dumps(row), flush=True)
        record.append("random", row)
        if different:
            record.fail(f"{name}, fp32, overlap {overlap}: first different token by completion: {different}")
    engine = _engine(config, settings.backend, "bfloat16", ROUNDED_SCALE, overlap=True, options=options)
    _record_forced(record, f"random model, {name}", clear, _ranks_of_engine(engine, clear))
    engine.close()


def _first_difference(expected: Sequence[int], got: Sequence[int]) -> int:
    """The first place at which two answers differ; the length of the shorter one if it begins the other."""
    pairs = zip(expected, got, strict=False)
    return next((place for place, (wanted, made) in enumerate(pairs) if wanted != made), min(len(expected), len(got)))


def _engine(
    config: dict[str, Any], backend: str, dtype: Dtype, scale: float, *, overlap: bool, options: dict[str, Any]
) -> Engine:
    settings = EngineConfig(model="random", backend=backend, backend_options=options)
    device = open_device(settings, choose(settings))
    spec = decoder_spec(config)
    # The weights are made on the CPU for every device: generators differ between devices.
    return build(
        device,
        spec,
        RandomTensors(spec, scale=scale, device="cpu"),
        backend=backend,
        dtype=dtype,
        overlap=overlap,
        rows=8,
        max_model_len=512,
        page_size=device.capabilities.page_sizes[0],
    )


def _references(engine: Engine) -> list[Reference]:
    """Greedy answers of the reference with the lead of each token over the second."""
    rng = random.Random(11)
    prompts = [[rng.randrange(6, VOCAB_SIZE) for _ in range(rng.randint(4, 200))] for _ in range(8)]
    found: list[Reference] = []
    for prompt in prompts:
        params = SamplingParams(temperature=0.0, max_tokens=32, ignore_eos=True, logprobs=2)
        updates = _all_updates(engine, GenerateRequest(request_id="reference", prompt_ids=prompt, params=params))
        tops = [entry.top for update in updates for entry in update.logprobs or []]
        found.append(
            Reference(
                prompt_ids=prompt,
                output_ids=[token_id for update in updates for token_id in update.token_ids],
                margins=[top[0][1] - top[1][1] for top in tops],
            )
        )
    return found


def _ranks_of_engine(engine: Engine, references: Sequence[Reference]) -> list[list[int]]:
    """The rank that each token of the answers has when the answer so far is given."""
    found: list[list[int]] = []
    for reference in references:
        ids = reference.prompt_ids + reference.output_ids
        params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0)
        updates = _all_updates(engine, GenerateRequest(request_id="forced", prompt_ids=ids, params=params))
        scored = next(update.prompt_logprobs for update in updates if update.prompt_logprobs is not None)
        found.append([entry.rank for entry in scored[len(reference.prompt_ids) :] if entry is not None])
    return found


def _all_updates(engine: Engine, request: GenerateRequest) -> list[Update]:
    engine.submit(request)
    updates: list[Update] = []
    while engine.has_work:
        updates += engine.step()
    return updates


def _record_forced(record: Record, name: str, references: Sequence[Reference], ranks: Sequence[Sequence[int]]) -> None:
    """Count tokens with a clear lead that are not the likeliest."""
    checked = wrong = 0
    for reference, of_answer in zip(references, ranks, strict=True):
        assert len(of_answer) == len(reference.output_ids), "a rank for every token of the answer"
        for rank, margin in zip(of_answer, reference.margins, strict=True):
            checked += margin > CLEAR_MARGIN
            wrong += margin > CLEAR_MARGIN and rank != 1
    row = {"model": name, "dtype": "bfloat16", "clear_tokens": checked, "wrong": wrong}
    print("ANSWERS", json.dumps(row), flush=True)
    record.append("forced", row)
    if wrong or not checked:
        record.fail(f"{name}, bf16: {wrong} of {checked} tokens with a clear lead are not the likeliest")


def _check_golden(settings: Settings, record: Record) -> None:
    golden = [
        Reference(prompt_ids=each["prompt_ids"], output_ids=each["output_ids"], margins=each["margins"])
        for each in json.loads(GOLDEN.read_text(encoding="utf-8"))
    ]
    # Few tokens a step, so that prompts are computed in chunks beside running answers.
    with _llm(settings, "float32", max_step_tokens=72) as llm:
        alone = [_greedy(llm, [reference])[0] for reference in golden]
        from_cache = [_greedy(llm, [reference])[0] for reference in golden]
        crowd = _greedy(llm, golden, others=32)
    for how, made in (("alone", alone), ("from the prefix cache", from_cache), ("among 32 others", crowd)):
        wrong = [
            {"answer": index, "place": (place := _first_difference(each.output_ids, ids)), "lead": each.lead(place)}
            for index, (each, ids) in enumerate(zip(golden, made, strict=True))
            if ids != each.output_ids
        ]
        row = {"dtype": "float32", "how": how, "answers": len(golden), "wrong": wrong}
        print("GOLDEN", json.dumps(row), flush=True)
        record.append("golden", row)
        if wrong:
            record.fail(f"golden answers in fp32, {how}: {wrong} differ")
    with _llm(settings, "bfloat16") as llm:
        params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        outputs = llm.generate([each.prompt_ids + each.output_ids for each in golden], params, progress=False)
        ranks = [
            [entry.rank for entry in (output.prompt_logprobs or [])[len(each.prompt_ids) :] if entry is not None]
            for output, each in zip(outputs, golden, strict=True)
        ]
    _record_forced(record, "SmolLM2-135M-Instruct", golden, ranks)


def _llm(settings: Settings, dtype: Dtype, **limits: Any) -> LLM:
    fields: dict[str, Any] = {"max_num_seqs": 40, "max_model_len": 1024, "kv_memory": 1 << 30, **limits}
    options = settings.engine.get("backend_options", {})
    return LLM(settings.golden_model, backend=settings.backend, dtype=dtype, backend_options=options, **fields)


def _greedy(llm: LLM, golden: Sequence[Reference], *, others: int = 0) -> list[list[int]]:
    """Greedy answers, among random requests."""
    rng = random.Random(5)
    prompts = [reference.prompt_ids for reference in golden]
    params = [SamplingParams(temperature=0.0, max_tokens=len(each.output_ids), detokenize=False) for each in golden]
    for _ in range(others):
        prompts.append([rng.randrange(1000, 40_000) for _ in range(rng.randint(8, 120))])
        params.append(
            SamplingParams(temperature=0.9, seed=1, max_tokens=rng.randint(8, 48), ignore_eos=True, detokenize=False)
        )
    outputs = llm.generate(prompts, params, progress=False)
    return [output.completions[0].token_ids for output in outputs[: len(golden)]]
