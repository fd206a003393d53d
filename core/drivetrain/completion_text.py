"""The text of one completion as its tokens arrive."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from drivetrain.messages import FinishReasonName, TokenLogprob, Update
from drivetrain.sampling import SamplingParams


class TokenText(Protocol):
    """An incremental detokenizer: see `drivetrain.detokenizer.Detokenizer`."""

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended the text, once it was seen."""
        ...

    def push(self, token_id: int) -> str:
        """Text that is certain after one more token; may be empty."""
        ...

    def finish(self) -> str:
        """Text that was held back, when no more tokens come."""
        ...


class TextDelta(msgspec.Struct, frozen=True, kw_only=True):
    """What became known about one completion since the last delta.

    Attributes:
        text: new text; empty while bytes of a character or a possible stop string are held back.
        token_ids: new tokens, up to and with the one that finished the answer.
        logprobs: one entry a new token, where asked for.
        token_starts: with logprobs, for each new token the number of characters before it in the answer.
        finish_reason: set in the last delta of a completion.
        stop_reason: the stop string or the requested stop token id that ended it; None for an end token of the model.
        error: what went wrong, with finish_reason "error" or "abort".
    """

    index: int
    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprob] | None = None
    token_starts: list[int] | None = None
    prompt_logprobs: list[TokenLogprob | None] | None = None
    finish_reason: FinishReasonName | None = None
    stop_reason: int | str | None = None
    num_cached_tokens: int = 0
    error: str | None = None

    def followed_by(self, later: TextDelta) -> TextDelta:
        """Both deltas of the same completion as one."""
        logprobs = self.logprobs if later.logprobs is None else [*(self.logprobs or []), *later.logprobs]
        starts = self.token_starts if later.token_starts is None else [*(self.token_starts or []), *later.token_starts]
        return TextDelta(
            index=self.index,
            text=self.text + later.text,
            token_ids=[*self.token_ids, *later.token_ids],
            logprobs=logprobs,
            token_starts=starts,
            prompt_logprobs=later.prompt_logprobs if self.prompt_logprobs is None else self.prompt_logprobs,
            finish_reason=later.finish_reason,
            stop_reason=later.stop_reason,
            num_cached_tokens=max(self.num_cached_tokens, later.num_cached_tokens),
            error=later.error,
        )


class CompletionText:
    """State of one completion: its detokenizer, its counts and how it ended.

    Args:
        index: which completion of the request.
        params: decides on stop strings, end tokens in the text, and log-probabilities.
        detokenizer: makes the detokenizer; not called where `params.detokenize` is False.
    """

    __slots__ = ("_detokenizer", "_params", "_start", "finish_reason", "index", "num_tokens", "stop_reason")

    def __init__(self, index: int, params: SamplingParams, detokenizer: Callable[[], TokenText]) -> None:
        self.index = index
        self.num_tokens = 0
        self.finish_reason: FinishReasonName | None = None
        self.stop_reason: int | str | None = None
        self._params = params
        self._detokenizer = detokenizer() if params.detokenize else None
        self._start = 0

    def push(self, update: Update) -> TextDelta:
        """Take the next update in; tokens after a stop string are dropped.

        When the returned delta has a finish_reason and the update had none, a stop string was found: the caller tells
        the engine to end this completion. Updates after the end are a mistake of the caller.
        """
        assert self.finish_reason is None, "an update after the end of its completion"
        params = self._params
        finish_reason, stop_reason = update.finish_reason, self._stop_reason(update)
        hidden_end = update.stop_token_id is not None and not params.include_stop_str_in_output
        token_ids, text, starts = update.token_ids, "", list[int]()
        detokenizer = self._detokenizer
        last = len(token_ids) - 1
        for position, token in enumerate(token_ids):
            starts.append(self._start + len(text))
            if detokenizer is None or (hidden_end and position == last):
                continue
            text += detokenizer.push(token)
            if detokenizer.stop_string is not None:
                token_ids = token_ids[: position + 1]
                finish_reason, stop_reason = "stop", detokenizer.stop_string
                break
        if finish_reason is not None and detokenizer is not None and detokenizer.stop_string is None:
            text += detokenizer.finish()
        self._start += len(text)
        self.num_tokens += len(token_ids)
        self.finish_reason, self.stop_reason = finish_reason, stop_reason
        logprobs = update.logprobs
        return TextDelta(
            index=self.index,
            text=text,
            token_ids=token_ids,
            logprobs=None if logprobs is None else logprobs[: len(token_ids)],
            token_starts=None if logprobs is None else starts,
            prompt_logprobs=update.prompt_logprobs,
            finish_reason=finish_reason,
            stop_reason=stop_reason,
            num_cached_tokens=update.num_cached_tokens,
            error=update.error,
        )

    def _stop_reason(self, update: Update) -> int | None:
        return update.stop_token_id if update.stop_token_id in self._params.stop_token_ids else None
