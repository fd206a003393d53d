"""Whatever runs ahead, is cached, chunked, preempted or aborted: every answer is that of the plain engine."""

from __future__ import annotations

import random
from itertools import product

import pytest

from drivetrain_plugins.contract.batch import StepBatch, Ticket
from drivetrain_plugins.contract.shapes import CapturedSampling
from drivetrain_plugins.errors import OutOfMemory
from fakes.replaying_device import ReplayingDevice
from fakes.tiny_engine import random_requests, run, run_failing, tiny_engine

LOGPROB_TOLERANCE = 2e-4
TIGHT = 14
"""Pages that do not hold what runs at once: requests are preempted."""


def plain_answers(seed: int, count: int, window: int | None):
    engine = tiny_engine(prefix_cache=False, window=window, rows=4)
    answers = {}
    for request in random_requests(seed, count):
        answers |= run(engine, [request])
    return answers


def assert_same(expected, got, aborted: set[str]) -> None:
    for key, (ids, logprobs, reason) in expected.items():
        if key not in got:
            assert key[0] in aborted, f"no answer for {key}"
            continue
        got_ids, got_logprobs, got_reason = got[key]
        if key[0] in aborted:
            assert ids[: len(got_ids)] == got_ids, f"{key}: the answer differs before the abort"
            continue
        assert got_ids == ids, f"{key}: {got_ids} != {ids}"
        assert got_reason == reason
        assert len(got_logprobs) == len(logprobs)
        for mine, other in zip(got_logprobs, logprobs, strict=True):
            assert mine.token_id == other.token_id
            assert mine.logprob == pytest.approx(other.logprob, abs=LOGPROB_TOLERANCE)
            assert mine.top[0][0] == other.top[0][0] if mine.top else not other.top


@pytest.mark.parametrize(("seed", "window"), [(0, None), (1, 24), (2, None), (3, 24)])
def test_every_combination_of_features_gives_the_answers_of_the_plain_engine(seed: int, window: int | None) -> None:
    count = 12
    expected = plain_answers(seed, count, window)
    requests = random_requests(seed, count)
    rng = random.Random(seed)
    preemptions = hits = 0
    for overlap, prefix_cache in product((False, True), (False, True)):
        for step_tokens, pages in product((512, rng.randint(9, 24)), (400, TIGHT)):
            engine = tiny_engine(
                overlap=overlap, prefix_cache=prefix_cache, step_tokens=step_tokens, pages=pages, window=window
            )
            aborted = {f"r{index}" for index in range(count) if rng.random() < 0.2}
            aborts: dict[int, list[str]] = {}
            for request_id in sorted(aborted):
                aborts.setdefault(rng.randint(0, 40), []).append(request_id)
            assert_same(expected, run(engine, requests, aborts), aborted)
            again = requests[: count // 2]
            second = run(engine, again)
            assert {request_id for request_id, _ in second} == {request.request_id for request in again}
            assert_same({key: expected[key] for key in second}, second, set())
            stats = engine.stats()
            assert stats.pages_used == 0
            assert stats.pages_free + stats.pages_cached == stats.pages_total
            preemptions += stats.preemptions
            hits += stats.prefix_hit_tokens
            engine.reset_prefix_cache()
            assert engine.stats().pages_free == stats.pages_total
    # Without these paths the comparison would prove little.
    assert preemptions > 0
    assert hits > 0


EVERY_KIND: frozenset[CapturedSampling] = frozenset({"random", "filters", "penalties"})


@pytest.mark.parametrize(
    ("seed", "window", "captured_tokens", "sampling", "groups"),
    [
        (0, None, 0, frozenset[CapturedSampling](), 0),
        (1, 24, 24, frozenset({"random"}), 0),
        (2, None, 32, EVERY_KIND, 2),
        (3, 24, 0, EVERY_KIND, 3),
    ],
)
def test_recorded_steps_give_the_answers_of_the_plain_engine(
    seed: int, window: int | None, captured_tokens: int, sampling: frozenset[CapturedSampling], groups: int
) -> None:
    """Recordings of decode and mixed steps, with and without their sampler, of shared prefixes too."""
    count = 8
    expected = plain_answers(seed, count, window)
    requests = random_requests(seed, count)
    rng = random.Random(seed)
    replays = grouped = preemptions = 0
    for overlap, step_tokens, pages in ((True, rng.randint(9, 24), TIGHT), (False, 64, 400)):
        device = ReplayingDevice(captured_tokens=captured_tokens, sampling=sampling, shared_groups=groups)
        engine = tiny_engine(
            overlap=overlap,
            step_tokens=step_tokens,
            pages=pages,
            window=window,
            device=device,
        )
        if overlap:
            engine.prepare_more()
        assert_same(expected, run(engine, requests), set())
        preemptions += engine.stats().preemptions
        replays += device.runtime.replays
        grouped += device.attention.grouped_steps
    assert replays > 100
    assert preemptions > 0
    assert bool(grouped) == bool(groups)


@pytest.mark.parametrize("seed", [1, 5])
def test_steps_that_fail_before_the_device_knows_of_them_spoil_nobody_elses_answer(seed: int) -> None:
    """New page-table entries are lost with such a step: nothing that follows may write where the old ones point."""
    count = 12
    expected = plain_answers(seed, count, None)
    engine = tiny_engine(overlap=True, step_tokens=24, pages=60)
    execute, rng, planted = engine._executor.execute, random.Random(seed), "planted: no room for token counts"

    def failing(batch: StepBatch) -> Ticket:
        if rng.random() < 0.06:
            raise OutOfMemory(planted)
        return execute(batch)

    engine._executor.execute = failing  # type: ignore[method-assign]
    answers, failed = run_failing(engine, random_requests(seed, count), planted)
    for key in answers.keys() - failed:
        assert answers[key] == expected[key][0], key
    stats = engine.stats()
    assert stats.failed == len(failed)
    assert (stats.pages_used, stats.pages_free + stats.pages_cached) == (0, stats.pages_total)
