"""Answers under a grammar: whatever runs ahead, is chunked, preempted, forked or fails, they are the plain engine's."""

from __future__ import annotations

import json
import random
import re
import time
from collections import Counter
from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from drivetrain.engine import Engine
from drivetrain.errors import RequestError
from drivetrain.grammar import Grammar, masks
from drivetrain.grammar.matcher import GrammarMatcher, Pace
from drivetrain.messages import GenerateRequest, Update
from drivetrain.request import Request
from drivetrain.sampling import SamplingParams
from drivetrain.scheduler import Schedule, Scheduler
from drivetrain.scheduling.running import RunningSet
from drivetrain_plugins.contract.batch import StepBatch, Ticket
from drivetrain_plugins.errors import OutOfMemory
from fakes.replaying_device import ReplayingDevice
from fakes.tiny_engine import random_requests, run, run_failing, tiny_engine
from fakes.tiny_grammars import end_id, tiny_grammars, tiny_tokenizer

VOCAB_SIZE = 641  # padded: neither the tokenizer's size nor a multiple of 32
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "size": {"type": "integer", "minimum": -5, "maximum": 500},
        "tags": {"type": "array", "items": {"enum": ["red", "green", None]}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "size", "tags"],
    "additionalProperties": False,
}
GRAMMARS = [
    Grammar(kind="json_schema", value=json.dumps(SCHEMA)),
    Grammar(kind="json_object"),
    Grammar(kind="regex", value=r"[a-c]{2,6}(, [a-c]{2,6}){0,30}\."),
    Grammar(kind="choice", value='["the quick brown fox", "the lazy dog", "the"]'),
    Grammar(kind="lark", value='start: item+\nitem: "(" item* ")" | /[0-9]{1,3}/ ";"'),
]


def grammar_engine(**changes: Any) -> Engine:
    return tiny_engine(
        vocab_size=VOCAB_SIZE, end_ids=frozenset({end_id()}), grammars=tiny_grammars(VOCAB_SIZE), **changes
    )


def grammar_requests(seed: int, count: int) -> list[GenerateRequest]:
    """Random requests of every kind; two of three have a grammar."""
    rng = random.Random(seed)
    requests: list[GenerateRequest] = []
    for request in random_requests(seed, count):
        if rng.random() < 0.67:
            params = replace(request.params, grammar=rng.choice(GRAMMARS), logit_bias={})
            request = replace(request, params=params, bad_word_ids=[])
        requests.append(request)
    return requests


def answer(engine: Engine, grammar: Grammar, *, prompt: int = 30, **params: Any) -> list[tuple[str, list[Update]]]:
    """Text and updates of each completion, in order."""
    chosen = SamplingParams(grammar=grammar, **({"max_tokens": 60, "seed": 4} | params))
    engine.submit(GenerateRequest(request_id="a", prompt_ids=list(range(40, 40 + prompt)), params=chosen))
    updates: dict[int, list[Update]] = {index: [] for index in range(chosen.n)}
    while engine.has_work:
        for update in engine.step():
            updates[update.index].append(update)
    texts = [
        tiny_tokenizer().decode([token for update in each for token in update.token_ids]) for each in updates.values()
    ]
    return list(zip(texts, updates.values(), strict=True))


def plain_answers(seed: int, count: int) -> dict[Any, Any]:
    engine = grammar_engine(prefix_cache=False, rows=4)
    answers: dict[Any, Any] = {}
    for request in grammar_requests(seed, count):
        answers |= run(engine, [request])
    return answers


def assert_same(expected: dict[Any, Any], got: dict[Any, Any]) -> None:
    assert expected.keys() == got.keys()
    for key, (ids, _, reason) in expected.items():
        assert (got[key][0], got[key][2]) == (ids, reason), key


@pytest.mark.parametrize("seed", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_every_combination_of_features_gives_the_answers_of_the_plain_engine(seed: int) -> None:
    count = 9
    expected = plain_answers(seed, count)
    preemptions = 0
    for overlap, (step_tokens, pages), prefix_cache in product((False, True), ((512, 400), (13, 14)), (False, True)):
        engine = grammar_engine(overlap=overlap, step_tokens=step_tokens, pages=pages, prefix_cache=prefix_cache)
        assert_same(expected, run(engine, grammar_requests(seed, count)))
        stats = engine.stats()
        assert (stats.pages_used, stats.failed) == (0, 0)
        preemptions += stats.preemptions
    assert preemptions > 0


@pytest.mark.parametrize(("seed", "captured_tokens"), [pytest.param(2, 0, marks=pytest.mark.slow), (3, 24)])
def test_recorded_steps_with_masks_give_the_answers_of_the_plain_engine(seed: int, captured_tokens: int) -> None:
    expected = plain_answers(seed, 8)
    device = ReplayingDevice(captured_tokens=captured_tokens, sampling=frozenset({"random", "filters", "penalties"}))
    engine = grammar_engine(overlap=True, step_tokens=24, pages=14, device=device)
    assert_same(expected, run(engine, grammar_requests(seed, 8)))
    assert device.runtime.replays > 50
    assert engine.stats().preemptions > 0


@pytest.mark.parametrize("overlap", [False, True])
def test_steps_that_fail_leave_other_grammars_where_they_were(overlap: bool) -> None:
    """Requests of a lost step fail; the masks of all others still follow what they have said."""
    expected = plain_answers(5, 12)
    engine = grammar_engine(overlap=overlap, step_tokens=24, pages=60)
    execute, rng = engine._executor.execute, random.Random(5)

    class Lost:
        def __init__(self, ticket: Ticket) -> None:
            self.ticket = ticket

        def ready(self) -> bool:
            return True

        def wait(self) -> Any:
            self.ticket.wait()
            raise OutOfMemory("planted")

    def failing(batch: StepBatch) -> Ticket:
        ticket = execute(batch)
        return Lost(ticket) if rng.random() < 0.06 else ticket  # type: ignore[return-value]

    engine._executor.execute = failing  # type: ignore[method-assign]
    answers, failed = run_failing(engine, grammar_requests(5, 12), "planted")
    for key in answers.keys() - failed:
        assert answers[key] == expected[key][0], key


@pytest.fixture
def slow_masks(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """One mask of four takes longer than a step waits, and some of those count as costly; counts who sat out."""
    rng, seen = random.Random(9), Counter[str]()
    work, sit_out, hold, note = GrammarMatcher.work, Scheduler.sit_out, RunningSet.hold, Pace.note

    def slowly(matcher: GrammarMatcher) -> None:
        if rng.random() < 0.25:
            time.sleep(0.002)
        work(matcher)

    def sitting_out(scheduler: Scheduler, schedule: Schedule, request: Request) -> None:
        seen["void"] += 1
        seen["void, penalized"] += request.params.penalized
        sit_out(scheduler, schedule, request)

    def holding(running: RunningSet, request: Request) -> None:
        seen["held"] += 1
        hold(running, request)

    def noting(pace: Pace, cost_s: float) -> None:
        note(pace, 1.0 if rng.random() < 0.02 else 0.0)

    monkeypatch.setattr(masks, "_PATIENCE_S", 0.0005)
    monkeypatch.setattr(GrammarMatcher, "work", slowly)
    monkeypatch.setattr(Scheduler, "sit_out", sitting_out)
    monkeypatch.setattr(RunningSet, "hold", holding)
    monkeypatch.setattr(Pace, "note", noting)
    return seen


def test_rows_whose_masks_are_slow_give_the_answers_of_the_plain_engine(slow_masks: Counter[str]) -> None:
    count, preemptions, void = 9, 0, Counter[str]()
    expected = plain_answers(7, count)
    for overlap, (step_tokens, pages) in product((False, True), ((512, 400), (13, 14))):
        slow_masks.clear()
        engine = grammar_engine(overlap=overlap, step_tokens=step_tokens, pages=pages)
        assert_same(expected, run(engine, grammar_requests(7, count)))
        stats = engine.stats()
        assert (stats.pages_used, stats.failed) == (0, 0)
        preemptions += stats.preemptions
        assert slow_masks["held"] > 0
        assert stats.held_for_masks >= slow_masks["void"] + slow_masks["void, penalized"]
        assert stats.held_for_masks > 0 and stats.held == 0
        assert overlap or not slow_masks["void"]
        void.update({name: count for name, count in slow_masks.items() if name != "held"})
    assert min(preemptions, void["void"], void["void, penalized"]) > 0


def test_void_tokens_are_not_counted_by_penalties(slow_masks: Counter[str]) -> None:
    """Whatever a row may take, it takes one of two letters here: a count of the wrong one would change the answer."""
    letters = {token: 60.0 for sign in "ab" if (token := tiny_tokenizer().token_id(sign)) is not None}
    texts: set[str] = set()
    for overlap in (False, True):
        [(text, _)] = answer(
            grammar_engine(overlap=overlap),
            Grammar(kind="regex", value="[ab]*"),
            temperature=0.0,
            frequency_penalty=1.5,
            ignore_eos=True,
            logit_bias=letters,
            max_tokens=80,
        )
        texts.add(text)
    assert slow_masks["void, penalized"] > 0
    assert len(texts) == 1 and set(texts.pop()) == {"a", "b"}


@pytest.mark.parametrize("overlap", [False, True])
def test_each_of_several_answers_follows_the_grammar_by_itself(overlap: bool) -> None:
    engine = grammar_engine(overlap=overlap)
    got = answer(engine, GRAMMARS[2], n=5, temperature=1.5, max_tokens=150)
    assert len({text for text, _ in got}) == 5
    for text, updates in got:
        assert re.fullmatch(GRAMMARS[2].value, text), text
        assert updates[-1].finish_reason == "stop"


@pytest.mark.parametrize("overlap", [False, True])
def test_an_answer_ends_where_its_grammar_does_though_end_tokens_are_ignored(overlap: bool) -> None:
    engine = grammar_engine(overlap=overlap)
    [(text, updates)] = answer(engine, Grammar(kind="regex", value="[ab]{20}"), ignore_eos=True, min_tokens=50)
    assert re.fullmatch("[ab]{20}", text)
    last = updates[-1]
    assert (last.finish_reason, last.stop_token_id) == ("stop", None)
    assert last.token_ids and end_id() not in last.token_ids


def test_ignored_end_tokens_are_not_taken_while_the_grammar_can_go_on() -> None:
    [(text, updates)] = answer(grammar_engine(), Grammar(kind="regex", value="[ab]*"), ignore_eos=True, max_tokens=40)
    assert re.fullmatch("[ab]{40,}", text)
    assert updates[-1].finish_reason == "length"


def test_min_tokens_forbid_the_end_that_the_grammar_would_allow() -> None:
    [(_, updates)] = answer(
        grammar_engine(), Grammar(kind="regex", value="[ab]*"), min_tokens=25, logit_bias={end_id(): 100.0}
    )
    ids = [token for update in updates for token in update.token_ids]
    assert ids.index(end_id()) == 25
    assert updates[-1].finish_reason == "stop"


@pytest.mark.parametrize("overlap", [False, True])
def test_bad_words_that_forbid_all_that_the_grammar_allows_fail_that_answer_alone(overlap: bool) -> None:
    engine = grammar_engine(overlap=overlap)
    eight = tiny_tokenizer().token_id("8")
    assert eight is not None
    for request_id, words in (("bad", [[eight]]), ("good", [])):
        params = SamplingParams(grammar=Grammar(kind="regex", value="7{3}81"), temperature=0.0, max_tokens=20)
        engine.submit(GenerateRequest(request_id=request_id, prompt_ids=[50, 51], params=params, bad_word_ids=words))
    ended: dict[str, Update] = {}
    texts = {"bad": "", "good": ""}
    while engine.has_work:
        for update in engine.step():
            texts[update.request_id] += tiny_tokenizer().decode(update.token_ids)
            if update.finish_reason is not None:
                ended[update.request_id] = update
    assert ended["bad"].finish_reason == "error"
    assert (ended["bad"].error or "").startswith("grammar: the answer cannot go on")
    assert texts["good"] == "77781" and ended["good"].finish_reason == "stop"
    assert "777".startswith(texts["bad"])
    assert engine.stats().failed == 1


def test_an_engine_without_a_tokenizer_refuses() -> None:
    engine = tiny_engine()
    with pytest.raises(RequestError, match="knows no tokens as text") as caught:
        answer(engine, GRAMMARS[1])
    assert caught.value.param == "grammar"
    assert not engine.has_work
