"""The whole engine over the Gaudi backend's own code, on the processor: same answers, nothing compiled in service."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from drivetrain.engine import Engine
from drivetrain.messages import GenerateRequest
from drivetrain.sampling import SamplingParams
from drivetrain_gaudi import buckets
from drivetrain_gaudi.device import GaudiDevice
from drivetrain_plugins.contract.backend import RankInfo
from drivetrain_plugins.contract.shapes import StepShape
from fakes.golden_engine import golden_engine, golden_requests
from fakes.tiny_engine import MAX_MODEL_LEN, VOCAB_SIZE, random_requests, run, tiny_engine
from gaudi_on_cpu import GaudiOnCpu

PAGE = 64
ROWS = 4


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.compiler.set_stance("default")
    torch.compiler.reset()


def open_device(**options: Any) -> GaudiDevice:
    return GaudiOnCpu().open(RankInfo(), {"recipe_cache": "off", "new_shapes": "refuse"} | options)


def serving_requests(seed: int, count: int) -> list[GenerateRequest]:
    """Every kind of request whose steps are recorded; scores of prompts are not, as each has a shape of its own."""
    return [
        replace(request, params=replace(request.params, prompt_logprobs=None))
        for request in random_requests(seed, count)
    ]


def watched(engine: Engine) -> list[Any]:
    """The batches that an engine executes from now on."""
    executor: Any = engine._executor
    batches: list[Any] = []
    execute = executor.execute

    def watch(batch: Any) -> Any:
        batches.append(batch)
        return execute(batch)

    executor.execute = watch
    return batches


def test_a_random_trace_compiles_nothing_after_the_warm_up_and_answers_as_the_cpu_does() -> None:
    device = open_device()
    limits: dict[str, Any] = {"rows": ROWS, "page_size": PAGE, "step_tokens": 128, "pages": 40, "overlap": True}
    from habana_frameworks.torch.compile_backend import compiled

    before = len(compiled)
    engine = tiny_engine(device=device, window=40, **limits)
    prepared = device.shape_policy(engine._executor._limits).captured_shapes(
        page_size=PAGE, max_pages=MAX_MODEL_LEN // PAGE
    )
    graphs = len(compiled)
    assert graphs - before == len(prepared)
    torch.compiler.set_stance("fail_on_recompile")
    batches = watched(engine)
    requests = serving_requests(11, 40)
    answers = run(engine, requests, aborts={9: ["r3"], 30: ["r17"]})
    assert len(compiled) == graphs
    assert device.ledger.late_steps == 0
    shapes = {
        StepShape(
            rows=batch.layout.rows,
            tokens=batch.layout.tokens,
            pages=MAX_MODEL_LEN // PAGE,
            decode_only=batch.decode_only,
            captured=batch.captured,
            total_pages=batch.total_pages,
        )
        for batch in batches
    }
    assert shapes <= set(prepared)
    assert len(shapes) >= 10, "the trace meets many shapes"
    expected = run(tiny_engine(window=40, **limits), requests)
    for key, (ids, _, reason) in expected.items():
        if key[0] in ("r3", "r17"):
            continue
        assert answers[key][0] == ids, key
        assert answers[key][2] == reason
    engine.close()


def test_rows_that_share_more_pages_than_a_step_may_read_take_turns_and_compile_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(buckets, "MOST_PREFILLS", 1)  # or steps of prompts would make room for all of these rows
    limits: dict[str, Any] = {"rows": ROWS, "page_size": PAGE, "step_tokens": 128, "pages": 8, "overlap": True}
    device = open_device()
    engine = tiny_engine(device=device, **limits)
    most = device.shape_policy(engine._executor._limits).max_total_pages
    assert most == 7
    torch.compiler.set_stance("fail_on_recompile")
    batches = watched(engine)
    rng = random.Random(3)
    shared = [rng.randrange(6, VOCAB_SIZE) for _ in range(3 * PAGE)]
    requests: list[GenerateRequest] = []
    for index in range(24):
        prompt = shared[: PAGE * rng.randint(0, 3)] + [rng.randrange(6, VOCAB_SIZE) for _ in range(rng.randint(1, 9))]
        heat = rng.choice((0.0, 0.9))
        params = SamplingParams(temperature=heat, seed=index, max_tokens=rng.randint(1, 30), n=rng.choice((1, 1, 3)))
        requests.append(GenerateRequest(request_id=f"r{index}", prompt_ids=prompt, params=params))
    wanted: list[int] = []
    schedule = engine._scheduler.schedule

    def note() -> Any:
        """What all rows that could decode would read together."""
        running = engine._scheduler._running
        able = [request for request in running.decoding if request.num_computed < request.row_limit]
        wanted.append(sum(request.num_computed // PAGE + 1 for request in able))
        return schedule()

    monkeypatch.setattr(engine._scheduler, "schedule", note)
    answers = run(engine, requests)
    assert device.ledger.late_steps == 0
    assert sum(total > most for total in wanted) >= 10, "rows often share more pages than a step may read"
    assert all(batch.captured and batch.total_pages <= most for batch in batches)
    expected = run(tiny_engine(**limits), requests)
    assert {key: ids for key, (ids, _, _) in answers.items()} == {key: ids for key, (ids, _, _) in expected.items()}
    engine.close()


def test_what_the_time_for_the_warm_up_leaves_is_prepared_in_idle_time() -> None:
    device = open_device(warm_up_s=1e-3)
    engine = tiny_engine(device=device, rows=2, page_size=128, step_tokens=128, pages=20)
    executor: Any = engine._executor
    left = executor._warm_up.num_left
    assert left > 0
    for _ in range(left):
        assert executor.prepare_more()
    assert not executor.prepare_more()
    run(engine, serving_requests(2, 4))
    assert device.ledger.late_steps == 0
    engine.close()


def test_a_step_that_nobody_prepared_is_refused_where_the_options_say_so_and_counted_elsewhere() -> None:
    scored = [request for request in random_requests(1, 30) if request.params.prompt_logprobs is not None][:1]
    limits: dict[str, Any] = {"rows": 1, "page_size": 128, "step_tokens": 128, "pages": 8}
    engine = tiny_engine(device=open_device(), **limits)
    engine.submit(scored[0])
    (refused,) = [update for _ in range(3) for update in engine.step() if update.finish_reason]
    assert refused.finish_reason == "error"
    assert refused.error is not None and "was not prepared" in refused.error
    assert not engine.has_work, "one request ends, and nothing else does"
    plain = [request for request in random_requests(1, 30) if request.params.prompt_logprobs is None][:1]
    assert run(engine, plain)
    device = open_device(new_shapes="warn")
    engine = tiny_engine(device=device, **limits)
    assert run(engine, scored)
    assert device.ledger.late_steps == 1
    assert {shape.decode_only for shape in device.ledger.late_shapes} == {False}


def test_a_prompt_longer_than_steps_answers_as_on_the_cpu() -> None:
    params = SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True)
    prompt = [6 + at * 7 % 150 for at in range(240)]
    requests = [GenerateRequest(request_id="long", prompt_ids=prompt, params=params)]
    limits: dict[str, Any] = {"rows": 1, "page_size": 16, "step_tokens": 32, "pages": 40}
    engine = tiny_engine(device=open_device(new_shapes="warn"), **limits)
    assert run(engine, requests)["long", 0][0] == run(tiny_engine(**limits), requests)["long", 0][0]


@pytest.mark.real_model
@pytest.mark.parametrize(
    "chosen", [pytest.param((0, 4), id="two"), pytest.param((1, 2, 3), id="rest", marks=pytest.mark.slow)]
)
def test_golden_answers_of_the_real_model(
    chosen: tuple[int, ...], smollm2_path: Path, golden_outputs: list[dict[str, Any]]
) -> None:
    wanted = [golden_outputs[index] for index in chosen]
    sizes = {"rows": 1, "step_tokens": 64, "max_model_len": 128, "pages": 16}
    engine = golden_engine(smollm2_path, open_device(), backend="gaudi", **sizes)
    torch.compiler.set_stance("fail_on_recompile")
    answers = run(engine, golden_requests(wanted))
    assert [answers[str(at), 0][0] for at in range(len(wanted))] == [golden["output_ids"] for golden in wanted]
