"""The text of a request's completions, and what is asked of the engine on their account."""

from __future__ import annotations

import pytest

from drivetrain.answer_text import AnswerText
from drivetrain.completion_text import CompletionText
from drivetrain.errors import RequestFailed
from drivetrain.messages import Update
from drivetrain.sampling import SamplingParams
from fakes.text import byte_tokenizer


def answer_of(num: int, aborted: list[tuple[str, int | None]]) -> AnswerText:
    params = SamplingParams(n=num, stop=("!",))
    texts = [CompletionText(index, params, byte_tokenizer()) for index in range(num)]
    return AnswerText("r", texts, lambda request_id, index=None: aborted.append((request_id, index)))


def says(text: str, index: int = 0, **fields: object) -> Update:
    return Update(request_id="r", index=index, token_ids=list(text.encode()), **fields)  # type: ignore[arg-type]


def test_updates_of_a_completion_become_one_delta() -> None:
    answer = answer_of(2, [])
    deltas = answer.push([says("ab"), says("x", 1), says("c", finish_reason="length")])
    assert [(delta.index, delta.text, delta.finish_reason) for delta in deltas] == [
        (0, "abc", "length"),
        (1, "x", None),
    ]
    assert answer.num_live == 1


def test_a_completion_that_a_stop_string_ended_is_aborted_while_others_go_on() -> None:
    aborted: list[tuple[str, int | None]] = []
    answer = answer_of(2, aborted)
    (delta,) = answer.push([says("a!b", 1)])
    assert (delta.text, delta.finish_reason, delta.stop_reason) == ("a", "stop", "!")
    assert (aborted, answer.num_live) == ([("r", 1)], 1)
    assert answer.push([says("late", 1), says("", 1, finish_reason="abort")]) == [], "it has ended already"
    answer.push([says("c!")])
    assert (aborted, answer.num_live) == ([("r", 1)], 0), "the last one ends with its request"


@pytest.mark.parametrize("reason", ["error", "abort"])
def test_a_completion_that_the_engine_gave_up_fails_the_answer(reason: str) -> None:
    with pytest.raises(RequestFailed, match="page 7 was lost"):
        answer_of(1, []).push([says("", finish_reason=reason, error="page 7 was lost")])
    with pytest.raises(RequestFailed, match="aborted this request before it finished"):
        answer_of(1, []).push([says("", finish_reason=reason)])
