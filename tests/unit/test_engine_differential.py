"""Whatever runs ahead, is cached, chunked, preempted or aborted: every answer is that of the plain engine."""

from __future__ import annotations

import random

import pytest

from fakes.tiny_engine import random_requests, run, tiny_engine

LOGPROB_TOLERANCE = 2e-4


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


@pytest.mark.parametrize("window", [None, 24])
@pytest.mark.parametrize("seed", range(2))
def test_every_combination_of_features_gives_the_answers_of_the_plain_engine(seed: int, window: int | None) -> None:
    count = 12
    expected = plain_answers(seed, count, window)
    rng = random.Random(seed)
    for overlap in (False, True):
        for prefix_cache in (False, True):
            for step_tokens in (512, rng.randint(9, 24)):
                for pages in (400, 22):
                    engine = tiny_engine(
                        overlap=overlap,
                        prefix_cache=prefix_cache,
                        step_tokens=step_tokens,
                        pages=pages,
                        window=window,
                    )
                    aborted = {f"r{index}" for index in range(count) if rng.random() < 0.2}
                    aborts = {}
                    for request_id in sorted(aborted):
                        aborts.setdefault(rng.randint(0, 40), []).append(request_id)
                    requests = random_requests(seed, count)
                    got = run(engine, requests, aborts)
                    assert_same(expected, got, aborted)
                    again = run(engine, requests)
                    assert_same(expected, again, set())
                    stats = engine.stats()
                    assert stats.pages_used == 0
                    assert stats.pages_free + stats.pages_cached == stats.pages_total
                    if pages == 22:
                        engine.reset_prefix_cache()
                        assert engine.stats().pages_free == stats.pages_total


def test_small_pools_do_preempt_and_prefixes_are_hit() -> None:
    """The differential test above would prove little if these paths were not taken."""
    engine = tiny_engine(overlap=True, pages=22, step_tokens=32)
    run(engine, random_requests(1, 12))
    stats = engine.stats()
    assert stats.preemptions > 0
    assert stats.prefix_hit_tokens > 0
