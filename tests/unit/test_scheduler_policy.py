"""Who goes first, who makes room, who is refused."""

from __future__ import annotations

import pytest

from drivetrain.errors import ConfigError, Draining, DrivetrainError, Overloaded, PromptTooLong, RequestError
from drivetrain.request import Request, Status
from drivetrain.scheduler import Schedule, Scheduler
from fakes.scheduling import Clock, advance, assert_all_back, finish, land, names, request_of, scheduled, scheduler_of


def test_lower_priority_numbers_go_first_then_earlier_arrivals() -> None:
    scheduler = scheduler_of()
    scheduler.add(request_of("a", priority=1, arrival_s=0.0))
    scheduler.add(request_of("b", priority=0, arrival_s=2.0))
    scheduler.add(request_of("c", priority=0, arrival_s=1.0))
    assert names(scheduler.schedule()) == ["c", "b", "a"]


def test_equal_arrivals_go_in_the_order_in_which_they_were_added() -> None:
    scheduler = scheduler_of(max_num_rows=3)
    for name in "abcde":
        scheduler.add(request_of(name, [7, 8, 9, 10, ord(name)]))
    assert names(scheduled(scheduler)) == ["a"], "the others wait for its first page"
    assert names(scheduled(scheduler)) == ["a", "b", "c"]


def test_waiting_outweighs_priority_in_the_end() -> None:
    scheduler = scheduler_of(aging_s=10.0)
    scheduler.add(request_of("a", priority=2, arrival_s=0.0))
    scheduler.add(request_of("b", priority=0, arrival_s=19.0))
    scheduler.add(request_of("c", priority=0, arrival_s=21.0))
    assert names(scheduler.schedule()) == ["b", "a", "c"]


def test_low_priority_is_served_under_a_steady_stream_of_high_priority() -> None:
    clock = Clock()
    scheduler = scheduler_of(clock, max_num_rows=1, max_step_tokens=8, aging_s=0.5, overlap=0)
    low = request_of("low", 4, priority=10, max_tokens=2)
    scheduler.add(low)
    for turn in range(400):
        clock.now_s = turn * 0.1
        scheduler.add(request_of(f"h{turn}", 4, arrival_s=clock.now_s, max_tokens=1))
        advance(scheduler)
        if low.status is Status.FINISHED:
            break
    assert 50 <= turn < 100, "ten levels of half a second, and what queued before"


def test_a_chunk_waits_for_a_new_request_of_higher_priority() -> None:
    scheduler = scheduler_of(max_step_tokens=8, overlap=0)
    scheduler.add(request_of("a", 30))
    advance(scheduler)
    scheduler.add(request_of("b", 8, priority=-1))
    assert names(scheduler.schedule()) == ["b"]


def test_a_large_request_is_not_passed_by_small_ones() -> None:
    scheduler = scheduler_of(num_pages=13, overlap=0)
    scheduler.add(request_of("a", 24, max_tokens=8))
    advance(scheduler)
    scheduler.add(request_of("b", 30))
    scheduler.add(request_of("c", 2))
    assert names(scheduled(scheduler)) == ["a"]


def test_admission_leaves_pages_for_those_who_run() -> None:
    scheduler = scheduler_of(num_pages=5, overlap=0)
    scheduler.add(request_of("a", 4, max_tokens=4))
    advance(scheduler)
    scheduler.add(request_of("b", 8, max_tokens=1))
    assert names(scheduled(scheduler)) == ["a"], "two pages are left, and b would take them both"
    assert scheduler.stats().awaiting_pages == 1
    scheduler.abort("b")
    assert scheduler.stats().awaiting_pages == 0


def full_pool(overlap: int) -> tuple[Scheduler, Request, Request]:
    """Two requests of two pages each; the fifth and last page goes to whoever needs a third page first."""
    scheduler = scheduler_of(num_pages=6, prefix_cache=False, overlap=overlap, max_num_rows=2)
    first, second = request_of("a", 7, arrival_s=0.0, max_tokens=6), request_of("b", 7, arrival_s=1.0, max_tokens=6)
    scheduler.add(first)
    scheduler.add(second)
    return scheduler, first, second


def test_the_latest_arrival_makes_room() -> None:
    scheduler, _first, second = full_pool(overlap=0)
    advance(scheduler, 2)
    step = scheduled(scheduler)
    assert names(step) == ["a"]
    assert step.preempted == [second]
    assert (second.status, second.slot, second.pages, second.num_computed) == (Status.PREEMPTED, None, [], 0)
    assert scheduler.stats().preemptions == 1


def test_the_lowest_priority_makes_room_even_when_its_row_stands_already() -> None:
    scheduler = scheduler_of(num_pages=6, prefix_cache=False, overlap=0)
    low, high = request_of("a", 7, priority=1), request_of("b", 7, arrival_s=5.0)
    scheduler.add(low)
    advance(scheduler)
    scheduler.add(high)
    advance(scheduler, 2)
    assert len(low.pages) == 3, "it has the last page"
    step = scheduled(scheduler)
    assert names(step) == ["b"]
    assert step.preempted == [low]
    assert (low.in_flight, step.num_tokens, step.num_samples) == (0, 1, 1)
    land(scheduler, step)
    finish(scheduler)
    assert (low.num_outputs, high.num_outputs) == (8, 8)


def test_a_preempted_request_keeps_what_is_in_flight_and_resumes_once() -> None:
    scheduler, _first, second = full_pool(overlap=1)
    steps = [scheduled(scheduler), scheduled(scheduler)]
    land(scheduler, steps[0], [10, 20])
    step = scheduled(scheduler)
    assert step.preempted == [second]
    assert second.in_flight == 1
    assert [landed.new_token_ids for landed in land(scheduler, steps[1], [11, 21])] == [[11], [21]]
    assert list(second.output_ids) == [20, 21]
    land(scheduler, step)
    finish(scheduler)
    assert list(second.output_ids[:2]) == [20, 21]
    assert (second.num_outputs, second.num_preemptions) == (6, 1)


def test_a_preempted_request_is_not_scheduled_until_its_samples_have_landed() -> None:
    scheduler, _first, second = full_pool(overlap=2)
    steps = [scheduled(scheduler), scheduled(scheduler), scheduled(scheduler)]
    assert steps[2].preempted == [second]
    scheduler.abort("a")
    land(scheduler, steps[0])
    assert scheduler.schedule() is None, "a holds its pages, and b has a sample in flight"
    land(scheduler, steps[1])
    land(scheduler, steps[2])
    step = scheduled(scheduler)
    (row,) = step.rows
    assert (row.request, row.start, row.num_tokens, row.admitted, step.num_decode_rows) == (second, 0, 9, True, 0)
    land(scheduler, step)
    finish(scheduler)


def test_a_preempted_request_goes_first_in_its_class() -> None:
    scheduler, first, second = full_pool(overlap=0)
    advance(scheduler, 2)
    scheduler.add(request_of("c", 7, arrival_s=0.5))
    assert scheduled(scheduler).preempted == [second]
    scheduler.abort(first.request_id)
    land(scheduler, scheduler._in_flight[0])  # pyright: ignore[reportPrivateUsage]
    assert names(scheduled(scheduler))[0] == "b"


def test_abort_while_preempted_leaves_nothing() -> None:
    scheduler, first, second = full_pool(overlap=1)
    steps = [scheduled(scheduler), scheduled(scheduler)]
    land(scheduler, steps[0])
    step = scheduled(scheduler)
    assert step.preempted == [second]
    scheduler.abort("b")
    assert [landed.request for landed in land(scheduler, steps[1])] == [first]
    land(scheduler, step)
    finish(scheduler)
    assert second.num_outputs == 1


def test_a_row_waits_for_pages_that_come_back_rather_than_preempt() -> None:
    scheduler = scheduler_of(num_pages=7, prefix_cache=False)
    for name, num_prompt in (("a", 7), ("b", 7), ("c", 3)):
        scheduler.add(request_of(name, num_prompt))
    steps = [scheduled(scheduler), scheduled(scheduler)]
    assert names(steps[1]) == ["a", "b", "c"]
    land(scheduler, steps[0])
    scheduler.abort("c")  # its page comes back when the second step lands
    steps.append(scheduled(scheduler))
    assert (names(steps[2]), steps[2].preempted) == (["a"], [])
    assert (scheduler.stats().held_for_pages, scheduler.stats().preemptions) == (1, 0)
    land(scheduler, steps[1])
    assert names(scheduled(scheduler)) == ["a", "b"]


def test_nobody_is_admitted_in_a_step_that_preempts() -> None:
    scheduler, _first, _second = full_pool(overlap=0)
    advance(scheduler, 2)
    scheduler.add(request_of("c", 1, priority=-5, max_tokens=1))
    assert names(scheduled(scheduler)) == ["a"]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"prompt": []}, RequestError, "at least one token, got none"),
        ({"prompt": 64}, PromptTooLong, "64 tokens leave no room for an answer in a context of 64 tokens"),
        ({"prompt": 8, "max_total": 8}, PromptTooLong, "8 tokens leave no room for an answer in a context of 8"),
        ({"priority": 101}, RequestError, "expected -100 to 100, got 101"),
        ({"prompt": 30, "max_tokens": 20}, RequestError, "30 prompt tokens and up to 20 more need 13 KV pages of 4"),
    ],
)
def test_what_can_never_run_is_refused_with_its_numbers(
    changes: dict[str, object], error: type[DrivetrainError], message: str
) -> None:
    scheduler = scheduler_of(num_pages=13)
    with pytest.raises(error, match=message):
        scheduler.add(request_of("a", **changes))  # type: ignore[arg-type]
    assert scheduler.idle


def test_what_just_fits_runs() -> None:
    scheduler = scheduler_of(num_pages=13)
    request = request_of("a", 30, max_tokens=19)
    scheduler.add(request)
    finish(scheduler)
    assert (request.num_outputs, request.num_preemptions) == (19, 0)


def test_one_id_runs_once() -> None:
    scheduler = scheduler_of()
    scheduler.add(request_of("a"))
    with pytest.raises(RequestError, match="'a' is running already"):
        scheduler.add(request_of("a"))


def test_a_full_queue_says_when_to_come_back() -> None:
    clock = Clock()
    scheduler = scheduler_of(clock, max_num_rows=1, max_waiting=10, overlap=0)
    for at in range(10):
        scheduler.add(request_of(f"{at}", max_tokens=1))
    with pytest.raises(Overloaded, match="10 requests wait already") as unmeasured:
        scheduler.add(request_of("x"))
    assert unmeasured.value.retry_after_s == 5.0
    for _ in range(5):
        clock.now_s += 2.0
        advance(scheduler)
    for at in range(10, 15):
        scheduler.add(request_of(f"{at}", max_tokens=1))
    with pytest.raises(Overloaded) as measured:
        scheduler.add(request_of("x"))
    assert measured.value.retry_after_s == pytest.approx(10 * 8.0 / 5)


def test_idle_time_does_not_slow_the_measured_rate() -> None:
    clock = Clock()
    scheduler = scheduler_of(clock, max_num_rows=1, max_waiting=4, overlap=0)
    for at in range(4):
        scheduler.add(request_of(f"{at}", max_tokens=1))
    for _ in range(4):
        clock.now_s += 1.0
        advance(scheduler)
    assert scheduler.schedule() is None
    clock.now_s += 3600.0
    for at in range(4, 8):
        scheduler.add(request_of(f"{at}", max_tokens=1))
    with pytest.raises(Overloaded) as overloaded:
        scheduler.add(request_of("x"))
    assert overloaded.value.retry_after_s == pytest.approx(4 * 3.0 / 4)


def test_a_storm_of_aborts_does_not_grow_the_queue() -> None:
    scheduler = scheduler_of(max_num_rows=1)
    scheduler.add(request_of("a"))
    step = scheduled(scheduler)
    for at in range(1000):
        scheduler.add(request_of(f"x{at}"))
        scheduler.abort(f"x{at}")
    assert len(scheduler._queue) < 200  # pyright: ignore[reportPrivateUsage]
    land(scheduler, step)
    finish(scheduler)


def test_rows_beyond_the_pages_of_a_step_wait_for_the_next_one_and_then_go_first() -> None:
    scheduler = scheduler_of(max_total_pages=16, max_step_tokens=64, overlap=0)
    shared = list(range(24))  # six pages of four tokens, which the cache holds once
    for name in "abcd":
        scheduler.add(request_of(name, [*shared, ord(name)], max_tokens=20))
    advance(scheduler, 3)
    steps: list[Schedule] = []
    for _ in range(4):
        steps.append(scheduled(scheduler))
        land(scheduler, steps[-1])
    assert [names(step) for step in steps] == [["a", "b"], ["c", "d"], ["a", "b"], ["c", "d"]]
    assert [step.num_pages for step in steps] == [14, 14, 14, 14]
    finish(scheduler)


def test_prompts_share_a_step_by_the_pages_that_they_fill() -> None:
    scheduler = scheduler_of(max_total_pages=16, max_step_tokens=64, prefix_cache=False)
    for name, length in (("a", 32), ("b", 28), ("c", 8)):
        scheduler.add(request_of(name, length))
    assert names(scheduled(scheduler)) == ["a", "b"]


def test_a_prompt_gets_a_step_of_its_own_if_decode_rows_leave_too_few_pages_for_it() -> None:
    scheduler = scheduler_of(max_total_pages=16, overlap=0)
    scheduler.add(request_of("a", 30))
    scheduler.add(request_of("b", 2))
    advance(scheduler)
    scheduler.add(request_of("c", 32))
    turns: list[list[str]] = []
    for _ in range(3):
        step = scheduled(scheduler)
        turns.append(names(step))
        land(scheduler, step)
    assert turns == [["a", "b"], ["c"], ["a", "b"]]
    finish(scheduler)


def test_draining_refuses_new_work_and_finishes_the_old() -> None:
    scheduler = scheduler_of()
    request = request_of("a")
    scheduler.add(request)
    scheduler.drain()
    with pytest.raises(Draining, match="shutting down"):
        scheduler.add(request_of("b"))
    finish(scheduler)
    assert request.num_outputs == 8
    assert_all_back(scheduler)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_num_rows": 0}, "max_num_rows: expected at least 1, got 0"),
        ({"max_step_tokens": 3}, "max_step_tokens: 3 is below max_num_rows 4"),
        ({"chunked_prefill": False}, "max_step_tokens: 32 is below max_model_len 64, which needs chunked_prefill"),
        ({"max_prefills_per_step": 0}, "max_prefills_per_step: expected at least 1 or none, got 0"),
        ({"max_total_pages": 15}, "takes 15 pages a step, and a request of max_model_len 64 reads 16"),
        ({"aging_s": 0.0}, "aging_s: expected seconds above 0"),
    ],
)
def test_limits_that_contradict_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        scheduler_of(**changes)


def test_counters_tell_what_is_held() -> None:
    scheduler = scheduler_of(max_num_rows=1)
    scheduler.add(request_of("a", 8))
    scheduler.add(request_of("b", 8))
    scheduler.schedule()
    stats = scheduler.stats()
    assert (stats.running, stats.waiting, stats.steps_in_flight, stats.preemptions) == (1, 1, 1, 0)
    assert (stats.held, stats.awaiting_pages, stats.held_for_masks, stats.held_for_pages) == (0, 0, 0, 0)
    assert (stats.pages_free, stats.pages_cached, stats.pages_used, stats.pages_total) == (62, 0, 2, 64)
    assert scheduler.get("b") is not None
    assert not scheduler.idle
