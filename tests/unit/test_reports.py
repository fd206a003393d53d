"""What is told of a completion when it ends, and with its scores."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from drivetrain.messages import Update
from drivetrain.reports import Reports
from drivetrain.request import FinishReason
from drivetrain.scheduling.schedule import Landed, Schedule, ScheduledRow
from drivetrain_plugins.contract.batch import StepOutput
from fakes.scheduling import EOS, request_of

OWNER = ("r", 1)


@pytest.mark.parametrize(
    ("reason", "tokens", "stop_token_id"),
    [
        (None, [5], None),
        (FinishReason.LENGTH, [5], None),
        (FinishReason.STOP, [EOS], EOS),
        (FinishReason.STOP, [5], None),
        (FinishReason.STOP, [], None),
    ],
)
def test_the_stop_token_is_an_end_token_that_landed(
    reason: FinishReason | None, tokens: list[int], stop_token_id: int | None
) -> None:
    request = request_of("a")
    request.num_cached_tokens, request.queued_s = 4, 0.5
    assert Reports().report(OWNER, Landed(request, tokens, reason)) == Update(
        request_id="r",
        index=1,
        token_ids=tokens,
        finish_reason=reason,  # type: ignore[arg-type]
        stop_token_id=stop_token_id,
        num_cached_tokens=4,
        queued_s=0.5,
    )


def test_scores_of_the_prompt_come_with_the_first_tokens_and_once() -> None:
    reports, request = Reports(), request_of("a", [5, 6, 7], prompt_logprobs=0)
    reports.begin(request)
    scored = StepOutput(
        token_ids=np.array([9], np.int32),
        prompt_logprobs=np.array([-0.5, -1.5], np.float32),
        prompt_ranks=np.array([1, 3], np.int32),
        prompt_top_ids=np.empty((2, 0), np.int32),
        prompt_top_logprobs=np.empty((2, 0), np.float32),
    )
    reports.take(Schedule(0, [ScheduledRow(request, 0, 0, 3)]), scored)
    assert reports.report(OWNER, Landed(request, [], None)).prompt_logprobs is None
    scores = reports.report(OWNER, Landed(request, [9], None)).prompt_logprobs
    assert scores is not None and scores[0] is None
    assert [(score.token_id, score.logprob, score.rank) for score in scores[1:] if score] == [
        (6, -0.5, 1),
        (7, -1.5, 3),
    ]
    assert reports.report(OWNER, Landed(request, [9], None)).prompt_logprobs is None


def test_scores_of_a_token_are_those_at_its_place() -> None:
    request = request_of("a", logprobs=1)
    output = StepOutput(
        token_ids=np.array([8, 9], np.int32),
        logprobs=np.array([-1.0, -2.0], np.float32),
        ranks=np.array([1, 2], np.int32),
        top_ids=np.array([[8], [4]], np.int32),
        top_logprobs=np.array([[-1.0], [-0.25]], np.float32),
    )
    (score,) = Reports().report(OWNER, Landed(request, [9], None), output, 1).logprobs or []
    assert (score.token_id, score.logprob, score.rank, score.top) == (9, -2.0, 2, [(4, -0.25)])
    assert Reports().report(OWNER, Landed(request, [9], None), output).logprobs is None


def test_an_embedding_is_told_at_the_end_and_forgotten_with_its_request() -> None:
    reports, request = Reports(), replace(request_of("a", [5, 6]), pooling="mean")
    step = Schedule(0, [ScheduledRow(request, 0, 0, 2, samples=False, admitted=True)])
    pooled = StepOutput(token_ids=np.empty(0, np.int32), pooled=np.array([[2.0, 6.0]], np.float32))
    reports.take(step, pooled)
    ended = Landed(request, [], FinishReason.STOP)
    embedding = reports.report(OWNER, ended).embedding
    assert embedding is not None and np.frombuffer(embedding, "<f4").tolist() == [1.0, 3.0]
    reports.take(step, pooled)
    reports.forget(request)
    with pytest.raises(AssertionError, match="brings a sum for each span"):
        reports.report(OWNER, ended)
