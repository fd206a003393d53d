"""What can ever run, and how long it may become."""

from __future__ import annotations

from dataclasses import replace

import pytest

from drivetrain.errors import PromptTooLong, RequestError
from drivetrain.request import Request
from drivetrain.scheduling.admission import check_fork, length_limit
from drivetrain.scheduling.limits import SchedulerLimits
from fakes.scheduling import request_of

LIMITS = SchedulerLimits(max_num_rows=4, max_step_tokens=32, max_model_len=64, page_size=4, num_pages=9)
"""Eight pages of four tokens."""


def pooled(prompt: int, max_total: int = 64) -> Request:
    return replace(request_of("p", prompt, max_total=max_total), pooling="last")


@pytest.mark.parametrize(
    ("asked", "limit"),
    [
        (request_of("a", 6, max_tokens=8), 14),
        (request_of("a", 6, max_tokens=None, max_total=20), 20),
        (request_of("a", 6, max_tokens=40, max_total=20), 20),
        (request_of("a", 30, max_tokens=3), 33),  # the last token needs no page
        (pooled(32), 33),
        (pooled(20, max_total=20), 21),
    ],
    ids=repr,
)
def test_a_request_ends_at_its_own_limit_or_that_of_the_context(asked: Request, limit: int) -> None:
    assert length_limit(asked, LIMITS) == limit


@pytest.mark.parametrize(
    ("asked", "kind", "param", "message"),
    [
        (request_of("a", []), RequestError, "prompt", "expected at least one token, got none"),
        (request_of("a", priority=101), RequestError, "priority", "expected -100 to 100, got 101"),
        (request_of("a", 64), PromptTooLong, "prompt", "64 tokens leave no room for an answer in a context of 64"),
        (
            request_of("a", 30, max_tokens=4),
            RequestError,
            "max_tokens",
            "30 prompt tokens and up to 4 more need 9 KV pages of 4 tokens, the cache has 8",
        ),
        (pooled(33), RequestError, "prompt", "33 tokens need 9 KV pages of 4 tokens, the cache has 8; shorten it"),
        (pooled(21, max_total=20), PromptTooLong, "prompt", "21 tokens are more than the context of 20"),
    ],
    ids=repr,
)
def test_what_could_never_run_is_refused_by_the_field(
    asked: Request, kind: type[RequestError], param: str, message: str
) -> None:
    with pytest.raises(RequestError, match=f"^{param}: {message}") as caught:
        length_limit(asked, LIMITS)
    assert type(caught.value) is kind
    assert caught.value.param == param


def test_a_fork_has_the_prompt_and_the_salt_of_its_parent() -> None:
    parent = request_of("a", [1, 2, 3])
    check_fork(request_of("b", [1, 2, 3]), parent)
    for other in (request_of("b", [1, 2, 4]), request_of("b", [1, 2, 3], salt=b"tenant")):
        with pytest.raises(RequestError, match="'a' has another prompt or salt"):
            check_fork(other, parent)
