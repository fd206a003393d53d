"""The text of one completion as its tokens arrive."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from drivetrain.detokenizer import Detokenizer
from drivetrain.messages import FinishReasonName, TokenLogprob, Update
from drivetrain.sampling import SamplingParams
from drivetrain.tokenizer.pieces import num_chars

if TYPE_CHECKING:
    from drivetrain.tokenizer import Tokenizer

Watch = Callable[[str, Sequence[int]], bool]
"""Told the text and the tokens of an answer as they come; true where the answer ends with them."""


class TextDelta(msgspec.Struct, frozen=True, kw_only=True):
    """What became known about one completion since the last delta.

    Attributes:
        text: new text; empty while bytes of a character or a possible stop string are held back.
        token_ids: new tokens, up to and with the one that finished the answer.
        logprobs: one entry a new token, where asked for.
        token_starts: with logprobs, for each new token the number of characters before it in the answer.
        finish_reason: set in the last delta of a completion.
        stop_reason: the stop string or the requested stop token id that ended it; None for an end token of the model.
        queued_s: from the request's arrival at the engine to its admission to the batch.
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
    queued_s: float = 0.0
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
            queued_s=max(self.queued_s, later.queued_s),
            error=later.error,
        )


class CompletionText:
    """State of one completion: its detokenizer, its counts and how it ended.

    Args:
        index: which completion of the request.
        params: decides on stop strings, end tokens in the text, and log-probabilities.
        prompt_ids: what the completion goes on from; a character cut in two by the border is put together.
        shown: special tokens that stay in the text whatever `params.skip_special_tokens` says.
        watch: ends the completion as a stop string does; all of its text is kept.
    """

    __slots__ = (
        "_detokenizer",
        "_num_chars",
        "_params",
        "_pieces",
        "_prompt_ids",
        "_tokenizer",
        "_watch",
        "finish_reason",
        "index",
        "num_tokens",
        "stop_reason",
    )

    def __init__(
        self,
        index: int,
        params: SamplingParams,
        tokenizer: Tokenizer,
        prompt_ids: Sequence[int] = (),
        *,
        shown: frozenset[int] = frozenset(),
        watch: Watch | None = None,
    ) -> None:
        self.index = index
        self.num_tokens = 0
        self.finish_reason: FinishReasonName | None = None
        self.stop_reason: int | str | None = None
        self._params = params
        self._tokenizer = tokenizer
        self._watch = watch
        self._pieces = tokenizer.pieces_showing(shown) if params.skip_special_tokens else tokenizer.pieces
        self._num_chars = 0
        self._prompt_ids: Sequence[int] | None = None
        stops = params.stop
        if stops and params.min_tokens:
            self._prompt_ids, stops = list(prompt_ids), ()
        self._detokenizer = self._new_detokenizer(prompt_ids, stops) if params.detokenize else None

    @property
    def settled(self) -> bool:
        """Whether a token of whole characters would add just those and change nothing here, so that it need not be
        pushed at all."""
        return (
            self.finish_reason is None
            and self._watch is None
            and self._prompt_ids is None
            and self._params.logprobs is None
            and self._detokenizer is not None
            and self._detokenizer.settled
        )

    def push(self, update: Update) -> TextDelta:
        """Take the next update in; tokens after a stop string are dropped.

        When the returned delta has a finish_reason and the update had none, a stop string was found or the watch ended
        it: the caller tells the engine to end this completion. Updates after the end are a mistake of the caller.
        """
        assert self.finish_reason is None, "an update after the end of its completion"
        params, token_ids, logprobs = self._params, update.token_ids, update.logprobs
        finish_reason = update.finish_reason
        stop_reason: int | str | None = None
        if update.stop_token_id in params.stop_token_ids:
            stop_reason = update.stop_token_id
        hides_end = update.stop_token_id is not None and not params.include_stop_str_in_output
        text, stopped, num_used = self._text(token_ids[:-1] if hides_end else token_ids)
        if stopped is not None:
            token_ids = token_ids[:num_used]
            finish_reason, stop_reason = "stop", stopped
        elif finish_reason is not None and self._detokenizer is not None:
            text += self._detokenizer.finish()
        elif finish_reason is None and self._watch is not None and self._watch(text, token_ids):
            finish_reason = "stop"
        self.num_tokens += len(token_ids)
        self.finish_reason, self.stop_reason = finish_reason, stop_reason
        return TextDelta(
            index=self.index,
            text=text,
            token_ids=token_ids,
            logprobs=None if logprobs is None else logprobs[: len(token_ids)],
            token_starts=None if logprobs is None else self._starts(token_ids),
            prompt_logprobs=update.prompt_logprobs,
            finish_reason=finish_reason,
            stop_reason=stop_reason,
            num_cached_tokens=update.num_cached_tokens,
            queued_s=update.queued_s,
            error=update.error,
        )

    def _text(self, token_ids: list[int]) -> tuple[str, str | None, int]:
        """(new text, the stop string that ended it, tokens used)."""
        if self._detokenizer is None:
            return "", None, len(token_ids)
        if self._prompt_ids is None:
            delta = self._detokenizer.push(token_ids)
            return delta.text, delta.stopped, delta.num_tokens_used
        free = self._params.min_tokens - self.num_tokens
        text = self._detokenizer.push(token_ids[:free]).text
        self._prompt_ids = [*self._prompt_ids, *token_ids[:free]]
        if len(token_ids) < free:
            return text, None, len(token_ids)
        # Stop strings count from here on; a character that is not complete yet is handed over.
        self._detokenizer = self._new_detokenizer(self._prompt_ids, self._params.stop)
        self._prompt_ids = None
        delta = self._detokenizer.push(token_ids[free:])
        return text + delta.text, delta.stopped, free + delta.num_tokens_used

    def _starts(self, token_ids: list[int]) -> list[int]:
        starts: list[int] = []
        for token_id in token_ids:
            starts.append(self._num_chars)
            self._num_chars += num_chars(self._pieces[token_id])
        return starts

    def _new_detokenizer(self, prompt_ids: Sequence[int], stops: Sequence[str]) -> Detokenizer:
        params = self._params
        return Detokenizer(
            self._tokenizer,
            prompt_ids,
            stops,
            include_stop=params.include_stop_str_in_output,
            pieces=self._pieces,
        )
