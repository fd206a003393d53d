"""Steps: what is computed when, one step ahead of the device, and what comes of it."""

from __future__ import annotations

import pytest

from drivetrain.request import FinishReason, Status
from fakes.scheduling import (
    EOS,
    advance,
    assert_all_back,
    finish,
    land,
    names,
    request_of,
    scheduled,
    scheduler_of,
    spans,
)


def test_a_prompt_is_prefilled_then_decoded_token_by_token() -> None:
    scheduler = scheduler_of()
    request = request_of("a", 6)
    scheduler.add(request)
    step = scheduled(scheduler)
    assert spans(step) == [("a", 0, 6, True)]
    row = step.rows[0]
    assert (row.admitted, row.slot, row.first_new_page, row.num_new_pages) == (True, 0, 0, 2)
    assert request.pages == [1, 2]
    (landed,) = land(scheduler, step, 50)
    assert (landed.request, landed.new_token_ids, landed.finish_reason) == (request, [50], None)
    step = scheduled(scheduler)
    assert spans(step) == [("a", 6, 1, True)]
    assert (step.num_decode_rows, step.rows[0].admitted, step.rows[0].num_new_pages) == (1, False, 0)


def test_a_request_in_a_log_shows_counts_and_no_prompt() -> None:
    assert repr(request_of("a")) == "Request('a', waiting, 6 prompt tokens, 0 outputs, 0 computed, 0 in flight)"


def test_a_decode_row_gets_a_page_when_its_position_needs_one() -> None:
    scheduler = scheduler_of()
    request = request_of("a", 4)
    scheduler.add(request)
    advance(scheduler)
    (row,) = scheduled(scheduler).rows
    assert (row.start, row.first_new_page, row.num_new_pages) == (4, 1, 1)
    assert request.pages == [1, 2]


def test_the_next_step_is_scheduled_before_the_last_one_landed() -> None:
    scheduler = scheduler_of()
    request = request_of("a", 6)
    scheduler.add(request)
    first = scheduled(scheduler)
    second = scheduled(scheduler)
    assert spans(second) == [("a", 6, 1, True)]
    assert (request.in_flight, request.num_computed, len(request.tokens)) == (2, 7, 6)
    assert scheduler.schedule() is None, "only one step ahead"
    land(scheduler, first, 50)
    land(scheduler, second, 51)
    assert list(request.output_ids) == [50, 51]
    assert request.in_flight == 0


def test_without_overlap_a_step_waits_for_the_last_one() -> None:
    scheduler = scheduler_of(overlap=0)
    scheduler.add(request_of("a"))
    scheduler.add(request_of("b"))
    step = scheduled(scheduler)
    assert scheduler.schedule() is None
    land(scheduler, step)
    assert names(scheduled(scheduler)) == ["a", "b"]


def test_the_length_limit_is_known_ahead() -> None:
    scheduler = scheduler_of()
    request = request_of("a", max_tokens=2)
    scheduler.add(request)
    first, second = scheduled(scheduler), scheduled(scheduler)
    land(scheduler, first)
    assert scheduler.schedule() is None, "both tokens are in flight or here"
    (landed,) = land(scheduler, second)
    assert landed.finish_reason is FinishReason.LENGTH
    assert_all_back(scheduler)


def test_the_context_limits_the_answer() -> None:
    scheduler = scheduler_of(max_model_len=9)
    short, long = request_of("a", 6, max_total=8), request_of("b", 6, max_tokens=None)
    scheduler.add(short)
    scheduler.add(long)
    finish(scheduler)
    assert (len(short.tokens), len(long.tokens)) == (8, 9)


def test_an_end_token_is_learnt_late_and_the_extra_row_is_dropped() -> None:
    scheduler = scheduler_of(max_num_rows=1)
    scheduler.add(request_of("a"))
    scheduler.add(request_of("b"))
    first, second = scheduled(scheduler), scheduled(scheduler)
    (landed,) = land(scheduler, first, EOS)
    assert (landed.new_token_ids, landed.finish_reason) == ([EOS], FinishReason.STOP)
    assert landed.request.pages, "its step is in flight"
    assert scheduler.schedule() is None, "the only slot is not reused while its step is in flight"
    assert land(scheduler, second) == []
    assert landed.request.pages == []
    assert names(scheduled(scheduler)) == ["b"]


def test_end_tokens_do_not_end_before_min_tokens() -> None:
    scheduler = scheduler_of(overlap=0)
    request = request_of("a", min_tokens=2)
    scheduler.add(request)
    reasons = [land(scheduler, scheduled(scheduler), EOS)[0].finish_reason for _ in range(3)]
    assert reasons == [None, None, FinishReason.STOP]


def test_only_the_last_chunk_samples() -> None:
    scheduler = scheduler_of(max_step_tokens=8)
    scheduler.add(request_of("a", 20))
    steps = [scheduled(scheduler)]
    for _ in range(2):
        steps.append(scheduled(scheduler))
        assert (steps[-2].num_samples, land(scheduler, steps[-2], [])) == (0, [])
    assert [spans(step)[0] for step in steps] == [("a", 0, 8, False), ("a", 8, 8, False), ("a", 16, 4, True)]
    assert [step.rows[0].admitted for step in steps] == [True, False, False]
    assert len(land(scheduler, steps[-1])) == 1


def test_chunks_end_at_pages() -> None:
    scheduler = scheduler_of(max_step_tokens=11)
    scheduler.add(request_of("a", 20))
    assert spans(scheduler.schedule()) == [("a", 0, 8, False)]


def test_decode_rows_go_first_and_prefill_takes_the_rest_of_the_budget() -> None:
    scheduler = scheduler_of(max_step_tokens=10, overlap=0)
    scheduler.add(request_of("a"))
    advance(scheduler)
    scheduler.add(request_of("b", 20))
    step = scheduled(scheduler)
    assert spans(step) == [("a", 6, 1, True), ("b", 0, 8, False)]
    assert (step.num_decode_rows, step.num_tokens, step.num_samples) == (1, 9, 1)


def test_steps_that_may_not_mix_take_turns() -> None:
    scheduler = scheduler_of(mixed_steps=False, max_step_tokens=8, overlap=0)
    scheduler.add(request_of("a", 6, max_tokens=20))
    advance(scheduler)
    scheduler.add(request_of("b", 30))
    kinds: list[str] = []
    for _ in range(5):
        step = scheduled(scheduler)
        kinds.append("".join(names(step)))
        land(scheduler, step)
    assert kinds == ["a", "b", "a", "b", "a"]


def test_prefills_of_a_step_are_limited() -> None:
    scheduler = scheduler_of(max_prefills_per_step=2)
    for name in "abc":
        scheduler.add(request_of(name))
    assert names(scheduler.schedule()) == ["a", "b"]


def test_a_prompt_that_may_not_be_cut_is_not_starved_by_decode_rows() -> None:
    scheduler = scheduler_of(chunked_prefill=False, max_step_tokens=16, max_model_len=16, overlap=0)
    scheduler.add(request_of("a", 4, max_tokens=12))
    scheduler.add(request_of("b", 4, max_tokens=12))
    advance(scheduler)
    scheduler.add(request_of("c", 15, max_tokens=1))
    scheduler.add(request_of("d", 15, max_tokens=1))
    scheduler.add(request_of("e", 2))
    seen: list[str] = []
    for _ in range(5):
        step = scheduled(scheduler)
        seen.append("".join(names(step)))
        land(scheduler, step)
    assert seen == ["ab", "c", "ab", "d", "abe"]


def test_results_may_come_as_lists() -> None:
    scheduler = scheduler_of()
    request = request_of("a", 6, max_tokens=3)
    scheduler.add(request)
    first, second = scheduled(scheduler), scheduled(scheduler)
    assert scheduler.land(first, [[50]])[0].new_token_ids == [50]
    assert (request.num_computed, request.in_flight) == (7, 1)
    with pytest.raises(AssertionError, match="more tokens than the row verified"):
        scheduler.land(second, [[51, 52]])


def test_a_row_that_verified_drafts_brings_several_tokens() -> None:
    scheduler = scheduler_of(overlap=0)
    request = request_of("a", 6)
    scheduler.add(request)
    advance(scheduler)
    step = scheduled(scheduler)
    step.rows[0].num_tokens = 3  # two drafts, of which one is accepted
    request.num_computed += 2
    (landed,) = scheduler.land(step, [[50, 51]])
    assert landed.new_token_ids == [50, 51]
    assert spans(scheduler.schedule()) == [("a", 8, 1, True)]


def test_tokens_after_the_end_are_dropped() -> None:
    scheduler = scheduler_of(overlap=0)
    request = request_of("a", 6)
    scheduler.add(request)
    (landed,) = scheduler.land(scheduled(scheduler), [[50, EOS, 51]])
    assert (landed.new_token_ids, landed.finish_reason) == ([50, EOS], FinishReason.STOP)
    assert list(request.output_ids) == [50, EOS]
    assert_all_back(scheduler)


def test_results_must_fit_the_step() -> None:
    scheduler = scheduler_of()
    scheduler.add(request_of("a"))
    first, second = scheduled(scheduler), scheduled(scheduler)
    with pytest.raises(ValueError, match=r"expected the oldest step in flight \(0\), got step 1"):
        land(scheduler, second)
    with pytest.raises(ValueError, match="step 0 samples 1 rows, got 2"):
        scheduler.land(first, [1, 2])
    land(scheduler, first)


@pytest.mark.parametrize("landed_first", [0, 1])
def test_abort_while_decoding_frees_all_when_its_steps_have_landed(landed_first: int) -> None:
    scheduler = scheduler_of()
    scheduler.add(request_of("a"))
    steps = [scheduled(scheduler), scheduled(scheduler)]
    for step in steps[:landed_first]:
        land(scheduler, step)
    assert scheduler.abort("a")
    assert not scheduler.abort("a"), "it is gone"
    for step in steps[landed_first:]:
        assert scheduler.stats().pages_used > 0
        assert land(scheduler, step) == []
    assert_all_back(scheduler)


def test_abort_between_chunks_frees_all_within_a_step() -> None:
    scheduler = scheduler_of(max_step_tokens=8)
    scheduler.add(request_of("a", 30))
    step = scheduled(scheduler)
    scheduler.abort("a")
    assert scheduler.schedule() is None
    land(scheduler, step, [])
    assert_all_back(scheduler)


def test_abort_while_waiting_leaves_the_queue() -> None:
    scheduler = scheduler_of()
    request = request_of("a")
    scheduler.add(request)
    scheduler.abort("a", FinishReason.STOP)
    assert (request.status, request.finish_reason) == (Status.FINISHED, FinishReason.STOP)
    assert scheduler.schedule() is None
    assert scheduler.idle


def test_a_failed_step_ends_its_requests_and_no_others() -> None:
    scheduler = scheduler_of(max_prefills_per_step=1)
    bad, good = request_of("a"), request_of("b")
    scheduler.add(bad)
    scheduler.add(good)
    first = scheduled(scheduler)
    second = scheduled(scheduler)
    assert names(second) == ["a", "b"]
    assert scheduler.fail(first) == [bad]
    assert bad.finish_reason is FinishReason.ERROR
    assert [landed.request for landed in land(scheduler, second)] == [good]
    finish(scheduler)
    assert good.finish_reason is FinishReason.LENGTH
    with pytest.raises(ValueError, match="step 0 is not in flight"):
        scheduler.fail(first)


def test_a_failed_step_may_blame_one_request_and_compute_the_others_again() -> None:
    scheduler = scheduler_of()
    bad, good = request_of("a"), request_of("b")
    scheduler.add(bad)
    scheduler.add(good)
    first = scheduled(scheduler)
    assert names(first) == ["a", "b"]
    assert scheduler.fail(first, bad) == [bad]
    assert good.finish_reason is None
    finish(scheduler)
    assert bad.finish_reason is FinishReason.ERROR
    assert good.finish_reason is FinishReason.LENGTH


def test_a_step_may_fail_before_an_older_one_has_landed() -> None:
    scheduler = scheduler_of(max_num_rows=1)
    scheduler.add(request_of("a"))
    scheduler.add(request_of("b"))
    first, second = scheduled(scheduler), scheduled(scheduler)
    scheduler.fail(second)
    assert scheduler.schedule() is None, "the slot is still in flight"
    assert land(scheduler, first) == []
    assert names(scheduled(scheduler)) == ["b"]
