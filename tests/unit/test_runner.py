"""The runner: captured steps are replayed right, and a step that runs out of memory costs one request."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from drivetrain.messages import GenerateRequest, Update
from drivetrain.runner import ModelRunner
from drivetrain.sampling import SamplingParams
from drivetrain_cpu.backend import CpuBackend, CpuDevice
from drivetrain_cpu.ops import CpuOps
from drivetrain_plugins.contract.backend import RankInfo
from drivetrain_plugins.contract.model import DecoderSpec
from drivetrain_plugins.contract.ops import LinearWeight
from drivetrain_plugins.errors import BackendError, DeviceLost, OutOfMemory
from fakes.replaying_device import ReplayingDevice
from fakes.tiny_engine import random_requests, run, tiny_engine

PLANTED = "planted: no room for the logits"


def greedy(request_id: str, prompt: range, **params: object) -> GenerateRequest:
    merged = {"temperature": 0.0, "ignore_eos": True, "max_tokens": 6} | params
    return GenerateRequest(request_id=request_id, prompt_ids=list(prompt), params=SamplingParams(**merged))  # type: ignore[arg-type]


class FailingOps(CpuOps):
    """Raises in the sampler of chosen calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.fail_at: set[int] = set()

    def sample(self, *args: object) -> object:
        self.calls += 1
        if self.calls in self.fail_at:
            raise RuntimeError(PLANTED)
        return super().sample(*args)  # type: ignore[arg-type]


def failing_device(*, known: bool) -> tuple[CpuDevice, FailingOps]:
    device = CpuBackend().open(RankInfo(), {"threads": 1})
    device.ops = ops = FailingOps()

    def classify(error: Exception) -> BackendError | None:
        return OutOfMemory(str(error)) if known and PLANTED in str(error) else None

    device.classify = classify  # type: ignore[method-assign]
    return device, ops


def drain(engine: object) -> dict[str, list[Update]]:
    updates: dict[str, list[Update]] = {}
    while engine.has_work:  # type: ignore[attr-defined]
        for update in engine.step():  # type: ignore[attr-defined]
            updates.setdefault(update.request_id, []).append(update)
    return updates


@pytest.mark.parametrize("overlap", [False, True])
def test_captured_steps_give_the_answers_of_plain_ones(overlap: bool) -> None:
    requests = random_requests(4, 10)
    expected = run(tiny_engine(rows=6), requests)
    device = ReplayingDevice()
    engine = tiny_engine(rows=6, device=device, overlap=overlap)
    warm_captures, warm_replays = device.runtime.captures, device.runtime.replays
    assert warm_captures > 0
    answers = run(engine, requests)
    assert device.runtime.replays - warm_replays > 20
    assert {key: (ids, reason) for key, (ids, _, reason) in answers.items()} == {
        key: (ids, reason) for key, (ids, _, reason) in expected.items()
    }
    for key, (_, logprobs, _) in expected.items():
        ours = [entry.logprob for entry in answers[key][1]]
        assert ours == pytest.approx([entry.logprob for entry in logprobs], abs=2e-4)


def test_each_shape_is_captured_once() -> None:
    device = ReplayingDevice()
    engine = tiny_engine(rows=4, device=device)
    run(engine, [greedy("a", range(10, 15))])
    captures = device.runtime.captures
    run(engine, [greedy("b", range(20, 25)), greedy("c", range(30, 35))])
    run(engine, [greedy("d", range(40, 45))])
    assert device.runtime.captures - captures <= 1, "a second shape is new, the first is not"


def test_shapes_that_were_not_recorded_at_start_are_recorded_while_nobody_waits() -> None:
    device = ReplayingDevice()
    engine = tiny_engine(rows=8, device=device)
    at_start = device.runtime.captures
    assert at_start == 4, "greedy and random, for the most rows and for one"
    engine.submit(greedy("a", range(10, 15)))
    assert not engine.prepare_more(), "a request waits"
    drain(engine)
    rounds = 0
    while engine.prepare_more():
        rounds += 1
    assert device.runtime.captures - at_start == rounds == 4, "greedy and random, for 2 and 4 rows"
    captures = device.runtime.captures
    run(engine, [greedy(name, range(10 + at, 15 + at)) for at, name in enumerate("abc")])
    assert device.runtime.captures == captures


def test_the_device_prepares_more_once_all_shapes_are_recorded() -> None:
    device = ReplayingDevice()
    engine = tiny_engine(rows=8, device=device)
    at_start = device.runtime.captures
    recorded: list[int] = []

    def prepare_more() -> bool:
        recorded.append(device.runtime.captures - at_start)
        return len(recorded) < 3

    device.prepare_more = prepare_more
    while engine.prepare_more():
        pass
    assert recorded == [4, 4, 4]


def test_no_more_is_recorded_while_nobody_waits_than_at_any_other_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drivetrain.recordings._MOST_RECORDINGS", 6)
    device = ReplayingDevice()
    engine = tiny_engine(rows=8, device=device)
    while engine.prepare_more():
        pass
    assert device.runtime.captures == 6, "four at the start, and not all of the four others"


def test_large_token_counts_exist_before_the_memory_for_pages_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    slots = tiny_engine(rows=4)._executor._slots
    assert slots.counts_SV is None, "small ones wait for the first request with penalties"
    counts_SV, in_prompt_SV = slots.ensure_counts()
    assert slots.counts_bytes == counts_SV.nbytes + in_prompt_SV.nbytes
    device = CpuBackend().open(RankInfo(), {"threads": 1})
    plan, there = device.allocator.plan, []

    def planning(*args: object) -> object:
        there.append(runners[0]._slots.counts_SV is not None)
        return plan(*args)  # type: ignore[arg-type]

    runners: list[ModelRunner] = []
    load = ModelRunner.load

    def loading(runner: ModelRunner, *args: object) -> object:
        runners.append(runner)
        return load(runner, *args)  # type: ignore[arg-type]

    monkeypatch.setattr("drivetrain.runner._COUNTS_LATER", slots.counts_bytes - 1)
    monkeypatch.setattr(ModelRunner, "load", loading)
    device.allocator.plan = planning  # type: ignore[method-assign]
    tiny_engine(rows=4, device=device)
    assert there == [True]


def test_a_device_without_memory_to_prepare_more_goes_on_serving() -> None:
    device = ReplayingDevice()
    engine = tiny_engine(rows=4, device=device)

    def prepare_more() -> bool:
        raise RuntimeError(PLANTED)

    device.prepare_more = prepare_more
    device.classify = lambda error: OutOfMemory(str(error)) if PLANTED in str(error) else None
    while engine.prepare_more():
        pass
    assert run(engine, [greedy("a", range(10, 15))]) == run(tiny_engine(rows=4), [greedy("a", range(10, 15))])
    device.classify = lambda error: DeviceLost(str(error))
    with pytest.raises(DeviceLost, match=PLANTED):
        engine.prepare_more()


def test_a_shape_that_comes_twice_is_recorded_and_one_that_comes_once_is_not() -> None:
    device = ReplayingDevice(captured_tokens=32)
    engine = tiny_engine(rows=4, device=device)
    at_start = device.runtime.captures
    expected = run(tiny_engine(rows=4), [greedy("b", range(40, 59), max_tokens=1)])
    for captures, name in ((0, "a"), (1, "b"), (1, "c")):
        answers = run(engine, [greedy(name, range(40, 59), max_tokens=1)])
        assert device.runtime.captures - at_start == captures, name
        assert answers[name, 0] == expected["b", 0]
        engine.reset_prefix_cache()


def test_recording_touches_no_request() -> None:
    """A recording made between the steps of running requests leaves pages, last tokens and counts as they are."""
    params = {"repetition_penalty": 1.4, "max_tokens": 12}
    requests = [greedy("a", range(10, 30), **params), greedy("b", range(40, 70), **params)]
    expected = run(tiny_engine(rows=4), requests)
    device = ReplayingDevice(captured_tokens=64, sampling=frozenset({"random", "penalties"}))
    engine = tiny_engine(rows=4, device=device, overlap=True)
    assert run(engine, requests) == expected
    assert run(engine, requests) == expected


def test_a_shape_for_whose_recording_memory_is_lacking_runs_as_it_is() -> None:
    device = ReplayingDevice()
    engine = tiny_engine(rows=4, device=device)
    expected = run(tiny_engine(rows=4), [greedy(name, range(10, 15)) for name in "ab"])
    refused: list[int] = []

    def refuse(step: object) -> None:
        refused.append(1)
        raise RuntimeError(PLANTED)

    engine._executor._recordings._capture = refuse
    device.classify = lambda error: OutOfMemory(str(error)) if PLANTED in str(error) else None
    assert run(engine, [greedy(name, range(10, 15)) for name in "ab"]) == expected
    assert len(refused) == 1, "it is not tried again"


def test_kernels_are_compiled_while_weights_load_and_awaited_before_the_first_step() -> None:
    device = CpuBackend().open(RankInfo(), {"threads": 1})
    events: list[str] = []

    class Ops(CpuOps):
        def prepare_linear(self, weight: LinearWeight) -> object:
            events.append("weight")
            return super().prepare_linear(weight)

        def embed(self, *args: torch.Tensor) -> torch.Tensor:
            events.append("step")
            return super().embed(*args)

    def compile_ahead(spec: DecoderSpec, *_: object) -> Callable[[], None]:
        assert spec.layers[0].mixer.num_heads == 4
        events.append("begin")
        return lambda: events.append("end")

    device.ops, device.compile_ahead = Ops(), compile_ahead
    tiny_engine(device=device)
    order = list(dict.fromkeys(events))
    assert order == ["begin", "weight", "end", "step"]


def test_recordings_of_a_buffer_that_was_too_small_are_made_again() -> None:
    """More biases than were planned for move the packed buffer, which recorded steps read at its address."""
    bias = dict.fromkeys(range(6, 190), -100.0)
    plain, biased = greedy("plain", range(20, 40)), greedy("biased", range(50, 60), logit_bias=bias)
    expected = run(tiny_engine(rows=4), [plain, biased])
    engine = tiny_engine(rows=4, device=ReplayingDevice())
    assert run(engine, [plain])["plain", 0] == expected["plain", 0]
    assert run(engine, [biased])["biased", 0] == expected["biased", 0]
    assert run(engine, [plain])["plain", 0] == expected["plain", 0]
    assert set(expected["biased", 0][0]).isdisjoint(bias)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("step", [1, 4])
def test_out_of_memory_fails_one_request_and_the_others_finish(step: int, overlap: bool) -> None:
    requests = [greedy("short", range(10, 15)), greedy("long", range(20, 60)), greedy("other", range(70, 80))]
    expected = run(tiny_engine(), requests)
    device, ops = failing_device(known=True)
    engine = tiny_engine(device=device, overlap=overlap)
    for request in requests:
        engine.submit(request)
    ops.fail_at = {ops.calls + step}
    updates = drain(engine)
    failed = [request_id for request_id, each in updates.items() if each[-1].finish_reason == "error"]
    assert len(failed) == 1
    assert step > 1 or failed == ["long"], "the prompt with the most tokens is to blame"
    assert updates[failed[0]][-1].error == PLANTED
    for request_id in {"short", "long", "other"} - set(failed):
        ids = [token for update in updates[request_id] for token in update.token_ids]
        assert ids == expected[request_id, 0][0]
        assert updates[request_id][-1].finish_reason == "length"
    stats = engine.stats()
    assert (stats.failed, stats.finished, stats.pages_used, stats.running) == (1, 2, 0, 0)
    again = [request for request in requests if request.request_id == failed[0]]
    assert run(engine, again)[failed[0], 0][0] == expected[failed[0], 0][0]


def test_an_error_that_the_device_does_not_know_is_a_bug_and_comes_through() -> None:
    device, ops = failing_device(known=False)
    engine = tiny_engine(device=device)
    engine.submit(greedy("a", range(10, 15)))
    ops.fail_at = {ops.calls + 1}
    with pytest.raises(RuntimeError, match=PLANTED):
        engine.step()


def test_closing_gives_the_pages_back() -> None:
    device = CpuBackend().open(RankInfo(), {"threads": 1})
    engine = tiny_engine(device=device)
    assert device.allocator.use().kv == engine.info.kv_bytes > 0
    engine.submit(greedy("a", range(10, 15)))
    engine.step()
    engine.close()
    assert device.allocator.use().kv == 0


def test_prompt_scores_do_not_depend_on_the_block_they_are_computed_in(monkeypatch: pytest.MonkeyPatch) -> None:
    request = greedy("a", range(10, 60), prompt_logprobs=2)
    whole = run(tiny_engine(), [request])["a", "prompt"][1]
    monkeypatch.setattr("drivetrain.runner._SCORED_AT_ONCE", 7)
    parts = run(tiny_engine(), [request])["a", "prompt"][1]
    assert [entry.token_id for entry in parts] == list(range(11, 60))
    assert [entry.logprob for entry in parts] == pytest.approx([entry.logprob for entry in whole], abs=1e-4)
    assert [entry.rank for entry in parts] == [entry.rank for entry in whole]
    assert torch.tensor([entry.logprob for entry in parts]).lt(0).all()
