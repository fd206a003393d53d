"""What a vocabulary and a context hold, to the token."""

from __future__ import annotations

from dataclasses import replace

import pytest

from drivetrain.errors import PromptTooLong, RequestError
from drivetrain.model_limits import check_answer_fits, check_input_fits, check_token_ids
from fakes.engine import INFO

CONTEXT = replace(INFO, max_model_len=8)


@pytest.mark.parametrize("ids", [[], [0], [0, 9], {9: 1.0}])
def test_tokens_of_the_vocabulary_pass(ids: list[int]) -> None:
    check_token_ids("prompt", ids, 10)


@pytest.mark.parametrize(("ids", "wrong"), [([3, 10], 10), ([3, -1, 10], -1), ({11: 0.5}, 11)])
def test_the_first_token_outside_the_vocabulary_is_named(ids: list[int], wrong: int) -> None:
    with pytest.raises(RequestError, match=f"^logit_bias: token ids are 0 to 9, got {wrong}$") as caught:
        check_token_ids("logit_bias", ids, 10)
    assert caught.value.param == "logit_bias"


@pytest.mark.parametrize(("num_prompt", "max_tokens"), [(7, None), (7, 1), (2, 6)])
def test_a_context_may_be_filled(num_prompt: int, max_tokens: int | None) -> None:
    check_answer_fits(CONTEXT, num_prompt, max_tokens)


@pytest.mark.parametrize(
    ("num_prompt", "max_tokens", "message", "param"),
    [
        (8, None, "8 of the prompt and an answer do not fit", "prompt"),
        (7, 2, "7 of the prompt and max_tokens of 2 do not fit", "max_tokens"),
        (9, 1, "9 of the prompt and max_tokens of 1 do not fit", "prompt"),
    ],
)
def test_the_side_that_is_too_long_is_named(num_prompt: int, max_tokens: int | None, message: str, param: str) -> None:
    with pytest.raises(PromptTooLong, match=f"the context has 8 tokens; {message}") as caught:
        check_answer_fits(CONTEXT, num_prompt, max_tokens)
    assert caught.value.param == param


def test_an_input_needs_no_room_for_an_answer() -> None:
    check_input_fits(CONTEXT, 8)
    with pytest.raises(PromptTooLong, match="the context has 8 tokens, the input has 9; shorten it"):
        check_input_fits(CONTEXT, 9)
