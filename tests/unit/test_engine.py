"""The step loop on a small real engine: submitting, ending early, time limits, counters."""

from __future__ import annotations

import time

import pytest

from drivetrain.engine import Engine
from drivetrain.errors import Asleep, EngineError, Overloaded, PromptTooLong, RequestError
from drivetrain.messages import EngineStats, GenerateRequest, Update
from drivetrain.sampling import SamplingParams
from fakes.tiny_engine import MAX_MODEL_LEN, VOCAB_SIZE, run, tiny_engine

PROMPT = list(range(20, 60))


def request(request_id: str, prompt: list[int] | None = None, *, deadline_s: float | None = None, **params: object):
    merged = {"temperature": 0.0, "ignore_eos": True, "max_tokens": 8} | params
    return GenerateRequest(
        request_id=request_id,
        prompt_ids=prompt or PROMPT,
        params=SamplingParams(**merged),  # type: ignore[arg-type]
        deadline_s=deadline_s,
    )


def drain(engine: Engine) -> list[Update]:
    updates: list[Update] = []
    while engine.has_work:
        updates += engine.step()
    return updates


def assert_nothing_left(engine: Engine) -> None:
    stats = engine.stats()
    assert not engine.has_work
    assert (stats.running, stats.waiting, stats.pages_used) == (0, 0, 0)


def test_an_idle_engine_has_no_work_and_steps_bring_nothing() -> None:
    engine = tiny_engine()
    assert not engine.has_work
    assert engine.step() == []
    assert engine.stats() == EngineStats(pages_total=399, pages_free=399)


@pytest.mark.parametrize("overlap", [False, True])
def test_updates_tell_tokens_end_and_cached_tokens(overlap: bool) -> None:
    engine = tiny_engine(overlap=overlap)
    first = run(engine, [request("a")])["a", 0]
    engine.submit(request("b"))
    updates = drain(engine)
    assert [token for update in updates for token in update.token_ids] == first[0]
    assert [update.finish_reason for update in updates] == [None] * 7 + ["length"]
    assert {update.num_cached_tokens for update in updates} == {32}
    assert updates[-1].stop_token_id is None


def test_an_end_token_is_told_apart_from_the_length() -> None:
    ids, _, _ = run(tiny_engine(), [request("a")])["a", 0]
    engine = tiny_engine()
    engine.submit(request("a", stop_token_ids=(ids[3],)))
    last = drain(engine)[-1]
    assert (last.finish_reason, last.stop_token_id, last.token_ids) == ("stop", ids[3], [ids[3]])


def test_end_tokens_beyond_the_vocabulary_do_no_harm() -> None:
    """`min_tokens` forbids end tokens by adding to their logits, which these do not have."""
    engine = tiny_engine(end_ids=frozenset({5, VOCAB_SIZE, 100_000}))
    engine.submit(request("a", ignore_eos=False, min_tokens=4, max_tokens=6))
    updates = drain(engine)
    assert updates[-1].finish_reason in ("length", "stop")
    assert sum(len(update.token_ids) for update in updates) >= 4


def test_a_live_id_is_refused_and_free_again_afterwards() -> None:
    engine = tiny_engine()
    engine.submit(request("a"))
    with pytest.raises(RequestError, match="request_id: 'a' is already running") as caught:
        engine.submit(request("a"))
    assert caught.value.param == "request_id"
    drain(engine)
    engine.submit(request("a"))
    assert drain(engine)[-1].finish_reason == "length"


def test_a_request_that_does_not_fit_leaves_nothing_behind() -> None:
    engine = tiny_engine(max_waiting=2)
    with pytest.raises(PromptTooLong, match=f"context of {MAX_MODEL_LEN}"):
        engine.submit(request("long", [9] * MAX_MODEL_LEN))
    engine.submit(request("a"))
    with pytest.raises(Overloaded, match="the limit is 2"):
        engine.submit(request("n", n=2))
    assert not engine.is_live("n")
    assert engine.stats().waiting == 1
    assert {update.request_id for update in drain(engine)} == {"a"}
    engine.submit(request("n", n=2))
    assert {update.index for update in drain(engine)} == {0, 1}


@pytest.mark.parametrize("overlap", [False, True])
def test_one_completion_of_several_may_be_ended(overlap: bool) -> None:
    params = {"n": 3, "temperature": 1.0, "seed": 4}
    expected = run(tiny_engine(), [request("a", **params)])
    engine = tiny_engine(overlap=overlap)
    engine.submit(request("a", **params))
    updates = [update for _ in range(3) for update in engine.step()]
    engine.abort("a", 1)
    engine.abort("a", 1)
    engine.abort("a", 7)
    updates += drain(engine)
    ends = {update.index: update.finish_reason for update in updates if update.finish_reason is not None}
    assert ends == {0: "length", 1: "abort", 2: "length"}
    for index in (0, 2):
        ids = [token for update in updates if update.index == index for token in update.token_ids]
        assert ids == expected["a", index][0]
    assert [update.finish_reason for update in updates if update.index == 1].count("abort") == 1
    assert_nothing_left(engine)


@pytest.mark.parametrize("steps", [0, 1, 4])
@pytest.mark.parametrize("overlap", [False, True])
def test_an_ended_request_gives_its_pages_back_within_a_step(steps: int, overlap: bool) -> None:
    engine = tiny_engine(overlap=overlap, step_tokens=16)
    engine.submit(request("a", n=2))
    for _ in range(steps):
        engine.step()
    engine.abort("a")
    assert not engine.is_live("a")
    updates = engine.step()
    assert [(update.index, update.finish_reason) for update in updates] == [(0, "abort"), (1, "abort")]
    assert_nothing_left(engine)
    engine.abort("a")
    assert not engine.has_work, "ending an unknown request is nothing"


def test_a_request_past_its_time_limit_ends_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    engine = tiny_engine()
    engine.submit(request("slow", deadline_s=5.0))
    engine.submit(request("free", PROMPT[5:]))
    engine.step()
    now_s = 104.9
    assert all(update.finish_reason is None for update in engine.step())
    now_s = 105.0
    (ended,) = [update for update in engine.step() if update.finish_reason is not None]
    assert (ended.request_id, ended.finish_reason) == ("slow", "abort")
    assert ended.error == "the request ran past its time limit"
    assert [update.finish_reason for update in drain(engine) if update.request_id == "free"][-1] == "length"
    assert_nothing_left(engine)


def test_a_time_limit_counts_while_waiting_too(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    engine = tiny_engine(rows=1)
    engine.submit(request("first"))
    engine.submit(request("second", deadline_s=1.0))
    engine.step()
    now_s = 102.0
    assert [update.request_id for update in engine.step() if update.finish_reason == "abort"] == ["second"]


def test_the_time_limit_of_an_ended_request_does_not_end_a_later_one(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    engine = tiny_engine()
    engine.submit(request("a", deadline_s=5.0))
    drain(engine)
    now_s = 104.0
    engine.submit(request("a", deadline_s=5.0))
    now_s = 106.0
    assert drain(engine)[-1].finish_reason == "length"


def test_two_requests_may_have_the_same_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    engine = tiny_engine()
    for name in ("a", "b"):
        engine.submit(request(name, deadline_s=5.0))
    assert {update.finish_reason for update in drain(engine) if update.finish_reason} == {"length"}


def test_counters_add_up() -> None:
    engine = tiny_engine()
    run(engine, [request("a"), request("b", list(range(100, 110)), n=2, temperature=1.0, max_tokens=3)])
    stats = engine.stats()
    assert (stats.prompt_tokens, stats.generated_tokens, stats.finished, stats.failed) == (50, 8 + 2 * 3, 3, 0)
    assert stats.steps >= 8
    assert stats.step_s > 0
    assert stats.schedule_s > 0
    run(engine, [request("c")])
    later = engine.stats()
    assert later.prefix_hit_tokens - stats.prefix_hit_tokens == 32
    assert later.pages_free + later.pages_cached == later.pages_total
    engine.reset_prefix_cache()
    assert engine.stats().pages_cached == 0
    engine.submit(request("left", n=2, temperature=1.0))
    engine.step()
    engine.abort("left")
    engine.abort("left")
    drain(engine)
    last = engine.stats()
    assert (last.finished, last.failed, last.aborted) == (4, 0, 2)


def test_the_prefix_cache_may_be_reset_while_a_request_runs() -> None:
    expected = run(tiny_engine(), [request("a")])["a", 0][0]
    engine = tiny_engine()
    engine.submit(request("a"))
    ids = [token for _ in range(3) for update in engine.step() for token in update.token_ids]
    engine.reset_prefix_cache()
    ids += [token for update in drain(engine) for token in update.token_ids]
    assert ids == expected
    assert_nothing_left(engine)


def test_a_sleeping_engine_keeps_two_pages_and_answers_the_same_once_it_wakes() -> None:
    engine = tiny_engine()
    pages: list[int] = []
    runner = engine._executor
    set_pages = runner.set_pages
    runner.set_pages = lambda count: (pages.append(count), set_pages(count))[1]
    expected = run(engine, [request("a")])
    engine.submit(request("b"))
    with pytest.raises(EngineError, match="1 requests are under way; wait for them or abort them"):
        engine.sleep()
    drain(engine)
    engine.sleep()
    engine.sleep()
    assert runner._cache.num_pages == 2
    assert engine.stats().pages_cached == 0
    with pytest.raises(Asleep, match="wake it before it takes requests"):
        engine.submit(request("c"))
    engine.wake()
    engine.wake()
    assert runner._cache.num_pages == engine.info.num_pages
    assert pages == [2, engine.info.num_pages]
    assert run(engine, [request("a")]) == expected
    assert_nothing_left(engine)


def test_completions_without_a_seed_differ_and_those_with_one_repeat() -> None:
    engine = tiny_engine()
    free = run(engine, [request("a", n=4, temperature=2.0), request("b", temperature=2.0)])
    assert len({tuple(ids) for ids, _, _ in free.values()}) == 5
    seeded = [run(engine, [request("c", temperature=2.0, seed=9, n=2)]) for _ in range(2)]
    assert seeded[0] == seeded[1]
    assert seeded[0]["c", 0] != seeded[0]["c", 1]


def test_prompt_scores_come_once_with_the_first_token() -> None:
    engine = tiny_engine(step_tokens=16)
    engine.submit(request("a", prompt_logprobs=1, n=2, temperature=1.0))
    updates = drain(engine)
    scored = [update for update in updates if update.prompt_logprobs is not None]
    assert [(update.index, len(update.token_ids)) for update in scored] == [(0, 1)]
    scores = scored[0].prompt_logprobs
    assert scores is not None
    assert scores[0] is None
    assert [entry.token_id for entry in scores[1:] if entry is not None] == PROMPT[1:]


def test_closing_waits_for_the_steps_under_way() -> None:
    engine = tiny_engine(overlap=True)
    engine.submit(request("a"))
    engine.step()
    engine.close()
    assert not engine._in_flight
