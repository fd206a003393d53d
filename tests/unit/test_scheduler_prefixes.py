"""Prefix hits and forks: what is taken over, what is computed, and what a failure takes back."""

from __future__ import annotations

import pytest

from drivetrain.errors import RequestError
from drivetrain.request import FinishReason, Request, Status
from drivetrain.scheduler import Scheduler
from fakes.scheduling import advance, finish, land, names, request_of, scheduled, scheduler_of, spans

SHARED = list(range(100, 112))


def test_a_known_prefix_is_not_computed_again() -> None:
    scheduler = scheduler_of()
    scheduler.add(request_of("a", SHARED))
    finish(scheduler)
    again = request_of("b", [*SHARED, 5, 6])
    scheduler.add(again)
    (row,) = scheduled(scheduler).rows
    assert (row.start, row.num_tokens, row.first_new_page, row.num_new_pages) == (12, 2, 0, 4)
    assert again.num_cached_tokens == 12
    stats = scheduler.stats()
    assert (stats.prefix_queried_tokens, stats.prefix_hit_tokens) == (26, 12)


def test_a_full_hit_still_computes_its_last_token() -> None:
    scheduler = scheduler_of()
    scheduler.add(request_of("a", SHARED))
    finish(scheduler)
    scheduler.add(request_of("b", SHARED))
    assert spans(scheduler.schedule()) == [("b", 8, 4, True)]


def test_the_next_turn_of_a_chat_hits_the_answer_too() -> None:
    scheduler = scheduler_of()
    first = request_of("a", SHARED, max_tokens=9)
    scheduler.add(first)
    finish(scheduler)
    scheduler.add(request_of("b", [*first.tokens, 7]))
    assert spans(scheduler.schedule()) == [("b", 20, 2, True)]


def test_a_block_whose_last_position_no_step_has_computed_is_no_hit() -> None:
    scheduler = scheduler_of()
    first = request_of("a", SHARED, max_tokens=4)  # its 16th token ends it and is never computed
    scheduler.add(first)
    finish(scheduler)
    scheduler.add(request_of("b", [*first.tokens, 7]))
    assert spans(scheduler.schedule()) == [("b", 12, 5, True)]


def test_another_salt_is_no_hit() -> None:
    scheduler = scheduler_of()
    scheduler.add(request_of("a", SHARED, salt=b"tenant 1"))
    finish(scheduler)
    scheduler.add(request_of("b", SHARED, salt=b"tenant 2"))
    assert spans(scheduler.schedule()) == [("b", 0, 12, True)]


def test_prompt_logprobs_take_no_hits_but_give_some() -> None:
    scheduler = scheduler_of()
    for name in ("a", "b"):
        scheduler.add(request_of(name, SHARED, prompt_logprobs=1))
        step = scheduled(scheduler)
        assert spans(step) == [(name, 0, 12, True)]
        land(scheduler, step)
        finish(scheduler)
    scheduler.add(request_of("c", SHARED))
    assert spans(scheduler.schedule()) == [("c", 8, 4, True)]


def test_no_prefix_cache_means_no_hits_and_no_cached_pages() -> None:
    scheduler = scheduler_of(prefix_cache=False)
    scheduler.add(request_of("a", SHARED))
    finish(scheduler)
    assert scheduler.stats().pages_cached == 0
    scheduler.add(request_of("b", SHARED))
    assert spans(scheduler.schedule()) == [("b", 0, 12, True)]


def test_equal_prompts_that_arrive_together_are_computed_once() -> None:
    scheduler = scheduler_of()
    scheduler.add(request_of("a", [*SHARED, 1, 2]))
    scheduler.add(request_of("b", [*SHARED, 3, 4]))
    scheduler.add(request_of("c", 5))
    first = scheduled(scheduler)
    assert names(first) == ["a", "c"], "b waits one step for the prefix; c need not wait"
    assert ("b", 12, 2, True) in spans(scheduler.schedule())


def test_a_failed_step_takes_back_what_it_published() -> None:
    scheduler = scheduler_of()
    scheduler.add(request_of("a", SHARED))
    scheduler.fail(scheduled(scheduler))
    assert scheduler.stats().pages_free == scheduler.stats().pages_total
    scheduler.add(request_of("b", SHARED))
    assert spans(scheduler.schedule()) == [("b", 0, 12, True)]


def test_whoever_read_pages_of_a_failed_step_starts_again() -> None:
    scheduler = scheduler_of()
    first, second = request_of("a", SHARED), request_of("b", [*SHARED, 5])
    scheduler.add(first)
    failed = scheduled(scheduler)
    scheduler.add(second)
    reader = scheduled(scheduler)
    assert ("b", 12, 1, True) in spans(reader)
    assert scheduler.fail(failed) == [first]
    assert second.status is Status.PREEMPTED
    assert scheduler.schedule() is None, "its row is in flight"
    assert land(scheduler, reader) == [], "its sample came from rubbish"
    assert spans(scheduler.schedule()) == [("b", 0, 13, True)]
    assert second.num_outputs == 0


def test_an_evicted_chain_is_published_again() -> None:
    scheduler = scheduler_of(num_pages=17, max_num_rows=2, overlap=0)
    scheduler.add(request_of("a", SHARED))
    finish(scheduler)
    own = request_of("b", SHARED, prompt_logprobs=1, max_tokens=12)  # has its own copy of a's blocks
    scheduler.add(own)
    advance(scheduler)
    scheduler.add(request_of("c", 44, max_tokens=1))  # evicts some of them
    finish(scheduler)
    scheduler.add(request_of("d", [*own.tokens, 7]))
    assert spans(scheduler.schedule()) == [("d", 20, 5, True)]


def test_prefixes_may_be_cleared_while_requests_run() -> None:
    scheduler = scheduler_of()
    running = request_of("a", SHARED)
    scheduler.add(running)
    step = scheduled(scheduler)
    pages = list(running.pages)
    scheduler.clear_prefixes()
    assert running.pages == pages
    scheduler.add(request_of("b", SHARED, max_tokens=1))
    later = scheduled(scheduler)
    assert spans(later)[-1] == ("b", 0, 12, True)
    land(scheduler, step)
    land(scheduler, later)
    finish(scheduler)


def test_cleared_prefixes_are_not_found_again() -> None:
    scheduler = scheduler_of()
    scheduler.add(request_of("a", SHARED))
    finish(scheduler)
    assert scheduler.stats().pages_cached > 0
    scheduler.clear_prefixes()
    assert scheduler.stats().pages_cached == 0
    scheduler.add(request_of("b", SHARED))
    assert spans(scheduler.schedule()) == [("b", 0, 12, True)]


# -- forks: n completions of one prompt ----------------------------------------------------------------------------


def with_fork(scheduler: Scheduler, num_prompt: int = 6, **params: object) -> tuple[Request, Request]:
    parent = request_of("p", num_prompt, **params)
    child = request_of("p2", num_prompt, parent=parent)
    scheduler.add(parent)
    scheduler.add(child)
    return parent, child


@pytest.mark.parametrize("prefix_cache", [True, False])
def test_a_fork_shares_full_pages_copies_the_last_and_computes_one_token(prefix_cache: bool) -> None:
    scheduler = scheduler_of(prefix_cache=prefix_cache)
    parent, child = with_fork(scheduler, 7)
    assert spans(scheduler.schedule()) == [("p", 0, 7, True)]
    step = scheduled(scheduler)
    assert spans(step) == [("p", 7, 1, True), ("p2", 6, 1, True)]
    assert (parent.pages, child.pages) == ([1, 2], [1, 3])
    assert step.page_copies == [(2, 3)]
    row = step.rows[1]
    assert (row.admitted, row.num_new_pages, child.num_cached_tokens) == (True, 2, 6)


def test_a_fork_whose_last_token_begins_a_page_copies_nothing() -> None:
    scheduler = scheduler_of()
    parent, child = with_fork(scheduler, 5)
    scheduler.schedule()
    step = scheduled(scheduler)
    assert spans(step)[1] == ("p2", 4, 1, True)
    assert step.page_copies == []
    assert (parent.pages, child.pages) == ([1, 2], [1, 3])


def test_a_fork_waits_for_the_last_chunk_of_the_prompt() -> None:
    scheduler = scheduler_of(max_step_tokens=8, overlap=0)
    with_fork(scheduler, 12)
    seen = []
    for _ in range(3):
        step = scheduled(scheduler)
        seen.append(names(step))
        land(scheduler, step)
    assert seen == [["p"], ["p"], ["p", "p2"]]


def test_a_fork_that_comes_late_still_shares() -> None:
    scheduler = scheduler_of(overlap=0)
    parent = request_of("p", 7)
    scheduler.add(parent)
    advance(scheduler, 3)
    scheduler.add(request_of("p2", 7, parent=parent))
    step = scheduled(scheduler)
    assert spans(step)[1] == ("p2", 6, 1, True)
    assert step.page_copies == [(parent.pages[1], 4)]


@pytest.mark.parametrize("phase", ["waiting", "prefilling", "in flight", "queued fork"])
def test_a_fork_goes_on_alone_when_its_parent_is_aborted(phase: str) -> None:
    scheduler = scheduler_of(max_step_tokens=8, max_num_rows=1 if phase == "queued fork" else 4)
    _, child = with_fork(scheduler, 12 if phase == "prefilling" else 7)
    steps = []
    if phase != "waiting":
        steps.append(scheduled(scheduler))
    if phase == "queued fork":
        steps.append(scheduled(scheduler))
        assert names(steps[-1]) == ["p"], "no slot for the fork"
    scheduler.abort("p")
    for step in steps:
        land(scheduler, step)
    finish(scheduler)
    assert (child.finish_reason, child.num_outputs) == (FinishReason.LENGTH, 8)


def test_a_fork_goes_on_alone_when_its_parent_fails() -> None:
    scheduler = scheduler_of()
    _, child = with_fork(scheduler)
    failed, reader = scheduled(scheduler), scheduled(scheduler)
    assert names(reader) == ["p", "p2"]
    assert [request.request_id for request in scheduler.fail(failed)] == ["p"]
    assert land(scheduler, reader) == []
    assert spans(scheduler.schedule()) == [("p2", 0, 6, True)]
    assert child.num_outputs == 0


def test_a_fork_goes_on_alone_when_its_parent_ended_at_once() -> None:
    scheduler = scheduler_of(overlap=0, prefix_cache=False)
    _, child = with_fork(scheduler, max_tokens=1)
    finish(scheduler)
    assert child.num_outputs == 8


def test_a_fork_waits_for_a_preempted_parent_to_come_back() -> None:
    scheduler = scheduler_of(num_pages=6, prefix_cache=False, overlap=0, max_num_rows=2)
    elder = request_of("e", 7, max_tokens=12)
    parent = request_of("p", 7, arrival_s=1.0, max_tokens=6)
    child = request_of("p2", 7, arrival_s=1.0, parent=parent)
    for request in (elder, parent, child):
        scheduler.add(request)
    for _ in range(100):
        if parent.num_preemptions:
            break
        advance(scheduler)
    assert (parent.status, child.status) == (Status.PREEMPTED, Status.WAITING)
    finish(scheduler)
    assert (parent.num_outputs, child.num_outputs) == (6, 8)


def test_a_fork_must_be_of_the_same_prompt_and_of_a_known_parent() -> None:
    scheduler = scheduler_of()
    parent = request_of("p", 6)
    with pytest.raises(RequestError, match="'p' was never added"):
        scheduler.add(request_of("p2", 6, parent=parent))
    scheduler.add(parent)
    with pytest.raises(RequestError, match="another prompt or salt"):
        scheduler.add(request_of("p2", 7, parent=parent))
    with pytest.raises(RequestError, match="another prompt or salt"):
        scheduler.add(request_of("p2", 6, salt=b"x", parent=parent))
