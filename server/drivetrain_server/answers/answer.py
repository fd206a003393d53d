"""What an answer is made of, whichever route it goes out by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import orjson

from drivetrain.completion_text import TextDelta
from drivetrain.dialects.turn import Turns
from drivetrain.messages import FinishReasonName, TokenLogprob

DONE = b"data: [DONE]\n\n"


@dataclass(slots=True, kw_only=True)
class Answer:
    """One finished completion, gathered from its deltas."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list[int])
    logprobs: list[TokenLogprob] = field(default_factory=list[TokenLogprob])
    starts: list[int] = field(default_factory=list[int])
    finish_reason: FinishReasonName | None = None
    stop_reason: int | str | None = None

    def add(self, delta: TextDelta) -> None:
        """Take one more delta in."""
        self.text += delta.text
        self.token_ids += delta.token_ids
        self.logprobs += delta.logprobs or ()
        self.starts += delta.token_starts or ()
        self.finish_reason, self.stop_reason = delta.finish_reason, delta.stop_reason

    @property
    def mean_logprob(self) -> float:
        """Mean log-probability a token, by which `best_of` chooses; an empty answer comes last."""
        if not self.logprobs:
            return float("-inf")
        return sum(entry.logprob for entry in self.logprobs) / len(self.logprobs)


@dataclass(slots=True, kw_only=True)
class PromptRun:
    """One prompt of a request while it is answered.

    Attributes:
        text: the prompt as it is echoed; empty where it is not.
        turns: what reads its answers, and counts their reasoning; None where they are plain text.
        logprobs: of the prompt's tokens, once they came.
        awaits_logprobs: they were asked for, so no choice of this prompt is begun without them.
        queued_s: how long it waited in the engine.
        first_token_at: when its first token came, by `perf_counter`; None before.
        last_token_at: when its newest token came, once the answer is complete.
    """

    token_ids: list[int]
    text: str = ""
    turns: Turns | None = None
    awaits_logprobs: bool = False
    logprobs: list[TokenLogprob | None] | None = None
    num_cached_tokens: int = 0
    num_generated: int = 0
    queued_s: float = 0.0
    first_token_at: float | None = None
    last_token_at: float | None = None


def usage_of(prompts: Sequence[PromptRun]) -> dict[str, object]:
    """`usage` of an answer; what was generated for `best_of` and not returned counts too."""
    prompt_tokens = sum(len(prompt.token_ids) for prompt in prompts)
    completion_tokens = sum(prompt.num_generated for prompt in prompts)
    usage: dict[str, object] = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": sum(prompt.num_cached_tokens for prompt in prompts)},
    }
    if any(prompt.turns is not None for prompt in prompts):
        usage["completion_tokens_details"] = {"reasoning_tokens": reasoning_tokens(prompts)}
    return usage


def reasoning_tokens(prompts: Sequence[PromptRun]) -> int:
    """Generated tokens that were reasoning, so far as the answers have been read."""
    return sum(prompt.turns.num_reasoning_tokens for prompt in prompts if prompt.turns is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """The fields that every event and body of one answer repeats."""

    id: str
    created: int
    model: str
    fingerprint: str

    def fields(self, kind: str) -> dict[str, object]:
        """The fields, for an object of this kind."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }

    def event_head(self, kind: str) -> bytes:
        """An event up to the beginning of its `choices`."""
        return b"data: " + orjson.dumps(self.fields(kind))[:-1] + b',"choices":['

    def ending(self, kind: str, prompts: Sequence[PromptRun], *, usage_event: bool) -> bytes:
        """The end of a stream, behind an event that tells its usage if that was asked for."""
        if not usage_event:
            return DONE
        return self.event_head(kind) + b'],"usage":' + orjson.dumps(usage_of(prompts)) + b"}\n\n" + DONE


class AnswerShape(Protocol):
    """How answers of one route look."""

    def opening(self, choice: int, prompt: PromptRun, usage: bytes) -> bytes:
        """Events before the first token of a choice."""
        ...

    def chunk(self, choice: int, delta: TextDelta, usage: bytes) -> bytes:
        """Events of new text; empty where there is nothing to say yet. `usage` is spliced in as it is."""
        ...

    def splice(self, choice: int, usage: bytes) -> tuple[bytes, bytes] | None:
        """What stands before and after the JSON text in an event that tells new text of a choice and nothing else;
        None where the next text may have to look otherwise. Asked again after each `chunk`."""
        ...

    def ending(self, prompts: Sequence[PromptRun], *, usage_event: bool) -> bytes:
        """The end of a stream."""
        ...

    def whole(self, prompts: Sequence[PromptRun], answers: Sequence[Sequence[Answer]]) -> bytes:
        """The body of an answer that is not streamed; `answers` by prompt."""
        ...
