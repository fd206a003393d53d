"""Log-probabilities: what a step is asked for, and what it brings, of sampled tokens and of prompts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from drivetrain.messages import TokenLogprob
from drivetrain.request import Request
from drivetrain.scheduling.schedule import ScheduledRow
from drivetrain_plugins.contract.batch import Float32Array, Int32Array, PromptLogprobs, StepOutput


def prompt_logprobs_of(rows: Sequence[ScheduledRow]) -> PromptLogprobs | None:
    """The prompt positions of a step's rows that are scored, in row order; None where no row asks."""
    tokens: list[Int32Array] = []
    targets: list[Int32Array] = []
    top = -1
    offset = 0
    for row in rows:
        request = row.request
        span = prompt_logprob_span(row)
        if span is not None:
            first, last = span
            tokens.append(np.arange(offset + first - row.start, offset + last - row.start, dtype=np.int32))
            targets.append(np.frombuffer(request.prompt_ids[first + 1 : last + 1], np.int32))
            top = max(top, request.params.prompt_logprobs or 0)
        offset += row.num_tokens
    if not tokens:
        return None
    return PromptLogprobs(tokens=np.concatenate(tokens), targets=np.concatenate(targets), top=top)


def prompt_logprob_span(row: ScheduledRow) -> tuple[int, int] | None:
    """Positions [first, last) of this row whose successor in the prompt has its log-probability reported."""
    request = row.request
    if request.params.prompt_logprobs is None:
        return None
    last = min(row.start + row.num_tokens, len(request.prompt_ids) - 1)
    return (row.start, last) if row.start < last else None


class PromptScores:
    """Log-probabilities of prompts whose chunks land step by step."""

    def __init__(self) -> None:
        self._found: dict[Request, list[TokenLogprob | None]] = {}

    def begin(self, request: Request) -> None:
        """Collect those of its prompt; its first token has none."""
        self._found[request] = [None for _ in request.prompt_ids]

    def take(self, rows: Sequence[ScheduledRow], output: StepOutput) -> None:
        """Take in what a step with these rows brought. One that begins again writes the same once more."""
        place = 0
        for row in rows:
            span = prompt_logprob_span(row)
            if span is None:
                continue
            first, last = span
            found, prompt_ids = self._found.get(row.request), row.request.prompt_ids
            if found is not None:
                top = row.request.params.prompt_logprobs or 0
                for position in range(first, last):
                    at = place + position - first
                    found[position + 1] = _prompt_logprob(output, at, prompt_ids[position + 1], top)
            place += last - first

    def end(self, request: Request) -> list[TokenLogprob | None] | None:
        """What was collected, in the order of the prompt, which is forgotten; None if nothing was to be."""
        return self._found.pop(request, None)


def token_logprobs(output: StepOutput, place: int, top: int, count: int) -> list[TokenLogprob]:
    """Of the token of the sampled row at `place`, with its `top` likeliest alternatives, `count` times."""
    assert output.logprobs is not None
    assert output.ranks is not None
    assert output.top_ids is not None
    assert output.top_logprobs is not None
    entry = _logprob(
        int(output.token_ids[place]),
        float(output.logprobs[place]),
        int(output.ranks[place]),
        output.top_ids[place],
        output.top_logprobs[place],
        top,
    )
    return [entry] * count


def _prompt_logprob(output: StepOutput, place: int, token_id: int, top: int) -> TokenLogprob:
    assert output.prompt_logprobs is not None
    assert output.prompt_ranks is not None
    assert output.prompt_top_ids is not None
    assert output.prompt_top_logprobs is not None
    return _logprob(
        token_id,
        float(output.prompt_logprobs[place]),
        int(output.prompt_ranks[place]),
        output.prompt_top_ids[place],
        output.prompt_top_logprobs[place],
        top,
    )


def _logprob(
    token_id: int, logprob: float, rank: int, top_ids: Int32Array, top_logprobs: Float32Array, top: int
) -> TokenLogprob:
    pairs = list(zip(top_ids[:top].tolist(), top_logprobs[:top].tolist(), strict=True))
    return TokenLogprob(token_id=token_id, logprob=logprob, rank=rank, top=pairs)
