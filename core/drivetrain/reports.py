"""What clients are told of a completion beyond its tokens: how it ended, scores of answer and prompt, its embedding."""

from __future__ import annotations

from drivetrain.live_requests import Owner
from drivetrain.logprobs import PromptScores, token_logprobs
from drivetrain.messages import Update
from drivetrain.pooling import EmbeddingSums
from drivetrain.request import FinishReason, Request
from drivetrain.scheduling.schedule import Landed, Schedule
from drivetrain_plugins.contract.batch import StepOutput


class Reports:
    """Collects over the steps of a prompt what is told at its end, and tells it."""

    def __init__(self) -> None:
        self._prompt_scores = PromptScores()
        self._sums = EmbeddingSums()

    def begin(self, completion: Request) -> None:
        """Collect the scores of its prompt; its siblings do without."""
        self._prompt_scores.begin(completion)

    def take(self, schedule: Schedule, output: StepOutput) -> None:
        """Take in what a step brought of prompts."""
        if output.prompt_logprobs is not None:
            self._prompt_scores.take(schedule.rows, output)
        if output.pooled is not None:
            self._sums.take(schedule, output.pooled)

    def report(self, owner: Owner, landed: Landed, output: StepOutput | None = None, place: int = -1) -> Update:
        """All that there is to tell of a completion that has landed or ends.

        Args:
            output: the step's, if it brought log-probabilities of sampled tokens.
            place: the completion's among the rows that sampled; -1 if it was none of them.
        """
        request, reason, token_ids = landed.request, landed.finish_reason, landed.new_token_ids
        request_id, index = owner
        logprobs = None
        if request.params.logprobs is not None and output is not None and place >= 0:
            logprobs = token_logprobs(output, place, request.params.logprobs, len(token_ids))
        # A grammar that has ended has no token of its own for it.
        stopped = reason is FinishReason.STOP and bool(token_ids) and token_ids[-1] in request.eos_ids
        failure = request.matcher.failure if request.matcher is not None else None
        return Update(
            request_id=request_id,
            index=index,
            token_ids=token_ids,
            logprobs=logprobs,
            prompt_logprobs=self._prompt_scores.end(request) if token_ids else None,
            finish_reason=None if reason is None else reason.value,
            stop_token_id=token_ids[-1] if stopped else None,
            num_cached_tokens=request.num_cached_tokens,
            queued_s=request.queued_s,
            error=failure if reason is FinishReason.ERROR else None,
            embedding=None if request.pooling is None else self._sums.end(request),
        )

    def forget(self, completion: Request) -> None:
        """Drop what was collected of one that ends."""
        self._prompt_scores.end(completion)
        self._sums.forget(completion)
